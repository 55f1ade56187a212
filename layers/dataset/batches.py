"""Batch samplers: homogeneous batches, deterministic, equal in number on every rank, resumable at any batch."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from config.errors import UserError

Fill = Literal["drop", "repeat", "partial"]


class BatchError(UserError, ValueError):
    """No batch can be made of the dataset; the message says what to change."""


def whole_pass(keys: Sequence[Hashable], size_of: Callable[[Hashable], int]) -> list[list[int]]:
    """Batches of one pass, bucket by bucket in the items' order: for validation and encoding, not for training.

    Args:
        keys: bucket of every item.
        size_of: gives the batch size of a bucket by its key; the last batch of a bucket may have fewer items.
    """
    buckets: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        buckets[key].append(index)
    found = []
    for key in sorted(buckets, key=str):
        size = size_of(key)
        found += [buckets[key][first : first + size] for first in range(0, len(buckets[key]), size)]
    return found


class BucketBatches(Sampler[list[int]]):
    """Homogeneous batches, equal in number on every rank, in an order that depends on (seed, epoch) alone.

    Args:
        keys: bucket of every item.
        batch_size: items per batch and rank.
        seed: seed of the order.
        fill: handling of a bucket's last items that fill no batch. ``drop`` leaves them out, ``repeat`` adds items of
            the same bucket until the batch is full, ``partial`` gives a smaller batch (one rank only).
        shuffle: false keeps the items' order, bucket by bucket.
        rank, world_size: number of this process, and of all.

    Raises:
        ValueError: for ``partial`` with several ranks, whose batches would differ in number.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        batch_size: int,
        *,
        seed: int = 0,
        fill: Fill = "repeat",
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if fill == "partial" and world_size > 1:
            raise ValueError(
                "fill 'partial' gives ranks unequal batches; use 'drop' or 'repeat' with several processes"
            )
        indices: dict[Hashable, array] = defaultdict(lambda: array("q"))
        for index, key in enumerate(keys):
            indices[key].append(index)
        self.buckets = {key: np.array(indices[key]) for key in sorted(indices, key=str)}
        self.batch_size, self.seed, self.fill, self.shuffle = batch_size, seed, fill, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at batch ``batch`` of epoch ``epoch``; a loader of one pass resumes with it."""
        self.epoch, self.start = epoch, batch

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """This rank's batches of one pass over the data, from batch ``start`` on."""
        order = np.random.default_rng([self.seed, epoch])
        joint = self.batch_size * self.world_size
        # One flat array and the starts of its batches: a list of lists of millions of items would take gigabytes.
        parts, starts, length = [], [], 0
        for indices in self.buckets.values():
            if self.shuffle:
                indices = order.permutation(indices)
            rest = len(indices) % joint
            if rest and self.fill == "repeat":
                indices = np.resize(indices, len(indices) - rest + joint)
            elif rest and self.fill == "drop":
                indices = indices[: len(indices) - rest]
            parts.append(indices)
            starts.append(np.stack([np.arange(0, len(indices), joint)] * 2, axis=1))
            starts[-1][:, 1] = np.minimum(starts[-1][:, 0] + joint, len(indices))
            starts[-1] += length
            length += len(indices)
        if not parts:
            return
        flat, spans = np.concatenate(parts), np.concatenate(starts)
        if self.shuffle:
            order.shuffle(spans)
        for first, last in spans[start:]:
            yield flat[first:last][self.rank :: self.world_size].tolist()

    def endless(self, start: int = 0) -> Iterator[list[int]]:
        """Batches of all epochs in turn, from batch ``start`` of the whole stream on; training resumes with it."""
        per_epoch = len(self)
        if per_epoch == 0:
            raise BatchError(f"no bucket fills a batch of {self.batch_size * self.world_size}; lower batch_size")
        for epoch in itertools.count(start // per_epoch):
            skip = start % per_epoch if epoch == start // per_epoch else 0
            yield from self.batches(epoch, skip)

    def __len__(self) -> int:
        joint = self.batch_size * self.world_size
        counts = [len(indices) for indices in self.buckets.values()]
        return sum(count // joint if self.fill == "drop" else -(-count // joint) for count in counts)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch, self.start)


class EndlessBatches(Sampler[list[int]]):
    """The batches of :meth:`BucketBatches.endless` as a sampler for a DataLoader."""

    def __init__(self, batches: BucketBatches, start: int) -> None:
        self.source, self.start = batches, start

    def __iter__(self) -> Iterator[list[int]]:
        return self.source.endless(self.start)
