"""Folding of adjustments, which only map colours to others (curves over the canvas), into the layers below.

A layer of its own would have to hold the whole image and hide all below. Mapping the colours of each layer instead,
with unchanged alpha, gives the same image wherever one opaque layer is visible. At soft edges and translucent layers,
colours are then mixed after the mapping instead of before it. A layer for which this is visible gets colours fitted
to the image. If no colours fit, :func:`fold` returns None, and :func:`own_colours` gives the layer that hides all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layers.imaging.compositing import over

Box = tuple[int, int, int, int]
# Allowed difference of folded from wanted image, in 8-bit levels of the worst channel, over the pixels that change.
# The tail is antialiased outlines of opaque objects, which nearly every document has. A brightening curve moves those
# of white on black by 15 to 30 levels, which no colour at their alpha can correct.
MEAN_ERROR = 1.0
TAIL = 99.9
TAIL_ERROR = 32.0
# Above this, a layer gets colours fitted to the image instead of its own mapped ones.
OWN_TAIL_ERROR = 8.0
# Differences up to this are rounding to 8 bits: psd-tools looks curves up in tables of 256 entries, rounding down.
ROUNDING_ERROR = 1.5
# Smaller differences vanish when the layer is written as 8 bits.
HALF_A_LEVEL = 0.5 / 255.0
# A multiple of 255, so that colours of 8 bits, and of 16 bits, are stored exactly.
SCALE = np.float32(65535.0)


@dataclass(frozen=True)
class Piece:
    """Visible part of a layer, in the document's own colours.

    Attributes:
        box: left, top, right, bottom on the canvas.
        levels: ``(h, w, 4)`` uint16, straight alpha, RGB under alpha 0 is 0.
    """

    box: Box
    levels: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, box: Box) -> Piece:
        """Make a piece of ``(h, w, 4)`` float in [0, 1] on its box, cropped to where alpha is above 0."""
        levels = np.rint(np.clip(image, 0.0, 1.0) * SCALE).astype(np.uint16)
        shown = levels[..., 3] > 0
        levels[~shown] = 0
        rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        if not rows.size:
            return cls((box[0], box[1], box[0], box[1]), levels[:0, :0])
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        cropped = (box[0] + int(left), box[1] + int(top), box[0] + int(right), box[1] + int(bottom))
        return cls(cropped, levels[top:bottom, left:right].copy())

    def image(self, box: Box | None = None) -> np.ndarray:
        """The part on a box inside its own, all of it by default: ``(h, w, 4)`` float32 in [0, 1]."""
        levels = self.levels if box is None else self.levels[window(box, self.box)]
        return levels.astype(np.float32) / SCALE

    def recoloured(self, image: np.ndarray, box: Box) -> Piece:
        """The piece with the colours of ``image``, ``(h, w, 4)``, on a box inside its own; itself if they are equal."""
        colours, where = np.rint(np.clip(image[..., :3], 0.0, 1.0) * SCALE).astype(np.uint16), window(box, self.box)
        colours[self.levels[where][..., 3] == 0] = 0
        if np.array_equal(colours, self.levels[where][..., :3]):
            return self
        levels = self.levels.copy()
        levels[where][..., :3] = colours
        return replace(self, levels=levels)


def intersection(box: Box, other: Box) -> Box:
    """Intersection of two boxes, empty if they do not overlap."""
    return (max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))


def is_empty(box: Box) -> bool:
    """Whether a box holds no pixel."""
    return box[0] >= box[2] or box[1] >= box[3]


def window(box: Box, frame: Box = (0, 0, 0, 0)) -> tuple[slice, slice]:
    """Rows and columns of a box in an array whose upper left pixel is the frame's."""
    return slice(box[1] - frame[1], box[3] - frame[1]), slice(box[0] - frame[0], box[2] - frame[0])


@dataclass(frozen=True)
class Folded:
    """Pieces into which a layer above them was folded.

    Attributes:
        pieces: the new pieces; unchanged ones are the same objects.
        error: largest difference from the wanted image, in 8-bit levels.
        fitted: whether translucent pixels got fitted colours instead of their mapped ones.
    """

    pieces: list[Piece]
    error: float
    fitted: bool


