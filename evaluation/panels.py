"""Panels of the report: input, true and predicted layers, recomposition and its error, from best to worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from config.evaluate import MODEL, NOTHING, Evaluate
from evaluation.designs import EvaluationSet
from evaluation.page import Panel
from evaluation.samples import NO_MODELS, Decomposed, Measured, decompose
from inference.decomposer import Decomposer
from layers.imaging.compositing import composite_8bit, over_background, to_float
from layers.imaging.view import grid

WHITE = (1.0, 1.0, 1.0)
SHOWN_PIXELS = 160  # smaller images are enlarged by a whole factor


def chosen(costs: Sequence[float], count: int) -> list[tuple[str, int]]:
    """Titles and indices of ``count`` samples, spread from the lowest cost to the highest, the median included."""
    ranked = sorted(range(len(costs)), key=lambda index: costs[index])
    last = len(ranked) - 1
    places = {round(k * last / max(count - 1, 1)) for k in range(count)}
    if count > 2:
        places = (places - {min(places - {0, last}, key=lambda place: abs(place - last / 2), default=0)}) | {last // 2}
    names = {0: "best", last: "worst", last // 2: "median"} if count > 2 else {0: "best", last: "worst"}
    return [(names.get(place, f"rank {place + 1} of {len(ranked)}"), ranked[place]) for place in sorted(places)]


def error_map(original: np.ndarray, recomposition: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the colours over white, times 4: ``(H, W, 3)`` uint8."""
    flat = [over_background(to_float(image), WHITE) for image in (original, recomposition)]
    error = np.abs(flat[0] - flat[1]).mean(axis=-1, keepdims=True)
    return np.rint(np.clip(4.0 * error, 0.0, 1.0) * 255.0).astype(np.uint8).repeat(3, axis=-1)


def draw(result: Decomposed) -> np.ndarray:
    """Draw the panel of one sample, ``(H, W, 3)`` uint8."""
    sample, again = result.sample, result.recomposition
    beside = [[composite_8bit(layers), *layers] for layers in result.beside.values()]
    return grid(
        [
            [sample.image, *result.peels],
            *beside,
            [composite_8bit(result.predicted), *result.predicted],
            [error_map(sample.image, again)],
        ],
        [
            "input, true layers bottom to top",
            *(f"{name}: recomposed, predicted layers" for name in result.beside),
            "recomposed, predicted layers bottom to top",
            "error of the recomposition as predicted, over white, times 4",
        ],
        scale=max(1, round(SHOWN_PIXELS / max(sample.image.shape[:2]))),
    )


def panels_of(
    model: Decomposer,
    images: EvaluationSet,
    measured: Sequence[Measured],
    settings: Evaluate,
    baselines: Mapping[str, Decomposer] = NO_MODELS,
) -> list[Panel]:
    """Draw ``settings.panels`` samples, decomposed again to the same layers, so that not all stay in memory."""
    costs = [m.levels[MODEL][0].cost for m in measured]
    panels = []
    for title, index in chosen(costs, settings.panels) if settings.panels else ():
        found = measured[index]
        (result,) = decompose(model, [images.read(found.sample_id)], settings, baselines)
        level, order = found.levels[MODEL][0], found.structure.order_agreement
        panels.append(
            Panel(
                f"{title}: {found.sample_id}",
                f"cost {level.cost:.3f} (composite alone {found.levels[NOTHING][0].cost:.3f}), "
                f"RGB L1 {level.rgb_l1:.3f}, "
                f"alpha soft IoU {level.alpha_iou:.3f}; recomposed at {found.recomposition['psnr_white']:.1f} dB"
                + ("" if order is None else f"; {order:.0%} of pairs in order"),
                draw(result),
            )
        )
    return panels
