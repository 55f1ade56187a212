"""State of one visitor of the page (app/page.py) and its changes: an image, its layers, edits of them.

Sessions are not changed but replaced, so an edit that fails leaves the last one. What a browser sent is checked here:
nothing of it is believed but numbers within bounds and words of a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.edit import EditError, Stack, deleted, moved, recoloured, reordered, replaced, shown, stacked, visible_layers
from config.errors import UserError
from inference.images import layer_count
from inference.restore import check_room
from layers.export import ENCODERS
from layers.imaging.compositing import composite_8bit

MAX_BYTES = 32 * 2**20  # of an upload
MAX_PIXELS = 12_000_000  # of an image: a telephone's
MAX_ENTRIES = 40
MAX_CAPTION = 500  # characters

Decompose = Callable[[np.ndarray, int | None], list[np.ndarray]]


class PageError(UserError):
    """Something the page was asked for and cannot do; the message is one sentence."""


@dataclass(frozen=True)
class Session:
    """One visitor's work.

    Attributes:
        image: ``(H, W, 4)`` uint8; ``None`` before the first upload.
        stack: its layers; ``None`` before they are made.
        chosen: key of the layer whose tools are open.
    """

    image: np.ndarray | None = None
    stack: Stack | None = None
    chosen: int | None = None


def worded(said: Any) -> str:
    """Caption that a visitor gives; "" is none.

    Raises:
        PageError: if it is no text, or longer than :data:`MAX_CAPTION`.
    """
    words = "" if said is None else said
    if not isinstance(words, str) or len(words) > MAX_CAPTION:
        raise PageError(f"caption: expected a text of at most {MAX_CAPTION} characters")
    return words.strip()


def decomposed(session: Session, said: Any, decompose: Decompose) -> tuple[Session, str]:
    """Take the image apart anew; edits of former layers are gone.

    Args:
        session: with an image.
        said: how many layers, for :func:`layer_count`.
        decompose: gives layers of an image, given their number or ``None``.

    Returns:
        The session, and a sentence on how it went.

    Raises:
        PageError: if there is no image, or the number of layers is wrong or too large for it.
    """
    count = layer_count(said)
    if session.image is None:
        raise PageError("there is no image yet; drop one first")
    _check_room(session.image, count or 1)
    layers = decompose(session.image, count)
    error = np.abs(composite_8bit(layers).astype(int) - session.image)[..., :3][session.image[..., 3] > 0]
    words = (
        f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'}, recomposed within {error.max(initial=0)} of 255."
    )
    stack = stacked(layers)
    return replace(session, stack=stack, chosen=stack.entries[-1].key), words


def edited(session: Session, said: Mapping[str, Any]) -> tuple[Session, str]:
    """Do what a click on a layer says.

    Args:
        session: with layers.
        said: ``action``, ``key`` of the layer, and by action ``x`` and ``y`` in pixels or ``colour`` as ``#rrggbb``.

    Returns:
        The session, and a sentence on what was done.

    Raises:
        UserError: if that is no action, or one that the stack does not allow.
    """
    stack, key = _stack(session), _whole(said, "key")
    place, entry = stack.index(key), stack.entry(key)
    match said.get("action"):
        case "choose":
            words = "is chosen"
        case "hide" | "show" as action:
            stack = shown(stack, key, action == "show")
            words = "is shown" if action == "show" else "is hidden"
        case "up":
            stack, words = reordered(stack, key, place + 1), "is one up"
        case "down":
            stack, words = reordered(stack, key, place - 1), "is one down"
        case "move":
            stack, words = moved(stack, key, (_whole(said, "x"), _whole(said, "y"))), "is moved"
        case "drag":
            right, down = entry.offset
            stack, words = moved(stack, key, (right + _whole(said, "x"), down + _whole(said, "y"))), "is moved"
        case "recolour":
            stack, words = recoloured(stack, key, _colour(said.get("colour"))), "is recoloured"
        case "restore":
            stack = recoloured(moved(stack, key, (0, 0)), key, None)
            words = "is back in its place and colour"
        case "delete":
            stack, words = deleted(stack, key), "is deleted"
            key = stack.entries[min(place, len(stack.entries) - 1)].key
        case _:
            raise PageError("this is nothing that can be done to a layer")
    return replace(session, stack=stack, chosen=key), f"{entry.name} {words}."


def split(session: Session, said: Mapping[str, Any], choice: Any, decompose: Decompose) -> tuple[Session, str]:
    """Take one layer apart again; its parts take its place.

    Args:
        session: with layers.
        said: ``key`` of the layer.
        choice: how many parts, for :func:`layer_count`; at least two.
        decompose: as in :func:`decomposed`.

    Returns:
        The session, and a sentence on how it went.

    Raises:
        UserError: if the layer is empty or not there, or the number of parts is wrong or too large.
    """
    stack, key, count = _stack(session), _whole(said, "key"), layer_count(choice)
    entry = stack.entry(key)
    if count == 1:
        raise PageError("layers: got 1; a layer is split into auto or at least 2 parts")
    pixels = entry.recoloured()
    if not pixels[..., 3].any():
        raise PageError(f"{entry.name} has nothing visible to split")
    _check_room(pixels, len(stack.entries) + (count or 1))
    after = replaced(stack, key, decompose(pixels, count))
    if len(after.entries) > MAX_ENTRIES:
        raise PageError(f"the stack would have {len(after.entries)} layers; expected at most {MAX_ENTRIES}")
    parts = len(after.entries) - len(stack.entries) + 1
    chosen = after.entries[stack.index(key) + parts - 1].key
    return replace(session, stack=after, chosen=chosen), f"{entry.name} is now {parts} layers."


def packed(session: Session, form: str) -> bytes:
    """The layers that are not hidden, as they look now, as a file.

    Args:
        session: with layers.
        form: one of :data:`layers.export.ENCODERS`.

    Raises:
        UserError: if there are none, all are hidden, or the format does not exist or cannot hold them.
    """
    if form not in ENCODERS:
        raise PageError(f"format: expected one of {', '.join(ENCODERS)}")
    return ENCODERS[form](*visible_layers(_stack(session)))


def _stack(session: Session) -> Stack:
    if session.stack is None:
        raise PageError("there are no layers yet; decompose an image first")
    return session.stack


def _check_room(image: np.ndarray, layers: int) -> None:
    if layers > MAX_ENTRIES:
        raise PageError(f"the stack would have {layers} layers; expected at most {MAX_ENTRIES}")
    check_room([image.shape[:2]], layers)


def _whole(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 10**6:
        raise EditError(f"{name}: expected a whole number")
    return value


def _colour(said: Any) -> tuple[int, int, int]:
    if not isinstance(said, str) or not re.fullmatch("#[0-9a-fA-F]{6}", said):
        raise EditError("colour: expected #rrggbb")
    red, green, blue = bytes.fromhex(said[1:])
    return red, green, blue
