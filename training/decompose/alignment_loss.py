"""Alignment loss: the decomposition metric (LayerD protocol: ordered alignment of stacks, with merges) as a loss.

The same quantity as :mod:`metrics.decomposition.alignment` (steps 3 and 4 of docs/evaluation.md), differentiable in the
predicted layers. Soft-DTW replaces DTW, and a soft minimum over the merge levels replaces one score per level. Choices
(the weights of the alignment, which layers to merge) pass no gradient; costs and the compositing of merged layers do.

Stacks are ``(B, L, 4, H, W)``, straight alpha, bottom to top; in [-1, 1] as arguments and in [0, 1] internally. The
metric first groups layers into peels (step 1); the loss takes layers as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from metrics.decomposition.alignment import MIN_LAYERS
from training.decompose.layer_costs import over, unit_pair_cost, unit_range
from training.decompose.soft_dtw import TIE, first_within_tie, full_counts, hard_path, soft_alignment


def alignment_loss(
    predicted: torch.Tensor,
    true: torch.Tensor,
    *,
    gamma: float,
    max_merges: int,
    merge_penalty: float,
    merge_temperature: float,
    weight: torch.Tensor | None = None,
    predicted_counts: torch.Tensor | None = None,
    true_counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cost of the aligned layers, as a soft minimum over the number of merges.

        loss = -tau log sum_k exp(-(cost_k + k penalty) / tau),    k = 0 .. merges that the sample takes

    cost_k is :func:`level_costs`, tau the merge temperature. The loss is cost_0 if no merge is possible. It is never
    above any cost_k + k penalty, and below the least of them by at most tau log(levels). So a perfect stack may score
    slightly below 0.

    Args:
        predicted: ``(B, L, 4, H, W)`` in [-1, 1]; values beyond the range are clipped by
            :func:`training.decompose.layer_costs.clamp_inward`.
        true: ``(B, M, 4, H, W)`` in [-1, 1]; no gradient.
        gamma: temperature of the alignment, above 0, in the unit of a pair's cost, which is in [0, 1].
        max_merges: maximum number of merges; 0 for the alignment alone.
        merge_penalty: penalty per merge, at least 0.
        merge_temperature: tau, above 0.
        weight: ``(B,)`` factor of each sample, such as 1 - sigma.
        predicted_counts: ``(B,)`` number of real layers among the L, the rest being padding; all if None.
        true_counts: likewise, among the M.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: for stacks of mismatching shapes or parameters out of range.
    """
    if merge_penalty < 0 or merge_temperature <= 0:
        raise ValueError(f"expected merge_penalty >= 0, merge_temperature > 0: {merge_penalty}, {merge_temperature}")
    costs, reached = level_costs(
        predicted,
        true,
        gamma=gamma,
        max_merges=max_merges,
        predicted_counts=predicted_counts,
        true_counts=true_counts,
    )
    penalty = merge_penalty * torch.arange(costs.shape[1], device=costs.device, dtype=costs.dtype)
    levels = (costs + penalty).masked_fill(~reached, torch.inf)
    loss = -merge_temperature * torch.logsumexp(-levels / merge_temperature, 1)
    return loss if weight is None else weight.to(loss.dtype) * loss


