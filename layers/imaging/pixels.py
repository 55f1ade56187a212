"""The rule that readers keep: RGB under alpha 0 is 0."""

from __future__ import annotations

import numpy as np


def cleared(image: np.ndarray) -> np.ndarray:
    """An image whose invisible pixels are all 0; the same array where they are already, which saves a copy.

    Args:
        image: ``(H, W, 4)`` uint8, straight alpha.
    """
    # As one little-endian number a pixel, alpha is the highest byte: those of 1 to 0xFFFFFF hide a colour.
    pixels = np.ascontiguousarray(image).view("<u4")[..., 0]
    if not (pixels - np.uint32(1) < np.uint32(0xFFFFFF)).any():
        return image
    return np.where(pixels > 0xFFFFFF, pixels, np.uint32(0)).astype("<u4")[..., None].view(np.uint8)
