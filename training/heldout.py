"""Held-out figures with fixed noise and fixed sigmas, comparable from epoch to epoch and from run to run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from layers.batches import BucketBatches
from layers.tensors import to_image
from layers.view import grid
from models.rgba_vae import RGBAVAE
from models.vld_mmdit import VLDMMDiT
from training.flow import interpolate, velocity
from training.flow_objective import RefineObjective
from training.latents import LatentStacks, decode_layers
from training.losses import slot_errors
from training.sampling import decompose_latents, start_noise

SIGMAS = (0.3, 0.6, 0.9)
NOISE_SEED = 12345
PREVIEW_SAMPLES = 6
PREVIEW_STEPS = 8


@torch.no_grad()
def _averages(
    data: LatentStacks,
    device: torch.device,
    measure: Callable[[Tensor, Tensor, float], Mapping[str, float]],
    batch_size: int = 16,
) -> dict[str, float]:
    """Means over samples of what ``measure(clean, noise, level)`` says of each batch, summed over :data:`SIGMAS`."""
    sums: dict[str, float] = defaultdict(float)
    for indices in BucketBatches(data.keys, batch_size, fill="partial", shuffle=False):
        batch = data.batch(indices, device)
        clean = batch["latents"]
        noise = start_noise(batch["id"], clean.shape[1:], NOISE_SEED).to(clean)
        for level in SIGMAS:
            for name, value in measure(clean, noise, level).items():
                sums[name] += value * len(clean)
    return {name: value / len(data.ids) for name, value in sums.items()}


def held_out_velocity_error(network: VLDMMDiT, data: LatentStacks, device: torch.device) -> dict[str, float]:
    """Mean squared velocity error of composite and layers, over samples and at each of :data:`SIGMAS`."""

    def measure(clean: Tensor, noise: Tensor, level: float) -> dict[str, float]:
        sigma = torch.full((len(clean),), level, device=device)
        predicted = network(interpolate(clean, noise, sigma), clean[:, 0], sigma).float()
        errors = slot_errors(predicted, velocity(clean, noise))
        layers = float(errors[:, 1:].mean())
        return {
            "velocity_layers": layers / len(SIGMAS),
            "velocity_composite": float(errors[:, 0].mean()) / len(SIGMAS),
            f"velocity_layers_sigma_{level}": layers,
        }

    return _averages(data, device, measure)


def held_out_terms(objective: RefineObjective, data: LatentStacks, device: torch.device) -> dict[str, float]:
    """Mean of every refinement term over samples and :data:`SIGMAS`."""

    def measure(clean: Tensor, noise: Tensor, level: float) -> dict[str, float]:
        terms = objective.terms(clean, noise, torch.full((len(clean),), level, device=device))
        return {name: float(value) / len(SIGMAS) for name, value in terms.items()}

    return _averages(data, device, measure)


@torch.no_grad()
def preview(network: VLDMMDiT, vae: RGBAVAE, data: LatentStacks, device: torch.device) -> np.ndarray:
    """The first held-out samples: input and true layers, below them the predicted ones; ``(H, W, 3)`` uint8."""
    rows = []
    for index in range(min(PREVIEW_SAMPLES, len(data.ids))):
        batch = data.batch([index], device)
        clean = batch["latents"]
        predicted = decompose_latents(
            network, clean[:, 0], clean.shape[1] - 1, batch["id"], steps=PREVIEW_STEPS, seed=NOISE_SEED
        )
        rows += [list(to_image(decode_layers(vae, stack)[0])) for stack in (clean, predicted)]
    return grid(rows)
