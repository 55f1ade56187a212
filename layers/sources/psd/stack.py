"""Decomposition of a PSD document into layers that recompose with ``over``, bottom to top.

Folders are split into their layers where that does not change the image; every other visible item becomes one layer.
psd-tools draws it on the image below; the layer gets the item's own alpha ``a`` and the colour
``(result - (1 - a) * below) / a``. For every blend mode this is exact and within [0, 1]. The reason: blending on a
backdrop of alpha ``b`` is ``over`` with the colour ``(1 - b) * own + b * blend(backdrop, own)``.

An adjustment, which only maps colours to others, is folded into the layers below where the image stays the same, see
module ``folding``. Elsewhere it becomes a layer of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from psd_tools import PSDImage
from psd_tools.api.layers import AdjustmentLayer, Artboard, Group
from psd_tools.api.layers import Layer as PsdLayer
from psd_tools.composite.adjustments import ADJUSTMENT_FUNC
from psd_tools.composite.composite import Compositor
from psd_tools.composite.widen import make_widen
from psd_tools.constants import BlendMode, ColorMode

from config.errors import SampleError
from layers.imaging.compositing import over, to_uint8
from layers.imaging.stack import MAX_LAYERS, Layer
from layers.sources.psd.facts import (
    adjusts_itself,
    artboard_background,
    baking_reason,
    draws_effects,
    kind_of,
    maps_colours,
    members,
    mode_of,
    reason_of,
    undrawn,
    visible_clips,
    words_of,
)
from layers.sources.psd.folding import (
    HALF_A_LEVEL,
    ROUNDING_ERROR,
    Box,
    Piece,
    error_of,
    fold,
    intersection,
    is_empty,
    own_colours,
    recomposed,
    window,
)

LUMA = (0.299, 0.587, 0.114)


class _Drawing(Compositor):
    def coverage(self, layer: AdjustmentLayer) -> np.ndarray:
        """Strength of an adjustment, ``(h, w, 1)`` in [0, 1]: its mask times its opacities."""
        fill, opacity = self._get_const(layer)
        return np.broadcast_to(np.float32(fill * opacity) * self._get_mask(layer), (self.height, self.width, 1))


class _NotFolded(Exception):
    """An adjustment within a group cannot be folded into the group's layers and must not affect others."""


