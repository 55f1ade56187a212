"""Datasets and loaders over the bucketed layers that ``prepare_buckets`` writes.

Pictures leave here as float32 tensors in [-1, 1] with straight alpha in channel 3 (design contract 2). A batch is
homogeneous: in (H, W) for components, in (H, W, L) for stacks.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from layers.errors import UserError
from layers.images import read_rgba
from layers.tensors import to_tensor

MANIFEST = Path("metadata") / "manifest.json"
Fill = Literal["drop", "repeat", "partial"]


class DatasetError(UserError, ValueError):
    """The bucketed dataset is missing or empty; the message says where it was looked for."""


@dataclass(frozen=True)
class ManifestSample:
    """One bucketed sample as the manifest lists it; paths are relative to the dataset's root."""

    sample_id: str
    split: str
    height: int
    width: int
    layer_paths: tuple[str, ...]
    composite_path: str
    kinds: tuple[str, ...]
    descriptions: tuple[str, ...]
    caption: str

    @property
    def bucket(self) -> tuple[int, int, int]:
        """The decomposition bucket (H, W, L)."""
        return self.height, self.width, len(self.layer_paths)


def read_manifest(root_dir: str | Path, split: str) -> list[ManifestSample]:
    """List the samples of one split.

    Raises:
        DatasetError: if there is no manifest or the split is empty.
    """
    path = Path(root_dir) / MANIFEST
    if not path.is_file():
        raise DatasetError(f"{path}: no manifest; run the stage prepare_buckets first")
    records = json.loads(path.read_text(encoding="utf-8"))["samples"]
    samples = [
        ManifestSample(
            sample_id=record["id"],
            split=record["split"],
            height=record["height"],
            width=record["width"],
            layer_paths=tuple(layer["path"] for layer in record["layers"]),
            composite_path=record["composite"],
            kinds=tuple(layer["kind"] for layer in record["layers"]),
            descriptions=tuple(layer["description"] for layer in record["layers"]),
            caption=record["caption"],
        )
        for record in records
        if record["split"] == split
    ]
    if not samples:
        raise DatasetError(f"{path}: the split {split!r} is empty; raise prepare_buckets.{split}_count")
    return samples


