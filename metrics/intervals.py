"""Bootstrap intervals of a mean over samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

LEVEL = 0.95
RESAMPLES = 2000
# With fewer values the interval is close to their minimum and maximum, and says too little.
FEWEST = 5


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979), samples drawn with replacement.

    It covers the choice of the images in the set, not the difference that a second training would make.

    Args:
        values: one per sample; at least one.
        seed: seed of the draws.

    Returns:
        Lower and upper bound; the value twice if there is only one.
    """
    if len(values) < 2:
        return values[0], values[0]
    result = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
