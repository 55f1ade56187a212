"""Latent statistics of a VAE: mean and standard deviation per channel, by which latents are normalised."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.vae.autoencoder import RGBAVAE
from models.vae.latents import at_once


class LatentMoments:
    """Mean and standard deviation of latents per channel, accumulated over batches."""

    def __init__(self, channels: int) -> None:
        # On the CPU, since not every accelerator has double precision.
        self.count, self.total, self.square = 0, *torch.zeros(2, channels, dtype=torch.float64)

    def add(self, latents: Tensor) -> LatentMoments:
        """Add latents ``(B, C, h, w)``; return self."""
        rows = latents.detach().cpu().double().transpose(0, 1).flatten(1)
        self.count += rows.shape[1]
        self.total, self.square = self.total + rows.sum(1), self.square + rows.square().sum(1)
        return self

    def merge(self, others: LatentMoments) -> None:
        """Add the moments that another instance has accumulated."""
        self.count += others.count
        self.total, self.square = self.total + others.total, self.square + others.square

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(C,)``."""
        mean = self.total / self.count
        return mean, (self.square / self.count - mean.square()).clamp(min=1e-12).sqrt()


@torch.no_grad()
def latent_statistics(vae: RGBAVAE, batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of posterior modes per channel over ``(B, 4, H, W)`` images."""
    moments = LatentMoments(vae.config.z_dim)
    for images in batches:
        for part in images.split(at_once(images.shape[-2] * images.shape[-1])):
            moments.add(vae.encode(part).mode())
    mean, std = moments.result()
    return mean.tolist(), std.tolist()
