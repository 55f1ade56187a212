"""Edits of a stack of layers: each returns a new stack and changes nothing in place.

A layer's visibility, offset and colour are stored beside its pixels and applied when it is rendered. So a layer that
was moved off the canvas comes back whole, and each recolouring starts from the layer's own colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from config.errors import UserError
from layers.export import check_stack, layer_names
from layers.imaging.compositing import composite_8bit

Colour = tuple[int, int, int]


class EditError(UserError):
    """An edit that this stack does not allow; the message is one sentence."""


@dataclass(frozen=True)
class Entry:
    """A layer and the edits made to it.

    Attributes:
        key: identifies the layer within its stack; never reused after a deletion.
        name: shown on the page and used in files.
        pixels: ``(H, W, 4)`` uint8, straight alpha, as decomposed; not to be written to.
        visible: whether the composite and the files include it.
        offset: pixels it was moved by, (right, down).
        colour: mean colour it was given, 0 to 255 each; ``None``: its own.
    """

    key: int
    name: str
    pixels: np.ndarray
    visible: bool = True
    offset: tuple[int, int] = (0, 0)
    colour: Colour | None = None

    def recoloured(self) -> np.ndarray:
        """Pixels ``(H, W, 4)`` uint8 in the given colour, at the original position."""
        return tinted(self.pixels, self.colour)

    def rendered(self) -> np.ndarray:
        """Pixels ``(H, W, 4)`` uint8 in the given colour, at the offset."""
        return shifted(self.recoloured(), self.offset)


@dataclass(frozen=True)
class Stack:
    """A stack of layers, bottom to top.

    Attributes:
        entries: the layers, of one size.
        size: (height, width) of the canvas.
        next_key: key of the next layer that is added.
    """

    entries: tuple[Entry, ...]
    size: tuple[int, int]
    next_key: int

    def index(self, key: int) -> int:
        """Position of a layer, 0 at the bottom.

        Raises:
            EditError: if there is no such layer.
        """
        for index, entry in enumerate(self.entries):
            if entry.key == key:
                return index
        raise EditError("this layer is no longer in the stack")

    def entry(self, key: int) -> Entry:
        """Layer with this key; raises :class:`EditError` if there is no such layer."""
        return self.entries[self.index(key)]


def stacked(layers: Sequence[np.ndarray], names: Sequence[str] | None = None) -> Stack:
    """Build a stack from the layers of a decomposition.

    Args:
        layers: ``(H, W, 4)`` uint8 of one size, bottom to top, at least one.
        names: layer names; ``None`` for those of :func:`layers.export.layer_names`.

    Raises:
        ValueError: if there is no layer, sizes differ, or one is no RGBA image.
    """
    check_stack(layers)
    names = layer_names(len(layers)) if names is None else names
    entries = tuple(Entry(key, name, pixels) for key, (pixels, name) in enumerate(zip(layers, names, strict=True)))
    return Stack(entries, layers[0].shape[:2], len(entries))


def shown(stack: Stack, key: int, visible: bool) -> Stack:
    """Show or hide a layer; raises :class:`EditError` if there is no such layer."""
    return _with(stack, key, visible=bool(visible))


def moved(stack: Stack, key: int, offset: tuple[int, int]) -> Stack:
    """Set a layer's ``offset`` = (right, down) in pixels from its original position.

    Raises:
        EditError: if there is no such layer, or the offset is larger than the canvas.
    """
    height, width = stack.size
    if abs(offset[0]) > width or abs(offset[1]) > height:
        raise EditError(f"moved by {offset[0]}, {offset[1]} pixels; expected at most {width}, {height} each way")
    return _with(stack, key, offset=(int(offset[0]), int(offset[1])))


def recoloured(stack: Stack, key: int, colour: Colour | None) -> Stack:
    """Set a layer's mean colour; ``None`` restores its own.

    Raises:
        EditError: if there is no such layer, or the colour is not three values of 0 to 255.
    """
    if colour is not None and (len(colour) != 3 or not all(0 <= value <= 255 for value in colour)):
        raise EditError(f"colour {colour}: expected three values of 0 to 255")
    return _with(stack, key, colour=colour)


def deleted(stack: Stack, key: int) -> Stack:
    """Delete a layer.

    Raises:
        EditError: if there is no such layer, or it is the only one.
    """
    index = stack.index(key)
    if len(stack.entries) == 1:
        raise EditError("the only layer cannot be deleted; hide it instead")
    return replace(stack, entries=stack.entries[:index] + stack.entries[index + 1 :])


def reordered(stack: Stack, key: int, place: int) -> Stack:
    """Move a layer to another position in the stack, 0 at the bottom.

    Raises:
        EditError: if there is no such layer, or no such position.
    """
    index, others = stack.index(key), list(stack.entries)
    if not 0 <= place < len(others):
        end = "top" if place > index else "bottom"
        raise EditError(f"{stack.entries[index].name} is at the {end} already")
    others.insert(place, others.pop(index))
    return replace(stack, entries=tuple(others))


def replaced(stack: Stack, key: int, parts: Sequence[np.ndarray]) -> Stack:
    """Replace a layer by its parts, bottom to top; they take over its offset and visibility.

    The layer's colour is not applied again, because they are parts of :meth:`Entry.recoloured`. Parts without a
    visible pixel are left out.

    Args:
        stack: the one that holds the layer.
        key: of the layer.
        parts: ``(H, W, 4)`` uint8 each, of the canvas's size.

    Raises:
        EditError: if there is no such layer, or fewer than two parts have a visible pixel.
        ValueError: if a part is no RGBA image of the canvas's size.
    """
    index = stack.index(key)
    whole = stack.entries[index]
    check_stack([whole.pixels, *parts])
    kept = [part for part in parts if part[..., 3].any()]
    if len(kept) < 2:
        raise EditError(f"{whole.name} could not be split: only one part was found in it")
    entries = tuple(
        Entry(stack.next_key + number, f"{whole.name}.{number + 1}", part, whole.visible, whole.offset)
        for number, part in enumerate(kept)
    )
    everything = stack.entries[:index] + entries + stack.entries[index + 1 :]
    return replace(stack, entries=everything, next_key=stack.next_key + len(entries))


def visible_layers(stack: Stack) -> tuple[list[np.ndarray], list[str]]:
    """Visible layers with their edits applied, ``(H, W, 4)`` uint8 bottom to top, and their names.

    Raises:
        EditError: if all are hidden.
    """
    entries = [entry for entry in stack.entries if entry.visible]
    if not entries:
        raise EditError("all layers are hidden; show at least one")
    return [entry.rendered() for entry in entries], [entry.name for entry in entries]


def composite(stack: Stack) -> np.ndarray:
    """Composite of the visible layers, ``(H, W, 4)`` uint8; transparent if all are hidden."""
    layers = [entry.rendered() for entry in stack.entries if entry.visible]
    return composite_8bit(layers) if layers else np.zeros((*stack.size, 4), np.uint8)


def reduced(stack: Stack, side: int) -> Stack:
    """Scale a stack down to sides of at most ``side`` pixels, so that a preview of edits is quick."""
    height, width = stack.size
    scale = min(1.0, side / max(height, width))
    if scale == 1.0:
        return stack
    size = tuple(max(1, round(length * scale)) for length in stack.size)
    entries = tuple(
        replace(
            entry,
            pixels=smaller(entry.pixels, size),
            offset=(round(entry.offset[0] * scale), round(entry.offset[1] * scale)),
        )
        for entry in stack.entries
    )
    return Stack(entries, size, stack.next_key)


def smaller(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize ``(H, W, 4)`` uint8 to ``size`` = (height, width); Pillow premultiplies alpha while it filters."""
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BOX)
    out = np.array(image)
    out[out[..., 3] == 0] = 0
    return out


