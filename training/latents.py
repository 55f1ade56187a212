"""Latents of whole stacks, encoded once and kept by content: VAE weights and pictures decide where."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from layers.batches import BucketBatches
from layers.compositing import RESIZING
from layers.dataset import StackDataset
from layers.images import PictureError
from layers.manifest import DatasetError
from models.rgba_vae import RGBAVAE
from training.cache import TensorCache
from training.digest import digest

logger = logging.getLogger(__name__)
SHARD_BYTES = 64 << 20


@torch.no_grad()
def encode_pictures(vae: RGBAVAE, pictures: Tensor) -> Tensor:
    """Normalised posterior modes ``(B, C, h, w)`` of pictures ``(B, 4, H, W)`` in [-1, 1]."""
    return vae.normalise(vae.encode(pictures).mode())


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
    return vae.decode(vae.denormalise(latents.flatten(0, 1)), clamp=True).unflatten(0, latents.shape[:2])


@torch.no_grad()
def empty_latents(vae: RGBAVAE, size: tuple[int, int]) -> Tensor:
    """Normalised latents ``(C, h, w)`` of a picture of which nothing is visible, ``size`` being (h, w)."""
    sides = [side * vae.spatial_factor for side in size]
    picture = torch.full((1, 4, *sides), -1.0, device=vae.latents_mean.device)
    return encode_pictures(vae, picture)[0]


@dataclass(frozen=True)
class LatentStacks:
    """The latents of a split, read from the cache batch by batch.

    Attributes:
        cache: where they lie.
        contents: digest of each sample's pixels, its key in the cache.
        ids: of the samples.
        keys: buckets (H, W, L).
        texts: of each sample the caption, then what is said of each layer, bottom to top.
    """

    cache: TensorCache
    contents: list[str]
    ids: list[str]
    keys: list[tuple[int, int, int]]
    texts: list[list[str]]

    def stack(self, index: int) -> Tensor:
        """``(L + 1, C, h, w)`` of one sample, slot 0 the composite."""
        return self.cache.get(self.contents[index])["latents"]

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> dict:
        """A homogeneous batch: ``latents`` ``(B, L + 1, C, h, w)``, ``id`` and ``texts``."""
        latents = torch.stack([self.stack(i) for i in indices]).float()
        return {
            "latents": latents.to(device),
            "id": [self.ids[i] for i in indices],
            "texts": [self.texts[i] for i in indices],
        }


def open_cache(vae_folder: str | Path, cache_dir: str | Path, dtype: torch.dtype = torch.float32) -> TensorCache:
    """The cache of latents of one network: its weights, how pictures were resized and the dtype decide which."""
    identity = {
        "what": "normalised posterior modes, composite first",
        "vae": digest(vae_folder),
        "resizing": RESIZING,
        "dtype": str(dtype),
    }
    return TensorCache(cache_dir, identity)


def encode_missing(
    vae: RGBAVAE,
    dataset: StackDataset,
    cache: TensorCache,
    *,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> list[str]:
    """Encode what of a split is not in the cache yet.

    Args:
        vae: the network, in evaluation mode.
        dataset: the split.
        cache: where latents go, by the digest of a sample's pixels.
        batch_size: stacks encoded at once.
        dtype: of what is kept.
        device: where the VAE is.
        rank: this process among ``world_size``, each of which encodes its share.
        world_size: processes.
        progress: whether to show a bar.

    Returns:
        Samples whose pictures could not be read, with the reason.
    """
    # Shared out before looking what is there: another rank may have written some of its share by now.
    absent = [i for i in range(rank, len(dataset), world_size) if dataset.record(i).pixels not in cache]
    skipped: list[str] = []
    shard: dict[str, dict[str, Tensor]] = {}
    order = BucketBatches([dataset.keys[i] for i in absent], batch_size, fill="partial", shuffle=False)
    for batch in tqdm(order, desc="encode", unit="batch", disable=not progress, mininterval=1.0):
        items = []
        for index in (absent[i] for i in batch):
            try:
                items.append((dataset.record(index).pixels, dataset.load(index)))
            except PictureError as error:
                skipped.append(f"{dataset.name(index)}: {error}")
                logger.warning("skipped %s", skipped[-1])
        if items:
            composite = torch.stack([item["composite"] for _, item in items]).to(device)
            layers = torch.stack([item["layers"] for _, item in items]).to(device)
            encoded = encode_stack(vae, composite, layers).to("cpu", dtype)
            shard.update({key: {"latents": latents} for (key, _), latents in zip(items, encoded, strict=True)})
        if sum(entry["latents"].nbytes for entry in shard.values()) >= SHARD_BYTES:
            cache.put(shard)
            shard = {}
    if shard:
        cache.put(shard)
    return skipped


def cached_stacks(dataset: StackDataset, cache: TensorCache) -> LatentStacks:
    """All samples of a split that are in the cache.

    Raises:
        DatasetError: if none is.
    """
    stacks = LatentStacks(cache, [], [], [], [])
    for index in range(len(dataset)):
        record = dataset.record(index)
        if record.pixels in cache:
            stacks.contents.append(record.pixels)
            stacks.ids.append(record.sample_id)
            stacks.keys.append(record.bucket)
            stacks.texts.append([record.caption, *(layer["description"] for layer in record.layers)])
    if not stacks.ids:
        raise DatasetError(f"{dataset.root}: no sample of a split of {len(dataset)} can be read")
    return stacks


def both_splits(
    vae: RGBAVAE, vae_folder: str | Path, root_dir: str | Path, cache_dir: str | Path, accelerator: Accelerator
) -> tuple[LatentStacks, LatentStacks]:
    """Training and validation latents; every rank encodes its share of what is missing."""
    datasets = [StackDataset(root_dir, split) for split in ("train", "val")]
    for dataset in datasets:
        encode_missing(
            vae,
            dataset,
            open_cache(vae_folder, cache_dir),
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            progress=accelerator.is_main_process,
        )
    accelerator.wait_for_everyone()
    # Opened again, to see what the other ranks wrote.
    cache = open_cache(vae_folder, cache_dir)
    train, held_out = (cached_stacks(dataset, cache) for dataset in datasets)
    return train, held_out


class LatentMoments:
    """Mean and deviation of latents per channel, gathered over batches."""

    def __init__(self, channels: int) -> None:
        # On the CPU, because not every accelerator has double precision.
        self.count, self.total, self.square = 0, *torch.zeros(2, channels, dtype=torch.float64)

    def add(self, latents: Tensor) -> None:
        """Take in ``(B, C, h, w)``."""
        rows = latents.detach().cpu().double().transpose(0, 1).flatten(1)
        self.count += rows.shape[1]
        self.total, self.square = self.total + rows.sum(1), self.square + rows.square().sum(1)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(C,)``."""
        mean = self.total / self.count
        return mean, (self.square / self.count - mean.square()).clamp(min=1e-12).sqrt()


@torch.no_grad()
def latent_statistics(vae: RGBAVAE, batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of posterior modes per channel over ``(B, 4, H, W)`` pictures."""
    moments = LatentMoments(vae.config.z_dim)
    for images in batches:
        moments.add(vae.encode(images).mode())
    mean, std = moments.result()
    return mean.tolist(), std.tolist()
