"""Taking a PSD document apart into layers that recompose with ``over``, bottom to top.

Folders are descended into where that changes nothing; every other visible thing becomes one layer. It is drawn by
psd-tools upon what lies below, and the layer keeps the thing's own alpha ``a`` and takes the colour
``(result - (1 - a) * below) / a``. For every blend mode that is exact and within [0, 1], since blending a colour upon
a backdrop of alpha ``b`` is ``over`` with the colour ``(1 - b) * own + b * blend(backdrop, own)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from psd_tools import PSDImage
from psd_tools.api.layers import AdjustmentLayer, Artboard, Group
from psd_tools.api.layers import Layer as PsdLayer
from psd_tools.composite.adjustments import ADJUSTMENT_FUNC
from psd_tools.composite.composite import Compositor
from psd_tools.composite.widen import make_widen
from psd_tools.constants import BlendMode, ColorMode

from layers.compositing import over, to_uint8
from layers.errors import SampleError
from layers.sources.psd_facts import (
    artboard_background,
    baking_reason,
    draws_effects,
    kind_of,
    members,
    mode_of,
    reason_of,
    undrawn,
    words_of,
)
from layers.stack import MAX_LAYERS, Layer

Box = tuple[int, int, int, int]
# Half an 8-bit step: what differs less is the same when it is written.
TOLERANCE = 0.5 / 255.0
LUMA = (0.299, 0.587, 0.114)


class _Drawing(Compositor):
    def coverage(self, layer: AdjustmentLayer) -> np.ndarray:
        """How far an adjustment applies, ``(h, w, 1)`` in [0, 1]: its mask and its opacities."""
        fill, opacity = self._get_const(layer)
        return np.broadcast_to(np.float32(fill * opacity) * self._get_mask(layer), (self.height, self.width, 1))


class Stack:
    """The layers of a document.

    Args:
        psd: 8- or 16-bit RGB or greyscale, checked by :func:`layers.sources.psd_facts.check`.
        recolour: turns ``(h, w, 4)`` uint8 of the document's colour space into sRGB.

    Attributes:
        layers: bottom to top.
        notes: what could not be expressed as it was.
    """

    def __init__(self, psd: PSDImage, recolour: Callable[[np.ndarray], np.ndarray]) -> None:
        self.layers: list[Layer] = []
        self.notes: list[str] = []
        self._psd, self._recolour = psd, recolour
        self._widen = make_widen(psd)
        self._channels = 1 if psd.color_mode is ColorMode.GRAYSCALE else 3
        # What the layers so far recompose to, straight alpha.
        self._below = np.zeros((psd.height, psd.width, 4), np.float32)
        self._add_children(psd, (0, 0, psd.width, psd.height))

    def _add_children(self, group: PSDImage | Group, clip: Box) -> None:
        based = False
        for layer in group:
            if layer.clipping:
                # Drawn with the layer below that it is clipped to, and hidden with it.
                if layer.visible and not based:
                    self._note("left out, clipped to no layer", layer)
            elif not layer.visible:
                self._note("left out, hidden", layer)
                based = True
            else:
                based = True
                self._add(layer, clip)

    def _add(self, layer: PsdLayer, clip: Box) -> None:
        if not layer.is_group():
            self._draw(layer, clip)
            return
        colour = artboard_background(layer)
        reason = baking_reason(layer)
        if reason:
            self._note(f"group baked for its {reason}", layer)
            if colour is not None:
                self._note("artboard background not drawn", layer)
            self._draw(layer, clip)
            return
        self._note_undrawn(layer)
        if isinstance(layer, Artboard):
            clip = _intersection(clip, layer.bbox)
            if colour is not None and not _is_empty(clip):
                self._put(self._plain(colour, clip), clip, "shape", layer.name.strip())
        self._add_children(layer, clip)

    def _plain(self, colour: tuple[float, float, float], box: Box) -> np.ndarray:
        if self._channels == 1:
            colour = (float(np.dot(colour, LUMA)),) * 3
        return np.full((box[3] - box[1], box[2] - box[0], 4), (*colour, 1.0), np.float32)

    def _draw(self, layer: PsdLayer, clip: Box) -> None:
        for member in members(layer):
            self._note_undrawn(member)
        adjustment = isinstance(layer, AdjustmentLayer)
        if adjustment and layer.kind not in ADJUSTMENT_FUNC:
            return
        box = self._reach(layer, clip)
        if _is_empty(box):
            self._note("left out, shows nothing on the canvas", layer)
            return
        below = self._below[box[1] : box[3], box[0] : box[2]]
        result, alpha = self._upon(layer, box, below)
        if adjustment:
            if np.abs(result - below).max() < TOLERANCE:
                self._note("left out, changes nothing", layer)
                return
            # On transparency there is nothing to adjust.
            alpha = alpha * below[..., 3:]
        image, exact = _own_colours(result, below, alpha)
        if self._put(image, box, kind_of(layer), words_of(layer)):
            self._note_baking(layer)
            if not exact:
                self._note("approximate over transparency", layer)
        else:
            self._note("left out, shows nothing on the canvas", layer)

    def _reach(self, layer: PsdLayer, clip: Box) -> Box:
        # Only stored pixels keep to their box: strokes reach beyond it, and fills and groups have none of their own.
        stored = not layer.is_group() and layer.has_pixels() and not draws_effects(layer)
        return _intersection(clip, layer.bbox) if stored else clip

    def _upon(self, layer: PsdLayer, box: Box, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture ``(h, w, 4)`` with the layer upon ``below``, and the layer's own alpha ``(h, w, 1)``."""
        colours, alphas = np.ascontiguousarray(below[..., : self._channels]), np.ascontiguousarray(below[..., 3:])
        drawing = _Drawing(
            box, colours, alphas, PsdLayer.is_visible, widen=self._widen, color_mode=self._psd.color_mode
        )
        try:
            drawing.apply(layer)
            own = drawing.coverage(layer) if isinstance(layer, AdjustmentLayer) else drawing.alpha
        except Exception as error:
            # Files hold anything, and psd-tools then raises anything.
            raise SampleError(f'layer "{layer.name}" cannot be drawn ({reason_of(error)})') from None
        colours = np.broadcast_to(drawing.result_over_backdrop(), (*below.shape[:2], 3))
        together = alphas + drawing.alpha - alphas * drawing.alpha
        result = np.concatenate([colours, together], axis=-1).astype(np.float32)
        if not (np.isfinite(result).all() and np.isfinite(own).all()):
            raise SampleError(f'layer "{layer.name}" has colours that are no numbers')
        return result, own.astype(np.float32)

    def _put(self, image: np.ndarray, box: Box, kind: str, description: str) -> bool:
        """Add a layer, ``(h, w, 4)`` float on its box, unless nothing of it shows; says whether it did."""
        if len(self.layers) >= MAX_LAYERS:
            raise SampleError(f"more than {MAX_LAYERS} layers")
        pixels = self._recolour(to_uint8(image))
        if not pixels[..., 3].any():
            return False
        rows, columns = slice(box[1], box[3]), slice(box[0], box[2])
        # Zeros that nobody writes to take no memory, and most layers are small.
        canvas = np.zeros(self._below.shape, np.uint8)
        canvas[rows, columns] = pixels
        self._below[rows, columns] = over(image, self._below[rows, columns])
        bottom = not self.layers and bool((canvas[..., 3] == 255).all())
        self.layers.append(Layer(canvas, "background" if bottom else kind, description))
        return True

    def _note(self, words: str, layer: PsdLayer) -> None:
        self.notes.append(f'{words}: "{layer.name}"')

    def _note_baking(self, layer: PsdLayer) -> None:
        if isinstance(layer, AdjustmentLayer):
            self.notes.append(f'{layer.kind} baked into a layer of its own: "{layer.name}"')
        elif not layer.is_group() and layer.blend_mode is not BlendMode.NORMAL:
            self.notes.append(f'{mode_of(layer)} baked into "{layer.name}"')
        if layer.has_clip_layers(visible=True):
            self.notes.append(f'clipped layers baked into "{layer.name}"')
        if not layer.is_group() and draws_effects(layer):
            self.notes.append(f'effects baked into "{layer.name}"')

    def _note_undrawn(self, layer: PsdLayer) -> None:
        for words in undrawn(layer):
            self._note(words, layer)


