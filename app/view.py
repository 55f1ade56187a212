"""HTML of the page (app/page.py): images and lists, by the template ``view.html.j2``.

Images are inside, as PNGs that are transparent where layers are; the checkerboard behind them is the style's.
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
CANVAS_SIDE = 960  # pixels at most of the image on the page
THUMBNAIL_SIDE = 144
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Row:
    """A layer in the list.

    Attributes:
        entry: the layer.
        source: its thumbnail as a ``data:`` address.
        colour: its mean colour as ``#rrggbb``.
    """

    entry: Entry
    source: str
    colour: str


def canvas(session: Session) -> str:
    """Composite of the visible layers over a checkerboard, or the image before it has layers."""
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
    """Layers from the top down, each a thumbnail with its buttons; the chosen one with its tools."""
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
    """A sentence for the visitor, read out by screen readers.

    No two are equal: Gradio would not show one again, though the page's own script may have written over it.
    """
    return _template().note(words, wrong, next(NUMBERS))


def source(image: np.ndarray) -> str:
    """``(H, W, 4)`` uint8 as a ``data:`` address of a PNG."""
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
