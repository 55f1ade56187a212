"""Latents of whole stacks, encoded once and kept by content: VAE weights and pictures decide the file's name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from layers.dataset import BucketBatches, StackDataset
from models.rgba_vae import RGBAVAE
from training.tracking import digest


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
    latents = vae.normalise(vae.encode(slots.flatten(0, 1)).mode())
    return latents.unflatten(0, slots.shape[:2])


@torch.no_grad()
def decode_layers(vae: RGBAVAE, latents: Tensor) -> Tensor:
    """Decode normalised latents ``(B, L, C, h, w)`` to ``(B, L, 4, H, W)`` in [-1, 1]."""
    return vae.decode(vae.denormalise(latents.flatten(0, 1)), clamp=True).unflatten(0, latents.shape[:2])


@dataclass(frozen=True)
class LatentStacks:
    """The latents of a split in memory.

    Attributes:
        stacks: one ``(L + 1, C, h, w)`` a sample, in the dataset's order.
        ids: of the samples.
        keys: buckets (H, W, L).
    """

    stacks: list[Tensor]
    ids: list[str]
    keys: list[tuple[int, int, int]]

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> dict:
        """A homogeneous batch: ``latents`` ``(B, L + 1, C, h, w)`` and ``id``."""
        latents = torch.stack([self.stacks[i] for i in indices]).float()
        return {"latents": latents.to(device), "id": [self.ids[i] for i in indices]}


def latent_stacks(
    vae: RGBAVAE,
    vae_folder: str | Path,
    root_dir: str | Path,
    split: str,
    *,
    cache_dir: str | Path,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> LatentStacks:
    """Encode a split, or read what was encoded before from the same weights and pictures.

    Args:
        vae: the network, in evaluation mode.
        vae_folder: where its weights are; their md5 is part of the cache's name.
        root_dir: the bucketed dataset; its manifest lists the md5 of every sample's pixels.
        split: ``train`` or ``val``.
        cache_dir: where cache files lie.
        batch_size: stacks encoded at once.
        device: where the VAE is.
        progress: whether to show a bar.
    """
    dataset = StackDataset(root_dir, split)
    described = f"1:{digest(vae_folder)}:{digest(root_dir)}:{split}:float32"
    path = Path(cache_dir) / f"{hashlib.sha256(described.encode()).hexdigest()[:24]}.safetensors"
    ids = [sample.sample_id for sample in dataset.samples]
    if path.is_file():
        stored = load_file(path)
    else:
        stored = {}
        batches = BucketBatches(dataset.keys, batch_size, fill="partial", shuffle=False)
        for indices in tqdm(batches, desc=f"encode {split}", unit="batch", disable=not progress, mininterval=1.0):
            items = [dataset[i] for i in indices]
            composite = torch.stack([item["composite"] for item in items]).to(device)
            layers = torch.stack([item["layers"] for item in items]).to(device)
            for item, latents in zip(items, encode_stack(vae, composite, layers).cpu(), strict=True):
                stored[item["id"]] = latents.contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(stored, part)
        part.replace(path)
    return LatentStacks([stored[name] for name in ids], ids, dataset.keys)


def both_splits(
    vae: RGBAVAE, vae_folder: str | Path, root_dir: str | Path, cache_dir: str | Path, accelerator: Accelerator
) -> tuple[LatentStacks, LatentStacks]:
    """Training and validation latents; rank 0 encodes, the others read its cache."""
    with accelerator.main_process_first():
        train, held_out = (
            latent_stacks(
                vae,
                vae_folder,
                root_dir,
                split,
                cache_dir=cache_dir,
                device=accelerator.device,
                progress=accelerator.is_main_process,
            )
            for split in ("train", "val")
        )
    return train, held_out


@torch.no_grad()
def latent_statistics(vae: RGBAVAE, batches: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of posterior modes per channel over ``(B, 4, H, W)`` pictures."""
    count, total, square = 0, torch.zeros(1), torch.zeros(1)
    for images in batches:
        # On the CPU, because not every accelerator has double precision.
        latents = vae.encode(images).mode().cpu().double().transpose(0, 1).flatten(1)
        count += latents.shape[1]
        total, square = total + latents.sum(1), square + latents.square().sum(1)
    mean = total / count
    std = (square / count - mean.square()).clamp(min=1e-12).sqrt()
    return mean.tolist(), std.tolist()
