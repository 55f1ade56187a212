"""Which samples are for training, for choices (validation) and for the figures that are reported (test)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

SPLITS = ("train", "val", "test")


def position(key: str, seed: int) -> float:
    """Where a key falls in [0, 1), by a hash of seed and key alone; names of files that are no UTF-8 have one too."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode(errors="surrogateescape")).digest()[:7]) / 2**56


def assign_splits(
    samples: Iterable[tuple[str, str]],
    *,
    seed: int,
    val_share: float,
    test_share: float = 0.0,
    counts: Mapping[str, int | None] | None = None,
    named: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, str]:
    """Assign samples to ``train``, ``val`` and ``test``.

    A sample is for validation if its key's hash falls into the lowest ``val_share``, for the test if into the highest
    ``test_share``: a property of the sample alone, so it never changes sides when the dataset grows, shrinks or is
    listed in another order, and either share takes from the training samples only. Counts leave samples out, those
    next to the training samples first.

    Args:
        samples: (id, split key) pairs; samples of one key share a side.
        seed: of the hash.
        val_share: in [0, 1].
        test_share: in [0, 1 - val_share].
        counts: by split, at most so many; ``None``, or a split that is not in it, is no bound.
        named: by split, ids that are for it, and with them all samples of their keys. A split that is named takes
            nothing by the hash.

    Returns:
        id to split, ordered by hash, test and validation first; ids beyond the counts are left out.

    Raises:
        ValueError: if an id is not among the samples, or a key is named for two splits.
    """
    samples, named = list(samples), named or {}
    of_key = _named_keys(dict(samples), named)
    bands = {"val": (0.0, val_share), "test": (1.0 - test_share, 1.0)}
    hashed = {split: band for split, band in bands.items() if split not in named}
    sides: dict[str, list[tuple[float, str]]] = {split: [] for split in SPLITS}
    for name, key in samples:
        place = position(key, seed)
        by_hash = next((split for split, (low, high) in hashed.items() if low <= place < high), "train")
        sides[of_key.get(key, by_hash)].append((place, name))
    counts = counts or {}
    ordered = {side: sorted(found, reverse=side == "test") for side, found in sides.items()}
    return {name: side for side in reversed(SPLITS) for _, name in ordered[side][: counts.get(side)]}


def _named_keys(keys: Mapping[str, str], named: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Split of each key that a list names a sample of."""
    found: dict[str, str] = {}
    for split, ids in named.items():
        for name in ids:
            if name not in keys:
                raise ValueError(f"{name!r} is named for {split}, but no sample has that id")
            if found.setdefault(keys[name], split) != split:
                raise ValueError(
                    f"sample {name!r}, or another of its kind, is named for {found[keys[name]]} and for {split}, "
                    "expected one of them"
                )
    return found


def until_filled(
    stream: Iterator[tuple[str, str]], *, seed: int, val_share: float, train_count: int, val_count: int
) -> list[tuple[str, str]]:
    """Take from an endless stream of (id, split key) just as many as fill training and validation.

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