class RgbaComponentDataset(Dataset):
    """Single layers, each with the composite of its sample: what the RGBA-VAE learns from.

    Items: ``component`` and ``composite`` ``(4, H, W)`` in [-1, 1], ``id`` the component's file.
    """

    def __init__(self, root_dir: str | Path, split: str) -> None:
        self.root = Path(root_dir)
        self.items = [
            (path, sample.composite_path, (sample.height, sample.width))
            for sample in read_manifest(root_dir, split)
            for path in sample.layer_paths
        ]

    @property
    def keys(self) -> list[Hashable]:
        """Bucket (H, W) of every item."""
        return [key for _, _, key in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        component, flat, _ = self.items[index]
        return {
            "component": to_tensor(read_rgba(self.root / component)),
            "composite": to_tensor(read_rgba(self.root / flat)),
            "id": component,
        }


class StackDataset(Dataset):
    """Whole stacks: what decomposition learns from.

    Items: ``layers`` ``(L, 4, H, W)`` bottom to top, ``composite`` ``(4, H, W)``, ``caption``, ``id``.
    """

    def __init__(self, root_dir: str | Path, split: str) -> None:
        self.root = Path(root_dir)
        self.samples = read_manifest(root_dir, split)

    @property
    def keys(self) -> list[Hashable]:
        """Bucket (H, W, L) of every sample."""
        return [sample.bucket for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        return {
            "layers": torch.stack([to_tensor(read_rgba(self.root / path)) for path in sample.layer_paths]),
            "composite": to_tensor(read_rgba(self.root / sample.composite_path)),
            "caption": sample.caption,
            "id": sample.sample_id,
        }


class BucketBatches(Sampler[list[int]]):
    """Homogeneous batches in an order that is a function of (seed, epoch) alone, equal in number on every rank.

    Args:
        keys: bucket of every item.
        batch_size: items a batch, per rank.
        seed: of the order.
        fill: what becomes of a bucket's last items that fill no batch: ``drop`` them, ``repeat`` items of the same
            bucket until the batch is full, or give a ``partial`` batch (one rank only).
        shuffle: false keeps the items' order, bucket by bucket.
        rank, world_size: this process among all.

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
        self.buckets: dict[Hashable, list[int]] = defaultdict(list)
        for index, key in enumerate(keys):
            self.buckets[key].append(index)
        self.batch_size, self.seed, self.fill, self.shuffle = batch_size, seed, fill, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def batches(self, epoch: int) -> list[list[int]]:
        """This rank's batches of one pass over the data."""
        order = random.Random(f"{self.seed}:{epoch}")
        joint = self.batch_size * self.world_size
        whole: list[list[int]] = []
        for key in sorted(self.buckets, key=str):
            indices = list(self.buckets[key])
            if self.shuffle:
                order.shuffle(indices)
            missing = -len(indices) % joint
            if missing and self.fill == "repeat":
                indices += list(itertools.islice(itertools.cycle(indices), missing))
            elif missing and self.fill == "drop":
                indices = indices[: len(indices) - len(indices) % joint]
            whole += [indices[i : i + joint] for i in range(0, len(indices), joint)]
        if self.shuffle:
            order.shuffle(whole)
        return [batch[self.rank :: self.world_size] for batch in whole]

    def endless(self, start: int = 0) -> Iterator[list[int]]:
        """Batches of epoch after epoch, from batch number ``start`` of the whole stream on: how training resumes."""
        per_epoch = len(self)
        if per_epoch == 0:
            raise DatasetError(f"no bucket fills a batch of {self.batch_size * self.world_size}; lower batch_size")
        for epoch in itertools.count(start // per_epoch):
            skip = start % per_epoch if epoch == start // per_epoch else 0
            yield from self.batches(epoch)[skip:]

    def __len__(self) -> int:
        joint = self.batch_size * self.world_size
        counts = [len(indices) for indices in self.buckets.values()]
        return sum(count // joint if self.fill == "drop" else -(-count // joint) for count in counts)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch)


class EndlessBatches(Sampler[list[int]]):
    """The batches of :meth:`BucketBatches.endless` as a sampler for a DataLoader."""

    def __init__(self, batches: BucketBatches, start: int) -> None:
        self.source, self.start = batches, start

    def __iter__(self) -> Iterator[list[int]]:
        return self.source.endless(self.start)


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)


def _loader(dataset: Dataset, batches: Sampler[list[int]], num_workers: int) -> DataLoader:
    # Threads of several processes would wait for each other.
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, worker_init_fn=_one_thread)


def endless_component_batches(
    dataset: RgbaComponentDataset, batches: BucketBatches, start: int, num_workers: int
) -> Iterator[dict[str, Any]]:
    """Batches of single layers without end, from batch number ``start`` of the stream on."""
    return iter(_loader(dataset, EndlessBatches(batches, start), num_workers))


def create_component_dataloader(
    root_dir: str | Path,
    split: str,
    batch_size: int,
    num_workers: int = 0,
    *,
    seed: int = 0,
    fill: Fill = "repeat",
    shuffle: bool = True,
) -> DataLoader:
    """Loader of single layers and their composites, one pass.

    Batches: ``component`` and ``composite`` ``(B, 4, H, W)`` in [-1, 1], ``id`` a list of files.
    """
    dataset = RgbaComponentDataset(root_dir, split)
    return _loader(dataset, BucketBatches(dataset.keys, batch_size, seed=seed, fill=fill, shuffle=shuffle), num_workers)


def create_stack_dataloader(
    root_dir: str | Path,
    split: str,
    batch_size: int,
    num_workers: int = 0,
    *,
    seed: int = 0,
    fill: Fill = "repeat",
    shuffle: bool = True,
) -> DataLoader:
    """Loader of whole stacks, one pass.

    Batches: ``layers`` ``(B, L, 4, H, W)`` bottom to top, ``composite`` ``(B, 4, H, W)``, ``caption``, ``id``.
    """
    dataset = StackDataset(root_dir, split)
    return _loader(dataset, BucketBatches(dataset.keys, batch_size, seed=seed, fill=fill, shuffle=shuffle), num_workers)
