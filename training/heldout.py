"""Held-out figures with fixed noise and fixed sigmas, comparable from epoch to epoch and from run to run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from layers.dataset import BucketBatches
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


def _batches(data: LatentStacks, device: torch.device, batch_size: int = 16) -> Iterator[dict]:
    for indices in BucketBatches(data.keys, batch_size, fill="partial", shuffle=False):
        yield data.batch(indices, device)


def _fixed_noise(batch: dict) -> torch.Tensor:
    return start_noise(batch["id"], batch["latents"].shape[1:], NOISE_SEED).to(batch["latents"])


@torch.no_grad()
def held_out_velocity_error(network: VLDMMDiT, data: LatentStacks, device: torch.device) -> dict[str, float]:
    """Mean squared velocity error of composite and layers, over samples and at each of :data:`SIGMAS`."""
    sums: dict[str, float] = defaultdict(float)
    count = 0
    for batch in _batches(data, device):
        clean, noise = batch["latents"], _fixed_noise(batch)
        count += len(clean)
        for level in SIGMAS:
            sigma = torch.full((len(clean),), level, device=device)
            predicted = network(interpolate(clean, noise, sigma), clean[:, 0], sigma).float()
            errors = slot_errors(predicted, velocity(clean, noise))
            layers, composite = float(errors[:, 1:].mean(1).sum()), float(errors[:, 0].sum())
            sums[f"velocity_layers_sigma_{level}"] += layers
            sums["velocity_layers"] += layers / len(SIGMAS)
            sums["velocity_composite"] += composite / len(SIGMAS)
    return {name: value / count for name, value in sums.items()}


@torch.no_grad()
def held_out_terms(objective: RefineObjective, data: LatentStacks, device: torch.device) -> dict[str, float]:
    """Mean of every refinement term over samples and :data:`SIGMAS`."""
    sums: dict[str, float] = defaultdict(float)
    count = 0
    for batch in _batches(data, device):
        clean, noise = batch["latents"], _fixed_noise(batch)
        count += len(clean)
        for level in SIGMAS:
            sigma = torch.full((len(clean),), level, device=device)
            for name, value in objective.terms(clean, noise, sigma).items():
                sums[name] += float(value) * len(clean) / len(SIGMAS)
    return {name: value / count for name, value in sums.items()}


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
