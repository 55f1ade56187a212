"""HTML of the page (app/page.py): the canvas and the list of layers, from the template ``view.html.j2``.

Images are embedded as PNGs with their transparency; the style sheet draws the checkerboard behind them.
"""

from __future__ import annotations

import base64
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.edit import Entry, composite, reduced, smaller
from app.session import Session
from layers.export.templates import templates_in
from layers.imaging.codec import encode_png

TEMPLATE = Path(__file__).with_name("view.html.j2")
CANVAS_SIDE = 960  # longest side in pixels of the image on the page
THUMBNAIL_SIDE = 144
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Row:
    """One row of the list of layers.

    Attributes:
        entry: the layer.
        source: its thumbnail as a ``data:`` URL.
        colour: its mean colour as ``#rrggbb``.
    """

    entry: Entry
    source: str
    colour: str


def canvas(session: Session) -> str:
    """Canvas with the composite of the visible layers, or with the image before it has layers."""
    if session.image is None:
        return _template().canvas(None, None, None, None, 0, 0)
    height, width = session.image.shape[:2]
    if session.stack is None:
        flat = smaller(session.image, _fitted((height, width), CANVAS_SIDE))
        return _template().canvas(source(flat), None, None, None, width, height)
    small = reduced(session.stack, CANVAS_SIDE)
    chosen = next((entry for entry in small.entries if entry.key == session.chosen and entry.visible), None)
    ghost = None if chosen is None else source(chosen.rendered())
    return _template().canvas(source(composite(small)), ghost, chosen, session.stack, width, height)


def layer_list(session: Session) -> str:
    """List of layers from the top down: thumbnails with buttons, and the tools of the selected one."""
    if session.stack is None:
        return _template().layer_list([], None, 0, 0)
    small = reduced(session.stack, 2 * THUMBNAIL_SIDE)
    rows = []
    for entry, little in zip(reversed(session.stack.entries), reversed(small.entries), strict=True):
        rendered = little.rendered()
        thumbnail = smaller(rendered, _fitted(small.size, THUMBNAIL_SIDE))
        rows.append(Row(entry, source(thumbnail), mean_colour(little.recoloured())))
    return _template().layer_list(rows, session.chosen, *reversed(session.stack.size))


def note(words: str, wrong: bool = False) -> str:
    """Note for the visitor, also read out by screen readers.

    Every note gets its own number. Gradio shows no equal note twice, although the page's script may have replaced it.
    """
    return _template().note(words, wrong, next(NUMBERS))


def source(image: np.ndarray) -> str:
    """Encode ``(H, W, 4)`` uint8 as a ``data:`` URL of a PNG."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(np.ascontiguousarray(image))).decode()}"


def mean_colour(pixels: np.ndarray) -> str:
    """Mean colour of ``(H, W, 4)`` uint8, weighted by alpha, as ``#rrggbb``; black if nothing is visible."""
    weight = pixels[..., 3].reshape(-1).astype(np.float64)
    if not weight.any():
        return "#000000"
    mean = np.rint(np.average(pixels[..., :3].reshape(-1, 3), axis=0, weights=weight)).astype(int)
    return "#" + "".join(f"{value:02x}" for value in mean)


def _fitted(size: Sequence[int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@functools.cache
def _template():
    return templates_in(TEMPLATE.parent).get_template(TEMPLATE.name).module
