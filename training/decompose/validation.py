"""Validation metrics with fixed noise and fixed sigmas, comparable between epochs and between runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from layers.dataset.batches import whole_pass
from layers.dataset.loaders import StackDataset
from layers.imaging.tensors import to_image
from layers.imaging.view import grid
from metrics.decomposition.scores import MergeLevel, aggregate, score_sample
from models.transformer.flow import interpolate, velocity
from models.transformer.sampling import decompose_latents, start_noise
from models.transformer.vld_mmdit import VLDMMDiT
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import STACKS_AT_ONCE, decode_layers, stacks_at_once
from training.decompose.captions import Captions, caption_text
from training.decompose.latents import LatentStacks
from training.engine.processes import shared_out
from training.losses import slot_errors

SIGMAS = (0.3, 0.6, 0.9)
NOISE_SEED = 12345
PREVIEW_SAMPLES = 6
PREVIEW_STEPS = 8


Measure = Callable[[Mapping[str, Any], Tensor, float], Mapping[str, Tensor]]


@torch.no_grad()
def averages(data: LatentStacks, measure: Measure, accelerator: Accelerator) -> dict[str, float]:
    """Means of ``measure(batch, noise, level)`` over samples and :data:`SIGMAS`; processes share the batches.

    A term that only some samples have, such as that of an upper layer, is the mean over those.
    """

    def of_batch(indices: list[int]) -> list[dict[str, float]]:
        batch = data.batch(indices, accelerator.device)
        noise = start_noise(batch["id"], batch["latents"].shape[1:], NOISE_SEED).to(batch["latents"])
        found = []
        for level in SIGMAS:
            terms = measure(batch, noise, level)
            found.append(dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True)))
        return found

    batches = _batches(data.keys)
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for indices, levels in zip(batches, shared_out(batches, of_batch, accelerator), strict=True):
        for name, value in chain.from_iterable(level.items() for level in levels):
            sums[name] += value * len(indices)
            counts[name] += len(indices)
    return {name: value / counts[name] for name, value in sums.items()}


def _batches(keys: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    return whole_pass(keys, lambda key: stacks_at_once(key, STACKS_AT_ONCE))


def held_out_velocity_error(
    network: VLDMMDiT, data: LatentStacks, accelerator: Accelerator, captions: Captions | None = None
) -> dict[str, float]:
    """Mean squared velocity error of composite, of layers, of each layer, and of layers at each of :data:`SIGMAS`."""

    def measure(batch: Mapping[str, Any], noise: Tensor, level: float) -> dict[str, Tensor]:
        clean = batch["latents"]
        sigma = torch.full((len(clean),), level, device=clean.device)
        noisy = interpolate(clean, noise, sigma)
        predicted = network(noisy, clean[:, 0], sigma, caption_text(captions, batch, clean.device))
        errors = slot_errors(predicted, velocity(clean, noise))
        layers = errors[:, 1:].mean()
        return {
            "velocity_layers": layers,
            "velocity_composite": errors[:, 0].mean(),
            f"velocity_layers_sigma_{level}": layers,
            **{f"velocity_layer_{layer}": column.mean() for layer, column in enumerate(errors[:, 1:].unbind(1), 1)},
        }

    return averages(data, measure, accelerator)


@torch.no_grad()
def sampled_scores(
    network: VLDMMDiT,
    vae: RGBAVAE,
    data: LatentStacks,
    truth: StackDataset,
    accelerator: Accelerator,
    *,
    captions: Captions | None = None,
    samples: int,
    steps: int,
    shift: float | None = None,
) -> dict[str, float]:
    """Decompose validation images from fixed noise and score their layers by the protocol at 0 merges.

    Args:
        network: predicts velocities.
        vae: decodes the predicted latents.
        data: latents of the split.
        truth: images of the split.
        accelerator: device of the networks, and processes, which share the work.
        captions: token states of captions, for a network with text.
        samples: number of samples, from the first of the split; 0 for none.
        steps: steps of the Euler sampler.
        shift: shift of its sigmas, see :func:`models.transformer.sampling.decompose_latents`.

    Returns:
        ``rgb_l1``, ``alpha_iou`` and ``cost`` (docs/evaluation.md); nothing if ``samples`` is 0.
    """

    def scores(indices: list[int]) -> list[list[MergeLevel]]:
        batch = data.batch(indices, accelerator.device)
        clean, text = batch["latents"], caption_text(captions, batch, accelerator.device)
        noise = start_noise(batch["id"], clean.shape[1:], NOISE_SEED)
        found = decompose_latents(network, clean[:, 0], noise, steps=steps, shift=shift, text=text)
        stacks = to_image(decode_layers(vae, found[:, 1:]))
        return [
            score_sample(list(stack), list(to_image(truth[data.numbers[index]]["layers"])), 0)
            for index, stack in zip(indices, stacks, strict=True)
        ]

    if not samples:
        return {}
    batches = _batches(data.keys[:samples])
    mean = aggregate(list(chain.from_iterable(shared_out(batches, scores, accelerator))))[0]
    return {"rgb_l1": mean.rgb_l1, "alpha_iou": mean.alpha_iou, "cost": mean.cost}


@torch.no_grad()
def preview(
    network: VLDMMDiT,
    vae: RGBAVAE,
    data: LatentStacks,
    accelerator: Accelerator,
    captions: Captions | None = None,
) -> np.ndarray:
    """Preview of the first validation samples: input and true layers above predicted ones; ``(H, W, 3)`` uint8."""

    def rows_of(index: int) -> list[list[np.ndarray]]:
        batch = data.batch([index], accelerator.device)
        clean, text = batch["latents"], caption_text(captions, batch, accelerator.device)
        noise = start_noise(batch["id"], clean.shape[1:], NOISE_SEED)
        predicted = decompose_latents(network, clean[:, 0], noise, steps=PREVIEW_STEPS, text=text)
        return [list(to_image(decode_layers(vae, stack)[0])) for stack in (clean, predicted)]

    first = range(min(PREVIEW_SAMPLES, len(data.ids)))
    return grid(list(chain.from_iterable(shared_out(first, rows_of, accelerator))))
