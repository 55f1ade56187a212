"""Which samples are for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator


def position(key: str, seed: int) -> float:
    """Where a key falls in [0, 1), by a hash of seed and key alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7]) / 2**56


def assign_splits(
    samples: Iterable[tuple[str, str]],
    *,
    seed: int,
    val_share: float,
    train_count: int | None,
    val_count: int | None,
    validation_ids: Iterable[str] | None = None,
) -> dict[str, str]:
    """Assign samples to ``train`` and ``val``.

    A sample is for validation if its key's hash falls below ``val_share``: a property of the sample alone, so it never
    changes sides when the dataset grows, shrinks or is listed in another order. Counts only leave samples out, those
    that hash highest first.

    Args:
        samples: (id, split key) pairs; samples of one key share a side.
        seed: of the hash.
        val_share: in [0, 1].
        train_count: at most so many for training; ``None`` is no bound.
        val_count: likewise for validation.
        validation_ids: ids that are for validation, all others are for training; replaces the hash.

    Returns:
        id to split, ordered by hash, validation first; ids beyond the counts are left out.
    """
    named = None if validation_ids is None else set(validation_ids)
    sides: dict[str, list[tuple[float, str]]] = {"val": [], "train": []}
    for name, key in samples:
        place = position(key, seed)
        held_out = place < val_share if named is None else name in named
        sides["val" if held_out else "train"].append((place, name))
    counts = {"val": val_count, "train": train_count}
    return {name: side for side in ("val", "train") for _, name in sorted(sides[side])[: counts[side]]}


def until_filled(
    stream: Iterator[tuple[str, str]], *, seed: int, val_share: float, train_count: int, val_count: int
) -> list[tuple[str, str]]:
    """Take from an endless stream of (id, split key) just as many as fill both counts.

    Raises:
        ValueError: if a share of 0 or 1 leaves a side with a count above 0 empty for ever.
    """
    left = {"val": val_count, "train": train_count}
    if (val_share == 0.0 and val_count) or (val_share == 1.0 and train_count):
        raise ValueError(f"val_share {val_share} never fills both train_count {train_count} and val_count {val_count}")
    taken = []
    for name, key in stream:
        if not any(left.values()):
            break
        side = "val" if position(key, seed) < val_share else "train"
        if left[side]:
            left[side] -= 1
            taken.append((name, key))
    return taken
