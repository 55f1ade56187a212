"""Preparation of one sample for its bucket: placed, resized, cleaned, grouped, checked, written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from config.errors import SampleError
from layers.dataset.buckets import BucketLimits, NoBucketError, Placement, bucket_name, place
from layers.dataset.digest import text_digest
from layers.dataset.manifest import plain
from layers.dataset.storage import FileWriter, Writer, open_shard
from layers.imaging.stack import LayeredSample
from layers.preparation.cleaning import Cleaning, clean, group_layers
from layers.preparation.patches import Patch, composite_patches, resized, to_levels
from layers.sources.base import Source

# Part of the recipe in the manifest: raise it when the same input gives other pixels.
VERSION = 3
# Largest difference, in 8-bit levels, between the stored composite and the recomposition of the stored layers.
TOLERANCE = 1.0


@dataclass(frozen=True)
class Preparation:
    """Settings of the preparation of every sample.

    Attributes:
        limits: bucket bounds.
        cleaning: rules for dropping layers.
        group: ``peels`` merges layers that do not overlap, ``max_layers`` does so only for samples with more layers
            than that, ``none`` never.
        overlap_alpha: see :func:`layers.preparation.cleaning.group_layers`.
        max_layers: samples with more layers after grouping are dropped.
        preview_tolerance: mean absolute difference, in 8-bit levels over white, between recomposition and preview,
            above which a sample counts as mismatched.
        drop_mismatched: whether such samples are dropped, or only reported.
    """

    limits: BucketLimits
    group: Literal["peels", "max_layers", "none"] = "peels"
    overlap_alpha: int = 16
    max_layers: int = 20
    cleaning: Cleaning = field(default_factory=Cleaning)
    preview_tolerance: float = 8.0
    drop_mismatched: bool = False

    def recipe(self) -> str:
        """Digest of all settings and of :data:`VERSION`."""
        return text_digest(f"{VERSION}:{sorted(asdict(self).items())}")


@dataclass(frozen=True)
class Fitted:
    """A sample at bucket size.

    Attributes:
        layers: bottom to top.
        composite: ``(H, W, 4)`` uint8, the flattened layers.
        figures: numbers for the manifest. ``change`` is the largest change of the flat image by cleaning and grouping,
            in 8-bit levels: pixels up to ``overlap_alpha`` may change their place in the order.
    """

    layers: list[Patch]
    composite: np.ndarray
    figures: dict[str, Any]


def fit_to_bucket(sample: LayeredSample, preparation: Preparation) -> Fitted:
    """Resize, crop, clean and group one sample's layers.

    Raises:
        SampleError: if it fits no bucket, or has too few or too many layers left. Also if the recomposition differs
            from the composite to be stored, or, with ``drop_mismatched``, from the preview.
    """
    try:
        placement = place(sample.size, preparation.limits)
    except NoBucketError as error:
        raise SampleError(str(error)) from None
    size = placement.size
    patches = [
        replace(resized(layer.image, placement), kind=layer.kind, description=layer.description)
        for layer in sample.layers
    ]
    if all(patch.empty for patch in patches):
        raise SampleError("every layer is empty")
    kept, flat, dropped = clean(patches, preparation.cleaning, size)
    # The flat image before cleaning; the same as after where nothing was dropped.
    target = composite_patches(patches, size) if len(kept) < len(patches) else flat
    grouped = kept
    if preparation.group == "peels" or (preparation.group == "max_layers" and len(kept) > preparation.max_layers):
        grouped = group_layers(kept, preparation.overlap_alpha)
    if not grouped:
        raise SampleError("no layer changes the composite")
    if len(grouped) > preparation.max_layers:
        raise SampleError(f"{len(grouped)} layers, more than max_layers {preparation.max_layers}")
    if len(grouped) < len(kept):
        flat = composite_patches(grouped, size)
    composite = to_levels(flat)
    error = _difference(Patch(composite).premultiplied, flat)
    if not error <= TOLERANCE:
        raise SampleError(f"layers recompose to something {error:.1f} levels from the composite")
    figures: dict[str, Any] = {
        "scale": round(placement.scale, 6),
        "crop_share": round(placement.crop_share, 6),
        "dropped_layers": {reason: count for reason, count in dropped.items() if count},
        "merged_layers": len(kept) - len(grouped),
        "change": 0.0 if flat is target else round(_difference(flat, target), 2),
    }
    if sample.preview is not None:
        error = figures["preview_error"] = round(preview_error(sample.preview, composite, sample.size, placement), 3)
        if error > preparation.preview_tolerance and preparation.drop_mismatched:
            raise SampleError(
                f"layers recompose to something {error:.1f} levels from the preview, "
                f"more than preview_tolerance {preparation.preview_tolerance}"
            )
    if sample.notes:
        figures["notes"] = [plain(note) for note in sample.notes]
    return Fitted(grouped, composite, figures)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    difference = a - b
    return float(max(difference.max(), -difference.min())) * 255.0


def preview_error(preview: np.ndarray, composite: np.ndarray, canvas: tuple[int, int], placement: Placement) -> float:
    """Mean absolute difference in 8-bit levels between a composite and the source's own flat image, over white.

    Args:
        preview: ``(h, w, 4)`` uint8, the whole canvas at any size.
        composite: ``(H, W, 4)`` uint8 at bucket size.
        canvas: (height, width) of the design.
        placement: placement of the canvas in its bucket.
    """
    down, across = preview.shape[0] / canvas[0], preview.shape[1] / canvas[1]
    left, top, right, bottom = placement.box
    box = (left * across, top * down, min(right * across, preview.shape[1]), min(bottom * down, preview.shape[0]))
    theirs = resized(preview, Placement(placement.size, box, 0.0, 0.0)).on_canvas(placement.size)

    def over_white(image: np.ndarray) -> np.ndarray:
        flat = Patch(image).premultiplied
        return flat[..., :3] + (1.0 - flat[..., 3:])

    return float(np.abs(over_white(theirs) - over_white(composite)).mean()) * 255.0


def prepare_sample(
    source: Source, sample_id: str, split: str, preparation: Preparation, writer: Writer
) -> dict[str, Any]:
    """Read, fit and write one sample.

    Returns:
        Its manifest record, or ``{"id", "split", "reason", "state"}`` if it was dropped. Bad input never raises.
    """
    state = source.signature(sample_id)
    try:
        sample = _read(source, sample_id)
        fitted = fit_to_bucket(sample, preparation)
    except SampleError as error:
        return {"id": sample_id, "split": split, "reason": plain(str(error)), "state": state}
    height, width = fitted.composite.shape[:2]
    record: dict[str, Any] = {
        "id": sample_id,
        "split": split,
        "bucket": bucket_name((height, width)),
        "height": height,
        "width": width,
        "caption": plain(sample.caption),
        **({"stratum": plain(sample.stratum)} if sample.stratum else {}),
        "layers": [{"kind": patch.kind, "description": plain(patch.description)} for patch in fitted.layers],
        **fitted.figures,
        "pixels": _digest(fitted.layers, (height, width)),
        "state": state,
    }
    images = [patch.on_canvas((height, width)) for patch in fitted.layers]
    places, flat = writer.write(record, images, fitted.composite)
    record["layers"] = [place | words for place, words in zip(places, record["layers"], strict=True)]
    record["composite"] = flat
    return record


def _read(source: Source, sample_id: str) -> LayeredSample:
    try:
        return source.read(sample_id)
    except SampleError:
        raise
    except Exception as error:
        # A bug of a reader must not end a run of ten hours: it drops one sample, and the report shows it.
        raise SampleError(f"the reader failed with {type(error).__name__}: {error}") from error


def _digest(patches: Sequence[Patch], size: tuple[int, int]) -> str:
    """Digest of the pixels of all layers, in order; the composite follows from them."""
    digest = hashlib.sha256(f"{size}".encode())
    for patch in patches:
        digest.update(f"{patch.top},{patch.left},{patch.image.shape}".encode())
        digest.update(np.ascontiguousarray(patch.image))
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Chunk:
    """Samples that one worker prepares in one task.

    Attributes:
        split: split of all samples.
        sample_ids: their ids, in order.
        shard: number of their tar; ``None`` for plain files.
    """

    split: str
    sample_ids: tuple[str, ...]
    shard: int | None = None


@dataclass(frozen=True)
class PrepareChunk:
    """Work of one process on one chunk, as a callable that is pickled to it.

    Attributes:
        source: the reader.
        preparation: settings of the preparation.
        root: folder of the bucketed dataset, absolute, on a file system that all workers share.
    """

    source: Source
    preparation: Preparation
    root: Path

    def __call__(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Prepare the samples of a chunk; a second run writes the same files."""
        if chunk.shard is None:
            writer = FileWriter(self.root)
            return self._records(chunk, writer)
        with open_shard(self.root, chunk.split, chunk.shard) as writer:
            return self._records(chunk, writer)

    def _records(self, chunk: Chunk, writer: Writer) -> list[dict[str, Any]]:
        return [prepare_sample(self.source, name, chunk.split, self.preparation, writer) for name in chunk.sample_ids]
