"""Training range of a network, in a file beside its weights: image sizes, number of layers, shift of the sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from config.base import Block, Count, Positive
from config.errors import UserError
from layers.dataset.buckets import BucketLimits

FILE = "trained_for.json"


class TrainedForError(UserError):
    """The file has unexpected content; the message names it."""


class TrainedFor(Block):
    """Image sizes in pixels, surplus layers and sampler shift of a trained network.

    Attributes:
        min_side: shortest side of an image in training.
        max_side: longest side.
        max_pixels: largest area.
        surplus_layers: number of layers that can be requested for any image, with surplus layers staying empty;
            ``None`` for a network trained without empty layers.
        sampling_shift: linear time shift of its sampler; ``None`` for the released pipeline's, which grows with the
            image (:func:`models.transformer.flow.inference_shift`).
    """

    min_side: Count
    max_side: Count
    max_pixels: Count
    surplus_layers: Count | None
    sampling_shift: Positive | None = None

    @property
    def limits(self) -> BucketLimits:
        """Size limits for stretching any image, including small and elongated ones."""
        return BucketLimits(self.min_side, self.max_side, self.max_pixels, max_aspect=math.inf, upscale=True)


# Qwen-Image-Layered's pipeline: the area of 640 x 640 pixels at the image's aspect.
RELEASED = TrainedFor(min_side=256, max_side=1024, max_pixels=640 * 640, surplus_layers=None)


def of_buckets(
    keys: Sequence[tuple[int, int, int]], surplus_layers: int | None, sampling_shift: float | None
) -> TrainedFor:
    """Training range that results from training on buckets (H, W, L)."""
    sizes = {key[:2] for key in keys}
    return TrainedFor(
        min_side=min(min(size) for size in sizes),
        max_side=max(max(size) for size in sizes),
        max_pixels=max(height * width for height, width in sizes),
        surplus_layers=surplus_layers,
        sampling_shift=sampling_shift,
    )


def save_trained_for(trained: TrainedFor, folder: str | Path) -> None:
    """Write the file into a model folder."""
    (Path(folder) / FILE).write_text(trained.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_trained_for(folder: str | Path) -> TrainedFor:
    """Read the file of a model folder; without the file, or for a hub repository, use the released model's values.

    Raises:
        TrainedForError: if it has unexpected content.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return RELEASED
    try:
        return TrainedFor.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TrainedForError(f"{path}: {where or 'content'}: {first['msg']}") from None