def _own_colours(result: np.ndarray, below: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, bool]:
    """The layer ``(h, w, 4)`` that ``over`` turns ``below`` into ``result`` with; whether that holds everywhere."""
    wanted = result[..., :3] * result[..., 3:]
    own = wanted - (1.0 - alpha) * below[..., :3] * below[..., 3:]
    colours = np.divide(own, alpha, out=np.zeros_like(own), where=alpha > 0).clip(0.0, 1.0)
    image = np.concatenate([colours, alpha], axis=-1)
    reached = over(image, below)
    off = np.abs(reached[..., :3] * reached[..., 3:] - wanted).max(axis=-1)
    grown = np.abs(reached[..., 3] - result[..., 3])
    missed = np.maximum(off, grown) > TOLERANCE
    if not missed.any():
        return image, True
    opaque = result[..., 3] > 1.0 - TOLERANCE
    # Where no colour of that alpha will do, such as for an adjustment inside a group, the result itself covers all.
    image[missed, :3] = result[missed, :3]
    image[missed & opaque, 3] = 1.0
    # A change of colours that leaves a translucent alpha as it is has no layer: take the lesser fault, with or without.
    change = np.abs(wanted - below[..., :3] * below[..., 3:]).max(axis=-1)
    image[missed & ~opaque & (change < grown)] = 0.0
    return image, not bool((missed & ~opaque).any())


def _intersection(box: Box, other: Box) -> Box:
    return (max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))


def _is_empty(box: Box) -> bool:
    return box[0] >= box[2] or box[1] >= box[3]
