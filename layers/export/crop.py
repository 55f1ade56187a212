"""Cropping of a layer to its visible pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cropped:
    """A layer without its empty margin.

    Attributes:
        image: ``(h, w, 4)`` uint8; one transparent pixel if nothing is visible.
        left: x of its corner on the canvas, in pixels.
        top: y of its corner, in pixels.
    """

    image: np.ndarray
    left: int
    top: int


def crop(layer: np.ndarray) -> Cropped:
    """Crop ``(H, W, 4)`` uint8 to the box of pixels with alpha above 0."""
    rows, columns = (np.flatnonzero(layer[..., 3].any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Cropped(np.zeros((1, 1, 4), np.uint8), 0, 0)
    top, left = int(rows[0]), int(columns[0])
    return Cropped(layer[top : rows[-1] + 1, left : columns[-1] + 1], left, top)
