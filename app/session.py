"""State of one visitor of the page (app/page.py) and its changes: an image, its layers, edits of them.

Sessions are replaced, never changed in place, so a failed edit leaves the last one. Input from the browser is checked
here: only numbers within bounds and words of a list are accepted.
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
MAX_PIXELS = 12_000_000  # of an image: that of a phone camera
MAX_ENTRIES = 40
MAX_CAPTION = 500  # characters

Decompose = Callable[[np.ndarray, int | None], list[np.ndarray]]


class PageError(UserError):
    """A request that the page cannot fulfil; the message is one sentence."""


@dataclass(frozen=True)
class Session:
    """State of one visitor.

    Attributes:
        image: ``(H, W, 4)`` uint8; ``None`` before the first upload.
        stack: its layers; ``None`` before the decomposition.
        chosen: key of the selected layer, whose tools are open.
    """

    image: np.ndarray | None = None
    stack: Stack | None = None
    chosen: int | None = None


def worded(said: Any) -> str:
    """Check and strip a visitor's caption; "" means none.

    Raises:
        PageError: if it is not a string, or longer than :data:`MAX_CAPTION`.
    """
    words = "" if said is None else said
    if not isinstance(words, str) or len(words) > MAX_CAPTION:
        raise PageError(f"caption: expected a text of at most {MAX_CAPTION} characters")
    return words.strip()


def decomposed(session: Session, said: Any, decompose: Decompose) -> tuple[Session, str]:
    """Decompose the image anew; edits of former layers are lost.

    Args:
        session: one with an image.
        said: requested number of layers, for :func:`layer_count`.
        decompose: maps an image and a number of layers, or ``None`` for auto, to layers.

    Returns:
        The session, and a sentence on how it went.

    Raises:
        PageError: if there is no image, or the number of layers is invalid or too large for it.
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
    """Apply one edit that the browser sent.

    Args:
        session: one with layers.
        said: ``action``, ``key`` of the layer, and by action ``x`` and ``y`` in pixels or ``colour`` as ``#rrggbb``.

    Returns:
        The session, and a sentence on what was done.

    Raises:
        UserError: if the action is unknown, or the stack does not allow it.
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
            raise PageError("action: not an edit of a layer")
    return replace(session, stack=stack, chosen=key), f"{entry.name} {words}."


def split(session: Session, said: Mapping[str, Any], choice: Any, decompose: Decompose) -> tuple[Session, str]:
    """Decompose one layer again; its parts replace it.

    Args:
        session: one with layers.
        said: ``key`` of the layer.
        choice: requested number of parts, for :func:`layer_count`; at least two.
        decompose: as in :func:`decomposed`.

    Returns:
        The session, and a sentence on how it went.

    Raises:
        UserError: if the layer is empty or missing, or the number of parts is invalid or too large.
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
    """Encode the visible layers with their edits applied as a file.

    Args:
        session: one with layers.
        form: one of :data:`layers.export.ENCODERS`.

    Raises:
        UserError: if there are no layers, all are hidden, or the format is unknown or cannot hold them.
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
