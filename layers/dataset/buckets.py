"""Buckets: image sizes for training, with sides in multiples of 32 under caps on side and pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BucketLimits:
    """Bounds of bucket sizes, in pixels.

    Attributes:
        multiple: every side is a multiple of this.
        min_side: no side is shorter.
        max_side: no side is longer.
        max_pixels: no area is larger.
        max_aspect: canvases with a longer side ratio fit no bucket.
        upscale: whether a canvas may be enlarged to fill its bucket.
    """

    min_side: int
    max_side: int
    max_pixels: int
    max_aspect: float
    upscale: bool = False
    multiple: int = 32


@dataclass(frozen=True)
class Placement:
    """Placement of a canvas in its bucket: scaled to cover it, centred, the rest cut off.

    Attributes:
        size: (height, width) of the bucket.
        box: (left, top, right, bottom) of the part that stays, in canvas pixels.
        scale: bucket pixels per canvas pixel.
        crop_share: share of the canvas area cut off, 0 to 1.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    scale: float
    crop_share: float


class NoBucketError(ValueError):
    """A canvas fits no bucket; the message says which bound it breaks."""


def place(canvas: tuple[int, int], limits: BucketLimits) -> Placement:
    """Choose the bucket of a canvas: the largest that the caps allow, with the least cut off.

    The canvas is scaled under the caps, and each side is rounded both ways to the multiple. Of the sizes within bounds
    the one that crops least is taken, the larger on a tie.

    Args:
        canvas: (height, width) in pixels.
        limits: bounds.

    Raises:
        NoBucketError: if the aspect is beyond ``max_aspect`` or no size within bounds is left.
    """
    height, width = canvas
    aspect = max(height, width) / min(height, width)
    if aspect > limits.max_aspect:
        raise NoBucketError(f"aspect {aspect:.2f} of {width}x{height} is above max_aspect {limits.max_aspect}")
    scale = min(limits.max_side / max(height, width), math.sqrt(limits.max_pixels / (height * width)))
    if not limits.upscale:
        scale = min(scale, 1.0)

    def roundings(side: int) -> set[int]:
        steps = side * scale / limits.multiple
        return {
            min(max(k * limits.multiple, limits.min_side), limits.max_side)
            for k in (math.floor(steps), math.ceil(steps))
        }

    candidates = []
    for h in roundings(height):
        for w in roundings(width):
            cover = max(h / height, w / width)
            if h * w <= limits.max_pixels and (limits.upscale or cover <= 1.0):
                kept = (h / cover) * (w / cover)
                candidates.append((1.0 - kept / (height * width), -h * w, h, w, cover))
    if not candidates:
        raise NoBucketError(
            f"{width}x{height} fits no bucket with sides from {limits.min_side} to {limits.max_side}, "
            f"{limits.max_pixels} pixels" + ("" if limits.upscale else " and no upscaling")
        )
    crop_share, _, h, w, cover = min(candidates)
    # Clamped because h / cover may exceed the side in the last bit, which Pillow refuses.
    kept_h, kept_w = min(h / cover, height), min(w / cover, width)
    left, top = (width - kept_w) / 2, (height - kept_h) / 2
    box = (left, top, min(left + kept_w, width), min(top + kept_h, height))
    return Placement((h, w), box, cover, max(crop_share, 0.0))


def bucket_name(size: tuple[int, int]) -> str:
    """Folder name of a (height, width) bucket: ``w96-h64``."""
    return f"w{size[1]}-h{size[0]}"
