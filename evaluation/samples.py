"""Scores of single samples: images are decomposed in batches, measured, and released at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from config.evaluate import AS_PREDICTED, CEILING, MODEL, NOTHING, TOLD, Evaluate
from config.paths import in_project
from evaluation.designs import EvaluationSample
from inference.decomposer import Decomposer
from inference.images import stacks_of
from inference.restore import restore
from inference.sizes import at_scored_size, shown_to_model
from layers.imaging.codec import write_png
from layers.imaging.compositing import composite_8bit
from layers.imaging.tensors import to_image, to_tensor
from metrics.decomposition.alignment import composite_peels
from metrics.decomposition.folders import read_stack
from metrics.decomposition.scores import MergeLevel, score_sample
from metrics.decomposition.structure import Structure, stack_structure
from metrics.editability.scores import edit_scores
from metrics.reconstruction.rgba import Distance, reconstruction_metrics
from models.vae.latents import at_once

WHITE = ("white",)
NO_MODELS: Mapping[str, Decomposer] = MappingProxyType({})


@dataclass(frozen=True)
class Decomposed:
    """Images of one sample, ``(H, W, 4)`` uint8 at the scored size, stacks bottom to top.

    Attributes:
        sample: input and true layers.
        predicted: the model's layers, restored if the settings say so.
        as_predicted: the model's layers before that.
        peels: the true layers, grouped as for the metric and the model: those that do not overlap are merged.
        ceiling: upper bound, the peels through the VAE, restored likewise.
        through_vae: the peels, encoded and decoded.
        seconds: wall time of the model for this image, an equal share of the batch's.
        beside: layers of the other rows by name: baselines, this model with the caption if there is one, and as
            predicted.
    """

    sample: EvaluationSample
    predicted: list[np.ndarray]
    as_predicted: list[np.ndarray]
    peels: list[np.ndarray]
    ceiling: list[np.ndarray]
    through_vae: list[np.ndarray]
    seconds: float
    beside: dict[str, list[np.ndarray]]

    @property
    def recomposition(self) -> np.ndarray:
        """Composite of the layers as predicted; restored ones would always flatten to the input."""
        return composite_8bit(self.as_predicted)


@dataclass(frozen=True)
class Measured:
    """Scores of one sample.

    Attributes:
        sample_id: its name.
        bucket: size of the model's input, such as ``96x64``.
        peels: of the true stack.
        levels: scores of each row of the report, one entry a merge level.
        missing: reason for each row that lacks the sample.
        structure: of the model's layers.
        recomposition: the model's layers flattened, against the input over white.
        vae_layers: reconstruction of each true peel over nine backgrounds.
        seconds: of the model.
        stratum: part of the set that it belongs to; may be empty.
        edits: of the model, its bounds and its baselines, see :func:`metrics.editability.scores.edit_scores`.
    """

    sample_id: str
    bucket: str
    peels: int
    levels: dict[str, list[MergeLevel]]
    missing: dict[str, str]
    structure: Structure
    recomposition: dict[str, float]
    vae_layers: list[dict[str, float]]
    seconds: float
    stratum: str = ""
    edits: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def predicted_layers(
    model: Decomposer, samples: Sequence[EvaluationSample], settings: Evaluate, told: bool
) -> list[list[np.ndarray]]:
    """Layers that a model predicts for a batch, with or without captions, as in ``decompose`` before refinement.

    Args:
        model: the networks.
        samples: of one size and one number of layers.
        settings: as they hold for this model.
        told: whether the model is given the captions; without them there is no guidance either.
    """
    captions = [sample.caption for sample in samples] if told else None
    effort = {"steps": settings.steps, "tries": settings.tries, "seed": settings.seed}
    guidance = settings.guidance if told else 1.0
    images = [sample.image for sample in samples]
    return stacks_of(model, images, samples[0].layers_asked, captions=captions, guidance=guidance, **effort)


def as_shown(stack: list[np.ndarray], sample: EvaluationSample, settings: Evaluate) -> list[np.ndarray]:
    """Layers at the scored size: restored as in ``decompose``, or only resized."""
    if settings.restore:
        return restore(stack, sample.image)
    return at_scored_size(stack, sample.image.shape[:2])


def decompose(
    model: Decomposer,
    samples: Sequence[EvaluationSample],
    settings: Evaluate,
    baselines: Mapping[str, Decomposer] = NO_MODELS,
) -> list[Decomposed]:
    """Decompose a batch of one size and one number of layers, with the model and its baselines."""
    start = time.perf_counter()
    told = settings.captions == "told"
    stacks = predicted_layers(model, samples, settings, told)
    predicted = [as_shown(stack, sample, settings) for stack, sample in zip(stacks, samples, strict=True)]
    seconds = (time.perf_counter() - start) / len(samples)
    beside = {
        name: predicted_layers(other, samples, settings.of_baseline(name), told) for name, other in baselines.items()
    }
    if settings.captions == "both" and model.encoder is not None and any(sample.caption for sample in samples):
        beside[TOLD] = predicted_layers(model, samples, settings, told=True)
    found = []
    for number, sample in enumerate(samples):
        size = sample.image.shape[:2]
        peels = composite_peels(sample.layers)[1]
        shown = torch.stack([to_tensor(shown_to_model(layer, sample.model_size)) for layer in peels])
        coded = list(to_image(model.reconstruct(shown)))
        as_predicted = at_scored_size(stacks[number], size)
        others = {
            name: as_shown(row[number], sample, settings)
            for name, row in beside.items()
            if name != TOLD or sample.caption
        }
        if settings.restore:
            others[AS_PREDICTED] = as_predicted
        found.append(
            Decomposed(
                sample=sample,
                predicted=predicted[number],
                as_predicted=as_predicted,
                ceiling=as_shown(coded, sample, settings),
                peels=peels,
                through_vae=at_scored_size(coded, size),
                seconds=seconds,
                beside=others,
            )
        )
    return found


def read_prediction(folder: Path, sample: EvaluationSample) -> list[np.ndarray] | str:
    """Read other layers of a sample, ``<id>/*.png`` sorted from bottom to top, or the reason they are missing."""
    try:
        layers = read_stack(folder / sample.sample_id)
    except ValueError as error:
        return str(error)
    height, width = sample.image.shape[:2]
    for index, layer in enumerate(layers):
        if layer.shape[:2] != (height, width):
            return f"layer {index} is {layer.shape[1]}x{layer.shape[0]} pixels, expected {width}x{height}"
    return layers or "no layers"


def write_prediction(folder: Path, result: Decomposed) -> None:
    """Write the model's layers as ``<id>/<k>.png``, as ``python -m metrics.decomposition --pred`` reads them."""
    home = folder / result.sample.sample_id
    home.mkdir(parents=True, exist_ok=True)
    for earlier in home.glob("[0-9][0-9].png"):
        earlier.unlink()
    for index, layer in enumerate(result.predicted):
        write_png(home / f"{index:02d}.png", layer)


def measure(
    results: Sequence[Decomposed],
    others: Mapping[str, Path],
    distance: Distance,
    settings: Evaluate,
    device: torch.device,
) -> list[Measured]:
    """Score a batch: the rows of the model, its bounds, other models and folders.

    Args:
        results: of :func:`decompose`.
        others: name of a row to the folder of its predictions.
        distance: LPIPS.
        settings: number of merges, and processes of the metric.
        device: that of ``distance``; images are compared there.
    """
    tasks, missing = [], [{} for _ in results]
    for number, result in enumerate(results):
        stacks = {MODEL: result.predicted, NOTHING: [result.sample.image], CEILING: result.ceiling}
        stacks |= result.beside
        for name, folder in others.items():
            stack = read_prediction(folder, result.sample)
            if isinstance(stack, str):
                missing[number][name] = stack
            else:
                stacks[name] = stack
        tasks += [(number, name, stack) for name, stack in stacks.items()]
    scored = Parallel(n_jobs=settings.jobs)(
        delayed(score_sample)(stack, results[number].sample.layers, settings.max_merges) for number, _, stack in tasks
    )
    levels: list[dict[str, list[MergeLevel]]] = [{} for _ in results]
    for (number, name, _), entry in zip(tasks, scored, strict=True):
        levels[number][name] = entry
    return [_measured(*parts, distance, device) for parts in zip(results, levels, missing, strict=True)]


def compared(
    again: Sequence[np.ndarray], originals: Sequence[np.ndarray], distance: Distance, device: torch.device, **how: Any
) -> list[dict[str, float]]:
    """Compute :func:`metrics.reconstruction.rgba.reconstruction_metrics` of each image and its reconstruction.

    Args:
        again: reconstructions, ``(H, W, 4)`` uint8 of one size.
        originals: as many images of the same size.
        distance: LPIPS.
        device: that of ``distance``; images go there in batches as large as for the VAE.
        how: further arguments.
    """
    height, width = originals[0].shape[:2]
    rows, step = [], at_once(height * width)
    for first in range(0, len(originals), step):
        pair = (
            torch.stack([to_tensor(image) for image in images[first : first + step]]).to(device)
            for images in (again, originals)
        )
        with torch.no_grad():
            rows += reconstruction_metrics(*pair, distance=distance, **how)
    return rows


def _measured(
    result: Decomposed,
    levels: dict[str, list[MergeLevel]],
    missing: dict[str, str],
    distance: Distance,
    device: torch.device,
) -> Measured:
    sample = result.sample
    structure = stack_structure(result.predicted, sample.layers, sample.kinds, levels[MODEL][0].path)
    (recomposed,) = compared([result.recomposition], [sample.image], distance, device, backgrounds=WHITE)
    vae_layers = compared(result.through_vae, result.peels, distance, device)
    edited = {MODEL: result.predicted, NOTHING: [sample.image], CEILING: result.ceiling}
    edited |= {name: stack for name, stack in result.beside.items() if name not in (TOLD, AS_PREDICTED)}
    return Measured(
        sample_id=sample.sample_id,
        bucket=sample.bucket,
        peels=len(structure.peels),
        levels=levels,
        missing=missing,
        structure=structure,
        recomposition={
            "psnr_white": recomposed["psnr_white"],
            "ssim_white": recomposed["ssim"],
            "lpips_white": recomposed["lpips"],
            "alpha_l1": recomposed["alpha_l1"],
        },
        vae_layers=vae_layers,
        seconds=result.seconds,
        stratum=sample.stratum,
        edits={name: edit_scores(stack, sample.layers, distance, device) for name, stack in edited.items()},
    )


def evaluated(
    model: Decomposer,
    batches: Iterator[list[EvaluationSample]],
    *,
    others: Mapping[str, Path],
    distance: Distance,
    settings: Evaluate,
    baselines: Mapping[str, Decomposer] = NO_MODELS,
) -> Iterator[Measured]:
    """Yield the scores of each sample; write predictions if the settings say so."""
    for samples in batches:
        results = decompose(model, samples, settings, baselines)
        if settings.predictions is not None:
            for result in results:
                write_prediction(in_project(settings.predictions), result)
        yield from measure(results, others, distance, settings, model.device)
