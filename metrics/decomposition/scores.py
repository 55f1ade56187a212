"""Decomposition scores of one pair of stacks, and means over many: the protocol as functions of arrays.

See :mod:`metrics.decomposition.folders`, which applies them to folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metrics.decomposition.alignment import Merge, align, composite_peels

MAX_MERGES = 5


@dataclass(frozen=True)
class MergeLevel:
    """Scores of one sample with at most ``merges`` merges.

    Attributes:
        merges: merges allowed.
        rgb_l1: colour distance in [0, 1], lower is better.
        alpha_iou: alpha soft IoU in [0, 1], higher is better.
        cost: (rgb_l1 + 1 - alpha_iou) / 2, pair by pair; what the alignment minimises.
        taken: merges actually taken; below ``merges`` once no merge gains any more.
        path: aligned pairs (predicted peel, true peel) after those merges, bottom to top.
        merge: the last merge taken; None at level 0 and where the level before is carried forward.
    """

    merges: int
    rgb_l1: float
    alpha_iou: float
    cost: float
    taken: int
    path: tuple[tuple[int, int], ...]
    merge: Merge | None = None


@dataclass(frozen=True)
class MeanLevel:
    """Unweighted means over samples at one level; fields as in :class:`MergeLevel`, ``taken`` a mean too.

    Attributes:
        count: samples that actually took ``merges`` merges.
    """

    merges: int
    rgb_l1: float
    alpha_iou: float
    cost: float
    taken: float
    count: int


def score_sample(
    pred: Sequence[np.ndarray],
    gt: Sequence[np.ndarray],
    max_merges: int = MAX_MERGES,
    *,
    soft_alpha_weight: bool = False,
    merge_gt: bool = True,
    alpha_threshold: int = 0,
) -> list[MergeLevel]:
    """Score one predicted stack (LayerD protocol).

    Args:
        pred: predicted layers ``(H, W, 4)`` uint8 with straight alpha, bottom to top.
        gt: true layers, likewise and of the same size.
        max_merges: largest number of merges allowed; results for fewer are a prefix.
        soft_alpha_weight: weigh colours by the true alpha (the paper's words) instead of by alpha > 0 (the code).
        merge_gt: whether true layers may be merged too, as in the reference.
        alpha_threshold: predicted alpha below this (1 to 255) becomes 0 first; colours stay. 0 leaves all as it is.

    Returns:
        ``max_merges + 1`` levels; the last one reached is carried forward.

    Raises:
        ValueError: if a side has no layers, a layer is not RGBA of 8 bits, sizes differ, or an option is out of range.
    """
    if max_merges < 0:
        raise ValueError(f"max_merges must be at least 0, got {max_merges}")
    if not 0 <= alpha_threshold <= 255:
        raise ValueError(f"alpha_threshold must be within 0..255, got {alpha_threshold}")
    check_stacks(pred, gt)
    if alpha_threshold > 0:
        pred = [_snap_alpha(layer, alpha_threshold) for layer in pred]
    alignments = align(
        composite_peels(pred)[1],
        composite_peels(gt)[1],
        max_merges,
        soft_alpha_weight=soft_alpha_weight,
        merge_gt=merge_gt,
    )
    levels = []
    for merges in range(max_merges + 1):
        taken = min(merges, len(alignments) - 1)
        state = alignments[taken]
        merge = state.merge if taken == merges else None
        levels.append(MergeLevel(merges, state.rgb_l1, state.alpha_iou, state.cost, taken, tuple(state.path), merge))
    return levels


def level_entry(level: MergeLevel | MeanLevel) -> dict[str, float]:
    """Report entry of one level: merges allowed, rgb_l1, alpha_iou, cost."""
    return {"merges": level.merges, "rgb_l1": level.rgb_l1, "alpha_iou": level.alpha_iou, "cost": level.cost}


def aggregate(samples: Sequence[Sequence[MergeLevel]]) -> list[MeanLevel]:
    """Average each level over samples, every sample with the same weight (LayerD protocol).

    Args:
        samples: levels of each sample, all for the same ``max_merges``.

    Returns:
        One mean per level; empty if there is no sample.
    """
    means = []
    for levels in zip(*samples, strict=True):
        means.append(
            MeanLevel(
                merges=levels[0].merges,
                rgb_l1=float(np.mean([level.rgb_l1 for level in levels])),
                alpha_iou=float(np.mean([level.alpha_iou for level in levels])),
                cost=float(np.mean([level.cost for level in levels])),
                taken=float(np.mean([level.taken for level in levels])),
                count=sum(level.taken == level.merges for level in levels),
            )
        )
    return means


def check_stacks(pred: Sequence[np.ndarray], gt: Sequence[np.ndarray]) -> None:
    """Raise an error for stacks that cannot be compared.

    Args:
        pred: predicted layers, expected to be ``(H, W, 4)`` uint8.
        gt: true layers, likewise and of the same size.

    Raises:
        ValueError: one sentence about the first thing that is wrong: a side without layers, a layer that is not RGBA
            of 8 bits, sizes that differ.
    """
    sides = (("ground truth", gt), ("prediction", pred))
    for side, layers in sides:
        if len(layers) == 0:
            raise ValueError(f"the {side} has no layers")
    for side, layers in sides:
        for index, layer in enumerate(layers):
            if layer.ndim != 3 or layer.shape[2] != 4 or layer.dtype != np.uint8 or layer.size == 0:
                raise ValueError(
                    f"{side} layer {index} must be a non-empty (H, W, 4) uint8 RGBA array, "
                    f"got shape {layer.shape} of {layer.dtype}"
                )
            if layer.shape != gt[0].shape:
                raise ValueError(
                    f"all layers must have one size, but {side} layer {index} is {_size(layer)} pixels "
                    f"and ground truth layer 0 is {_size(gt[0])} (width x height)"
                )


def _size(layer: np.ndarray) -> str:
    return f"{layer.shape[1]}x{layer.shape[0]}"


def _snap_alpha(layer: np.ndarray, threshold: int) -> np.ndarray:
    snapped = layer.copy()
    snapped[..., 3][layer[..., 3] < threshold] = 0
    return snapped
