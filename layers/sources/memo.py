"""What a process keeps of its datasets: readers are unpickled anew for every task, their indices are built once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Value = TypeVar("Value")
LIMIT = 4
_KEPT: dict[Hashable, Any] = {}


def kept(key: Hashable, make: Callable[[], Value]) -> Value:
    """What ``make`` gave for this key in this process; the last :data:`LIMIT` values are kept.

    Args:
        key: of the value; copies of one reader in other processes have the same.
        make: called if nothing is kept.
    """
    if key in _KEPT:
        # Used last is dropped last.
        _KEPT[key] = _KEPT.pop(key)
    else:
        value = make()
        while len(_KEPT) >= LIMIT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = value
    return _KEPT[key]


def forget(key: Hashable) -> None:
    """Drop what is kept for this key, if anything."""
    _KEPT.pop(key, None)
