"""Latents of whole stacks, encoded once and kept by content: VAE weights and pictures decide where."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from layers.batches import BucketBatches, whole_pass
from layers.compositing import RESIZING
from layers.dataset import StackDataset, endless_batches
from layers.images import PictureError
from layers.manifest import DatasetError
from models.rgba_vae import RGBAVAE
from training.cache import TensorCache
from training.digest import digest
from training.processes import done_once, share, wait

logger = logging.getLogger(__name__)
SHARD_BYTES = 64 << 20
STACKS_AT_ONCE = 16
# Ten images of 640x640. Qwen-Image's VAE takes 1.9 GiB a million pixels in float32, so less than 8 GiB.
PIXELS_AT_ONCE = 2**22


def at_once(pixels: int) -> int:
    """How many images, or stacks, of so many pixels go through a network together where no gradient is kept."""
    return max(1, PIXELS_AT_ONCE // pixels)


def stacks_at_once(key: tuple[int, int, int], most: int) -> int:
    """Stacks of a bucket (H, W, L), composite included, that go through a network together; no more than ``most``."""
    height, width, layers = key
    return min(most, at_once(height * width * (layers + 1)))


@torch.no_grad()
def encode_pictures(vae: RGBAVAE, pictures: Tensor) -> Tensor:
    """Normalised posterior modes ``(B, C, h, w)`` of pictures ``(B, 4, H, W)`` in [-1, 1]."""
    parts = pictures.split(at_once(pictures.shape[-2] * pictures.shape[-1]))
    return torch.cat([vae.normalise(vae.encode(part).mode()) for part in parts])


@torch.no_grad()
def encode_stack(vae: RGBAVAE, composite: Tensor, layers: Tensor) -> Tensor:
    """Normalised posterior modes of a batch of stacks.

    Args:
        vae: the network.
        composite: ``(B, 4, H, W)`` in [-1, 1].
        layers: ``(B, L, 4, H, W)``, bottom to top.

    Returns:
        ``(B, L + 1, C, h, w)``, slot 0 the composite, which is also the condition.
    """
    slots = torch.cat([composite[:, None], layers], dim=1)
    return encode_pictures(vae, slots.flatten(0, 1)).unflatten(0, slots.shape[:2])


@torch.no_grad()
def decode_layers(vae: RGBAVAE, latents: Tensor) -> Tensor:
    """Decode normalised latents ``(B, L, C, h, w)`` to ``(B, L, 4, H, W)`` in [-1, 1]."""
    flat = latents.flatten(0, 1)
    parts = flat.split(at_once(flat.shape[-2] * flat.shape[-1] * vae.spatial_factor**2))
    decoded = torch.cat([vae.decode(vae.denormalise(part), clamp=True) for part in parts])
    return decoded.unflatten(0, latents.shape[:2])


@torch.no_grad()
def empty_latents(vae: RGBAVAE, size: tuple[int, int]) -> Tensor:
    """Normalised latents ``(C, h, w)`` of a picture of which nothing is visible, ``size`` being (h, w)."""
    sides = [side * vae.spatial_factor for side in size]
    picture = torch.full((1, 4, *sides), -1.0, device=vae.latents_mean.device)
    return encode_pictures(vae, picture)[0]


@dataclass(frozen=True)
class LatentStacks(Dataset):
    """The latents of a split, read from the cache batch by batch.

    Attributes:
        cache: where they lie.
        numbers: of the samples in the split, of which some may lack a readable image.
        contents: digest of each sample's pixels, its key in the cache.
        ids: of the samples.
        keys: buckets (H, W, L).
        texts: of each sample the caption, then what is said of each layer, bottom to top.
    """

    cache: TensorCache
    numbers: list[int]
    contents: list[str]
    ids: list[str]
    keys: list[tuple[int, int, int]]
    texts: list[list[str]]

    def stack(self, index: int) -> Tensor:
        """``(L + 1, C, h, w)`` of one sample, slot 0 the composite."""
        return self.cache.get(self.contents[index])["latents"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        return {"latents": self.stack(index), "id": self.ids[index], "texts": self.texts[index]}

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> dict:
        """A homogeneous batch: ``latents`` ``(B, L + 1, C, h, w)``, ``id`` and ``texts``."""
        batch = collate_latents([self[index] for index in indices])
        return {**batch, "latents": batch["latents"].to(device)}

    def endless(self, order: BucketBatches, start: int, num_workers: int) -> Iterator[dict]:
        """Batches without end, from batch number ``start`` of the stream on, read by ``num_workers`` processes."""
        return endless_batches(self, order, start, num_workers, collate_latents)


def collate_latents(items: Sequence[dict]) -> dict:
    """Samples of one bucket as a batch; latents become float32, whatever they are kept in."""
    return {
        "latents": torch.stack([item["latents"] for item in items]).float(),
        "id": [item["id"] for item in items],
        "texts": [item["texts"] for item in items],
    }


def open_cache(vae_digest: str, cache_dir: str | Path, dtype: torch.dtype = torch.float32) -> TensorCache:
    """The cache of latents of one network: its weights, how images were resized and the dtype decide which."""
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
    """Encode what of a split is not in the cache yet; every process does its part.

    Args:
        vae: the network, in evaluation mode.
        dataset: the split.
        cache: where latents go, by the digest of a sample's pixels; opened anew by every process, and since then
            written by none.
        accelerator: of the processes; the VAE is on its device.
        dtype: of what is kept.

    Returns:
        Samples of this process's part whose images could not be read, with the reason.
    """
    absent = [i for i in range(len(dataset)) if dataset.record(i).pixels not in cache]
    # None may write before all have looked: they would share out different lists.
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
            except PictureError as error:
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
    """All samples of a split that are in the cache.

    Raises:
        DatasetError: if none is.
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
    cache_dir: str | Path,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
) -> tuple[LatentStacks, LatentStacks]:
    """Training and validation latents, kept in ``dtype``; every process encodes its part of what is missing."""
    datasets = [StackDataset(root_dir, split) for split in ("train", "val")]
    name = done_once(lambda: digest(vae_folder), accelerator)
    for dataset in datasets:
        encode_missing(vae, dataset, open_cache(name, cache_dir, dtype), accelerator, dtype)
    # Opened again, to see what the other processes wrote.
    cache = open_cache(name, cache_dir, dtype)
    train, held_out = (cached_stacks(dataset, cache) for dataset in datasets)
    return train, held_out


