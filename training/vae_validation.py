"""How well the RGBA-VAE does on held-out pictures, after every epoch and at the end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from layers.batches import BucketBatches
from layers.dataset import StackDataset
from layers.tensors import to_image
from layers.view import grid
from metrics.perceptual import Perceptual
from metrics.rgba_scores import mean_metrics, reconstruction_metrics
from models.opaque_vae import as_rgba
from models.rgba_vae import RGBAVAE
from training.latents import LatentMoments

GRID_SAMPLES = 8
STACKS_AT_ONCE = 4


def _batches(dataset: StackDataset, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """All pictures of a split: composites first, then their layers, and how many are composites."""
    for indices in BucketBatches(dataset.keys, STACKS_AT_ONCE, fill="partial", shuffle=False):
        items = [dataset[index] for index in indices]
        composites = torch.stack([item["composite"] for item in items])
        yield torch.cat([composites, *(item["layers"] for item in items)]).to(device), len(items)


@torch.no_grad()
def validate(vae: RGBAVAE, dataset: StackDataset, perceptual: Perceptual, device: torch.device) -> dict[str, float]:
    """Mean metrics over a split, composites and layers apart.

    Args:
        vae: the network, in evaluation mode.
        dataset: the split.
        perceptual: LPIPS.
        device: where everything runs.

    Returns:
        Of composites ``psnr_white``, and over the nine backgrounds of AlphaVAE ``psnr``, ``ssim``, ``lpips``; of layers
        the same with the prefix ``layer_``, and ``alpha_l1``, if the network has alpha; of the latents
        ``latent_std_least`` and ``latent_std_most`` over channels, ``latent_mean_most`` (largest absolute mean in
        deviations) and ``posterior_std`` (mean noise of the posterior in deviations of the latents).
    """
    network, transparent = as_rgba(vae), vae.config.input_channels == 4
    flat_rows, layer_rows = [], []
    moments = LatentMoments(vae.config.z_dim)
    noise, pictures = torch.zeros(vae.config.z_dim, device=device), 0
    for images, composites in _batches(dataset, device):
        if not transparent:
            images = images[:composites]
        posterior = network.encode(images)
        moments.add(posterior.mean)
        noise, pictures = noise + (0.5 * posterior.logvar).exp().mean((2, 3)).sum(0), pictures + len(images)
        rows = reconstruction_metrics(network.decode(posterior.mode()).float(), images, distance=perceptual)
        flat_rows, layer_rows = flat_rows + rows[:composites], layer_rows + rows[composites:]
    flat, single = mean_metrics(flat_rows), mean_metrics(layer_rows) if transparent else {}
    mean, std = moments.result()
    del flat["alpha_l1"]
    return {
        **flat,
        **{name if name == "alpha_l1" else f"layer_{name}": value for name, value in single.items()},
        "latent_std_least": float(std.min()),
        "latent_std_most": float(std.max()),
        "latent_mean_most": float((mean / std).abs().max()),
        "posterior_std": float((noise.cpu() / pictures / std).mean()),
    }


@torch.no_grad()
def reconstruction_grid(vae: RGBAVAE, dataset: StackDataset, device: torch.device) -> np.ndarray:
    """Rows of composite, its reconstruction, top layer, its reconstruction; ``(H, W, 3)`` uint8."""
    rows = []
    for index in range(min(GRID_SAMPLES, len(dataset))):
        item = dataset[index]
        images = torch.stack([item["composite"], item["layers"][-1]]).to(device)
        true, ours = to_image(images), to_image(as_rgba(vae)(images))
        rows.append([true[0], ours[0], true[1], ours[1]])
    return grid(rows, scale=2)
