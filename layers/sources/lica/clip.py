"""Outlines of LICA's layouts: clip paths are parsed, placed on their box and rasterised with anti-aliasing.

``clipPath`` is CSS ``path("M...Z")``. A GROUP's path has a frame of its own, from (0, 0) to its outermost point, and
is stretched over the box (observed: a 495x256 path on an 836x432 box). An IMAGE's path is in canvas pixels, at its
drawn size, while the box is that of the whole photograph behind it. The release lacks the path's position on the
photograph (observed: in all five clipped photographs of four layouts). See :func:`find_on_image`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from fontTools.pens.basePen import BasePen
from fontTools.svgLib.path import parse_path
from scipy.signal import fftconvolve

from config.errors import SampleError
from layers.sources.lica.css import MAX_PX, shown, unset

# In pixels; thinner boxes and frames count as empty, since their matrix cannot be inverted numerically.
THINNEST = 1e-3
MAX_PATH_CHARACTERS = 200_000
CURVE_STEPS = 48
# Number of scan lines per row of pixels; along a line coverage is exact.
LINES = 8
MAX_CROSSINGS = 4_000_000
BAND_ROWS = 64
# Mean differences in [0, 1]: up to MATCH a photograph counts as the one in the flat render. A path found in it must
# match better by MARGIN than one stretched over the whole photograph, parts of which match as well.
MATCH = 0.15
MARGIN = 0.02
# Largest box, in pixels, on which a path's place is searched.
MAX_SEARCHED = 8_000_000


@dataclass(frozen=True)
class Outline:
    """Closed contours.

    Attributes:
        contours: each ``(n, 2)`` float64, x and y in pixels; the last point is joined to the first.
        even_odd: the fill rule; nonzero otherwise.
    """

    contours: tuple[np.ndarray, ...]
    even_odd: bool = False

    @property
    def frame(self) -> tuple[float, float]:
        """Width and height from (0, 0) to the outermost point; 0 where that is too little to be stretched."""
        width, height = (float(side) for side in np.concatenate(self.contours).max(axis=0))
        return width if width >= THINNEST else 0.0, height if height >= THINNEST else 0.0

    @property
    def is_in_frame(self) -> bool:
        """Whether no point lies left of or above (0, 0)."""
        return all(bool(contour.min() >= 0.0) for contour in self.contours)


class _Flattener(BasePen):
    """Pen that collects contours, with curves as chords."""

    def __init__(self) -> None:
        super().__init__()
        self.contours: list[list[tuple[float, float]]] = []

    def _moveTo(self, point: tuple[float, float]) -> None:
        self.contours.append([point])

    def _lineTo(self, point: tuple[float, float]) -> None:
        self.contours[-1].append(point)

    def _curveToOne(self, first: tuple[float, float], second: tuple[float, float], end: tuple[float, float]) -> None:
        t = np.linspace(0.0, 1.0, CURVE_STEPS + 1)[1:, None]
        start = np.array(self.contours[-1][-1])
        curve = start * (1 - t) ** 3 + 3 * np.array(first) * t * (1 - t) ** 2
        curve += 3 * np.array(second) * t**2 * (1 - t) + np.array(end) * t**3
        self.contours[-1].extend(map(tuple, curve.tolist()))


def rectangle(width: float, height: float) -> Outline:
    """The outline of a box at the origin."""
    return Outline((np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]]),))


def parse_clip(value: Any, what: str) -> Outline | None:
    """Parse ``path("...")`` or ``path(evenodd, "...")``; ``None`` if there is no clip.

    Raises:
        SampleError: if it is another shape, no path, too long, or not finite.
    """
    if unset(value):
        return None
    match = None
    if isinstance(value, str):
        if len(value) > MAX_PATH_CHARACTERS:
            raise SampleError(f"{what}: a path of {len(value)} characters, more than {MAX_PATH_CHARACTERS}")
        match = re.fullmatch(r"path\(\s*(?:(nonzero|evenodd)\s*,\s*)?([\"'])([^\"']*)\2\s*\)", value.strip())
    if match is None:
        raise SampleError(f'{what}: {shown(value)} is no path("...")')
    pen = _Flattener()
    try:
        # The parser splits at commands only and does not accept line breaks between an arc's arguments.
        parse_path(" ".join(match[3].split()), pen)
        contours = tuple(np.array(contour, dtype=np.float64) for contour in pen.contours if len(contour) > 2)
    except Exception as error:  # the parser may raise any exception
        raise SampleError(f"{what}: {shown(value)} is no SVG path ({type(error).__name__})") from None
    if not all(np.isfinite(contour).all() and np.abs(contour).max() <= MAX_PX for contour in contours):
        raise SampleError(f"{what}: a path with points beyond {MAX_PX:.0f} pixels")
    return Outline(contours or (np.zeros((3, 2)),), match[1] == "evenodd")


def _edges(outline: Outline, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    placed = [contour @ matrix[:2, :2].T + matrix[:2, 2] for contour in outline.contours]
    return np.concatenate(placed), np.concatenate([np.roll(contour, -1, axis=0) for contour in placed])


def coverage(outline: Outline, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share of each pixel that lies inside an outline.

    Args:
        outline: in its own coordinates.
        matrix: 3x3, from its coordinates to pixels of the result.
        size: (height, width) of the result.

    Returns:
        ``(height, width)`` float32 in [0, 1]: exact along x, the mean of :data:`LINES` lines along y. An edge on the
        border between two pixels stays sharp.

    Raises:
        SampleError: if the outline has more edges than can be drawn in reasonable time.
    """
    height, width = size
    starts, ends = _edges(outline, matrix)
    sign = np.sign(ends[:, 1] - starts[:, 1])
    upper = np.where(sign[:, None] > 0, starts, ends)
    lower = np.where(sign[:, None] > 0, ends, starts)
    # Line j lies at y = (j + 0.5) / LINES; an edge crosses the lines from its upper end to its lower end, exclusive.
    first, last = (
        np.clip(np.ceil(points[:, 1] * LINES - 0.5), 0, height * LINES).astype(np.int64) for points in (upper, lower)
    )
    counts = last - first
    if counts.sum() > MAX_CROSSINGS:
        raise SampleError(f"an outline of {len(starts)} edges, too intricate to draw")
    edge = np.repeat(np.arange(len(counts)), counts)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (lower - upper)[edge, 0] / np.where(counts > 0, (lower - upper)[:, 1], 1.0)[edge]
    x = np.clip(upper[edge, 0] + ((line + 0.5) / LINES - upper[edge, 1]) * slope, 0.0, width)
    order = np.argsort(line, kind="stable")
    line, x, weight = line[order], x[order], sign[edge][order]
    out = np.zeros(size, np.float32)
    for top in range(0, height, BAND_ROWS):
        rows = min(BAND_ROWS, height - top)
        part = slice(*np.searchsorted(line, [top * LINES, (top + rows) * LINES]))
        if part.stop > part.start:
            out[top : top + rows] = _band(line[part] - top * LINES, x[part], weight[part], (rows, width), outline)
    return out


