"""Consensus among candidate decompositions of an image: choosing one without the true layers.

A network that is unsure which layer an object belongs to gives a different decomposition for every noise. The best
candidate has the least expected loss under the network's own distribution (minimum Bayes risk decoding, Kumar and Byrne
2004). The other candidates are samples of that distribution, so it is the one nearest to them. The error of the
flattened layers against the image is added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.imaging.tensors import composite, over_background

RECOMPOSITION = 2.0  # weight relative to the distance to the others; both are errors in [0, 1]
NOTHING = 0.002  # share of the canvas: two layers that both cover less count as equally empty


def stack_distance(first: Tensor, second: Tensor) -> Tensor:
    """Distance of two stacks of the same image, layer by layer; symmetric, 0 for equal stacks.

    For each layer (L1 + 1 - IoU) / 2 as in the metric (docs/evaluation.md), with the L1 of colours weighted by the
    larger alpha. Layers are compared by index, without alignment.

    Args:
        first: ``(B, L, 4, H, W)`` in [-1, 1].
        second: the same shape.

    Returns:
        ``(B,)`` in [0, 1].
    """
    first, second = (first + 1.0) / 2.0, (second + 1.0) / 2.0
    alpha, other = first[:, :, 3], second[:, :, 3]
    union = torch.maximum(alpha, other)
    little = NOTHING * union.shape[-2] * union.shape[-1]
    overlap = (torch.minimum(alpha, other).sum((2, 3)) + little) / (union.sum((2, 3)) + little)
    difference = (first[:, :, :3] - second[:, :, :3]).abs().mean(2)
    colour = (difference * union).sum((2, 3)) / (union.sum((2, 3)) + little)
    return ((colour + 1.0 - overlap) / 2.0).mean(1)


def most_agreed(candidates: Tensor, images: Tensor) -> Tensor:
    """Index of the candidate of each image that is nearest to the others and, flattened, to the image.

    Args:
        candidates: ``(N, B, L, 4, H, W)`` in [-1, 1], bottom to top.
        images: ``(B, 4, H, W)`` in [-1, 1].

    Returns:
        ``(B,)``, integers below N.
    """
    count, samples = candidates.shape[:2]
    risk = torch.zeros(count, samples)
    for one in range(count):
        for other in range(one):
            distance = stack_distance(candidates[one], candidates[other]).cpu() / max(count - 1, 1)
            risk[one] += distance
            risk[other] += distance
    flat = over_background(images, -1.0)
    for one, stack in enumerate(candidates):
        error = (composite(stack) - flat).abs().flatten(1).mean(1) / 2.0
        risk[one] += RECOMPOSITION * error.cpu()
    return risk.argmin(0)
