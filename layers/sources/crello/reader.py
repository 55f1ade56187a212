"""Reader of Crello (Hugging Face ``cyberagent/crello``, versions 4 and 5): designs as rows of parquet files.

    id, title: string; length: number of elements; canvas_width, canvas_height: pixels; preview: image
    lists of ``length`` entries, bottom to top:
    type                      class label: ColoredBackground, ImageElement, MaskElement, SvgElement, TextElement
    left, top, width, height  pixels (version 4: fractions of the canvas)
    angle                     degrees (version 4: radians), clockwise about the element's centre
    opacity                   0 to 1
    image                     {"bytes", "path"}, a small image that is stretched to width and height; texts have one
    color                     lists of "rgba(r, g, b, a)" (version 4: one [r, g, b] each), 0 to 255
    text                      string

The reference rendering starts from a white canvas and draws the elements in order. Module ``table`` reads rows, ``row``
turns a row into elements, ``draw`` renders them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from config.errors import SampleError, UserError
from layers.imaging.codec import MAX_PIXELS, ImageError, decode_rgba
from layers.imaging.compositing import to_float
from layers.imaging.stack import MAX_LAYERS, Layer, LayeredSample
from layers.sources.base import Source
from layers.sources.crello.draw import draw
from layers.sources.crello.row import Element, canvas_size, elements_of, image_bytes, words
from layers.sources.crello.table import CrelloTable
from layers.sources.location import Location


class CrelloSource(Source):
    """Crello's parquet files below one root.

    Args:
        root: folder with ``data/<split>-*.parquet``, or with the parquet files themselves.
        split: ``train``, ``validation``, ``test`` or ``all``.
        short_side: pixels of a rendering's shorter side; canvases are never enlarged. ``None`` renders at canvas size.
        layerd_filters: prepare designs as in LayerD's evaluation. Elements without any opaque pixel and all layers
            hidden by an opaque one are left out, and a design needs two remaining layers. A bottom layer that is not
            fully opaque gets white below it, with and without this option.

    Raises:
        UserError: if an argument or the files are not as described.
    """

    def __init__(self, root: Location, *, split: str, short_side: int | None, layerd_filters: bool) -> None:
        if short_side is not None and (
            not isinstance(short_side, int) or isinstance(short_side, bool) or short_side < 1
        ):
            raise UserError(f"{root.key}: short_side {short_side!r}, expected pixels above 0 or null")
        self.short_side = short_side
        self.layerd_filters = layerd_filters
        self.table = CrelloTable(root, split)

    def sample_ids(self) -> list[str]:
        """Ids of all rows, in the order of files and rows, which is the fastest for reading.

        A row whose id is missing or no valid file name gets one from its file and number.
        """
        return self.table.ids()

    def signature(self, sample_id: str) -> str:
        """String that changes with the row's file and the rendering settings."""
        return f"{self.table.signature(sample_id)}-{self.short_side}-{self.layerd_filters}"

    def read(self, sample_id: str) -> LayeredSample:
        """Read and render one design.

        Raises:
            SampleError: with the missing or broken part.
        """
        row = self.table.row(sample_id)
        size, scale = self._size(row)
        notes: list[str] = []
        layers = [layer for item in elements_of(row) if (layer := self._layer(item, size, scale, notes)) is not None]
        if not layers:
            raise SampleError("no element shows anything on the canvas")
        if self.layerd_filters:
            layers = _uncovered(layers, notes)
        if not _opaque(layers[0].image):
            white = np.full((*size, 4), 255, np.uint8)
            layers = [Layer(white, "background", "plain white background"), *layers]
            notes.append("white canvas below")
        if len(layers) > MAX_LAYERS:
            raise SampleError(f"{len(layers)} layers with the white canvas, more than {MAX_LAYERS}")
        return LayeredSample(sample_id, tuple(layers), words(row.get("title")), _preview(row, notes), tuple(notes))

    def _size(self, row: dict[str, Any]) -> tuple[tuple[int, int], float]:
        """Height and width of the rendering, and its scale."""
        width, height = canvas_size(row)
        shorter = min(width, height)
        target = min(shorter, self.short_side or shorter)
        # Rounded down, as in LayerD: rounded up, a background would only partly cover the last column.
        size = height * target // shorter, width * target // shorter
        if size[0] * size[1] > MAX_PIXELS:
            raise SampleError(f"canvas of {size[1]}x{size[0]} is above {MAX_PIXELS} pixels")
        return size, target / shorter

    def _layer(self, item: Element, size: tuple[int, int], scale: float, notes: list[str]) -> Layer | None:
        pixels = item.pixels()
        if pixels is None:
            notes.append(f'left out, has no image: "{item.label}"')
            return None
        if self.layerd_filters and pixels[..., 3].max() < 255:
            notes.append(f'left out, nowhere opaque: "{item.label}"')
            return None
        image = draw(to_float(pixels), item.box.scaled(scale), item.opacity, size)
        if not image[..., 3].any():
            notes.append(f'left out, shows nothing on the canvas: "{item.label}"')
            return None
        if item.kind is None:
            notes.append(f'unknown type taken for an image: "{item.label}"')
        return Layer(image, item.kind or "image", item.text if item.kind == "text" else "")


def _opaque(image: np.ndarray) -> bool:
    return bool((image[..., 3] == 255).all())


def _uncovered(layers: list[Layer], notes: list[str]) -> list[Layer]:
    """The layers from the topmost one that hides all below it; LayerD requires two remaining layers."""
    hidden = max((i for i, layer in enumerate(layers) if _opaque(layer.image)), default=0)
    if hidden:
        notes.append(f'left out, hidden by an opaque layer: "{hidden} layers"')
    if len(layers) - hidden < 2:
        raise SampleError("fewer than 2 layers are left by LayerD's filters")
    return layers[hidden:]


def _preview(row: dict[str, Any], notes: list[str]) -> np.ndarray | None:
    data = image_bytes(row.get("preview"))
    if data is None:
        return None
    try:
        return decode_rgba(data, "preview")
    except ImageError as error:
        notes.append(f'preview left out: "{error}"')
        return None
