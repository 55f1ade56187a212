"""Canvas that a layout draws on: elements bottom to top, the image so far, and the reduction to layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from layers.composer import assets
from layers.composer.element import Box, Element, Part, joined
from layers.composer.palette import Colour, Palette, contrast, luminance
from layers.composer.words import THEMES
from layers.imaging.compositing import to_uint8

Option = TypeVar("Option")

VISIBLE_STEP = 0.05
VISIBLE_AREA = 0.0025
HIDDEN_SHARE = 0.3
HIDDEN_SHARE_BACKGROUND = 0.1
SHADOW_SHARE = 0.5


@dataclass
class Scene:
    """One design while it is drawn.

    Attributes:
        rng: the only source of randomness.
        width: width of the canvas in pixels; ``height`` its height.
        pool: one of ``assets.POOLS``.
        theme: a key of ``words.THEMES``, or None for a design about a photograph.
        palette: the colours.
        title_face: key of ``assets.FACES`` for headlines; ``body_face`` for the rest.
        want: wanted number of layers, background included.
        radius: corner radius of boxes, as a share of the short side.
        elements: bottom to top; the first is the background.
        flat: the image so far, ``(H, W, 3)`` float32.
    """

    rng: np.random.Generator
    width: int
    height: int
    pool: str
    theme: str | None
    palette: Palette
    title_face: str
    body_face: str
    want: int
    radius: float
    elements: list[Element] = field(default_factory=list)
    flat: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.flat = np.zeros((self.height, self.width, 3), dtype=np.float32)

    @property
    def unit(self) -> float:
        """The short side in pixels, with which all lengths scale."""
        return float(min(self.width, self.height))

    @property
    def box(self) -> Box:
        """The whole canvas."""
        return Box(0, 0, self.width, self.height)

    def chance(self, share: float) -> bool:
        """True with probability ``share``."""
        return bool(self.rng.random() < share)

    def choice(self, options: Sequence[Option]) -> Option:
        """Draw one of the options, all equally likely."""
        return options[int(self.rng.integers(len(options)))]

    def uniform(self, low: float, high: float) -> float:
        """Draw a number, uniform in [low, high)."""
        return float(self.rng.uniform(low, high))

    def pick(self, required: int, optional: dict[str, float]) -> set[str]:
        """Choose optional parts so that they and the ``required`` ones fill the wanted layers over the background.

        Args:
            required: layers the layout always draws.
            optional: name to weight; a shadow is drawn first, with a probability of its own.
        """
        count = min(max(0, self.want - 1 - required), len(optional))
        names, chosen = list(optional), set()
        if "shadow" in optional and count > 0 and self.chance(SHADOW_SHARE if count > 1 else SHADOW_SHARE / 2):
            names.remove("shadow")
            chosen, count = {"shadow"}, count - 1
        weight = np.array([optional[name] for name in names])
        drawn = self.rng.choice(len(names), size=count, replace=False, p=weight / weight.sum())
        return chosen | {names[int(i)] for i in drawn}

    def objects(self, count: int) -> list[str]:
        """``count`` different objects of the theme, and of others where it has too few in its pool."""
        own = assets.objects(self.theme or "party", self.pool)
        names = [own[int(i)] for i in self.rng.permutation(len(own))[:count]]
        while len(names) < count:
            name = self.choice(assets.objects(self.choice(tuple(THEMES)), self.pool))
            names += [name] if name not in names else []
        return names

    def photo(self, without: Sequence[str] = ()) -> str:
        """A photograph of the pool that is not among ``without``."""
        names = [name for name in assets.photos(self.pool) if name not in without]
        weight = np.array([assets.PHOTOS[name].weight for name in names])
        return str(self.rng.choice(names, p=weight / weight.sum()))

    def add(
        self,
        crop: np.ndarray,
        left: float,
        top: float,
        *,
        kind: str,
        description: str,
        text: str = "",
        glue: float = 0.0,
    ) -> Box:
        """Put a crop on top, clipped to the canvas; returns where it is."""
        x, y = round(left), round(top)
        height, width = crop.shape[:2]
        x0, y0, x1, y1 = max(0, x), max(0, y), min(self.width, x + width), min(self.height, y + height)
        if x0 >= x1 or y0 >= y1:
            return Box(x, y, width, height)
        crop = crop[y0 - y : y1 - y, x0 - x : x1 - x]
        self.elements.append(Element(crop, x0, y0, (Part(kind, text, description),), glue))
        window = self.flat[y0:y1, x0:x1]
        window += crop[..., 3:] * (crop[..., :3] - window)
        return Box(x, y, width, height)

    def bake(self) -> None:
        """Join the last element to the one below."""
        upper = self.elements.pop()
        self.elements[-1] = joined(self.elements[-1], upper)

    def under(self, box: Box) -> np.ndarray:
        """The image so far in a box, every second pixel, at least one; ``(h, w, 3)``."""
        x, y = max(0, min(self.width - 1, int(box.left))), max(0, min(self.height - 1, int(box.top)))
        return self.flat[y : max(y + 1, int(box.bottom)) : 2, x : max(x + 1, int(box.right)) : 2]

    def mean_under(self, box: Box) -> Colour:
        """Mean colour of the image so far in a box."""
        red, green, blue = self.under(box).reshape(-1, 3).mean(0)
        return float(red), float(green), float(blue)

    def legible(self, box: Box, wishes: Sequence[Colour], need: float) -> tuple[Colour, float]:
        """The first of ``wishes`` that contrasts enough in a box, else the best of paper, ink, white and black.

        Returns:
            The colour and its contrast ratio against the worst tenth of the pixels beneath.
        """
        ground = np.quantile(luminance(self.under(box)), (0.1, 0.9))

        def worst(colour: Colour) -> float:
            own = float(luminance(np.asarray(colour, np.float32)))
            return min(contrast(own, float(value)) for value in ground)

        for colour in wishes:
            if worst(colour) >= need:
                return colour, worst(colour)
        fallback = (self.palette.paper, self.palette.ink, (1.0, 1.0, 1.0), (0.05, 0.05, 0.06))
        colour = max(fallback, key=worst)
        return colour, worst(colour)

    def reduce(self) -> None:
        """Join elements, those of the largest ``glue`` first, until no more than ``want`` are left."""
        while len(self.elements) > self.want:
            index = max(range(1, len(self.elements)), key=lambda i: self.elements[i].glue)
            if self.elements[index].glue <= 0:
                return
            self.elements[index - 1 : index + 1] = [joined(self.elements[index - 1], self.elements[index])]

    def all_visible(self) -> bool:
        """Whether every layer changes the image enough to be seen and none is mostly covered.

        The change is the effect of removing the layer: transmittance of all layers above, times alpha, times the
        difference of its colour from the one beneath.
        """
        # Every second pixel is a sufficient sample.
        shape = (self.height + 1) // 2, (self.width + 1) // 2
        below, through = np.zeros((*shape, 3), dtype=np.float32), np.ones(shape, dtype=np.float32)
        halves = []
        for element in self.elements:
            y, x = element.top % 2, element.left % 2
            crop = element.crop[y::2, x::2]
            top, left = (element.top + y) // 2, (element.left + x) // 2
            place = slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1])
            alpha, ground = crop[..., 3], below[place].copy()
            below[place] += alpha[..., None] * (crop[..., :3] - ground)
            halves.append((element.kind, place, alpha, alpha * np.abs(crop[..., :3] - ground).max(-1)))
        for kind, place, alpha, change in reversed(halves):
            if np.count_nonzero(through[place] * change > VISIBLE_STEP) < VISIBLE_AREA * through.size:
                return False
            share = HIDDEN_SHARE_BACKGROUND if kind == "background" else HIDDEN_SHARE
            if (through[place] * alpha).sum() < share * alpha.sum():
                return False
            through[place] *= 1 - alpha
        return True

    def layer_image(self, element: Element) -> np.ndarray:
        """The element as a full-canvas ``(H, W, 4)`` uint8 layer."""
        image = np.zeros((self.height, self.width, 4), dtype=np.uint8)
        _window(image, element)[...] = to_uint8(element.crop)
        return image


def _window(canvas: np.ndarray, element: Element) -> np.ndarray:
    height, width = element.crop.shape[:2]
    return canvas[element.top : element.top + height, element.left : element.left + width]
