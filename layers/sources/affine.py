"""Turning and placing images by an affine, premultiplied and in float: what renderers of layouts share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def sampled(image: np.ndarray, matrix: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Sample a premultiplied ``(h, w, 4)`` float32 image with a bicubic filter.

    Args:
        image: shrunk before if the affine shrinks it: the filter looks at 4x4 of its pixels.
        matrix: six numbers, from pixels of the output to those of the image, as Pillow takes them.
        size: (height, width) of the output.

    Returns:
        ``(H, W, 4)`` float32 in [0, 1] with straight alpha.
    """
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).transform(
            size[::-1], Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BICUBIC
        )
        for channel in range(4)
    ]
    out = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    # Bicubic rings. Where alpha does, colours do in proportion, so it divides them before it is clipped; below half an
    # 8-bit step it is noise.
    shown = out[..., 3:] >= 0.5 / 255.0
    rgb = np.divide(out[..., :3], out[..., 3:], out=np.zeros_like(out[..., :3]), where=shown)
    alpha = np.where(shown, out[..., 3:], 0.0)
    return np.clip(np.concatenate([rgb, alpha], axis=-1), 0.0, 1.0)
