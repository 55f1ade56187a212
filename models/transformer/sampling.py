"""Sampler of layer stacks from a trained network, shared by preview, evaluation and inference."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.transformer.flow import inference_sigmas, sample
from models.transformer.vld_mmdit import Text, VLDMMDiT, pack, unpack
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import decode_layers


def start_noise(ids: Sequence[str], shape: Sequence[int], seed: int) -> Tensor:
    """Start noise ``(B, *shape)`` on the CPU; a sample's noise depends only on (seed, id), not on batch or device."""
    draws = []
    for name in ids:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        draws.append(torch.randn(*shape, generator=generator))
    return torch.stack(draws)


def slots_noise(condition: Tensor, layer_count: int, ids: Sequence[str], seed: int) -> Tensor:
    """Start noise ``(B, L + 1, C, h, w)`` of all slots, for flat images' latents ``(B, C, h, w)`` named ``ids``."""
    return start_noise(ids, (layer_count + 1, *condition.shape[1:]), seed)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance by the caption, as in the released pipeline.

    Attributes:
        scale: ``true_cfg_scale``, above 1; the condition image stays in both branches.
        negative: text of the negative branch, one row per sample.
        normalise: ``cfg_normalize``: each token keeps the norm that it has without guidance.
    """

    scale: float
    negative: Text
    normalise: bool = False


def guided_velocity(positive: Tensor, negative: Tensor, scale: float, normalise: bool) -> Tensor:
    """Guided velocity, away from the negative branch (Ho and Salimans 2022, eq. 6), of tokens ``(..., features)``."""
    guided = negative + scale * (positive - negative)
    if normalise:
        guided = guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
    return guided


@torch.no_grad()
def decompose_latents(
    network: VLDMMDiT,
    condition: Tensor,
    noise: Tensor,
    *,
    steps: int,
    shift: float | None = None,
    text: Text | None = None,
    guidance: Guidance | None = None,
) -> Tensor:
    """Sample all slots given the flat image's normalised latents.

    Args:
        network: predicts velocities.
        condition: ``(B, C, h, w)``.
        noise: start noise ``(B, L + 1, C, h, w)``, see :func:`slots_noise`.
        steps: steps of the Euler sampler.
        shift: linear time shift of the sigmas; ``None`` for the released pipeline's.
        text: captions, one row per sample.
        guidance: guidance by the caption; ``None`` for none.

    Returns:
        ``(B, L + 1, C, h, w)``: slot 0 is the generated composite, then layers bottom to top.
    """
    size = tuple(condition.shape[-2:])

    def predict(latents: Tensor, sigma: Tensor) -> Tensor:
        positive = network(latents, condition, sigma, text)
        if guidance is None:
            return positive
        negative = network(latents, condition, sigma, guidance.negative)
        tokens = (pack(branch, network.patch_size) for branch in (positive, negative))
        guided = guided_velocity(*tokens, guidance.scale, guidance.normalise)
        return unpack(guided, noise.shape[1], size, network.patch_size)

    sigmas = inference_sigmas(steps, network.condition_tokens(size), shift)
    return sample(predict, noise.to(condition), sigmas)


@torch.no_grad()
def decompose_images(
    network: VLDMMDiT,
    vae: RGBAVAE,
    condition: Tensor,
    noise: Tensor,
    *,
    steps: int,
    shift: float | None = None,
    text: Text | None = None,
    guidance: Guidance | None = None,
) -> Tensor:
    """Decompose images into ``(B, L, 4, H, W)`` layers, bottom to top, in [-1, 1].

    ``condition`` are the images' latents, see :func:`models.vae.latents.encode_images`. Latents between steps are
    float32, whatever the network computes in. The other arguments are those of :func:`decompose_latents`.
    """
    latents = decompose_latents(network, condition, noise, steps=steps, shift=shift, text=text, guidance=guidance)
    return decode_layers(vae, latents[:, 1:])
