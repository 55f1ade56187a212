"""Image sizes: the size at which a network sees an image, and the size at which its layers are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layers.dataset.buckets import BucketLimits, NoBucketError
from layers.imaging.compositing import resize, to_float, to_uint8


def stretched_size(canvas: tuple[int, int], limits: BucketLimits) -> tuple[int, int]:
    """Choose the size to which a whole canvas is stretched: large, and close to its aspect.

    Both are weighed: an aspect that is off by some factor is as bad as sides that are shorter by that factor. Without
    ``upscale`` no side is longer than the canvas's.

    Args:
        canvas: (height, width) in pixels.
        limits: bounds of the sizes.

    Returns:
        (height, width), multiples of ``limits.multiple``.

    Raises:
        NoBucketError: if the aspect is above ``max_aspect`` or no size is within bounds.
    """
    height, width = canvas
    aspect = max(height, width) / min(height, width)
    if aspect > limits.max_aspect:
        raise NoBucketError(f"aspect {aspect:.2f} of {width}x{height} is above max_aspect {limits.max_aspect}")
    shortest = math.ceil(limits.min_side / limits.multiple) * limits.multiple
    sides = range(shortest, limits.max_side + 1, limits.multiple)
    sizes = [
        (h, w)
        for h in sides
        for w in sides
        if h * w <= limits.max_pixels and (limits.upscale or (h <= height and w <= width))
    ]
    if not sizes:
        raise NoBucketError(
            f"{width}x{height} can be stretched to no size with sides from {limits.min_side} to {limits.max_side}, "
            f"{limits.max_pixels} pixels" + ("" if limits.upscale else " and no upscaling")
        )

    def badness(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] * width / (size[1] * height))) - math.log(math.prod(size)) / 2

    return min(sizes, key=badness)


def shown_to_model(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch an image or a true layer ``(H, W, 4)`` uint8 to (height, width), premultiplied; alpha stays.

    An image of that size is returned unchanged.
    """
    return image if image.shape[:2] == tuple(size) else to_uint8(resize(to_float(image), size))


def at_scored_size(layers: Sequence[np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
    """Stretch predicted layers ``(h, w, 4)`` uint8 back to the scored (height, width), as :func:`shown_to_model`."""
    return [shown_to_model(layer, size) for layer in layers]
