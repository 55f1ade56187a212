"""Visualisation of layers: strips over a checkerboard, grids, contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from layers.imaging.compositing import over_checkerboard, to_float

GAP = 6
PAPER = 255
LABEL_HEIGHT = 14


def show(image: np.ndarray, scale: int = 1) -> np.ndarray:
    """Make ``(H, W, 3 or 4)`` uint8 visible: RGBA goes over a checkerboard; enlarged by an integer factor."""
    if image.shape[2] == 4:
        cell = max(2, 8 // scale)
        image = np.rint(over_checkerboard(to_float(image), cell) * 255.0).astype(np.uint8)
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def label(text: str, width: int) -> np.ndarray:
    """One line of dark text on a light ground, ``(LABEL_HEIGHT, width, 3)`` uint8."""
    strip = Image.new("RGB", (width, LABEL_HEIGHT), (PAPER,) * 3)
    ImageDraw.Draw(strip).text((0, 0), text, fill=(40, 40, 40), font=ImageFont.load_default(11))
    return np.asarray(strip)


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] | None = None, scale: int = 1) -> np.ndarray:
    """Lay images out in rows, with an optional title above each row.

    Args:
        rows: rows of ``(H, W, 3 or 4)`` uint8 images of any sizes.
        titles: one per row.
        scale: integer enlargement factor.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    shown = [[show(image, scale) for image in row] for row in rows]
    width = max(sum(image.shape[1] + GAP for image in row) for row in shown) + GAP
    bands = []
    for index, row in enumerate(shown):
        if titles is not None:
            bands.append(label(f" {titles[index]}", width))
        band = np.full((max(image.shape[0] for image in row) + GAP, width, 3), PAPER, np.uint8)
        x = GAP
        for image in row:
            band[: image.shape[0], x : x + image.shape[1]] = image
            x += image.shape[1] + GAP
        bands.append(band)
    return np.concatenate([np.full((GAP, width, 3), PAPER, np.uint8), *bands])