class Stack:
    """The layers of a document.

    Args:
        psd: 8- or 16-bit RGB or greyscale, checked by :func:`layers.sources.psd.facts.check`.
        recolour: converts ``(h, w, 4)`` uint8 of the document's colour space to sRGB.

    Attributes:
        layers: bottom to top.
        notes: parts that could not be represented exactly.
    """

    def __init__(self, psd: PSDImage, recolour: Callable[[np.ndarray], np.ndarray]) -> None:
        self.layers: list[Layer] = []
        self.notes: list[str] = []
        self._psd, self._recolour = psd, recolour
        self._widen = make_widen(psd)
        self._channels = 1 if psd.color_mode is ColorMode.GRAYSCALE else 3
        # The document's image so far, straight alpha; the layers recompose to it, except where folding approximates.
        self._below = np.zeros((psd.height, psd.width, 4), np.float32)
        # A copy of the layers for folding; it takes twice the memory, so it is made only if there are adjustments.
        self._foldable = any(isinstance(layer, AdjustmentLayer) and layer.is_visible() for layer in psd.descendants())
        self._pieces: list[Piece] = []
        # The lowest layer that adjustments affect, and whether they must not become layers of their own.
        self._lowest, self._confined = 0, False
        self._add_children(psd, (0, 0, psd.width, psd.height))

    def _add_children(self, group: PSDImage | Group, clip: Box) -> None:
        based = False
        for layer in group:
            if layer.clipping:
                # Drawn together with the layer below to which it is clipped, and hidden with it.
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
        reason = baking_reason(layer)
        if not reason:
            self._descend(layer, clip)
        elif not (self._descend_confined(layer, clip) or self._fold_folder(layer, clip)):
            self._note(f"group baked for its {reason}", layer)
            if artboard_background(layer) is not None:
                self._note("artboard background not drawn", layer)
            self._draw(layer, clip)

    def _descend(self, group: Group, clip: Box) -> None:
        self._note_undrawn(group)
        lowest = self._lowest
        if isinstance(group, Artboard):
            clip = intersection(clip, group.bbox)
            colour = artboard_background(group)
            if colour is not None and not is_empty(clip):
                # The background is opaque, so nothing below it is visible.
                self._lowest = len(self.layers)
                self._put(self._plain(colour, clip), clip, "shape", group.name.strip())
        self._add_children(group, clip)
        self._lowest = lowest

    def _descend_confined(self, group: Group, clip: Box) -> bool:
        """Split a group whose adjustments are confined to it, if they can be folded; returns whether it was split."""
        if is_empty(clip) or not adjusts_itself(group):
            return False
        count, kept = len(self.layers), (self._below, self._lowest, self._confined, len(self.notes))
        pieces, below = list(self._pieces), self._below[window(clip)]
        wanted, _ = self._upon(group, clip, below)
        self._below, self._lowest, self._confined = np.zeros(self._below.shape, np.float32), count, True
        try:
            self._descend(group, clip)
            for clipped in visible_clips(group):
                self._add(clipped, clip)
            reached = recomposed(pieces, clip), recomposed(self._pieces, clip)
            done = error_of(reached, (below, wanted)) is not None
        except _NotFolded:
            done = False
        self._below, self._lowest, self._confined, noted = kept
        if done:
            self._show(wanted, clip)
        else:
            del self.layers[count:], self.notes[noted:]
            self._pieces = pieces
        return done

    def _fold_folder(self, group: Group, clip: Box) -> bool:
        """Fold a group of adjustments only; returns whether it was folded."""
        if is_empty(clip) or not maps_colours(group):
            return False
        return self._fold(group, clip, self._upon(group, clip, self._below[window(clip)])[0])

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
        if is_empty(box):
            self._note("left out, shows nothing on the canvas", layer)
            return
        below = self._below[window(box)]
        result, alpha = self._upon(layer, box, below)
        if adjustment:
            if np.abs(result - below)[below[..., 3] > 0].max(initial=0.0) < HALF_A_LEVEL:
                self._note("left out, changes nothing", layer)
                return
            if self._fold(layer, box, result):
                return
            # An adjustment has no effect on transparent pixels.
            alpha = alpha * below[..., 3:]
        image, exact = own_colours(result, below, alpha)
        if self._put(image, box, kind_of(layer), words_of(layer)):
            self._note_baking(layer)
            if not exact:
                self._note("approximate over transparency", layer)
        else:
            self._note("left out, shows nothing on the canvas", layer)

    def _fold(self, layer: PsdLayer, box: Box, wanted: np.ndarray) -> bool:
        """Fold a layer into those below it if they then recompose to ``wanted``; returns whether it was folded."""
        pieces, below, found = self._pieces[self._lowest :], self._below[window(box)], None
        if maps_colours(layer):
            found = fold(pieces, lambda backdrop, part: self._upon(layer, part, backdrop)[0], box, below, wanted)
        if found is None:
            if self._confined:
                raise _NotFolded
            return False
        for index, (old, new) in enumerate(zip(pieces, found.pieces, strict=True), self._lowest):
            if new is not old:
                self._pieces[index] = new
                image = self._canvas(self._written(new.image()), new.box)
                self.layers[index] = replace(self.layers[index], image=image)
        self._show(wanted, box)
        for member in members(layer) if layer.is_group() else ():
            self._note_undrawn(member)
        self._note_folded(layer)
        if found.fitted:
            self._note("translucent colours fitted to what lies below", layer)
        if found.error > ROUNDING_ERROR:
            self._note("approximate at soft edges", layer)
        return True

    def _reach(self, layer: PsdLayer, clip: Box) -> Box:
        # Only stored pixels stay within their box: strokes reach beyond it, and fills and groups have no own box.
        stored = not layer.is_group() and layer.has_pixels() and not draws_effects(layer)
        return intersection(clip, layer.bbox) if stored else clip

    def _upon(self, layer: PsdLayer, box: Box, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The image ``(h, w, 4)`` with the layer on ``below``, and the layer's own alpha ``(h, w, 1)``."""
        colours, alphas = np.ascontiguousarray(below[..., : self._channels]), np.ascontiguousarray(below[..., 3:])
        drawing = _Drawing(
            box, colours, alphas, PsdLayer.is_visible, widen=self._widen, color_mode=self._psd.color_mode
        )
        try:
            drawing.apply(layer, clip_compositing=True)
            own = drawing.coverage(layer) if isinstance(layer, AdjustmentLayer) else drawing.alpha
        except Exception as error:
            # For broken files psd-tools may raise any exception.
            raise SampleError(f'layer "{layer.name}" cannot be drawn ({reason_of(error)})') from None
        colours = np.broadcast_to(drawing.result_over_backdrop(), (*below.shape[:2], 3))
        together = alphas + drawing.alpha - alphas * drawing.alpha
        result = np.concatenate([colours, together], axis=-1).astype(np.float32)
        if not (np.isfinite(result).all() and np.isfinite(own).all()):
            raise SampleError(f'layer "{layer.name}" has colours that are no numbers')
        return result, own.astype(np.float32)

    def _put(self, image: np.ndarray, box: Box, kind: str, description: str) -> bool:
        """Add a layer, ``(h, w, 4)`` float on its box, unless it is invisible; returns whether it was added."""
        if len(self.layers) >= MAX_LAYERS:
            raise SampleError(f"more than {MAX_LAYERS} layers")
        pixels = self._written(image)
        if not pixels[..., 3].any():
            return False
        canvas = self._canvas(pixels, box)
        self._below[window(box)] = over(image, self._below[window(box)])
        bottom = not self.layers and bool((canvas[..., 3] == 255).all())
        self.layers.append(Layer(canvas, "background" if bottom else kind, description))
        if self._foldable:
            self._pieces.append(Piece.of(image, box))
        return True

    def _show(self, image: np.ndarray, box: Box) -> None:
        self._below[window(box)] = np.where(image[..., 3:] > 0, image, np.float32(0.0))

    def _written(self, image: np.ndarray) -> np.ndarray:
        return self._recolour(to_uint8(image))

    def _canvas(self, pixels: np.ndarray, box: Box) -> np.ndarray:
        # Zeros that are never written take no memory, and most layers are small.
        canvas = np.zeros(self._below.shape, np.uint8)
        canvas[window(box)] = pixels
        return canvas

    def _note(self, words: str, layer: PsdLayer) -> None:
        self.notes.append(f'{words}: "{layer.name}"')

    def _note_folded(self, layer: PsdLayer) -> None:
        self.notes.append(f'{layer.kind} folded into the layers below "{layer.name}"')

    def _note_baking(self, layer: PsdLayer) -> None:
        if isinstance(layer, AdjustmentLayer):
            self.notes.append(f'{layer.kind} baked into a layer of its own: "{layer.name}"')
        elif not layer.is_group() and layer.blend_mode is not BlendMode.NORMAL:
            self.notes.append(f'{mode_of(layer)} baked into "{layer.name}"')
        clipped = visible_clips(layer)
        if all(map(maps_colours, clipped)):
            # Drawn with the one layer to which they are clipped, they only mapped its colours.
            for adjustment in clipped:
                self._note_folded(adjustment)
        else:
            self.notes.append(f'clipped layers baked into "{layer.name}"')
        if not layer.is_group() and draws_effects(layer):
            self.notes.append(f'effects baked into "{layer.name}"')

    def _note_undrawn(self, layer: PsdLayer) -> None:
        for words in undrawn(layer):
            self._note(words, layer)
