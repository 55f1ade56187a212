"""Rows of Crello's table, checked and normalised: sizes in pixels, angles in degrees."""

from __future__ import annotations

import html
import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from config.errors import SampleError
from layers.imaging.codec import ImageError, decode_rgba
from layers.imaging.stack import MAX_LAYERS
from layers.sources.crello.draw import Box

KINDS = {
    "coloredBackground": "background",
    "imageElement": "image",
    "maskElement": "image",
    "svgElement": "shape",
    "textElement": "text",
}
# Canvases have a few thousand pixels; a position or size of a million is a broken number.
MAX_REACH = 1_000_000.0


@dataclass(frozen=True)
class Element:
    """One element of a design.

    Attributes:
        index: its place in the row, 0 at the bottom.
        type: the name of its class, as spelled in the file.
        box: its box in pixels of the canvas; width and height may be 0.
        opacity: in [0, 1].
        image: its encoded image, if it has one.
        colour: as in the row.
        text: plain text of a text element.
    """

    index: int
    type: str
    box: Box
    opacity: float
    image: bytes | None
    colour: Any
    text: str

    @property
    def label(self) -> str:
        """Name of the element in messages."""
        return f"element {self.index} ({self.type})"

    @property
    def kind(self) -> str | None:
        """Its layer kind; None for an unknown type. Versions spell types with or without a capital."""
        return KINDS.get(self.type[:1].lower() + self.type[1:])

    def pixels(self) -> np.ndarray | None:
        """Its own image ``(h, w, 4)`` uint8; for a background without an image, one pixel of its colour.

        Raises:
            SampleError: if image or colour cannot be read.
        """
        if self.image is not None:
            try:
                return decode_rgba(self.image, f"{self.label}: image")
            except ImageError as error:
                raise SampleError(str(error)) from None
        if self.kind != "background" or not self.colour:
            return None
        return np.array([[_rgba(self.colour, self.label)]], np.uint8)


def canvas_size(row: dict[str, Any]) -> tuple[int, int]:
    """Width and height in pixels; in version 4 they are class labels whose names are digits.

    Raises:
        SampleError: if they are no numbers of pixels.
    """
    sides = []
    for name in ("canvas_width", "canvas_height"):
        value = row[name]
        if isinstance(value, str) and value.isdecimal() and len(value) < 10:
            value = int(value)
        if not isinstance(value, int) or value < 1:
            raise SampleError(f"{name} is {value!r}, no number of pixels")
        sides.append(value)
    return sides[0], sides[1]


def elements_of(row: dict[str, Any]) -> list[Element]:
    """All elements of a row, bottom to top.

    Raises:
        SampleError: if there are none or too many, a list has another length, or a number is missing or impossible.
    """
    count = row["length"]
    if not isinstance(count, int) or count < 1:
        raise SampleError(f"length is {count!r}, there are no elements")
    if count > MAX_LAYERS:
        raise SampleError(f"{count} elements, more than {MAX_LAYERS}")
    types, images, opacities = (_entries(row, name, count) for name in ("type", "image", "opacity"))
    texts, colours = (
        _entries(row, name, count) if row.get(name) is not None else [None] * count for name in ("text", "color")
    )
    geometry = {name: _entries(row, name, count) for name in ("left", "top", "width", "height", "angle")}
    width, height = canvas_size(row) if row["fractional"] else (1, 1)
    units = {"left": width, "top": height, "width": width, "height": height}
    units["angle"] = 180.0 / math.pi if row["fractional"] else 1.0
    elements = []
    for i in range(count):
        label = f"element {i} ({types[i]})"
        box = Box(**{name: _number(values[i], f"{label}: {name}") * units[name] for name, values in geometry.items()})
        if max(abs(value) for value in astuple(box)) > MAX_REACH:
            raise SampleError(f"{label}: its box reaches farther than {MAX_REACH:.0f} pixels")
        if box.width < 0 or box.height < 0:
            raise SampleError(f"{label}: its box is {box.width:g}x{box.height:g} pixels")
        opacity = _number(opacities[i], f"{label}: opacity")
        if not 0.0 <= opacity <= 1.0:
            raise SampleError(f"{label}: opacity is {opacity:g}, expected 0 to 1")
        elements.append(Element(i, types[i], box, opacity, image_bytes(images[i]), colours[i], words(texts[i])))
    return elements


def words(value: Any) -> str:
    """Plain text, without the markup that some rows have for quotes and ampersands; empty if there is none."""
    return html.unescape(value).strip() if isinstance(value, str) else ""


def image_bytes(image: Any) -> bytes | None:
    """Encoded bytes of a Hugging Face image, if they are in the table."""
    data = image.get("bytes") if isinstance(image, dict) else image
    return data if isinstance(data, bytes) else None


def _entries(row: dict[str, Any], name: str, count: int) -> list[Any]:
    value = row[name]
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} entries" if isinstance(value, list) else repr(value)
        raise SampleError(f"column {name} has {found} for {count} elements")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise SampleError(f"{name} is {value!r}, no finite number")
    return float(value)


def _rgba(colour: Any, label: str) -> tuple[int, int, int, int]:
    """Parse a colour: a list of "rgba(r, g, b, a)" strings, of which the first is used, or of three numbers."""
    try:
        if isinstance(colour[0], str):
            head, _, tail = colour[0].replace(" ", "").lower().partition("(")
            if head not in ("rgb", "rgba") or not tail.endswith(")"):
                raise ValueError
            values = [float(part) for part in tail[:-1].split(",")]
        else:
            values = [float(part) for part in colour]
        red, green, blue = (round(value) for value in values[:3])
        alpha = round(255 * (values[3] if len(values) > 3 else 1.0))
    except (TypeError, ValueError, LookupError, OverflowError):
        raise SampleError(f"{label}: colour {str(colour)[:60]} cannot be read") from None
    if len(values) > 4 or not all(0 <= value <= 255 for value in (red, green, blue, alpha)):
        raise SampleError(f"{label}: colour {str(colour)[:60]} is out of range")
    return red, green, blue, alpha