def _band(line: np.ndarray, x: np.ndarray, weight: np.ndarray, size: tuple[int, int], outline: Outline) -> np.ndarray:
    """Coverage of some rows from winding numbers, which follow from the crossings of their lines."""
    rows, width = size
    column = np.floor(x).astype(np.int64)
    share = x - column
    # A crossing adds its weight to the winding number right of it, and in part to its own pixel.
    index = line * (width + 2) + column
    winding = np.bincount(index, weight * (1.0 - share), rows * LINES * (width + 2))
    winding += np.bincount(index + 1, weight * share, rows * LINES * (width + 2))
    winding = winding.reshape(rows * LINES, width + 2)[:, :width].cumsum(axis=1)
    inside = np.abs(winding - 2.0 * np.rint(winding / 2.0)) if outline.even_odd else np.minimum(np.abs(winding), 1.0)
    return inside.reshape(rows, LINES, width).mean(axis=1)


def over_box(outline: Outline, box: tuple[float, float]) -> np.ndarray:
    """The 3x3 matrix that stretches an outline's frame over a box of (width, height) at the origin."""
    scales = [side / extent if extent > 0 else 0.0 for side, extent in zip(box, outline.frame, strict=True)]
    return np.diag([*scales, 1.0])


@dataclass(frozen=True)
class Find:
    """Match of an image inside an outline with the flat render: mean differences in [0, 1], infinite if unknown.

    Attributes:
        offset: (x, y) in pixels from the image's corner, where the outline in its own size matches best.
        error: difference at this offset.
        stretched: difference with the outline stretched over the whole image instead.
    """

    offset: tuple[int, int]
    error: float
    stretched: float

    @property
    def moved(self) -> bool:
        """Whether the outline was found at the offset."""
        return self.error <= MATCH and self.error + MARGIN < self.stretched

    @property
    def lost(self) -> bool:
        """Whether the outline was found neither there nor stretched."""
        return min(self.error, self.stretched) > MATCH


def find_on_image(outline: Outline, error: np.ndarray) -> Find:
    """Find the place of an outline on an image, where the image equals the flat render.

    Args:
        outline: in its own size.
        error: ``(h, w)`` float32 over the image's box: mean difference to the flat render, NaN where unknown.
    """
    height, width = error.shape
    known = np.isfinite(error)
    if not known.any():
        return Find((0, 0), math.inf, math.inf)
    stretched = _inside(error, coverage(outline, over_box(outline, (width, height)), error.shape))
    mask_size = (math.ceil(outline.frame[1]), math.ceil(outline.frame[0]))
    if not (0 < mask_size[0] <= height and 0 < mask_size[1] <= width):
        return Find((0, 0), math.inf, stretched)
    mask = coverage(outline, np.eye(3), mask_size)
    # Pixels off the canvas have no effect on the choice of a place.
    deviation = np.where(known, error - error[known].mean(), 0.0).astype(np.float32)
    cost = fftconvolve(deviation, mask[::-1, ::-1], mode="valid")
    y, x = (int(i) for i in np.unravel_index(np.argmin(cost), cost.shape))
    return Find((x, y), _inside(error[y : y + mask_size[0], x : x + mask_size[1]], mask), stretched)


def _inside(error: np.ndarray, mask: np.ndarray) -> float:
    """Mean error under a mask; infinite if the mask covers no known pixel."""
    weight = np.where(np.isfinite(error), mask, 0.0)
    total = float(weight.sum())
    return float((np.nan_to_num(error) * weight).sum()) / total if total > 0 else math.inf
