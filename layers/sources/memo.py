"""Cache of a process for the indices of its datasets, since readers are unpickled anew for every task."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Value = TypeVar("Value")
LIMIT = 4
_KEPT: dict[Hashable, Any] = {}


def kept(key: Hashable, make: Callable[[], Value]) -> Value:
    """Return the cached value of a key, made at first use; the last :data:`LIMIT` values are cached.

    Args:
        key: key of the value, the same for all copies of a reader.
        make: makes the value if it is not cached.
    """
    if key in _KEPT:
        # The most recently used value is dropped last.
        _KEPT[key] = _KEPT.pop(key)
    else:
        value = make()
        while len(_KEPT) >= LIMIT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = value
    return _KEPT[key]


def forget(key: Hashable) -> None:
    """Drop the cached value of a key, if any."""
    _KEPT.pop(key, None)