class LatentMoments:
    """Mean and deviation of latents per channel, gathered over batches."""

    def __init__(self, channels: int) -> None:
        # On the CPU, because not every accelerator has double precision.
        self.count, self.total, self.square = 0, *torch.zeros(2, channels, dtype=torch.float64)

    def add(self, latents: Tensor) -> LatentMoments:
        """Take in ``(B, C, h, w)``; returns self."""
        rows = latents.detach().cpu().double().transpose(0, 1).flatten(1)
        self.count += rows.shape[1]
        self.total, self.square = self.total + rows.sum(1), self.square + rows.square().sum(1)
        return self

    def merge(self, others: LatentMoments) -> None:
        """Take in what another one has gathered."""
        self.count += others.count
        self.total, self.square = self.total + others.total, self.square + others.square

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(C,)``."""
        mean = self.total / self.count
        return mean, (self.square / self.count - mean.square()).clamp(min=1e-12).sqrt()


@torch.no_grad()
def latent_statistics(vae: RGBAVAE, batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of posterior modes per channel over ``(B, 4, H, W)`` pictures."""
    moments = LatentMoments(vae.config.z_dim)
    for images in batches:
        for part in images.split(at_once(images.shape[-2] * images.shape[-1])):
            moments.add(vae.encode(part).mode())
    mean, std = moments.result()
    return mean.tolist(), std.tolist()
