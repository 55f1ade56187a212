"""Which of several decompositions of an image to keep, without knowing the truth.

A network that is unsure which layer a thing belongs to draws another answer from every noise. The answer to keep is the
one of least expected loss under what the network itself believes (minimum Bayes risk decoding, Kumar and Byrne 2004):
the others are samples of that belief, so it is the one nearest to them. What no belief is needed for is that layers
flatten to the image; how far they do not counts too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.imaging.tensors import composite, over_background

RECOMPOSITION = 2.0  # weight beside the distance to the others; both are errors in [0, 1]
NOTHING = 0.002  # share of the canvas: layers that cover less than this alike agree that there is nothing


def stack_distance(first: Tensor, second: Tensor) -> Tensor:
    """How unlike two stacks of the same image are, layer by layer; symmetric, 0 for equal ones.

    Of each layer (L1 + 1 - IoU) / 2 as in the metric (docs/evaluation.md), with the L1 of colours weighted by the
    larger alpha; layers have their places, so nothing is aligned.

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
    """The candidate of each image that is nearest to the others and to the image when flattened.

    Args:
        candidates: ``(N, B, L, 4, H, W)`` in [-1, 1], bottom to top.
        images: ``(B, 4, H, W)`` in [-1, 1].

    Returns:
        ``(B,)``, whole numbers below N.
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
