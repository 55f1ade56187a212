"""Learning rate and exponential moving average as functions of samples seen."""

from __future__ import annotations

import math


def learning_rate(seen: int, *, base: float, total: int, warmup: int, kind: str) -> float:
    """Rate after ``seen`` samples: linear from 0 over ``warmup`` samples, then constant or a half cosine to 0.

    Args:
        seen: samples before this step, at least 0.
        base: the peak.
        total: samples of the whole run.
        warmup: samples of the rise; the first step of a run already moves a little.
        kind: ``cosine`` or ``constant``.
    """
    if seen < warmup:
        return base * (seen + 1) / (warmup + 1)
    if kind == "constant":
        return base
    progress = min((seen - warmup) / max(total - warmup, 1), 1.0)
    return base * 0.5 * (1.0 + math.cos(math.pi * progress))
