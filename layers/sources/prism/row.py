"""Rows of PrismLayers as designs: images are decoded, crops are placed in their boxes."""

from __future__ import annotations

import base64
import binascii
import re
from collections import defaultdict
from typing import Any

import numpy as np

from config.errors import SampleError
from layers.imaging.codec import MAX_PIXELS, ImageError, decode_rgba
from layers.imaging.compositing import resize, to_float, to_uint8
from layers.imaging.pixels import cleared
from layers.imaging.stack import MAX_LAYERS, Layer, LayeredSample
from layers.sources.location import Location, parse_json

SLOT = re.compile(r"layer_([0-9]{2,3})(_image)?")
SAYS_TEXT = re.compile(r"(the |a )?(text|word|words|lettering)\b", re.IGNORECASE)
Box = tuple[int, int, int, int]


class _Notes:
    """Notes on changes of layers, one note per kind of change."""

    def __init__(self) -> None:
        self._layers: dict[str, list[str]] = defaultdict(list)

    def add(self, matter: str, layer: str) -> None:
        self._layers[matter].append(layer)

    def said(self) -> tuple[str, ...]:
        return tuple(f'{matter}: "{", ".join(layers)}"' for matter, layers in self._layers.items())


def compose(root: Location, sample_id: str, row: dict[str, Any]) -> LayeredSample:
    """Make a sample from a row.

    Args:
        root: location of images that the row gives by path.
        sample_id: id of the sample.
        row: columns, as plain Python values.

    Returns:
        The base image as background, and the layers over it.

    Raises:
        SampleError: with the name of the missing or broken column.
    """
    notes = _Notes()
    slots = _slots(row, notes)
    ground = _image(root, row.get("base_image"), "base_image")
    if ground is None:
        raise SampleError("no base_image")
    size = ground.shape[:2]
    layers = [Layer(cleared(ground), "background", _words(row.get("base_caption")))]
    for number, value in slots:
        name = f"layer_{number:02d}"
        crop = _image(root, value, name)
        box = _box(row.get(f"{name}_box"), f"{name}_box", notes)
        caption = _words(row.get(f"{name}_caption"))
        is_text = row.get(f"{name}_type") == "caption" or SAYS_TEXT.match(caption)
        layers.append(Layer(_placed(crop, box, size, name, notes), "text" if is_text else "image", caption))
    preview = _image(root, row.get("whole_image"), "whole_image")
    if preview is not None and preview.shape[:2] != size:
        notes.add("the whole image has another size", f"{preview.shape[1]}x{preview.shape[0]}")
    return LayeredSample(sample_id, tuple(layers), _words(row.get("whole_caption")), preview, notes.said())


def _words(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _slots(row: dict[str, Any], notes: _Notes) -> list[tuple[int, Any]]:
    """Number and image of every valid slot, in order."""
    slots: dict[int, Any] = {}
    for column, value in row.items():
        if match := SLOT.fullmatch(column):
            number, content = int(match[1]), _content(value)
            slots[number] = slots.get(number) if content is None else content
    filled = [number for number in sorted(slots) if slots[number] is not None]
    count = row.get("layer_count")
    if count is None:
        count = max(filled, default=-1) + 1
    elif isinstance(count, bool) or not isinstance(count, int | float) or count != count or count % 1 or count < 0:
        raise SampleError(f"layer_count is {str(count)[:40]!r}, no number of layers")
    count = int(count)
    if count >= MAX_LAYERS:
        raise SampleError(f"{str(count)[:40]} layers and a background are above {MAX_LAYERS}")
    if count > max(slots, default=-1) + 1:
        raise SampleError(f"layer_count is {count}, but there are columns for {max(slots, default=-1) + 1} layers")
    for number in range(count):
        if slots.get(number) is None:
            notes.add("slot without an image", f"layer_{number:02d}")
    for number in filled:
        if number >= count:
            notes.add("left out, beyond layer_count", f"layer_{number:02d}")
    for name in row.get("unlisted") or ():
        notes.add("left out, not listed", name)
    return [(number, slots[number]) for number in filled if number < count]


def _content(value: Any) -> Any:
    """An image's bytes or text; ``None`` if there is none, also for a struct of nulls."""
    if isinstance(value, dict):
        value = (value.get("path") or None) if value.get("bytes") is None else value["bytes"]
    return value


def _image(root: Location, value: Any, name: str) -> np.ndarray | None:
    value = _content(value)
    if value is None:
        return None
    if isinstance(value, str) and not value.startswith("data:"):
        return root.read_rgba(value)
    if isinstance(value, str):
        try:
            value = base64.b64decode("".join(value.partition(",")[2].split()), validate=True)
        except (binascii.Error, ValueError):
            raise SampleError(f"{name}: not valid base64") from None
    if not isinstance(value, bytes):
        raise SampleError(f"{name}: a {type(value).__name__} is no image")
    try:
        return decode_rgba(value, name)
    except ImageError as error:
        raise SampleError(str(error)) from None


def _box(value: Any, name: str, notes: _Notes) -> Box | None:
    """Left, top, right, bottom in pixels, the last two exclusive; ``None`` if there is none."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise SampleError(f"{name}: not valid JSON") from None
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise SampleError(f"{name}: not four numbers")
    if not all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in value):
        raise SampleError(f"{name}: not four numbers")
    if not all(abs(edge) < 1e9 for edge in value):
        raise SampleError(f"{name}: not four finite numbers, or huge ones")
    left, top, right, bottom = box = tuple(round(edge) for edge in value)
    if any(edge % 1 for edge in value):
        notes.add("box rounded to pixels", name)
    if right <= left or bottom <= top:
        raise SampleError(f"{name}: {list(box)} is empty")
    if (right - left) * (bottom - top) > MAX_PIXELS:
        raise SampleError(f"{name}: {right - left}x{bottom - top} is above {MAX_PIXELS} pixels")
    return left, top, right, bottom


def _placed(crop: np.ndarray, box: Box | None, size: tuple[int, int], name: str, notes: _Notes) -> np.ndarray:
    """Place a crop on a canvas of ``size``, resized to its box if it has another size."""
    height, width = crop.shape[:2]
    if box is None:
        if (height, width) != size:
            raise SampleError(f"{name}: no box, and {width}x{height} is not the canvas's {size[1]}x{size[0]}")
        box = (0, 0, width, height)
    left, top, right, bottom = box
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, size[1]), min(bottom, size[0])
    canvas = np.zeros((*size, 4), np.uint8)
    if x0 >= x1 or y0 >= y1:
        notes.add("outside the canvas", name)
        return canvas
    if (x0, y0, x1, y1) != box:
        notes.add("cut at the canvas's edge", name)
    if (right - left, bottom - top) == (width, height):
        part = crop[y0 - top : y1 - top, x0 - left : x1 - left]
    else:
        # Only the part on the canvas is resampled, since the box may be many times larger.
        across, down = width / (right - left), height / (bottom - top)
        source = ((x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down)
        part = to_uint8(resize(to_float(crop), (y1 - y0, x1 - x0), source))
    canvas[y0:y1, x0:x1] = cleared(part)
    return canvas