def tinted(pixels: np.ndarray, colour: Colour | None) -> np.ndarray:
    """Shift colours so that their alpha-weighted mean is ``colour``: shading stays, and black can be made red.

    Args:
        pixels: ``(H, W, 4)`` uint8.
        colour: 0 to 255 each; ``None`` leaves the layer as it is.
    """
    weight = pixels[..., 3].astype(np.float64)
    if colour is None or not weight.any():
        return pixels
    mean = np.average(pixels[..., :3].reshape(-1, 3), axis=0, weights=weight.reshape(-1))
    out = pixels.copy()
    shift = np.rint(np.asarray(colour) - mean).astype(np.int16)
    out[..., :3] = np.clip(pixels[..., :3] + shift, 0, 255)
    out[out[..., 3] == 0] = 0
    return out


def shifted(pixels: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """Move ``(H, W, 4)`` by (right, down) pixels; what leaves the canvas is cut, the rest is transparent."""
    right, down = offset
    if not right and not down:
        return pixels
    height, width = pixels.shape[:2]
    out = np.zeros_like(pixels)
    if abs(right) < width and abs(down) < height:
        out[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = pixels[
            max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
        ]
    return out


def _with(stack: Stack, key: int, **changes: object) -> Stack:
    index = stack.index(key)
    entries = list(stack.entries)
    entries[index] = replace(entries[index], **changes)
    return replace(stack, entries=tuple(entries))
