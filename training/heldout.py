"""Held-out figures with fixed noise and fixed sigmas, comparable from epoch to epoch and from run to run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layers.batches import BucketBatches
from layers.dataset import StackDataset
from layers.tensors import to_image
from layers.view import grid
from metrics.stack_scores import aggregate, score_sample
from models.rgba_vae import RGBAVAE
from models.vld_mmdit import VLDMMDiT
from training.captions import Captions, caption_text
from training.flow import interpolate, velocity
from training.latents import LatentStacks, decode_layers
from training.losses import slot_errors
from training.sampling import decompose_latents, start_noise

SIGMAS = (0.3, 0.6, 0.9)
NOISE_SEED = 12345
PREVIEW_SAMPLES = 6
PREVIEW_STEPS = 8


@torch.no_grad()
def averages(
    data: LatentStacks,
    device: torch.device,
    measure: Callable[[Mapping[str, Any], Tensor, float], Mapping[str, Tensor]],
    batch_size: int = 16,
) -> dict[str, float]:
    """Means over samples and :data:`SIGMAS` of what ``measure(batch, noise, level)`` says of each batch.

    A term that only some samples have, such as of an upper layer, is the mean over those.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for indices in BucketBatches(data.keys, batch_size, fill="partial", shuffle=False):
        batch = data.batch(indices, device)
        noise = start_noise(batch["id"], batch["latents"].shape[1:], NOISE_SEED).to(batch["latents"])
        for level in SIGMAS:
            for name, value in measure(batch, noise, level).items():
                sums[name] += float(value) * len(indices)
                counts[name] += len(indices)
    return {name: value / counts[name] for name, value in sums.items()}


def held_out_velocity_error(
    network: VLDMMDiT, data: LatentStacks, device: torch.device, captions: Captions | None = None
) -> dict[str, float]:
    """Mean squared velocity error of composite, of layers, of each layer, and of layers at each of :data:`SIGMAS`."""

    def measure(batch: Mapping[str, Any], noise: Tensor, level: float) -> dict[str, Tensor]:
        clean = batch["latents"]
        sigma = torch.full((len(clean),), level, device=device)
        noisy = interpolate(clean, noise, sigma)
        predicted = network(noisy, clean[:, 0], sigma, caption_text(captions, batch, device)).float()
        errors = slot_errors(predicted, velocity(clean, noise))
        layers = errors[:, 1:].mean()
        return {
            "velocity_layers": layers,
            "velocity_composite": errors[:, 0].mean(),
            f"velocity_layers_sigma_{level}": layers,
            **{f"velocity_layer_{layer}": column.mean() for layer, column in enumerate(errors[:, 1:].unbind(1), 1)},
        }

    return averages(data, device, measure)


@torch.no_grad()
def sampled_scores(
    network: VLDMMDiT,
    vae: RGBAVAE,
    data: LatentStacks,
    truth: StackDataset,
    device: torch.device,
    captions: Captions | None = None,
    *,
    samples: int,
    steps: int,
    shift: float | None = None,
    batch_size: int = 16,
) -> dict[str, float]:
    """Decompose held-out pictures from fixed noise and score their layers by the protocol at 0 merges.

    Args:
        network: predicts velocities.
        vae: decodes.
        data: latents of the split.
        truth: its pictures.
        device: of the networks.
        captions: of a network with text.
        samples: so many, from the split's first on; 0 for none.
        steps: of the Euler sampler.
        shift: of its sigmas, see :func:`training.sampling.decompose_latents`.
        batch_size: pictures at once.

    Returns:
        ``rgb_l1``, ``alpha_iou`` and ``cost`` (docs/evaluation.md); nothing if ``samples`` is 0.
    """
    places = {truth.name(index): index for index in range(len(truth))} if samples else {}
    rows = []
    for indices in BucketBatches(data.keys[:samples], batch_size, fill="partial", shuffle=False):
        batch = data.batch(indices, device)
        clean, text = batch["latents"], caption_text(captions, batch, device)
        found = decompose_latents(
            network, clean[:, 0], clean.shape[1] - 1, batch["id"], steps=steps, seed=NOISE_SEED, shift=shift, text=text
        )
        stacks = to_image(decode_layers(vae, found[:, 1:].float()))
        rows += [
            score_sample(list(stack), list(to_image(truth[places[name]]["layers"])), 0)
            for name, stack in zip(batch["id"], stacks, strict=True)
        ]
    if not rows:
        return {}
    mean = aggregate(rows)[0]
    return {"rgb_l1": mean.rgb_l1, "alpha_iou": mean.alpha_iou, "cost": mean.cost}


@torch.no_grad()
def preview(
    network: VLDMMDiT, vae: RGBAVAE, data: LatentStacks, device: torch.device, captions: Captions | None = None
) -> np.ndarray:
    """The first held-out samples: input and true layers, below them the predicted ones; ``(H, W, 3)`` uint8."""
    rows = []
    for index in range(min(PREVIEW_SAMPLES, len(data.ids))):
        batch = data.batch([index], device)
        clean, text = batch["latents"], caption_text(captions, batch, device)
        predicted = decompose_latents(
            network, clean[:, 0], clean.shape[1] - 1, batch["id"], steps=PREVIEW_STEPS, seed=NOISE_SEED, text=text
        )
        rows += [list(to_image(decode_layers(vae, stack)[0])) for stack in (clean, predicted)]
    return grid(rows)
