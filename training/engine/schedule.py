"""Learning-rate schedules over samples seen."""

from __future__ import annotations

import math


def learning_rate(seen: int, *, base: float, total: int, warmup: int, kind: str) -> float:
    """Learning rate after ``seen`` samples: linear warm-up from 0, then constant or a half cosine to 0.

    Args:
        seen: samples before this step, at least 0.
        base: peak rate.
        total: samples of the whole run.
        warmup: samples of the linear warm-up; the first step's rate is already above 0.
        kind: ``cosine`` or ``constant``.
    """
    if seen < warmup:
        return base * (seen + 1) / (warmup + 1)
    if kind == "constant":
        return base
    progress = min((seen - warmup) / max(total - warmup, 1), 1.0)
    return base * 0.5 * (1.0 + math.cos(math.pi * progress))
