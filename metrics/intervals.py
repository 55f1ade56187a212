"""How sure a mean over samples is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

LEVEL = 0.95
RESAMPLES = 2000
# Of fewer values the interval is their least and largest, or near it, and says too little.
FEWEST = 5


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979), samples drawn with replacement.

    It says how much the mean hangs on which images were in the set, not how much a second training would differ.

    Args:
        values: one a sample; at least one.
        seed: of the draws.

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
