"""Latents of the RGBA-VAE: encoding and decoding images and layer stacks, in batches that fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from models.vae.autoencoder import RGBAVAE

STACKS_AT_ONCE = 16


# Ten images of 640x640. Qwen-Image's VAE takes 1.9 GiB per million pixels in float32, so less than 8 GiB.
PIXELS_AT_ONCE = 2**22


def at_once(pixels: int) -> int:
    """Batch size without gradients for images, or stacks, of ``pixels`` pixels each."""
    return max(1, PIXELS_AT_ONCE // pixels)


def stacks_at_once(key: tuple[int, int, int], most: int) -> int:
    """Batch size without gradients for stacks of a bucket (H, W, L), composite included; at most ``most``."""
    height, width, layers = key
    return min(most, at_once(height * width * (layers + 1)))


@torch.no_grad()
def encode_images(vae: RGBAVAE, images: Tensor) -> Tensor:
    """Normalised posterior modes ``(B, C, h, w)`` of images ``(B, 4, H, W)`` in [-1, 1]."""
    parts = images.split(at_once(images.shape[-2] * images.shape[-1]))
    return torch.cat([vae.normalise(vae.encode(part).mode()) for part in parts])


@torch.no_grad()
def encode_stack(vae: RGBAVAE, composite: Tensor, layers: Tensor) -> Tensor:
    """Normalised posterior modes of a batch of stacks.

    Args:
        vae: the network.
        composite: ``(B, 4, H, W)`` in [-1, 1].
        layers: ``(B, L, 4, H, W)``, bottom to top.

    Returns:
        ``(B, L + 1, C, h, w)``, slot 0 the composite, which is also the condition.
    """
    slots = torch.cat([composite[:, None], layers], dim=1)
    return encode_images(vae, slots.flatten(0, 1)).unflatten(0, slots.shape[:2])


@torch.no_grad()
def decode_layers(vae: RGBAVAE, latents: Tensor) -> Tensor:
    """Decode normalised latents ``(B, L, C, h, w)`` to ``(B, L, 4, H, W)`` in [-1, 1]."""
    flat = latents.flatten(0, 1)
    parts = flat.split(at_once(flat.shape[-2] * flat.shape[-1] * vae.spatial_factor**2))
    decoded = torch.cat([vae.decode(vae.denormalise(part), clamp=True) for part in parts])
    return decoded.unflatten(0, latents.shape[:2])


@torch.no_grad()
def empty_latents(vae: RGBAVAE, size: tuple[int, int]) -> Tensor:
    """Normalised latents ``(C, h, w)`` of a fully transparent image, ``size`` being (h, w)."""
    sides = [side * vae.spatial_factor for side in size]
    image = torch.full((1, 4, *sides), -1.0, device=vae.latents_mean.device)
    return encode_images(vae, image)[0]
