"""One sample of a source becomes one bucketed sample on disk.

<output_root>/<split>/<bucket>/<id>_comp<k:03d>.png     layers, bottom to top, k from 0
<output_root>/<split>/<bucket>/<id>_composite.png
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from layers.buckets import BucketLimits, NoBucketError, bucket_name, place
from layers.compositing import composite, group_into_peels, resize, to_float, to_uint8
from layers.errors import SampleError
from layers.images import write_png
from layers.stack import Layer, LayeredSample


class Source(Protocol):
    """What a reader offers: ids without reading pixels, and one sample at a time."""

    def sample_ids(self) -> list[str]:
        """All ids, in a stable order."""

    def read(self, sample_id: str) -> LayeredSample:
        """One sample, or SampleError with the reason it cannot be had."""


@dataclass(frozen=True)
class Preparation:
    """What is done to every sample.

    Attributes:
        limits: bucket bounds.
        group: ``peels`` or ``none``.
        overlap_alpha: see :func:`group_layers`.
        max_layers: samples with more layers after grouping are dropped.
    """

    limits: BucketLimits
    group: str
    overlap_alpha: int
    max_layers: int


def assign_splits(
    sample_ids: Sequence[str],
    *,
    seed: int,
    train_count: int | None,
    val_count: int,
    validation_ids: Sequence[str] | None = None,
) -> dict[str, str]:
    """Assign ids to ``train`` and ``val`` by a hash of (seed, id), so that listing order never matters.

    Args:
        sample_ids: all ids of the source.
        seed: of the hash.
        train_count: at most so many for training; ``None`` takes the rest.
        val_count: so many for validation, unless ``validation_ids`` names them.
        validation_ids: explicit validation ids; those the source lacks are ignored.

    Returns:
        id to split, validation first; ids beyond the counts are left out.
    """
    ranked = sorted(sample_ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    if validation_ids is None:
        validation = ranked[:val_count]
    else:
        named = set(validation_ids)
        validation = [name for name in ranked if name in named]
    chosen = set(validation)
    training = [name for name in ranked if name not in chosen][:train_count]
    return dict.fromkeys(validation, "val") | dict.fromkeys(training, "train")


def group_layers(layers: Sequence[Layer], overlap_alpha: int = 0) -> list[Layer]:
    """Merge layers that do not overlap into peels, bottom to top (paper, data pipeline: merging such layers).

    Args:
        layers: of one size, bottom to top.
        overlap_alpha: a pixel covers where its 8-bit alpha is above this. With 0, the rule of the evaluation, the
            last haze of a soft shadow or of a filtered edge gives an order to things that lie side by side.

    Returns:
        One layer a peel. The evaluation groups them no further: each is covered by the next.
    """
    merged = []
    for indices in group_into_peels([layer.image[..., 3] > overlap_alpha for layer in layers]):
        members = [layers[i] for i in indices]
        if len(members) == 1:
            merged.append(members[0])
            continue
        kinds = {member.kind for member in members}
        image = to_uint8(composite([to_float(member.image) for member in members]))
        words = ", ".join(member.description for member in members if member.description)
        merged.append(Layer(image, kinds.pop() if len(kinds) == 1 else "group", words))
    return merged


def fit_to_bucket(sample: LayeredSample, preparation: Preparation) -> tuple[list[Layer], dict[str, Any]]:
    """Resize, crop, clean and group one sample's layers.

    Returns:
        The layers at bucket size, and the placement's figures for the manifest.

    Raises:
        SampleError: if the sample fits no bucket or has too few or too many layers left.
    """
    try:
        placement = place(sample.size, preparation.limits)
    except NoBucketError as error:
        raise SampleError(str(error)) from None
    layers = [
        Layer(to_uint8(resize(to_float(layer.image), placement.size, placement.box)), layer.kind, layer.description)
        for layer in sample.layers
    ]
    layers = [layer for layer in layers if layer.image[..., 3].any()]
    if not layers:
        raise SampleError("every layer is empty")
    if preparation.group == "peels":
        layers = group_layers(layers, preparation.overlap_alpha)
    if len(layers) > preparation.max_layers:
        raise SampleError(f"{len(layers)} layers, more than max_layers {preparation.max_layers}")
    return layers, {"scale": round(placement.scale, 6), "crop_share": round(placement.crop_share, 6)}


def prepare_sample(
    source: Source, sample_id: str, split: str, preparation: Preparation, output_root: Path
) -> dict[str, Any]:
    """Read, fit and write one sample.

    Returns:
        Its manifest record, or ``{"id", "split", "reason"}`` if it had to be dropped. Bad input never raises.
    """
    try:
        sample = source.read(sample_id)
        layers, figures = fit_to_bucket(sample, preparation)
    except SampleError as error:
        return {"id": sample_id, "split": split, "reason": str(error)}
    stored = to_uint8(composite([to_float(layer.image) for layer in layers]))
    height, width = stored.shape[:2]
    bucket = bucket_name((height, width))
    folder = Path(split) / bucket
    record: dict[str, Any] = {
        "id": sample_id,
        "split": split,
        "bucket": bucket,
        "height": height,
        "width": width,
        "composite": str(folder / f"{sample_id}_composite.png"),
        "layers": [],
        "caption": sample.caption,
        **figures,
    }
    digest = hashlib.md5(stored.tobytes(), usedforsecurity=False)
    for k, layer in enumerate(layers):
        path = folder / f"{sample_id}_comp{k:03d}.png"
        write_png(output_root / path, layer.image)
        digest.update(layer.image.tobytes())
        record["layers"].append({"path": str(path), "kind": layer.kind, "description": layer.description})
    write_png(output_root / record["composite"], stored)
    record["pixels_md5"] = digest.hexdigest()
    return record
