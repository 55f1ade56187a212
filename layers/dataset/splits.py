"""Splits of a dataset: training, validation (for choices) and test (for reported scores)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

SPLITS = ("train", "val", "test")


def position(key: str, seed: int) -> float:
    """Position of a key in [0, 1), by a hash of seed and key alone; file names that are no UTF-8 have one too."""
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

    A sample is for validation if its key's hash is in the lowest ``val_share``, for the test if in the highest
    ``test_share``. This depends on the sample alone: it never changes its split when the dataset grows, shrinks or is
    reordered. If a share is raised, the samples come from training only. Counts leave samples out, those nearest to
    the training samples in hash first.

    Args:
        samples: (id, split key) pairs; samples of one key share a split.
        seed: seed of the hash.
        val_share: in [0, 1].
        test_share: in [0, 1 - val_share].
        counts: maximum by split; ``None``, or a split that is not in it, is no bound.
        named: ids by split; all samples of their keys go to that split, which then takes none by the hash.

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
    """Split of each key of which a list names a sample."""
    found: dict[str, str] = {}
    for split, ids in named.items():
        for name in ids:
            if name not in keys:
                raise ValueError(f"{name!r} is named for {split}, but no sample has that id")
            if found.setdefault(keys[name], split) != split:
                raise ValueError(
                    f"sample {name!r}, or another of its split key, is named for {found[keys[name]]} and for {split}, "
                    "expected one of them"
                )
    return found


def until_filled(
    stream: Iterator[tuple[str, str]], *, seed: int, val_share: float, train_count: int, val_count: int
) -> list[tuple[str, str]]:
    """Take from an endless stream of (id, split key) as many as fill the counts of training and validation.

    Raises:
        ValueError: if a share of 0 or 1 leaves a split with a count above 0 empty for ever.
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
