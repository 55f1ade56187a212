"""PowerPoint slides, by python-pptx: one image per layer, in place."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from pptx import Presentation

from layers.export.crop import crop
from layers.imaging.codec import encode_png

EMU_PER_PIXEL = 9525  # at 96 pixels an inch
MIN_SIDE, MAX_SIDE = 914_400, 51_206_400  # of a slide, in EMU: one and 56 inches
BLANK = 6  # index of the blank layout in the default template


def encode_pptx(layers: Sequence[np.ndarray], names: Sequence[str]) -> bytes:
    """Make a deck of one slide of the canvas's size; an empty layer has no image.

    Args:
        layers: bottom to top, ``(H, W, 4)`` uint8.
        names: names of the images in PowerPoint's selection pane.
    """
    height, width = layers[0].shape[:2]
    unit = min(EMU_PER_PIXEL, MAX_SIDE / max(height, width))
    unit = max(unit, MIN_SIDE / min(height, width)) if unit * min(height, width) < MIN_SIDE else unit
    deck = Presentation()
    deck.slide_width, deck.slide_height = (min(round(side * unit), MAX_SIDE) for side in (width, height))
    slide = deck.slides.add_slide(deck.slide_layouts[BLANK])
    for layer, name in zip(layers, names, strict=True):
        if layer[..., 3].any():
            cut = crop(layer)
            place = [round(pixels * unit) for pixels in (cut.left, cut.top, cut.image.shape[1], cut.image.shape[0])]
            slide.shapes.add_picture(io.BytesIO(encode_png(cut.image)), *place).name = name
    file = io.BytesIO()
    deck.save(file)
    return file.getvalue()
