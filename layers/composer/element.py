"""Elements of a design while it is drawn: boxes on the canvas and the crops put there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from layers.imaging.compositing import over


class Box(NamedTuple):
    """A rectangle in canvas pixels; may be fractional."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The x just beyond the box."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The y just beyond the box."""
        return self.top + self.height

    @property
    def centre(self) -> tuple[float, float]:
        """The middle (x, y)."""
        return self.left + self.width / 2, self.top + self.height / 2

    def inset(self, x: float, y: float | None = None) -> Box:
        """The box with a margin taken off every side."""
        y = x if y is None else y
        return Box(self.left + x, self.top + y, max(1.0, self.width - 2 * x), max(1.0, self.height - 2 * y))

    def square(self, share: float = 1.0) -> Box:
        """The largest centred square, times ``share``."""
        side = min(self.width, self.height) * share
        return Box(self.left + (self.width - side) / 2, self.top + (self.height - side) / 2, side, side)

    def rows(self, *shares: float) -> list[Box]:
        """Cut into rows of the given shares."""
        tops = np.cumsum((0.0, *shares)) / sum(shares)
        return [
            Box(self.left, self.top + a * self.height, self.width, (b - a) * self.height) for a, b in pairwise(tops)
        ]

    def columns(self, *shares: float) -> list[Box]:
        """Cut into columns of the given shares."""
        lefts = np.cumsum((0.0, *shares)) / sum(shares)
        return [
            Box(self.left + a * self.width, self.top, (b - a) * self.width, self.height) for a, b in pairwise(lefts)
        ]


@dataclass(frozen=True)
class Part:
    """One drawn part: its kind, the text set in it (or empty), its description."""

    kind: str
    text: str
    description: str


@dataclass(frozen=True)
class Element:
    """A crop on the canvas.

    Attributes:
        crop: ``(h, w, 4)`` float32, straight alpha, inside the canvas.
        left: x of the crop; ``top`` its y.
        parts: the parts drawn in it, bottom to top.
        glue: preference for joining the element below when a design needs fewer layers; 0 is never.
    """

    crop: np.ndarray
    left: int
    top: int
    parts: tuple[Part, ...]
    glue: float

    @property
    def kind(self) -> str:
        """Kind of the element: a shadow belongs to the object that casts it; other mixtures are a group."""
        kinds = {part.kind for part in self.parts}
        if "background" in kinds:
            return "background"
        if len(kinds) > 1:
            kinds.discard("shadow")
        return kinds.pop() if len(kinds) == 1 else "group"

    @property
    def description(self) -> str:
        """The parts' descriptions, without cast shadows."""
        said = [part.description for part in self.parts if part.kind != "shadow"]
        if not said:
            return self.parts[0].description
        return said[0] if len(said) == 1 else f"{said[0]} with {' and '.join(said[1:])}"

    @property
    def text(self) -> str:
        """All text that can be read in it."""
        return " ".join(part.text for part in self.parts if part.text)


def joined(lower: Element, upper: Element) -> Element:
    """Join two elements to one, ``upper`` over ``lower``."""
    left, top = min(lower.left, upper.left), min(lower.top, upper.top)
    right = max(e.left + e.crop.shape[1] for e in (lower, upper))
    bottom = max(e.top + e.crop.shape[0] for e in (lower, upper))
    crop = np.zeros((bottom - top, right - left, 4), dtype=np.float32)
    height, width = lower.crop.shape[:2]
    crop[lower.top - top : lower.top - top + height, lower.left - left : lower.left - left + width] = lower.crop
    height, width = upper.crop.shape[:2]
    window = crop[upper.top - top : upper.top - top + height, upper.left - left : upper.left - left + width]
    window[...] = over(upper.crop, window)
    return Element(crop, left, top, lower.parts + upper.parts, lower.glue)
