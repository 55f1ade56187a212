"""Timing of the decomposition metric against the same protocol written plainly in numpy.

    python -m benchmarks.decomposition_metric [--size 512] [--layers 6] [--samples 3]

Both sides score the same generated stacks in turn, each in its own process with one thread, and must agree. Predicted
and true stacks are unrelated, the worst case: all merges are taken. The plain side follows the protocol's wording and
caches nothing, as LayerD's evaluator does; the tests use it as their reference.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import reduce
from multiprocessing import get_context

import numpy as np
from PIL import Image

from inference.process_memory import process_peak
from metrics.decomposition.scores import MAX_MERGES, score_sample

Level = dict[str, float]


def plain_rgb_l1(first: np.ndarray, second: np.ndarray, soft_alpha_weight: bool = False) -> float:
    """Colour distance of ``(H, W, 4)`` uint8 layers in [0, 1] (LayerD protocol, step 2)."""
    first, second = first / 255.0, second / 255.0
    weight = second[..., 3] if soft_alpha_weight else second[..., 3] > 0
    return float((np.abs(first[..., :3] - second[..., :3]).mean(-1) * weight).sum() / (weight.sum() + 1e-8))


def plain_alpha_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Soft IoU of the alphas of ``(H, W, 4)`` uint8 layers in [0, 1] (step 2)."""
    first, second = first[..., 3] / 255.0, second[..., 3] / 255.0
    union = np.maximum(first, second).sum()
    return float(np.minimum(first, second).sum() / union) if union > 0 else 0.0


def plain_levels(
    pred: Sequence[np.ndarray],
    gt: Sequence[np.ndarray],
    max_merges: int = MAX_MERGES,
    merge_gt: bool = True,
    soft_alpha_weight: bool = False,
) -> list[Level]:
    """Score ``(H, W, 4)`` uint8 stacks; one entry before the first merge and one after each merge taken (sec. 1)."""

    def cost(first: np.ndarray, second: np.ndarray) -> float:
        return (plain_rgb_l1(first, second, soft_alpha_weight) + (1 - plain_alpha_iou(first, second))) / 2

    def level() -> tuple[Level, list[tuple[int, int]]]:
        path = _plain_path(np.array([[cost(p, g) for g in gt] for p in pred]))
        pairs = [(pred[i], gt[j]) for i, j in path]
        scores = {
            "cost": float(np.mean([cost(p, g) for p, g in pairs])),
            "rgb_l1": float(np.mean([plain_rgb_l1(p, g, soft_alpha_weight) for p, g in pairs])),
            "alpha_iou": float(np.mean([plain_alpha_iou(p, g) for p, g in pairs])),
        }
        return scores, path

    pred, gt = _plain_peels(pred), _plain_peels(gt)
    scores, path = level()
    levels = [scores]
    while len(levels) <= max_merges:
        gain_pred, at_pred = _plain_best_merge(pred, gt, path, cost)
        gain_gt, at_gt = _plain_best_merge(gt, pred, [(j, i) for i, j in path], cost) if merge_gt else (0.0, 0)
        if max(gain_pred, gain_gt) <= 0:
            break
        layers, at = (pred, at_pred) if gain_pred > gain_gt else (gt, at_gt)
        layers[at : at + 2] = [_plain_over(layers[at], layers[at + 1])]
        scores, path = level()
        levels.append(scores)
    return levels


def _plain_over(bottom: np.ndarray, top: np.ndarray) -> np.ndarray:
    return np.asarray(Image.alpha_composite(Image.fromarray(bottom), Image.fromarray(top)))


