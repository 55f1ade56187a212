"""Datasets and loaders over the bucketed layers that ``prepare_buckets`` writes.

Images are float32 tensors in [-1, 1] with straight alpha in channel 3. A batch is homogeneous: in
(H, W) for components, in (H, W, L) for stacks. An image that cannot be read is replaced by the next item of its bucket;
``skipped`` lists every such image of the batch with the reason.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from config.errors import UserError
from layers.dataset.batches import BucketBatches, EndlessBatches, Fill
from layers.dataset.manifest import ManifestIndex
from layers.dataset.storage import read_image
from layers.imaging.codec import ImageError
from layers.imaging.tensors import to_tensor

logger = logging.getLogger(__name__)


class BadBucketError(UserError):
    """No image of a bucket can be read."""


@dataclass(frozen=True)
class StackRecord:
    """One bucketed sample, as listed in the manifest.

    Attributes:
        sample_id: id in the source.
        bucket: (H, W, L).
        layers: place, kind and description of each layer, bottom to top.
        composite: place of the composite.
        caption: description of the composite.
        pixels: digest of all layers' pixels.
        stratum: see :class:`layers.imaging.stack.LayeredSample`.
    """

    sample_id: str
    bucket: tuple[int, int, int]
    layers: tuple[dict[str, Any], ...]
    composite: dict[str, Any]
    caption: str
    pixels: str
    stratum: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each layer."""
        return tuple(layer["kind"] for layer in self.layers)


class _Bucketed(Dataset):
    """Base of both datasets: the index of a split, and the replacement of unreadable images."""

    def __init__(self, root_dir: str | Path, split: str) -> None:
        self.root = Path(root_dir)
        self.index = ManifestIndex(root_dir, split)

    def record(self, sample: int) -> StackRecord:
        """Record of sample number ``sample`` of the split."""
        raw = self.index.record(sample)
        return StackRecord(
            raw["id"],
            self.index.bucket(sample),
            tuple(raw["layers"]),
            raw["composite"],
            raw["caption"],
            raw["pixels"],
            raw.get("stratum", ""),
        )

    def _read(self, place: dict[str, Any]) -> torch.Tensor:
        return to_tensor(read_image(self.root, place))

    def load(self, index: int) -> dict[str, Any]:
        """Load item number ``index``; raises ImageError if it cannot be read."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        skipped = []
        for candidate in self._bucket_from(index):
            try:
                return {**self.load(candidate), "skipped": skipped}
            except ImageError as error:
                skipped.append(f"{self.name(candidate)}: {error}")
                logger.warning("skipped %s", skipped[-1])
        raise BadBucketError(f"{self.root}: no image of bucket {self.keys[index]} can be read; the first: {skipped[0]}")

    def _bucket_from(self, index: int) -> Iterator[int]:
        """Yield the item itself, then the others of its bucket, from the next on, cyclically."""
        keys = self.keys
        for candidate in (*range(index, len(keys)), *range(index)):
            if keys[candidate] == keys[index]:
                yield candidate


class _Keys:
    """Bucket of every item as a lazy sequence."""

    def __init__(self, index: ManifestIndex, samples: array | None, sides: int) -> None:
        self._index, self._samples, self._sides = index, samples, sides

    def __len__(self) -> int:
        return len(self._index) if self._samples is None else len(self._samples)

    def __getitem__(self, item: int) -> Hashable:
        sample = item if self._samples is None else self._samples[item]
        return self._index.bucket(sample)[: self._sides]


class RgbaComponentDataset(_Bucketed):
    """Single layers, each with the composite of its sample: training data of the RGBA-VAE.

    Items: ``component`` and ``composite`` ``(4, H, W)`` in [-1, 1], ``id`` the component's name, ``skipped``.
    """

    def __init__(self, root_dir: str | Path, split: str) -> None:
        super().__init__(root_dir, split)
        self._samples, self._layers = array("l"), array("h")
        for sample in range(len(self.index)):
            layers = self.index.bucket(sample)[2]
            self._samples.extend([sample] * layers)
            self._layers.extend(range(layers))

    @property
    def keys(self) -> _Keys:
        """Bucket (H, W) of every item."""
        return _Keys(self.index, self._samples, 2)

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """The sample's id and the layer's number."""
        return f"{self.record(self._samples[index]).sample_id}_comp{self._layers[index]:03d}"

    def load(self, index: int) -> dict[str, Any]:
        """See the class."""
        record = self.record(self._samples[index])
        layer = self._layers[index]
        return {
            "component": self._read(record.layers[layer]),
            "composite": self._read(record.composite),
            "id": f"{record.sample_id}_comp{layer:03d}",
        }


class StackDataset(_Bucketed):
    """Whole stacks: training data of the decomposition network.

    Items: ``layers`` ``(L, 4, H, W)`` bottom to top, ``composite`` ``(4, H, W)``, ``caption``, ``id``, ``skipped``.
    """

    @property
    def keys(self) -> _Keys:
        """Bucket (H, W, L) of every sample."""
        return _Keys(self.index, None, 3)

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        """The sample's id."""
        return self.record(index).sample_id

    def load(self, index: int) -> dict[str, Any]:
        """See the class."""
        record = self.record(index)
        return {
            "layers": torch.stack([self._read(layer) for layer in record.layers]),
            "composite": self._read(record.composite),
            "caption": record.caption,
            "id": record.sample_id,
        }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items into a batch; the items' ``skipped`` lists become one."""
    skipped = [name for item in items for name in item["skipped"]]
    batch = default_collate([{key: value for key, value in item.items() if key != "skipped"} for item in items])
    return {**batch, "skipped": skipped}


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)


