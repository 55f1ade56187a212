"""Rendering of a component of a LICA layout to a full-canvas layer; the release has no renders of layers.

Assumptions, where the layouts are ambiguous:

* Boxes that are not rotated lie on whole pixels: left, top, right and bottom are rounded. Clips and rotated boxes keep
  their fractions and have anti-aliased edges.
* An image is stretched over its box (``objectFit`` fill, observed: boxes have the images' proportions) unless
  ``objectFit`` says cover.
* Opacity, clip and ``overflow: hidden`` of a group act on the group as a whole, after its children.
* Properties that only later releases may have (shadows, filters, borders, blend modes) are left out and noted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from config.errors import SampleError
from layers.imaging.compositing import over, resize, to_float
from layers.sources.lica import clip as lica_clip
from layers.sources.lica import text as lica_text
from layers.sources.lica.clip import Outline, coverage
from layers.sources.lica.css import MAX_PX, opacity, shift, transform, unset
from layers.sources.lica.element import Element
from layers.sources.lica.fonts import Fonts
from layers.sources.lica.place import EPSILON, area_scale, covering, is_upright, place, upright_box

NOT_DRAWN = (
    "animation",
    "backdropFilter",
    "backgroundImage",
    "border",
    "borderRadius",
    "boxShadow",
    "filter",
    "mask",
    "maskImage",
    "mixBlendMode",
    "objectPosition",
    "perspective",
    "textDecoration",
    "textShadow",
    "textStroke",
    "WebkitTextStroke",
    "writingMode",
)
# Maximum coordinate in pixels, since offsets of nested boxes add up; beyond, floats are too coarse for pixels.
FARTHEST = 100.0 * MAX_PX
SAME_PROPORTIONS = 0.02


@dataclass
class Renderer:
    """Draws the components of one layout.

    Attributes:
        size: (height, width) of the canvas.
        read: gives an image, ``(h, w, 4)`` uint8, from its ``src`` and its component's place for messages.
        fonts: source of the faces.
        preview: the flat render, ``(H, W, 4)`` uint8 of any size, if there is one.
        notes: list of inexactly drawn parts; grows as components are drawn.
    """

    size: tuple[int, int]
    read: Callable[[str, str], np.ndarray]
    fonts: Fonts
    preview: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def draw(self, element: Element, parent: np.ndarray | None = None) -> np.ndarray | None:
        """Draw one component with its children.

        Args:
            element: the component.
            parent: 3x3, from its parent's coordinates to the canvas; ``None`` for the canvas itself.

        Returns:
            ``(H, W, 4)`` float32 straight alpha, or ``None`` if nothing of it is visible.

        Raises:
            SampleError: with the component and its fault.
        """
        box = self._box(element)
        turn = transform(element.get("transform"), box, f"{element.where}.transform")
        matrix = (
            (np.eye(3) if parent is None else parent) @ shift(element.px("left", 0.0), element.px("top", 0.0)) @ turn
        )
        clip = lica_clip.parse_clip(element.get("clipPath"), f"{element.where}.clipPath")
        alpha = opacity(element.get("opacity"), f"{element.where}.opacity")
        # All properties are checked before the matrix, so that faults of invisible components are reported too.
        paint = element.paint()
        self._note_undrawn(element)
        if np.abs(matrix).max() > FARTHEST:
            raise SampleError(f"{element.where}: lies beyond {FARTHEST:.0f} pixels")
        if alpha == 0.0 or area_scale(matrix) < EPSILON:
            return None
        layer = self._content(element, box, matrix)
        if layer is not None and element.get("overflow") == "hidden" and element.kind != "IMAGE":
            layer[..., 3] *= self._box_mask(box, matrix)
        if paint is not None:
            ground = np.broadcast_to(np.float32(paint), (*self.size, 4)).copy()
            # A group's clip ends where the box does: applying both would make the edge too faint.
            if clip is None or element.kind != "GROUP" or not clip.is_in_frame:
                ground[..., 3] *= self._box_mask(box, matrix)
            layer = ground if layer is None else over(layer, ground)
        if layer is None:
            return None
        if clip is not None:
            laid = matrix @ self._clip_matrix(element, clip, box, matrix, layer)
            try:
                layer[..., 3] *= coverage(clip, laid, self.size)
            except SampleError as error:
                raise SampleError(f"{element.where}.clipPath: {error}") from None
        layer[..., 3] *= alpha
        return layer if (layer[..., 3] > 0.5 / 255.0).any() else None

    def _box(self, element: Element) -> tuple[float, float]:
        """Width and height; a group may lack both if nothing depends on them, a text may lack its height."""
        needed = {"TEXT": ("transform",), "GROUP": ("background", "backgroundColor", "clipPath", "transform")}
        keys = needed.get(element.kind)
        default = 0.0 if keys is not None and all(unset(element.get(key)) for key in keys) else None
        width = element.px("width", default if element.kind == "GROUP" else None)
        height = element.px("height", default)
        if width < 0 or height < 0:
            raise SampleError(f"{element.where}: a box of {width:g}x{height:g} pixels")
        return tuple(side if side >= lica_clip.THINNEST else 0.0 for side in (width, height))

    def _note_undrawn(self, element: Element) -> None:
        for key in NOT_DRAWN:
            if not unset(element.get(key)):
                self.notes.append(f"{key} of {element.where} not drawn")

    def _content(self, element: Element, box: tuple[float, float], matrix: np.ndarray) -> np.ndarray | None:
        """Content of a component, without its own colour, clip and opacity."""
        if element.kind == "IMAGE":
            return self._image(element, box, matrix)
        if element.kind == "TEXT":
            return self._text(element, box, matrix)
        layer = None
        for child in element.children:
            drawn = self.draw(child, matrix)
            if drawn is not None:
                layer = drawn if layer is None else over(drawn, layer)
        return layer

    def _image(self, element: Element, box: tuple[float, float], matrix: np.ndarray) -> np.ndarray | None:
        src = element.get("src")
        if not isinstance(src, str) or not src:
            raise SampleError(f"{element.where}.src is missing")
        if min(box) == 0.0:
            return None
        image = self.read(src, element.where)
        fit = element.get("objectFit")
        if fit == "cover":
            image = covering(image, box)
        elif not unset(fit) and fit != "fill":
            self.notes.append(f"objectFit of {element.where} drawn as fill")
        return place(to_float(image), box, matrix, self.size)

    def _text(self, element: Element, box: tuple[float, float], matrix: np.ndarray) -> np.ndarray | None:
        style = lica_text.style_of(element.get, element.where)
        text = lica_text.in_case(element.text(), element.get("textTransform"), f"{element.where}.textTransform")
        drawn = lica_text.set_text(text, style, (box[0], box[1] or None), self.fonts, element.where)
        if drawn is None:
            return None
        image, (x, y), notes = drawn
        self.notes.extend(notes)
        if element.get("textAlign") == "justify":
            self.notes.append(f"{element.where} set flush left instead of justified")
        return place(image, (image.shape[1], image.shape[0]), matrix @ shift(x, y), self.size)

    def _box_mask(self, box: tuple[float, float], matrix: np.ndarray) -> np.ndarray:
        """Coverage of a box, ``(H, W)`` float32; on whole pixels unless it is rotated."""
        if not is_upright(matrix):
            return coverage(lica_clip.rectangle(*box), matrix, self.size)
        mask = np.zeros(self.size, np.float32)
        if min(box) == 0.0:
            return mask
        left, top, right, bottom = upright_box(box, matrix)
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1.0
        return mask

    def _clip_matrix(
        self, element: Element, clip: Outline, box: tuple[float, float], matrix: np.ndarray, layer: np.ndarray
    ) -> np.ndarray:
        """3x3 matrix from a clip's frame to the coordinates of its box; see :mod:`layers.sources.lica.clip`."""
        spread = lica_clip.over_box(clip, box)
        frame = clip.frame
        same_size = all(abs(side - extent) <= 1.0 for side, extent in zip(box, frame, strict=True))
        if element.kind != "IMAGE" or same_size or min(*frame, *box) == 0.0:
            return spread
        if self.preview is not None and np.allclose(matrix[:2, :2], np.eye(2), rtol=0.0, atol=EPSILON):
            find = lica_clip.find_on_image(clip, self._deviation(layer, box, matrix))
            if find.moved:
                self.notes.append(f"clip of {element.where} placed by the flat render")
                left, top, _, _ = upright_box(box, matrix)
                return shift(left + find.offset[0] - matrix[0, 2], top + find.offset[1] - matrix[1, 2])
            if not find.lost:
                return spread
        if abs(spread[0, 0] / spread[1, 1] - 1.0) <= SAME_PROPORTIONS or frame[0] > box[0] or frame[1] > box[1]:
            return spread
        self.notes.append(f"clip of {element.where} centred: the layout does not say where it lies")
        return shift((box[0] - frame[0]) / 2.0, (box[1] - frame[1]) / 2.0)

    @cached_property
    def _flat(self) -> np.ndarray:
        """RGB of the flat render at the canvas's size, over white."""
        image = to_float(self.preview)
        if image.shape[:2] != self.size:
            image = resize(image, self.size)
        return image[..., :3] * image[..., 3:] + (1.0 - image[..., 3:])

    def _deviation(self, layer: np.ndarray, box: tuple[float, float], matrix: np.ndarray) -> np.ndarray:
        """Mean difference of a layer to the flat render over its box, NaN if unknown; empty if the box is huge."""
        left, top, right, bottom = upright_box(box, matrix)
        if (right - left) * (bottom - top) > lica_clip.MAX_SEARCHED:
            return np.zeros((0, 0), np.float32)
        out = np.full((bottom - top, right - left), np.nan, np.float32)
        y = slice(max(top, 0), max(min(bottom, self.size[0]), 0))
        x = slice(max(left, 0), max(min(right, self.size[1]), 0))
        difference = np.abs(layer[y, x, :3] - self._flat[y, x]).mean(axis=-1)
        # Where the image is transparent the flat render shows other layers, so the difference is unknown.
        difference = np.where(layer[y, x, 3] > 0.5, difference, np.nan)
        out[
            y.start - top : y.start - top + difference.shape[0], x.start - left : x.start - left + difference.shape[1]
        ] = difference
        return out
