"""The tool people came for: pictures of any size in, layers of that size out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from layers.buckets import BucketLimits
from layers.evaluation_set import shown_to_model, stretched_size
from layers.restore import restore
from layers.tensors import to_image, to_tensor
from training.decomposer import Decomposer

# A picture has no name that would mean anything: its noise hangs on the seed alone.
NAME = "picture"


def layers_of(
    model: Decomposer,
    pictures: Sequence[np.ndarray],
    layer_count: int | None,
    limits: BucketLimits,
    *,
    captions: Sequence[str] | None = None,
    steps: int = 12,
    seed: int = 0,
) -> list[list[np.ndarray]]:
    """Decompose pictures of any size; their layers come back at that size and flatten to them again.

    The network sees each picture stretched to a size within ``limits``; what it finds is brought back by
    :func:`layers.restore.restore`.

    Args:
        model: the networks.
        pictures: ``(H, W, 4)`` uint8, straight alpha.
        layer_count: of each; ``None``: three, until it can be found out.
        limits: of the size the network is shown.
        captions: what they show; ``None`` for nothing said.
        steps: of the Euler sampler.
        seed: of the noise; equal pictures have equal layers, whatever else is in the list.

    Returns:
        For each picture its layers, ``(H, W, 4)`` uint8, bottom to top.
    """
    layer_count = 3 if layer_count is None else layer_count  # MERGE: stands in for auto, on this line alone
    sizes = [stretched_size(picture.shape[:2], limits) for picture in pictures]
    said = [""] * len(pictures) if captions is None else captions
    found: list[list[np.ndarray]] = [[] for _ in pictures]
    for size in dict.fromkeys(sizes):
        alike = [index for index, own in enumerate(sizes) if own == size]
        shown = torch.stack([to_tensor(shown_to_model(pictures[index], size)) for index in alike])
        stacks = model.decompose(
            shown, layer_count, [NAME] * len(alike), [said[index] for index in alike], steps=steps, seed=seed
        )
        for index, stack in zip(alike, stacks, strict=True):
            found[index] = restore(list(to_image(stack)), pictures[index])
    return found
