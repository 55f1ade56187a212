"""Decomposing pictures with a trained network: the same code for preview, evaluation and inference."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from models.rgba_vae import RGBAVAE
from models.vld_mmdit import VLDMMDiT
from training.flow import inference_sigmas, sample
from training.latents import decode_layers


def start_noise(ids: Sequence[str], shape: Sequence[int], seed: int) -> Tensor:
    """Start noise ``(B, *shape)`` on the CPU; a sample's noise depends on (seed, id), never on its batch or device."""
    draws = []
    for name in ids:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        draws.append(torch.randn(*shape, generator=generator))
    return torch.stack(draws)


@torch.no_grad()
def decompose_latents(
    network: VLDMMDiT, condition: Tensor, layer_count: int, ids: Sequence[str], *, steps: int, seed: int
) -> Tensor:
    """Sample all slots given the flat picture's normalised latents.

    Args:
        network: predicts velocities.
        condition: ``(B, C, h, w)``.
        layer_count: L.
        ids: names of the samples, for their noise.
        steps: of the Euler sampler.
        seed: of the start noise.

    Returns:
        ``(B, L + 1, C, h, w)``, slot 0 the repainted composite, then layers bottom to top.
    """
    noise = start_noise(ids, (layer_count + 1, *condition.shape[1:]), seed).to(condition)
    sigmas = inference_sigmas(steps, network.condition_tokens(tuple(condition.shape[-2:])))
    return sample(lambda latents, sigma: network(latents, condition, sigma), noise, sigmas)


@torch.no_grad()
def decompose_pictures(
    network: VLDMMDiT,
    vae: RGBAVAE,
    pictures: Tensor,
    layer_count: int,
    ids: Sequence[str],
    *,
    steps: int,
    seed: int,
) -> Tensor:
    """Decompose ``(B, 4, H, W)`` pictures in [-1, 1] into ``(B, L, 4, H, W)`` layers, bottom to top, in [-1, 1]."""
    condition = vae.normalise(vae.encode(pictures).mode())
    latents = decompose_latents(network, condition, layer_count, ids, steps=steps, seed=seed)
    return decode_layers(vae, latents[:, 1:])
