"""Patches of layers: only the part of the canvas that a layer touches is filtered, composited and compared.

Most layers of a design are small. Compositing uses premultiplied float32, channels last, in [0, 1]. Patches themselves
are 8-bit with straight alpha, because they are written to files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from layers.dataset.buckets import Placement
from layers.imaging.resampling import axes, filtered


@dataclass(frozen=True)
class Patch:
    """The visible part of one layer on a canvas.

    Attributes:
        image: ``(h, w, 4)`` uint8, straight alpha, RGB 0 under alpha 0; ``(0, 0, 4)`` where nothing is visible.
        top, left: its place on the canvas, in pixels.
        kind, description: as in :class:`layers.imaging.stack.Layer`.
    """

    image: np.ndarray
    top: int = 0
    left: int = 0
    kind: str = "image"
    description: str = ""

    @property
    def empty(self) -> bool:
        """Whether no pixel is visible."""
        return self.image.size == 0

    @property
    def where(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that the patch covers."""
        height, width = self.image.shape[:2]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @cached_property
    def opaque(self) -> bool:
        """Whether every pixel of the patch is opaque."""
        return not self.empty and bool(self.image[..., 3].min() == 255)

    @cached_property
    def premultiplied(self) -> np.ndarray:
        """``(h, w, 4)`` float32 in [0, 1], colours multiplied by alpha."""
        out = self.image.astype(np.float32)
        out *= np.float32(1.0 / 255.0)
        if not self.opaque:
            _scale(out, out[..., 3], 3)
        return out

    def alpha_at(self, where: tuple[slice, slice]) -> np.ndarray:
        """The patch's 8-bit alpha at rows and columns of the canvas that lie inside :attr:`where`."""
        rows, columns = where
        return self.image[
            rows.start - self.top : rows.stop - self.top, columns.start - self.left : columns.stop - self.left, 3
        ]

    def on_canvas(self, size: tuple[int, int]) -> np.ndarray:
        """The full layer ``(H, W, 4)`` uint8."""
        if self.image.shape[:2] == size:
            return self.image
        canvas = np.zeros((*size, 4), np.uint8)
        canvas[self.where] = self.image
        return canvas


def _scale(image: np.ndarray, factor: np.ndarray, channels: int) -> None:
    """Multiply the first channels of ``(h, w, c)`` by ``(h, w)``, in place.

    Works channel by channel, since numpy is five times slower with an innermost loop over the channels of a pixel.
    """
    for channel in range(channels):
        image[..., channel] *= factor


def visible_box(alpha: np.ndarray) -> tuple[int, int, int, int] | None:
    """Smallest (top, left, bottom, right) that holds all of ``alpha`` ``(H, W)`` above 0; ``None`` if none is."""
    rows = np.flatnonzero(alpha.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(alpha[top:bottom].any(axis=0))
    return top, int(columns[0]), bottom, int(columns[-1]) + 1


def intersection(a: tuple[slice, slice], b: tuple[slice, slice]) -> tuple[slice, slice] | None:
    """Rows and columns that two regions share, or ``None``."""
    shared = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return None if any(part.start >= part.stop for part in shared) else (shared[0], shared[1])


def trimmed(image: np.ndarray, top: int = 0, left: int = 0) -> Patch:
    """Make a patch of ``(h, w, 4)`` uint8 at (top, left), cropped to its visible pixels."""
    box = visible_box(image[..., 3])
    if box is None:
        return Patch(np.zeros((0, 0, 4), np.uint8))
    return Patch(np.ascontiguousarray(image[box[0] : box[2], box[1] : box[3]]), top + box[0], left + box[1])


def _to_levels(premultiplied: np.ndarray) -> np.ndarray:
    """Straight 8-bit RGBA of premultiplied floats in [0, 255], as in files; overwrites its argument."""
    alpha = premultiplied[..., 3]
    levels = premultiplied
    if alpha.min() < 254.999:
        # Lanczos rings: up to half a step alpha is noise that rounds to 0; dividing by it would blow colours up.
        scale = np.divide(np.float32(255.0), alpha, out=np.zeros_like(alpha), where=alpha > 0.5)
        _scale(levels, scale, 3)
    return np.rint(np.clip(levels, 0.0, 255.0, out=levels), out=levels).astype(np.uint8)


def resized(image: np.ndarray, placement: Placement) -> Patch:
    """Resize and crop a layer to its bucket: premultiplied, filtered in float (Lanczos), unpremultiplied.

    Args:
        image: ``(H, W, 4)`` uint8 at canvas size; RGB under alpha 0 has no effect.
        placement: placement of the canvas in its bucket.

    Returns:
        The visible part at bucket size.
    """
    box = visible_box(image[..., 3])
    if box is None:
        return Patch(np.zeros((0, 0, 4), np.uint8))
    top, left, bottom, right = box
    rows, columns = axes(image.shape[:2], placement.size, placement.box)
    out_top, out_bottom = rows.reached_from(top, bottom)
    out_left, out_right = columns.reached_from(left, right)
    if out_top >= out_bottom or out_left >= out_right:
        return Patch(np.zeros((0, 0, 4), np.uint8))
    part = image[top:bottom, left:right]
    whole = box == (0, 0, *image.shape[:2])
    opaque = whole and bool(part[..., 3].min() == 255)
    scaled = part.astype(np.float32)
    if not opaque:
        _scale(scaled, scaled[..., 3] * np.float32(1.0 / 255.0), 3)
    out = filtered(
        scaled, rows.weights[out_top:out_bottom, top:bottom], columns.weights[out_left:out_right, left:right]
    )
    if opaque:
        return Patch(_to_levels(out), out_top, out_left)
    return trimmed(_to_levels(out), out_top, out_left)


def lay(patch: Patch, canvas: np.ndarray) -> None:
    """Porter-Duff ``over`` of a patch onto a premultiplied canvas ``(H, W, 4)``, in place."""
    region = canvas[patch.where]
    if patch.opaque:
        region[...] = patch.premultiplied
    elif not patch.empty:
        _scale(region, 1.0 - patch.premultiplied[..., 3], 4)
        region += patch.premultiplied


def composite_patches(patches: Iterable[Patch], size: tuple[int, int]) -> np.ndarray:
    """Composite patches, bottom to top, from transparent black; premultiplied ``(H, W, 4)`` float32 in [0, 1]."""
    canvas = np.zeros((*size, 4), np.float32)
    for patch in patches:
        lay(patch, canvas)
    return canvas


def to_levels(premultiplied: np.ndarray) -> np.ndarray:
    """Premultiplied ``(H, W, 4)`` float32 in [0, 1] as straight uint8; RGB under alpha 0 is 0."""
    return _to_levels(premultiplied * np.float32(255.0))


def merged(patches: list[Patch], kind: str, description: str) -> Patch:
    """Merge several patches, bottom to top, to one; a single one is returned as it is."""
    if len(patches) == 1:
        return patches[0]
    seen = [patch for patch in patches if not patch.empty]
    if not seen:
        return replace(patches[0], kind=kind, description=description)
    top, left = min(p.top for p in seen), min(p.left for p in seen)
    bottom, right = max(p.where[0].stop for p in seen), max(p.where[1].stop for p in seen)
    moved = (replace(p, top=p.top - top, left=p.left - left) for p in seen)
    image = to_levels(composite_patches(moved, (bottom - top, right - left)))
    return replace(trimmed(image, top, left), kind=kind, description=description)
