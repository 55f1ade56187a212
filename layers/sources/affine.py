"""Affine placement of images, premultiplied and in float, shared by the renderers of layouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def sampled(image: np.ndarray, matrix: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Sample a premultiplied ``(h, w, 4)`` float32 image with a bicubic filter.

    Args:
        image: if the affine shrinks it, it must be shrunk before, since the filter covers 4x4 of its pixels.
        matrix: six numbers that map pixels of the output to those of the image, in Pillow's order.
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
    # Bicubic filters ring. Alpha and premultiplied colours overshoot in proportion, so the division precedes the
    # clipping. Below half an 8-bit step alpha is noise.
    shown = out[..., 3:] >= 0.5 / 255.0
    rgb = np.divide(out[..., :3], out[..., 3:], out=np.zeros_like(out[..., :3]), where=shown)
    alpha = np.where(shown, out[..., 3:], 0.0)
    return np.clip(np.concatenate([rgb, alpha], axis=-1), 0.0, 1.0)
