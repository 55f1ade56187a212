"""Structure scores of a predicted stack: number of layers, their order, and the error of each true peel.

All counts are of peels, the protocol's groups of layers without overlap (:mod:`metrics.decomposition.folders`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from metrics.decomposition.alignment import composite_peels
from metrics.decomposition.pairs import PairMeasure, PairMeter, PixelLayer


@dataclass(frozen=True)
class PeelScore:
    """Scores of one true peel: means over the predicted peels that the protocol aligns with it.

    Attributes:
        kind: kind of its layers; ``group`` if they differ.
        rgb_l1: in [0, 1], lower is better.
        alpha_iou: in [0, 1], higher is better.
        cost: (rgb_l1 + 1 - alpha_iou) / 2.
    """

    kind: str
    rgb_l1: float
    alpha_iou: float
    cost: float


@dataclass(frozen=True)
class Structure:
    """Layer counts and order of one predicted stack.

    Attributes:
        layers: predicted layers.
        empty_layers: predicted layers without a visible pixel.
        count_error: |visible predicted peels - true peels|.
        order_agreement: share of pairs of true peels whose predicted counterparts have the same order; ``None`` where
            fewer than two have one.
        peels: scores of the true stack's peels, bottom to top.
    """

    layers: int
    empty_layers: int
    count_error: int
    order_agreement: float | None
    peels: tuple[PeelScore, ...]


def stack_structure(
    pred: Sequence[np.ndarray], gt: Sequence[np.ndarray], kinds: Sequence[str], path: Sequence[tuple[int, int]]
) -> Structure:
    """Compare the structure of a predicted and a true stack.

    Args:
        pred: predicted layers ``(H, W, 4)`` uint8, straight alpha, bottom to top.
        gt: true layers, likewise and of the same size.
        kinds: kinds of the true layers.
        path: aligned pairs (predicted peel, true peel) at 0 merges, of
            :func:`metrics.decomposition.scores.score_sample`.
    """
    groups, true_peels = composite_peels(gt)
    predicted_peels = composite_peels(pred)[1]
    meter = PairMeter(gt[0].shape[0] * gt[0].shape[1])
    predicted, true = ([PixelLayer(image) for image in peels] for peels in (predicted_peels, true_peels))
    measures = [[meter.measure(one, other) for other in true] for one in predicted]
    visible = [layer for layer in pred if layer[..., 3].any()]
    visible_peels = len(composite_peels(visible)[0]) if visible else 0
    peels = []
    for column, group in enumerate(groups):
        found = {kinds[index] for index in group}
        pairs = [measures[i][j] for i, j in path if j == column]
        peels.append(
            PeelScore(
                kind=found.pop() if len(found) == 1 else "group",
                rgb_l1=float(np.mean([pair.rgb_l1 for pair in pairs])),
                alpha_iou=float(np.mean([pair.alpha_iou for pair in pairs])),
                cost=float(np.mean([pair.cost for pair in pairs])),
            )
        )
    return Structure(
        layers=len(pred),
        empty_layers=len(pred) - len(visible),
        count_error=abs(visible_peels - len(true_peels)),
        order_agreement=order_agreement(measures),
        peels=tuple(peels),
    )


def order_agreement(measures: Sequence[Sequence[PairMeasure]]) -> float | None:
    """Share of pairs of true layers whose predicted counterparts have the same order.

    Counterparts are one to one and maximise the sum of alpha soft IoU (Hungarian method); layers without overlap have
    none. This is independent of the protocol's alignment, which always keeps the order. 1 is the true order, 0 its
    reverse.

    Args:
        measures: ``(n, m)``, of each predicted with each true layer, both bottom to top.

    Returns:
        In [0, 1]; ``None`` if fewer than two layers have a counterpart.
    """
    overlap = np.array([[measure.alpha_iou for measure in row] for row in measures])
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    matched = [(column, row) for row, column in zip(rows, columns, strict=True) if overlap[row, column] > 0.0]
    places = [row for _, row in sorted(matched)]
    pairs = list(itertools.combinations(places, 2))
    return float(np.mean([lower < upper for lower, upper in pairs])) if pairs else None
