"""Latents of layer stacks, encoded once and cached under a digest of VAE weights and images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from layers.dataset.batches import BucketBatches, whole_pass
from layers.dataset.digest import digest
from layers.dataset.loaders import StackDataset, endless_batches
from layers.dataset.manifest import DatasetError
from layers.imaging.codec import ImageError
from layers.imaging.compositing import RESIZING
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import STACKS_AT_ONCE, encode_stack, stacks_at_once
from training.engine.cache import TensorCache
from training.engine.processes import done_once, share, wait

logger = logging.getLogger(__name__)
SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class LatentStacks(Dataset):
    """Latents of a split, read from the cache batch by batch.

    Attributes:
        cache: the cache of latents.
        numbers: indices of the samples in the split; samples with unreadable images are missing.
        contents: digest of each sample's pixels, its key in the cache.
        ids: names of the samples.
        keys: bucket (H, W, L) of each sample.
        texts: per sample the caption, then the description of each layer, bottom to top.
    """

    cache: TensorCache
    numbers: list[int]
    contents: list[str]
    ids: list[str]
    keys: list[tuple[int, int, int]]
    texts: list[list[str]]

    def stack(self, index: int) -> Tensor:
        """Latents ``(L + 1, C, h, w)`` of one sample, slot 0 the composite."""
        return self.cache.get(self.contents[index])["latents"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        return {"latents": self.stack(index), "id": self.ids[index], "texts": self.texts[index]}

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> dict:
        """Batch of one bucket: ``latents`` ``(B, L + 1, C, h, w)``, ``id`` and ``texts``."""
        batch = collate_latents([self[index] for index in indices])
        return {**batch, "latents": batch["latents"].to(device)}

    def endless(self, order: BucketBatches, start: int, num_workers: int) -> Iterator[dict]:
        """Endless batches from batch number ``start`` of the stream on, read by ``num_workers`` processes."""
        return endless_batches(self, order, start, num_workers, collate_latents)


def collate_latents(items: Sequence[dict]) -> dict:
    """Collate samples of one bucket into a batch; latents become float32, whatever their dtype in the cache."""
    return {
        "latents": torch.stack([item["latents"] for item in items]).float(),
        "id": [item["id"] for item in items],
        "texts": [item["texts"] for item in items],
    }


def open_cache(vae_digest: str, cache_dir: str | Path, dtype: torch.dtype = torch.float32) -> TensorCache:
    """Cache of latents of one VAE, identified by its weights, the resize policy and the dtype."""
    identity = {
        "what": "normalised posterior modes, composite first",
        "vae": vae_digest,
        "resizing": RESIZING,
        "dtype": str(dtype),
    }
    return TensorCache(cache_dir, identity)


def encode_missing(
    vae: RGBAVAE, dataset: StackDataset, cache: TensorCache, accelerator: Accelerator, dtype: torch.dtype
) -> list[str]:
    """Encode the samples of a split that the cache lacks; every process encodes its part.

    Args:
        vae: the VAE, in evaluation mode.
        dataset: the split.
        cache: latents by the digest of a sample's pixels; freshly opened by every process and not written since.
        accelerator: processes; the VAE is on its device.
        dtype: dtype of the cached latents.

    Returns:
        Samples of this process's part whose images could not be read, each with the reason.
    """
    absent = [i for i in range(len(dataset)) if dataset.record(i).pixels not in cache]
    # No process may write before all have listed what is missing, or they would split different lists.
    wait(accelerator)
    batches = whole_pass([dataset.keys[i] for i in absent], lambda key: stacks_at_once(key, STACKS_AT_ONCE))
    skipped: list[str] = []
    shard: dict[str, dict[str, Tensor]] = {}
    bar = tqdm(disable=not accelerator.is_main_process, desc="encode", unit="batch", mininterval=1.0)
    for batch in share(batches, accelerator):
        items = []
        for index in (absent[i] for i in batch):
            try:
                items.append((dataset.record(index).pixels, dataset.load(index)))
            except ImageError as error:
                skipped.append(f"{dataset.name(index)}: {error}")
                logger.warning("skipped %s", skipped[-1])
        if items:
            composite = torch.stack([item["composite"] for _, item in items]).to(accelerator.device)
            layers = torch.stack([item["layers"] for _, item in items]).to(accelerator.device)
            encoded = encode_stack(vae, composite, layers).to("cpu", dtype)
            shard.update({key: {"latents": latents} for (key, _), latents in zip(items, encoded, strict=True)})
        if sum(entry["latents"].nbytes for entry in shard.values()) >= SHARD_BYTES:
            cache.put(shard)
            shard = {}
        bar.update()
    if shard:
        cache.put(shard)
    wait(accelerator)
    return skipped


def cached_stacks(dataset: StackDataset, cache: TensorCache) -> LatentStacks:
    """Cached samples of a split.

    Raises:
        DatasetError: if there is none.
    """
    stacks = LatentStacks(cache, [], [], [], [], [])
    for index in range(len(dataset)):
        record = dataset.record(index)
        if record.pixels in cache:
            stacks.numbers.append(index)
            stacks.contents.append(record.pixels)
            stacks.ids.append(record.sample_id)
            stacks.keys.append(record.bucket)
            stacks.texts.append([record.caption, *(layer["description"] for layer in record.layers)])
    if not stacks.ids:
        raise DatasetError(f"{dataset.root}: no sample of a split of {len(dataset)} can be read")
    return stacks


def both_splits(
    vae: RGBAVAE,
    vae_folder: str | Path,
    root_dir: str | Path,
    *,
    cache_dir: str | Path,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
) -> tuple[LatentStacks, LatentStacks]:
    """Training and validation latents, cached in ``dtype``; every process encodes its part of what is missing."""
    datasets = [StackDataset(root_dir, split) for split in ("train", "val")]
    name = done_once(lambda: digest(vae_folder), accelerator)
    for dataset in datasets:
        encode_missing(vae, dataset, open_cache(name, cache_dir, dtype), accelerator, dtype)
    # Reopened, to see what the other processes wrote.
    cache = open_cache(name, cache_dir, dtype)
    train, held_out = (cached_stacks(dataset, cache) for dataset in datasets)
    return train, held_out
