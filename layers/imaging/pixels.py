"""Normalisation of invisible pixels: in every reader's output, RGB under alpha 0 is 0."""

from __future__ import annotations

import numpy as np


def cleared(image: np.ndarray) -> np.ndarray:
    """Set invisible pixels to 0; returns the same array if they are 0 already, which saves a copy.

    Args:
        image: ``(H, W, 4)`` uint8, straight alpha.
    """
    # With a pixel as one little-endian number, alpha is the highest byte: values from 1 to 0xFFFFFF hide a colour.
    pixels = np.ascontiguousarray(image).view("<u4")[..., 0]
    if not (pixels - np.uint32(1) < np.uint32(0xFFFFFF)).any():
        return image
    return np.where(pixels > 0xFFFFFF, pixels, np.uint32(0)).astype("<u4")[..., None].view(np.uint8)