def _plain_peels(layers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Group layers that do not overlap, and flatten each group (step 1)."""
    remaining = list(range(len(layers)))
    groups = []
    while remaining:
        front = [
            i
            for i in remaining
            if not any(j > i and np.any((layers[i][..., 3] > 0) & (layers[j][..., 3] > 0)) for j in remaining)
        ]
        groups.append(front)
        remaining = [i for i in remaining if i not in front]
    return [reduce(_plain_over, [layers[i] for i in group]) for group in groups[::-1]]


def _plain_path(cost: np.ndarray) -> list[tuple[int, int]]:
    """Find the path of dynamic time warping with the reference's tie rule (step 3)."""
    total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
    total[0, 0] = 0.0
    for i, j in np.ndindex(*cost.shape):
        total[i + 1, j + 1] = cost[i, j] + min(total[i, j + 1], total[i + 1, j], total[i, j])
    i, j = cost.shape[0], cost.shape[1]
    path = [(i - 1, j - 1)]
    while (i, j) != (1, 1):
        diagonal, up, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if diagonal <= up and diagonal <= left:
            i, j = i - 1, j - 1
        elif up <= diagonal and up <= left:
            i -= 1
        else:
            j -= 1
        path.append((i - 1, j - 1))
    return path[::-1]


def _plain_best_merge(
    layers: list[np.ndarray],
    others: list[np.ndarray],
    path: list[tuple[int, int]],
    cost: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[float, int]:
    """Largest gain of a merge and the lower index of its pair; gain 0 if no merge gains (step 4)."""
    best = (0.0, 0)
    for i in range(len(layers) - 1 if len(layers) > 2 else 0):
        mates = [[others[b] for a, b in path if a == index] for index in (i, i + 1)]

        def similarity(layer: np.ndarray, group: list[np.ndarray]) -> float:
            return reduce(lambda total, other: total + (1 - cost(layer, other)), group, 0.0)

        merged = _plain_over(layers[i], layers[i + 1])
        options = [similarity(merged, mates[1])]
        if i + 2 < len(layers):
            options += [similarity(layers[i + 2], group) for group in mates]
        now = similarity(layers[i], mates[0]) + similarity(layers[i + 1], mates[1])
        gain = similarity(merged, mates[0]) + max(options) - now
        if gain > best[0]:
            best = (gain, i)
    return best


def make_stack(rng: np.random.Generator, layers: int, size: int) -> list[np.ndarray]:
    """Draw an opaque background and soft blobs over it: ``(size, size, 4)`` uint8 each, bottom to top."""

    def smooth(cells: int, channels: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (channels, cells, cells), dtype=np.uint8)
        bands = [Image.fromarray(band).resize((size, size), Image.Resampling.BICUBIC) for band in coarse]
        return np.stack([np.asarray(band) for band in bands], axis=-1)

    stack = []
    for index in range(layers):
        alpha = np.clip((smooth(7, 1).astype(int) - 110) * 6, 0, 255) if index else np.full((size, size, 1), 255)
        layer = np.concatenate([smooth(9, 3), alpha.astype(np.uint8)], axis=-1)
        layer[layer[..., 3] == 0] = 0
        stack.append(layer)
    return stack


def _score(pred: list[np.ndarray], gt: list[np.ndarray], max_merges: int) -> list[Level]:
    levels = score_sample(pred, gt, max_merges)
    return [{"cost": v.cost, "rgb_l1": v.rgb_l1, "alpha_iou": v.alpha_iou} for v in levels[: levels[-1].taken + 1]]


SIDES: dict[str, Callable[..., list[Level]]] = {"ours": _score, "plain numpy": plain_levels}


def _measure(side: str, seed: int, layers: int, size: int, max_merges: int) -> tuple[list[Level], float, float, float]:
    """Return merge levels, CPU seconds, peak memory of the process in MiB and the peak before scoring."""
    rng = np.random.default_rng(seed)
    pred, gt = make_stack(rng, layers, size), make_stack(rng, layers, size)
    before = process_peak() / 2**20
    start = time.process_time()
    levels = SIDES[side](pred, gt, max_merges)
    seconds = time.process_time() - start
    return levels, seconds, process_peak() / 2**20, before


def main() -> None:
    """Print medians of both sides and their ratio."""
    parser = argparse.ArgumentParser(description="Time the decomposition metric against plain numpy.")
    parser.add_argument("--size", type=int, default=512, help="side of the square layers in pixels")
    parser.add_argument("--layers", type=int, default=6, help="layers on either side")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--max-merges", type=int, default=MAX_MERGES)
    args = parser.parse_args()

    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # read by the processes below when they start
    pools = {side: ProcessPoolExecutor(1, mp_context=get_context("spawn")) for side in SIDES}
    results: dict[str, list] = {side: [] for side in SIDES}
    baseline: dict[str, float] = {}
    for seed in range(args.samples):
        for side, pool in pools.items():
            task = pool.submit(_measure, side, seed, args.layers, args.size, args.max_merges)
            results[side].append(task.result())
            baseline.setdefault(side, results[side][0][3])
        ours, plain = (results[side][-1][0] for side in SIDES)
        if len(ours) != len(plain):
            raise SystemExit(f"seed {seed}: {len(ours) - 1} merges, the plain side took {len(plain) - 1}")
        worst = max(abs(a[name] - b[name]) for a, b in zip(ours, plain, strict=True) for name in a)
        print(f"seed {seed}: {len(ours) - 1} merges, largest difference {worst:.1e}")
    for pool in pools.values():
        pool.shutdown()

    print(f"{args.layers} against {args.layers} layers of {args.size}x{args.size}, up to {args.max_merges} merges")
    medians = {}
    for side, rows in results.items():
        medians[side] = statistics.median(row[1] for row in rows)
        peak = max(row[2] for row in rows)
        print(
            f"  {side:12} median {medians[side]:8.3f} CPU s/sample, peak {peak:4.0f} MiB ({baseline[side]:.0f} before)"
        )
    print(f"  ratio        {medians['plain numpy'] / medians['ours']:.0f}")


if __name__ == "__main__":
    main()
