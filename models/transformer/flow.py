"""Rectified flow in the diffusers convention.

    x_sigma = (1 - sigma) x_0 + sigma noise,    v = noise - x_0,    sigma = 1 is noise.

The paper (sec. 3.2) has t = 1 - sigma and v = x_0 - x_1, of opposite sign. Training, preview, evaluation and inference
use the same functions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

# A condition image of 256 x 256 pixels has 256 tokens of 16 x 16 pixels; `mu` of the released pipeline.
REFERENCE_TOKENS = 256


def _spread(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def interpolate(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Noisy latents x_sigma of ``(B, ...)`` latents for sigmas ``(B,)`` in [0, 1]."""
    s = _spread(sigma, clean)
    return (1.0 - s) * clean + s * noise


def velocity(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Velocity target d x_sigma / d sigma."""
    return noise - clean


def predict_clean(noisy: torch.Tensor, predicted_velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """One-step estimate of the clean latents: x_0 = x_sigma - sigma v."""
    return noisy - _spread(sigma, noisy) * predicted_velocity


def shift_sigmas(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Linear time shift sigma' = s / (s + 1/sigma - 1); s > 1 moves mass towards noise, 1 is the identity."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def draw_sigmas(
    count: int,
    *,
    density: str,
    mean: float,
    std: float,
    stratified: bool,
    shift: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Draw training sigmas ``(count,)`` in (0, 1), then shift them.

    Args:
        count: number of sigmas.
        density: ``logit_normal`` (sigma = sigmoid(mean + std n), paper sec. 3.2) or ``uniform``.
        mean: mean of logit(sigma); unused by ``uniform``.
        std: standard deviation of logit(sigma); unused by ``uniform``.
        stratified: one draw from each of ``count`` equally likely parts of the density, in random order: the same
            density, with less variance in the loss of a batch.
        shift: see :func:`shift_sigmas`.
        generator: random generator; the global one if ``None``.
        device: device of the result.
    """
    uniform = torch.rand(count, generator=generator, device=device)
    if stratified:
        uniform = (torch.randperm(count, generator=generator, device=device) + uniform) / count
    if density == "logit_normal":
        # A uniform draw of exactly 0 or 1 would map to infinity.
        sigma = torch.sigmoid(mean + std * torch.special.ndtri(uniform.clamp(1e-6, 1.0 - 1e-6)))
    elif density == "uniform":
        sigma = uniform
    else:
        raise ValueError(f"unknown timestep density {density!r}, expected logit_normal or uniform")
    return shift_sigmas(sigma, shift)


def inference_shift(condition_tokens: int) -> float:
    """Linear time shift of the released pipeline: mu = sqrt(condition tokens / 256)."""
    return math.sqrt(condition_tokens / REFERENCE_TOKENS)


def inference_sigmas(steps: int, condition_tokens: int, shift: float | None = None) -> list[float]:
    """Sigmas of a sampler from 1 to 0, ``steps + 1`` values; ``None`` shifts as the released pipeline does."""
    shift = inference_shift(condition_tokens) if shift is None else shift
    return [*shift_sigmas(torch.linspace(1.0, 0.0, steps + 1)[:-1], shift).tolist(), 0.0]


@torch.no_grad()
def sample(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], noise: torch.Tensor, sigmas: list[float]
) -> torch.Tensor:
    """Integrate from noise to clean latents with Euler steps.

    Args:
        predict: maps (latents ``(B, ...)``, sigma ``(B,)``) to velocity.
        noise: start noise ``(B, ...)``.
        sigmas: descending sigmas from :func:`inference_sigmas`.
    """
    latents = noise
    for now, then in itertools.pairwise(sigmas):
        sigma = torch.full((latents.shape[0],), now, device=latents.device, dtype=latents.dtype)
        latents = latents + (then - now) * predict(latents, sigma)
    return latents
