"""Pixel costs of the decomposition metric, differentiable: pair costs and ``over`` (LayerD protocol).

Layers are float, straight alpha in channel 3. :func:`pair_cost` takes them in [-1, 1]; :func:`unit_pair_cost` and
:func:`over` in [0, 1], where :func:`unit_range` puts them.

Memory: pixels of all pairs are never held together. A pair cost runs over one layer of the second stack at a time and
is recomputed for the backward pass. So the two stacks stay in memory, plus one stack temporarily.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from metrics.decomposition.pairs import EPSILON

# An alpha below this rounds to 0 in 8 bits.
HALF_STEP = 0.5 / 255.0


def pair_cost(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Cost of every pair of layers (protocol step 2): c_ij = (L1_ij + 1 - IoU_ij) / 2.

    L1 is the mean |difference| of R, G and B in [0, 1] where the true layer's alpha would not round to 0 in 8 bits. IoU
    is sum(min) / sum(max) of the alphas, 0 if both layers are empty. Not symmetric: colour hidden under predicted alpha
    0 counts where the true alpha is above 0. Where two values are equal the subgradient is 0.

    Args:
        predicted: ``(B, L, 4, H, W)`` in [-1, 1].
        true: ``(B, M, 4, H, W)`` in [-1, 1].

    Returns:
        ``(B, L, M)`` in [0, 1].
    """
    return unit_pair_cost(unit_range(predicted), unit_range(true))


def clamp_inward(values: torch.Tensor) -> torch.Tensor:
    """Clamp to [-1, 1], but pass gradients whose descent leads back into the range.

    The value is what the metric sees in the 8-bit file. Plain clamping would give no gradient to an alpha predicted at
    -1.1 that should be opaque. No clamping would let the IoU leave [0, 1]. A value beyond the correct end of the range
    gets no gradient that pushes it further out.
    """
    return _ClampInward.apply(values)


class _ClampInward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values)
        return values.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        (values,) = ctx.saved_tensors
        outward = ((values > 1.0) & (gradient < 0.0)) | ((values < -1.0) & (gradient > 0.0))
        return gradient.masked_fill(outward, 0.0)


def unit_range(layers: torch.Tensor) -> torch.Tensor:
    """Map [-1, 1] to [0, 1], in at least float32, which sums over pixels need."""
    return (clamp_inward(layers.to(torch.promote_types(layers.dtype, torch.float32))) + 1.0) / 2.0


def unit_pair_cost(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """:func:`pair_cost` of stacks in [0, 1]: ``(B, N, 4, H, W)`` and ``(B, K, 4, H, W)`` to ``(B, N, K)``."""
    columns = [
        checkpoint(_cost_to, first, one, use_reentrant=False, preserve_rng_state=False) for one in second.unbind(1)
    ]
    return torch.stack(columns, 2)


def _cost_to(layers: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Costs ``(B, N)`` of ``(B, N, 4, H, W)`` against one layer ``(B, 4, H, W)``, whose alpha masks the colour term."""
    other = other[:, None]
    alpha, alpha_o = layers[:, :, 3], other[:, :, 3]
    mask = (alpha_o >= HALF_STEP).to(layers.dtype)
    difference = (layers[:, :, :3] - other[:, :, :3]).abs().mean(2)
    rgb_l1 = (difference * mask).sum((2, 3)) / (mask.sum((2, 3)) + EPSILON)
    # At equal alphas both take the other's: torch.minimum and torch.maximum would pass half the gradient, which
    # disturbs every pixel that is correctly transparent or opaque.
    shared = torch.where(alpha < alpha_o, alpha, alpha_o).sum((2, 3))
    union = torch.where(alpha > alpha_o, alpha, alpha_o).sum((2, 3))
    some = union >= HALF_STEP  # otherwise every alpha is 0 in 8 bits
    iou = torch.where(some, shared / torch.where(some, union, 1.0), 0.0)
    return (rgb_l1 + 1.0 - iou) / 2.0


def over(bottom: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Straight-alpha ``over`` of ``(..., 4, H, W)`` in [0, 1] (protocol step 2, in float).

    Where the top's alpha would round to 0 in 8 bits the colour is the bottom's, hidden colour included. This also
    bounds the gradient of colour with respect to alpha, which grows as 1 / alpha, by 1 / HALF_STEP.
    """
    below, above = bottom[..., 3:, :, :], top[..., 3:, :, :]
    alpha = above + below * (1.0 - above)
    seen = above >= HALF_STEP
    share = torch.where(seen, above / torch.where(seen, alpha, 1.0), 0.0)
    return torch.cat([torch.lerp(bottom[..., :3, :, :], top[..., :3, :, :], share), alpha], -3)
