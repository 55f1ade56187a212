"""Alignment of two stacks of RGBA layers by order-aware DTW and greedy merges (LayerD protocol).

Layers are 8-bit straight-alpha arrays ``(H, W, 4)``, bottom to top.

The protocol compares many pairs of layers repeatedly. Here every pair is compared once
(:class:`~metrics.decomposition.pairs.PairMeter`). Two layers are merged on trial only if an upper bound of the gain,
from sums already known, says that this may be the best merge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from layers.imaging.compositing import group_into_peels
from metrics.decomposition.pairs import PairMeter, PixelLayer, over_8bit

MIN_LAYERS = 2  # a side with no more layers than this is never merged (step 4)

# Choices closer than this are ties up to rounding. Integer sums err by 1e-15, the reference's floats by 1e-14.
TIE = 1e-12
# Merges whose bound is this close to the best gain are still computed, so that no tie is missed.
_BOUND_SLACK = 1e-9

Path = list[tuple[int, int]]
Side = Literal["pred", "gt"]


@dataclass(frozen=True)
class Merge:
    """One merge: layers ``index`` and ``index + 1`` of a side became one.

    Attributes:
        side: ``pred`` or ``gt``.
        index: the lower of the two layers, counted before the merge.
        gain: rise of the summed similarity that was computed for the merge (step 4).
    """

    side: Side
    index: int
    gain: float


@dataclass(frozen=True)
class Alignment:
    """Two stacks aligned after some merges; the scores are means over the pairs of the path.

    Attributes:
        merge: the merge that led here; None before the first.
        path: pairs (predicted layer, true layer) from bottom to top, counted after the merge.
        rgb_l1: colour distance in [0, 1].
        alpha_iou: alpha soft IoU in [0, 1].
        cost: (rgb_l1 + 1 - alpha_iou) / 2, in [0, 1].
    """

    merge: Merge | None
    path: Path
    rgb_l1: float
    alpha_iou: float
    cost: float


def composite_peels(layers: Sequence[np.ndarray]) -> tuple[list[list[int]], list[np.ndarray]]:
    """Group ``(H, W, 4)`` uint8 layers into peels, sets of layers that do not overlap, and flatten each (step 1).

    Returns:
        The groups of indices and the flattened layers, both bottom to top.
    """
    groups = group_into_peels([layer[..., 3] for layer in layers])
    return groups, [reduce(over_8bit, (layers[index] for index in group)) for group in groups]


def dtw_path(cost: Sequence[Sequence[float]]) -> tuple[Path, float]:
    """Find the cheapest order-keeping alignment of two sequences (step 3).

    Both ends are pinned and every row and column appears. Among equally cheap steps back the diagonal comes first, then
    the row above, then the column before.

    Args:
        cost: ``(n, m)`` costs; n and m at least 1.

    Returns:
        Pairs (row, column) from (0, 0) to (n - 1, m - 1), and the margin of the closest choice on the way. It is
        infinite if there was no choice, 0 for a tie.
    """
    rows, columns = len(cost), len(cost[0])
    total = [[0.0] * columns for _ in range(rows)]

    def steps_back(i: int, j: int) -> Path:
        return [(a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]

    for i in range(rows):
        for j in range(columns):
            total[i][j] = cost[i][j] + min((total[a][b] for a, b in steps_back(i, j)), default=0.0)
    path = [(rows - 1, columns - 1)]
    margin = math.inf
    while steps := steps_back(*path[-1]):
        ranked = sorted(steps, key=lambda step: total[step[0]][step[1]])  # stable: equals keep the order above
        if len(ranked) > 1:
            margin = min(margin, total[ranked[1][0]][ranked[1][1]] - total[ranked[0][0]][ranked[0][1]])
        path.append(ranked[0])
    return path[::-1], margin


def align(
    pred: Sequence[np.ndarray],
    gt: Sequence[np.ndarray],
    max_merges: int,
    *,
    soft_alpha_weight: bool = False,
    merge_gt: bool = True,
) -> list[Alignment]:
    """Align two stacks, then merge neighbours greedily and align again (steps 3 and 4).

    Args:
        pred: predicted layers ``(H, W, 4)`` uint8, bottom to top, already flattened to peels; at least one.
        gt: true layers, likewise and of the same size.
        max_merges: maximum number of merges.
        soft_alpha_weight: weigh colour differences by the second layer's alpha instead of by alpha > 0.
        merge_gt: whether true layers may be merged too.

    Returns:
        One alignment before the first merge and one after each merge taken.
    """
    pixels = gt[0].shape[0] * gt[0].shape[1]
    search = _Search(pred, gt, PairMeter(pixels, soft_alpha_weight), merge_gt)
    alignments = search.run(max_merges)
    if search.margin < TIE and not soft_alpha_weight:
        # In the reference implementation rounding decides such a tie. Its float sums give the same decision.
        alignments = _Search(pred, gt, PairMeter(pixels, float_sums=True), merge_gt).run(max_merges)
    return alignments


class _Search:
    """State of the greedy search: the two stacks after the merges so far.

    Attributes:
        margin: margin of the closest of all choices so far.
    """

    def __init__(self, pred: Sequence[np.ndarray], gt: Sequence[np.ndarray], meter: PairMeter, merge_gt: bool) -> None:
        self.margin = math.inf
        self._stacks: dict[Side, list[PixelLayer]] = {
            "pred": [PixelLayer(image) for image in pred],
            "gt": [PixelLayer(image) for image in gt],
        }
        self._meter = meter
        # On equal gains the true side goes first, and on one side the lower index.
        self._sides: tuple[Side, ...] = ("gt", "pred") if merge_gt else ("pred",)
        self._merged: dict[tuple[int, int], PixelLayer] = {}

    def run(self, max_merges: int) -> list[Alignment]:
        alignments = [self._align(None)]
        while len(alignments) <= max_merges and (merge := self._best_merge(alignments[-1].path)):
            stack = self._stacks[merge.side]
            stack[merge.index : merge.index + 2] = [self._merge(*stack[merge.index : merge.index + 2])]
            # Cached merges with a layer that is gone are dropped, to free their pixels.
            alive = {layer.identifier for layers in self._stacks.values() for layer in layers}
            self._merged = {key: layer for key, layer in self._merged.items() if alive.issuperset(key)}
            alignments.append(self._align(merge))
        return alignments

    def _align(self, merge: Merge | None) -> Alignment:
        """Align the stacks as they are and average over the path (step 3)."""
        measures = [
            [self._meter.measure(layer, other) for other in self._stacks["gt"]] for layer in self._stacks["pred"]
        ]
        path, margin = dtw_path([[measure.cost for measure in row] for row in measures])
        self.margin = min(self.margin, margin)
        pairs = [measures[i][j] for i, j in path]
        return Alignment(
            merge=merge,
            path=path,
            rgb_l1=sum(pair.rgb_l1 for pair in pairs) / len(pairs),
            alpha_iou=sum(pair.alpha_iou for pair in pairs) / len(pairs),
            cost=sum(pair.cost for pair in pairs) / len(pairs),
        )

    def _merge(self, lower: PixelLayer, upper: PixelLayer) -> PixelLayer:
        key = (lower.identifier, upper.identifier)
        if key not in self._merged:
            self._merged[key] = PixelLayer(over_8bit(lower.image, upper.image))
        return self._merged[key]

    def _best_merge(self, path: Path) -> Merge | None:
        """Find the merge with the largest gain on either side (step 4); None if nothing gains."""
        candidates = [c for side in self._sides for c in self._candidates(side, path)]
        gains: dict[_Candidate, float] = {}
        best = 0.0
        for candidate in sorted(candidates, key=lambda c: c.bound, reverse=True):
            if candidate.bound < best - _BOUND_SLACK:
                break  # and so are all that follow
            gains[candidate] = self._gain(candidate)
            best = max(best, gains[candidate])
        ranked = sorted([0.0, *gains.values()], reverse=True)
        if len(ranked) > 1:
            self.margin = min(self.margin, ranked[0] - ranked[1])
        if best == 0.0:
            return None
        winner = next(c for c in candidates if gains.get(c) == best)  # candidates are in the order of the tie rule
        return Merge(winner.side, winner.index, best)

    def _candidates(self, side: Side, path: Path) -> list[_Candidate]:
        """List a side's merges that may gain, lower index first."""
        layers, others = self._stacks[side], self._stacks["gt" if side == "pred" else "pred"]
        if len(layers) <= MIN_LAYERS:
            return []
        pairs = path if side == "pred" else [(j, i) for i, j in path]
        partners = [tuple(others[b] for a, b in pairs if a == index) for index in range(len(layers))]
        candidates = []
        for index, (mates, upper_mates) in enumerate(itertools.pairwise(partners)):
            parts = tuple(layers[index : index + 2])
            above = tuple(layers[index + 2 : index + 3])
            now = self._meter.similarity(parts[0], mates) + self._meter.similarity(parts[1], upper_mates)
            if now >= len(mates) + max(len(group) for group in (upper_mates, mates)[: 1 + len(above)]):
                continue  # a similarity is at most 1: nothing left to gain
            then = [self._meter.similarity_bound(parts, upper_mates)]
            then += [self._meter.similarity_bound(above, group) for group in (mates, upper_mates) if above]
            bound = max(then) + self._meter.similarity_bound(parts, mates) - now
            candidates.append(_Candidate(side, index, parts, above, mates, upper_mates, now, bound))
        return candidates

    def _gain(self, candidate: _Candidate) -> float:
        """Merge for a trial and compare with the layers that the two parts are aligned to."""
        layer = self._merge(*candidate.parts)
        then = [self._meter.similarity(layer, candidate.upper_mates)]
        # As in the reference, though unexpected: the layer above stands in for the merged one.
        for above in candidate.above:
            then += [self._meter.similarity(above, group) for group in (candidate.mates, candidate.upper_mates)]
        return max(then) + self._meter.similarity(layer, candidate.mates) - candidate.now


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A candidate: a merge of two neighbours under consideration.

    Attributes:
        side: side of the two layers.
        index: index of the lower layer.
        parts: the two layers.
        above: the layer above them, if there is one.
        mates: layers of the other side aligned to the lower part.
        upper_mates: those aligned to the upper part.
        now: summed similarity of the parts to their mates.
        bound: the gain is not larger than this.
    """

    side: Side
    index: int
    parts: tuple[PixelLayer, ...]
    above: tuple[PixelLayer, ...]
    mates: tuple[PixelLayer, ...]
    upper_mates: tuple[PixelLayer, ...]
    now: float
    bound: float
