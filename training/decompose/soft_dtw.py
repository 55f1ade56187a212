"""Dynamic time warping of two short sequences in torch: soft (Cuturi and Blondel 2017, arXiv 1703.01541) and hard.

A cost matrix is ``(B, n, m)``. A sample may use only its first ``rows <= n`` and ``columns <= m`` entries; the rest is
padding (finite, without influence). Paths are monotonic, take the steps (1, 0), (0, 1) and (1, 1), and run from (0, 0)
to (rows - 1, columns - 1). The recursion runs along the n + m - 1 antidiagonals, whose cells are independent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# Sums closer than this are ties: float32 sums over pixels err by about 1e-7, and rounding must not decide a path.
TIE = 1e-6


def full_counts(cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of rows and columns ``(B,)`` of a cost matrix ``(B, n, m)`` without padding."""
    batch, rows, columns = cost.shape
    return torch.full((batch,), rows, device=cost.device), torch.full((batch,), columns, device=cost.device)


def soft_dtw(
    cost: torch.Tensor, gamma: float, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """Soft minimum over all paths of the summed cost (arXiv 1703.01541, eq. 1 and Algorithm 1).

        D_ij = c_ij + softmin(D_{i-1,j-1}, D_{i-1,j}, D_{i,j-1}),    softmin(x) = -gamma log sum exp(-x / gamma)

    which is -gamma log sum_paths exp(-cost(path) / gamma). It is at most the cheapest path's cost, below it by at most
    gamma log(number of paths), and negative if gamma is large. As gamma falls to 0 it becomes classic DTW.

    Args:
        cost: ``(B, n, m)``.
        gamma: temperature above 0, in the unit of cost.
        rows: ``(B,)`` number of rows of each sample; all n if None.
        columns: likewise, of m.

    Returns:
        ``(B,)``, differentiable in cost; its gradient is :func:`soft_alignment`.
    """
    rows, columns = _counts(cost, rows, columns)
    table = _accumulate(cost, lambda steps: -gamma * torch.logsumexp(-steps / gamma, 0))
    return table[torch.arange(len(cost), device=cost.device), rows - 1, columns - 1]


def soft_alignment(
    cost: torch.Tensor, gamma: float, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """Probability of each pair to be on the path: E = dD / dc (arXiv 1703.01541, eq. 3 and Algorithm 2).

    E_ij is the probability that a path drawn with p(path) ~ exp(-cost(path) / gamma) contains the pair, so the sum of E
    is the expected path length. As gamma falls to 0, E is 1 on the cheapest path; paths of equal cost share it, where
    the metric would take the diagonal.

    Returns:
        ``(B, n, m)`` in [0, 1], 0 on padding, detached.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = cost.detach().clone().requires_grad_()
        total = soft_dtw(leaf, gamma, rows, columns).sum()
        (expected,) = torch.autograd.grad(total, leaf)
    return expected


def hard_path(
    cost: torch.Tensor, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """Pairs on the cheapest path: the batched :func:`metrics.decomposition.alignment.dtw_path`. No gradient.

    Ties between steps back are broken in the metric's order: diagonal, row above, column before.

    Returns:
        ``(B, n, m)`` bool.
    """
    cost = cost.detach()
    rows, columns = _counts(cost, rows, columns)
    # Padded at the top and the left: entry [i + 1, j + 1] belongs to (i, j).
    table = F.pad(_accumulate(cost, lambda steps: steps.amin(0)), (1, 0, 1, 0), value=torch.inf)
    path = torch.zeros_like(cost, dtype=torch.bool)
    sample, i, j = torch.arange(len(cost), device=cost.device), rows - 1, columns - 1
    for _ in range(cost.shape[1] + cost.shape[2] - 1):
        path[sample, i, j] = True
        back = torch.stack([table[sample, i, j], table[sample, i, j + 1], table[sample, i + 1, j]])
        step = first_within_tie(-back, 0)
        # At (0, 0) all three are infinite and the first is taken; clamping then stays at (0, 0).
        i, j = (i - (step != 2).long()).clamp_min(0), (j - (step != 1).long()).clamp_min(0)
    return path


def first_within_tie(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Index along ``dim`` of the first entry that is the largest up to :data:`TIE`."""
    return (values >= values.amax(dim, keepdim=True) - TIE).int().argmax(dim)


def _counts(
    cost: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    all_rows, all_columns = full_counts(cost)
    return all_rows if rows is None else rows, all_columns if columns is None else columns


def _accumulate(cost: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The table D ``(B, n, m)`` with D_ij = c_ij + reduce(diagonal, above, before), stacked in dimension 0."""
    batch, rows, columns = cost.shape
    index = torch.arange(max(rows, columns), device=cost.device)
    # A diagonal is stored by row, with a row -1 before the first; missing cells have infinite cost. Every cell but (0,
    # 0) has a finite predecessor, so reduce never sees only infinities (logsumexp's gradient would be NaN).
    last = before = cost.new_full((batch, rows + 1), torch.inf)
    diagonals = []
    for d in range(rows + columns - 1):
        low, high = max(0, d - columns + 1), min(d + 1, rows)
        row = index[low:high]
        cells = cost[:, row, d - row]
        if d > 0:
            steps = [before[:, low:high], last[:, low:high], last[:, low + 1 : high + 1]]
            cells = cells + reduce(torch.stack(steps))
        before, last = last, F.pad(cells, (low + 1, rows - high), value=torch.inf)
        diagonals.append(last[:, 1:])
    row, column = index[:rows, None], index[:columns]
    return torch.stack(diagonals, 1)[:, row + column, row]