def fold(
    pieces: Sequence[Piece],
    mapping: Callable[[np.ndarray, Box], np.ndarray],
    box: Box,
    before: np.ndarray,
    wanted: np.ndarray,
) -> Folded | None:
    """Map the colours of pieces as a layer above them maps their image.

    Args:
        pieces: all pieces that the layer affects, bottom to top.
        mapping: maps ``(h, w, 4)`` float32, opaque, on a box to the layer's result, ``(h, w, 3)`` or more, including
            its mask and opacity.
        box: part of the canvas that the layer covers.
        before: image without the layer, ``(H, W, 4)`` on that box, straight alpha.
        wanted: image with the layer, as ``before``.

    Returns:
        The folded pieces, or None if they would not recompose to ``wanted``.
    """
    folded, fitted = [], False
    flat, turned_flat = np.zeros_like(wanted), np.zeros_like(wanted)
    for piece in pieces:
        part = intersection(piece.box, box)
        if is_empty(part):
            folded.append(piece)
            continue
        where, image = window(part, box), piece.image(part)
        turned = _turned(image, mapping, part)
        result, below = over(image, flat[where]), turned_flat[where]
        reached, alpha = over(turned, below), image[..., 3]
        # Opaque pixels are exact already.
        if ((alpha > 0) & (alpha < 1)).any():
            goal, shown = _turned(result, mapping, part), alpha > 0
            seen, seen_reached, seen_goal = result[shown], reached[shown], goal[shown]
            if error_of((seen, seen_reached), (seen, seen_goal), OWN_TAIL_ERROR) is None:
                turned = fitting(goal, below, image[..., 3:])
                reached, fitted = over(turned, below), True
        flat[where], turned_flat[where] = result, reached
        folded.append(piece.recoloured(turned, part))
    error = error_of((flat, turned_flat), (before, wanted))
    return None if error is None else Folded(folded, error, fitted)


def _turned(image: np.ndarray, mapping: Callable[[np.ndarray, Box], np.ndarray], box: Box) -> np.ndarray:
    alpha = image[..., 3:]
    colours = mapping(np.concatenate([image[..., :3], np.ones_like(alpha)], axis=-1), box)[..., :3]
    return np.concatenate([colours.clip(0.0, 1.0), alpha], axis=-1).astype(np.float32)


def fitting(result: np.ndarray, below: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Layer ``(h, w, 4)`` of given alpha ``(h, w, 1)`` with the colours that bring ``below`` nearest to ``result``."""
    own = result[..., :3] * result[..., 3:] - (1.0 - alpha) * below[..., :3] * below[..., 3:]
    colours = np.divide(own, alpha, out=np.zeros_like(own), where=alpha > 0).clip(0.0, 1.0)
    return np.concatenate([colours, alpha], axis=-1)


def own_colours(result: np.ndarray, below: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, bool]:
    """Layer ``(h, w, 4)`` whose ``over`` on ``below`` gives ``result``, and whether it does so everywhere."""
    image = fitting(result, below, alpha)
    wanted, reached = result[..., :3] * result[..., 3:], over(image, below)
    off = np.abs(reached[..., :3] * reached[..., 3:] - wanted).max(axis=-1)
    grown = np.abs(reached[..., 3] - result[..., 3])
    missed = np.maximum(off, grown) > HALF_A_LEVEL
    if not missed.any():
        return image, True
    opaque = result[..., 3] > 1.0 - HALF_A_LEVEL
    # Where no colour at that alpha fits, such as for an adjustment inside a group, the result itself covers all.
    image[missed, :3] = result[missed, :3]
    image[missed & opaque, 3] = 1.0
    # No layer changes colours but not a translucent alpha: the layer or its absence is used, whichever errs less.
    change = np.abs(wanted - below[..., :3] * below[..., 3:]).max(axis=-1)
    image[missed & ~opaque & (change < grown)] = 0.0
    return image, not bool((missed & ~opaque).any())


def recomposed(pieces: Sequence[Piece], box: Box) -> np.ndarray:
    """Composite of pieces, bottom to top, on a box: ``(H, W, 4)`` float32, straight alpha."""
    flat = np.zeros((box[3] - box[1], box[2] - box[0], 4), np.float32)
    for piece in pieces:
        part = intersection(piece.box, box)
        if not is_empty(part):
            where = window(part, box)
            flat[where] = over(piece.image(part), flat[where])
    return flat


def error_of(
    reached: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray], tail_error: float = TAIL_ERROR
) -> float | None:
    """Largest difference, in 8-bit levels, between the reached and the wanted image; None if it is too large.

    Only pixels that change count, since all others would lower the mean.

    Args:
        reached: the image before and after, ``(..., 4)`` in [0, 1], straight alpha.
        wanted: the same of the document.
        tail_error: upper bound for all but one in a thousand of those pixels, in 8-bit levels.
    """
    reached_before, reached_after = map(_levels, reached)
    wanted_before, wanted_after = map(_levels, wanted)
    change = np.maximum(np.abs(wanted_after - wanted_before), np.abs(reached_after - reached_before)).max(axis=-1)
    errors = np.abs(reached_after - wanted_after).max(axis=-1)[change > HALF_A_LEVEL * 255.0]
    if not errors.size:
        return 0.0
    if errors.mean() > MEAN_ERROR or np.percentile(errors, TAIL) > tail_error:
        return None
    return float(errors.max())


def _levels(image: np.ndarray) -> np.ndarray:
    """Premultiply, in 8-bit levels, so that transparent pixels are all equal."""
    return np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], axis=-1) * 255.0