def level_costs(
    predicted: torch.Tensor,
    true: torch.Tensor,
    *,
    gamma: float,
    max_merges: int,
    predicted_counts: torch.Tensor | None = None,
    true_counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost of the alignment after 0, 1, ... merges: ``metrics.decomposition.alignment.align``, batched.

    A level's cost is the mean over the soft path, sum(E c) / sum(E) with E of :func:`.soft_dtw.soft_alignment` as a
    constant. As gamma falls to 0 it becomes the metric's mean over the pairs of the path. Its gradient E / sum(E) is
    that of soft-DTW over the expected path length, never negative. Differentiating through E as well would reward
    making a bad alignment worse. Unlike D / sum(E) the value stays in [0, 1] and is comparable between levels.

    Arguments as of :func:`alignment_loss`.

    Returns:
        Costs ``(B, K + 1)`` in [0, 1], K being the most merges that the two lengths allow, up to max_merges; and a mask
        ``(B, K + 1)`` of the levels that a sample reached. Beyond those, costs repeat its last level.
    """
    fits = predicted.ndim == true.ndim == 5 and predicted.shape[2] == 4 and predicted.shape[1] > 0 < true.shape[1]
    if not fits or (predicted.shape[0], *predicted.shape[2:]) != (true.shape[0], *true.shape[2:]):
        raise ValueError(f"expected (B, L, 4, H, W), (B, M, 4, H, W): {tuple(predicted.shape)}, {tuple(true.shape)}")
    if gamma <= 0 or max_merges < 0:
        raise ValueError(f"expected gamma > 0 and max_merges >= 0: {gamma}, {max_merges}")
    ours, theirs = unit_range(predicted), unit_range(true.detach())
    cost = unit_pair_cost(ours, theirs)
    rows, columns = full_counts(cost)
    rows = rows if predicted_counts is None else predicted_counts.to(rows)
    columns = columns if true_counts is None else true_counts.to(columns)
    merges = min(max_merges, sum(max(size - MIN_LAYERS, 0) for size in cost.shape[1:]))
    with torch.no_grad():
        reverse = unit_pair_cost(theirs, ours) if merges else None
    state = _State(ours, theirs, rows, columns, cost, reverse)
    costs, alive = [_mean_cost(state, gamma)], [torch.ones_like(rows, dtype=torch.bool)]
    for _ in range(merges):
        index, on_predicted, on_true = _best_merge(state)
        alive.append(alive[-1] & (on_predicted | on_true))
        state = _merge(state, index, on_predicted & alive[-1], on_true & alive[-1])
        costs.append(_mean_cost(state, gamma))
    return torch.stack(costs, 1), torch.stack(alive, 1)


@dataclass(frozen=True)
class _State:
    """State of two stacks during merging; each sample has its own layer counts, the rest of a stack is padding.

    Attributes:
        predicted: ``(B, L, 4, H, W)`` in [0, 1].
        true: ``(B, M, 4, H, W)`` in [0, 1].
        rows: ``(B,)`` number of predicted layers of each sample.
        columns: ``(B,)`` number of true layers.
        cost: ``(B, L, M)`` cost of predicted layers against true ones.
        reverse: ``(B, M, L)`` cost of true layers against predicted ones, by which merges of true layers are chosen
            (step 4); no gradient. None if nothing will be merged.
    """

    predicted: torch.Tensor
    true: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    cost: torch.Tensor
    reverse: torch.Tensor | None


def _mean_cost(state: _State, gamma: float) -> torch.Tensor:
    expected = soft_alignment(state.cost, gamma, state.rows, state.columns)
    return (expected * state.cost).sum((1, 2)) / expected.sum((1, 2))


@torch.no_grad()
def _best_merge(state: _State) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the merge with the largest gain on either side (step 4).

    Returns:
        Index of the lower layer, and masks of the samples that merge on the predicted and on the true side (neither if
        there is no gain); all ``(B,)``.
    """
    path = hard_path(state.cost, state.rows, state.columns)
    # Ties: the true side wins, and within a side the lower index.
    on_true = _gains(state.true, state.predicted, state.reverse, path.transpose(1, 2), state.columns)
    on_predicted = _gains(state.predicted, state.true, state.cost, path, state.rows)
    gains = torch.cat([on_true, on_predicted], 1)
    index, some = first_within_tie(gains, 1), gains.amax(1) > TIE
    is_true = index < on_true.shape[1]
    return torch.where(is_true, index, index - on_true.shape[1]), some & ~is_true, some & is_true


def _gains(
    layers: torch.Tensor, others: torch.Tensor, cost: torch.Tensor, path: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """Gain ``(B, N - 1)`` of merging neighbours of ``(B, N, 4, H, W)`` (step 4); minus infinity if disallowed.

    ``cost`` and ``path`` are ``(B, N, K)``: cost of the layers against the others, and the aligned pairs.
    """
    if layers.shape[1] <= MIN_LAYERS:
        return cost.new_full((len(cost), layers.shape[1] - 1), -torch.inf)
    similarity, merged = 1.0 - cost, 1.0 - unit_pair_cost(over(layers[:, :-1], layers[:, 1:]), others)
    mates = path.to(cost.dtype)
    own = (mates * similarity).sum(2)
    lower, upper = mates[:, :-1], mates[:, 1:]
    # Taking the layer above in place of the merged one looks odd, but the reference implementation does it.
    above = torch.maximum((lower[:, :-1] * similarity[:, 2:]).sum(2), (upper[:, :-1] * similarity[:, 2:]).sum(2))
    index = torch.arange(layers.shape[1] - 1, device=cost.device)
    above = F.pad(above, (0, 1)).masked_fill(index + 2 >= count[:, None], -torch.inf)
    then = torch.maximum((upper * merged).sum(2), above) + (lower * merged).sum(2)
    allowed = (index + 1 < count[:, None]) & (count[:, None] > MIN_LAYERS)
    return (then - own[:, :-1] - own[:, 1:]).masked_fill(~allowed, -torch.inf)


def _merge(state: _State, index: torch.Tensor, on_predicted: torch.Tensor, on_true: torch.Tensor) -> _State:
    """Merge layers ``index`` and ``index + 1`` on the side chosen per sample; only costs of new pairs are computed."""
    predicted, true, cost, reverse = state.predicted, state.true, state.cost, state.reverse
    if predicted.shape[1] > MIN_LAYERS:
        layer = _merged_layer(predicted, index)
        cost = _splice(cost, unit_pair_cost(layer, true), index, on_predicted)
        with torch.no_grad():
            column = unit_pair_cost(true, layer).transpose(1, 2)
            reverse = _splice(reverse.transpose(1, 2), column, index, on_predicted).transpose(1, 2)
        predicted = _splice(predicted, layer, index, on_predicted)
    if true.shape[1] > MIN_LAYERS:
        layer = _merged_layer(true, index)
        # Samples that merged a predicted layer above do not merge here, so predicted stacks before or after do equally.
        column = unit_pair_cost(predicted, layer).transpose(1, 2)
        cost = _splice(cost.transpose(1, 2), column, index, on_true).transpose(1, 2)
        with torch.no_grad():
            reverse = _splice(reverse, unit_pair_cost(layer, predicted), index, on_true)
        true = _splice(true, layer, index, on_true)
    return _State(predicted, true, state.rows - on_predicted.long(), state.columns - on_true.long(), cost, reverse)


def _merged_layer(layers: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Composite ``(B, 1, 4, H, W)`` of layer ``index + 1`` over ``index``; arbitrary if the other side merges."""
    sample, index = torch.arange(len(layers), device=layers.device), index.clamp_max(layers.shape[1] - 2)
    return over(layers[sample, index], layers[sample, index + 1])[:, None]


def _splice(items: torch.Tensor, merged: torch.Tensor, index: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Replace entries ``index`` and ``index + 1`` of ``(B, N, ...)`` by ``merged`` ``(B, 1, ...)``.

    Only in the chosen samples; there the following entries move up and the last one is duplicated as padding.
    """
    size = items.shape[1]
    position = torch.arange(size, device=items.device)
    at = torch.where(chosen, index, size)[:, None]
    source = (position + (position > at).long()).clamp_max(size - 1)
    kept = items[torch.arange(len(items), device=items.device)[:, None], source]
    return torch.where((position == at).view(len(items), size, *[1] * (items.ndim - 2)), merged, kept)
