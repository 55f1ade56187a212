"""What a network was trained to do, in a file beside its weights: the sizes it saw, how many layers, how to sample."""

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
    """The file is no such file; the message names it."""


class TrainedFor(Block):
    """Sizes in pixels.

    Attributes:
        min_side: shortest side of an image in training.
        max_side: longest side.
        max_pixels: largest area.
        surplus_layers: so many layers can be asked for of any image, and those that it has not stay empty; ``None``
            for a network that never saw an empty layer.
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
        """Sizes that any image can be stretched to, a small or a long one too."""
        return BucketLimits(self.min_side, self.max_side, self.max_pixels, max_aspect=math.inf, upscale=True)


# Qwen-Image-Layered's pipeline: 640 x 640 pixels at the image's aspect.
RELEASED = TrainedFor(min_side=256, max_side=1024, max_pixels=640 * 640, surplus_layers=None)


def of_buckets(
    keys: Sequence[tuple[int, int, int]], surplus_layers: int | None, sampling_shift: float | None
) -> TrainedFor:
    """What training on buckets (H, W, L) makes of a network."""
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
    """Read the file of a model folder; one that has none, or a hub repository, is taken for the released model.

    Raises:
        TrainedForError: if it holds something else.
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
