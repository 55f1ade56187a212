"""Validation of the RGBA-VAE's reconstructions, after every epoch and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from layers.dataset.batches import whole_pass
from layers.dataset.loaders import StackDataset
from layers.imaging.tensors import to_image
from layers.imaging.view import grid
from metrics.reconstruction.perceptual import Perceptual
from metrics.reconstruction.rgba import mean_metrics, reconstruction_metrics
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import at_once, stacks_at_once
from models.vae.opaque import OpaqueVAE, as_rgba
from training.engine.processes import shared_out
from training.vae.statistics import LatentMoments

GRID_SAMPLES = 8
STACKS_AT_ONCE = 4


@dataclass(frozen=True)
class Part:
    """Results of one batch: rows of metrics of composites and of layers, and sums over the latents."""

    flat: list[dict[str, float]]
    layers: list[dict[str, float]]
    moments: LatentMoments
    noise: Tensor
    images: int


@torch.no_grad()
def measure_stacks(
    network: RGBAVAE | OpaqueVAE, dataset: StackDataset, indices: Sequence[int], perceptual: Perceptual
) -> Part:
    """Reconstruct stacks of one size and measure them, in batches that fit in memory.

    Args:
        network: the VAE, in evaluation mode.
        dataset: has ``composite`` ``(4, H, W)`` and ``layers`` ``(L, 4, H, W)`` at each index.
        indices: indices of the stacks.
        perceptual: LPIPS, on the network's device.
    """
    items = [dataset[index] for index in indices]
    images = torch.stack([item["composite"] for item in items])
    if network.config.input_channels == 4:
        images = torch.cat([images, *(item["layers"] for item in items)])
    flat, layers, moments = [], [], LatentMoments(network.config.z_dim)
    noise = torch.zeros(network.config.z_dim)
    device = next(network.parameters()).device
    for part in images.split(at_once(images.shape[-2] * images.shape[-1])):
        part = part.to(device)
        posterior = network.encode(part)
        moments.add(posterior.mean)
        noise = noise + (0.5 * posterior.logvar).exp().mean((2, 3)).sum(0).cpu()
        rows = reconstruction_metrics(network.decode(posterior.mode()), part, distance=perceptual)
        room = max(0, len(items) - len(flat))
        flat, layers = flat + rows[:room], layers + rows[room:]
    return Part(flat, layers, moments, noise, len(images))


def validate(vae: RGBAVAE, dataset: StackDataset, perceptual: Perceptual, accelerator: Accelerator) -> dict[str, float]:
    """Mean metrics over a split, for composites and for layers; every process measures its part.

    Args:
        vae: the network, in evaluation mode.
        dataset: the split.
        perceptual: LPIPS, on the network's device.
        accelerator: the processes.

    Returns:
        For composites ``psnr_white``, and over the nine backgrounds of AlphaVAE ``psnr``, ``ssim``, ``lpips``. For
        layers the same with the prefix ``layer_``, and ``alpha_l1`` if the network has alpha. For the latents
        ``latent_std_least`` and ``latent_std_most`` over channels, ``latent_mean_most`` (largest absolute mean in
        deviations) and ``posterior_std`` (mean noise of the posterior in deviations of the latents).
    """
    network = as_rgba(vae)
    batches = whole_pass(dataset.keys, lambda key: stacks_at_once(key, STACKS_AT_ONCE))
    parts = shared_out(batches, lambda indices: measure_stacks(network, dataset, indices, perceptual), accelerator)
    moments, noise = LatentMoments(vae.config.z_dim), torch.zeros(vae.config.z_dim)
    for part in parts:
        moments.merge(part.moments)
        noise = noise + part.noise
    flat = mean_metrics([row for part in parts for row in part.flat])
    rows = [row for part in parts for row in part.layers]
    single = mean_metrics(rows) if rows else {}
    mean, std = moments.result()
    del flat["alpha_l1"]
    return {
        **flat,
        **{name if name == "alpha_l1" else f"layer_{name}": value for name, value in single.items()},
        "latent_std_least": float(std.min()),
        "latent_std_most": float(std.max()),
        "latent_mean_most": float((mean / std).abs().max()),
        "posterior_std": float((noise / sum(part.images for part in parts) / std).mean()),
    }


@torch.no_grad()
def reconstruction_grid(vae: RGBAVAE, dataset: StackDataset, device: torch.device) -> np.ndarray:
    """Grid with rows of composite, its reconstruction, top layer, its reconstruction; ``(H, W, 3)`` uint8."""
    rows = []
    for index in range(min(GRID_SAMPLES, len(dataset))):
        item = dataset[index]
        images = torch.stack([item["composite"], item["layers"][-1]]).to(device)
        true, ours = to_image(images), to_image(as_rgba(vae)(images))
        rows.append([true[0], ours[0], true[1], ours[1]])
    return grid(rows, scale=2)