def _loader(
    dataset: Dataset,
    batches: Sampler[list[int]],
    num_workers: int,
    collate_fn: Callable[[list[dict[str, Any]]], dict[str, Any]] = collate,
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        # Threads of several processes would wait for each other.
        worker_init_fn=_one_thread,
        collate_fn=collate_fn,
        persistent_workers=num_workers > 0,
        # Pinned memory lets a batch be copied to the GPU while the one before it is computed.
        pin_memory=torch.cuda.is_available(),
    )


def endless_batches(
    dataset: Dataset,
    batches: BucketBatches,
    start: int,
    num_workers: int,
    collate_fn: Callable[[list[dict[str, Any]]], dict[str, Any]] = collate,
) -> Iterator[dict[str, Any]]:
    """Endless batches, from batch number ``start`` of the stream on.

    Args:
        dataset: such as :class:`RgbaComponentDataset`.
        batches: their order.
        start: batches to leave out, those of earlier steps.
        num_workers: processes that read ahead; with 0 a batch is read when it is needed.
        collate_fn: makes a batch of items.
    """
    return iter(_loader(dataset, EndlessBatches(batches, start), num_workers, collate_fn))


def create_component_dataloader(
    root_dir: str | Path,
    split: str,
    batch_size: int,
    num_workers: int = 0,
    *,
    seed: int = 0,
    fill: Fill = "repeat",
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Loader of single layers and their composites, one pass.

    ``loader.batch_sampler.set_position(epoch, batch)`` sets the order and its first batch.

    Args:
        root_dir: the bucketed dataset.
        split: ``train``, ``val`` or ``test``.
        batch_size: items per batch and rank.
        num_workers: loader processes.
        seed: seed of the order, together with the epoch.
        fill: see :class:`layers.dataset.batches.BucketBatches`.
        shuffle: false keeps the manifest's order, bucket by bucket.
        rank: this process among ``world_size``.
        world_size: processes that share each pass; all get equally many batches.

    Returns:
        Batches of ``component`` and ``composite`` ``(B, 4, H, W)`` in [-1, 1], ``id`` a list of names, ``skipped``.

    Raises:
        DatasetError: if there is no such dataset or the split is empty.
    """
    dataset = RgbaComponentDataset(root_dir, split)
    order = BucketBatches(
        dataset.keys, batch_size, seed=seed, fill=fill, shuffle=shuffle, rank=rank, world_size=world_size
    )
    return _loader(dataset, order, num_workers)


def create_stack_dataloader(
    root_dir: str | Path,
    split: str,
    batch_size: int,
    num_workers: int = 0,
    *,
    seed: int = 0,
    fill: Fill = "repeat",
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Loader of whole stacks, one pass; arguments as in :func:`create_component_dataloader`.

    Returns:
        Batches of ``layers`` ``(B, L, 4, H, W)`` bottom to top, ``composite`` ``(B, 4, H, W)``, ``caption``, ``id``,
        ``skipped``.
    """
    dataset = StackDataset(root_dir, split)
    order = BucketBatches(
        dataset.keys, batch_size, seed=seed, fill=fill, shuffle=shuffle, rank=rank, world_size=world_size
    )
    return _loader(dataset, order, num_workers)
