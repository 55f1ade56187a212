"""Per-image scores of model versions, and paired bootstrap intervals of their difference.

They are read from ``evaluate_samples.csv`` of the evaluate run whose scores the version has.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metrics.intervals import FEWEST, LEVEL, bootstrap_interval
from tracking.versions import SCORES, Registry, RegistryError, Version

TABLE = "evaluate_samples.csv"
# Columns from which each score is computed.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in SCORES},
    "psnr": ("psnr_white",),
    "ssim": ("ssim_white",),
    "lpips": ("lpips_white",),
    "better_than_nothing": ("cost", "composite_only_cost"),
    "seconds_per_picture": ("seconds",),
}
SHOWN = 3


@dataclass(frozen=True)
class Gain:
    """Paired improvement of a version over another on the same images; above 0 is better for every score.

    Attributes:
        mean: mean of the per-image differences.
        low: lower bound of their paired bootstrap interval.
        high: upper bound.
        count: number of images.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_sure(self) -> bool:
        """True if the interval lies above 0."""
        return self.low > 0.0

    def __str__(self) -> str:
        interval = f"{100 * LEVEL:.0f} % paired bootstrap interval {self.low:+.4g} to {self.high:+.4g}"
        return f"gain {self.mean:+.4g}, {interval}, n = {self.count}"


def read_scores(registry: Registry, version: Version, run_id: str, metric: str) -> dict[str, float]:
    """Read one score of a version, by id of the image.

    Args:
        registry: registry that has the version.
        version: the version, for messages.
        run_id: id of the evaluation run that measured the score.
        metric: a name in :data:`tracking.versions.SCORES`.

    Raises:
        RegistryError: if the run has no such table, or the table lacks this score for an image.
    """
    text = registry.artifact(run_id, TABLE)
    if text is None:
        raise RegistryError(
            f"the evaluation of version {version.number} has no scores of each image ({TABLE} of run {run_id}); "
            "check its weights out and run stage evaluate"
        )
    return parse_scores(text, metric, f"{TABLE} of version {version.number} (run {run_id})")


def parse_scores(text: str, metric: str, name: str) -> dict[str, float]:
    """Parse one score by id of the image from the text of a table; ``name`` names the table in messages.

    Raises:
        RegistryError: if the score is missing, for all images or for one.
    """
    reader = csv.DictReader(io.StringIO(text))
    columns = set(reader.fieldnames or ())
    known = [score for score, needed in COLUMNS.items() if {"id", *needed} <= columns]
    if metric not in known:
        raise RegistryError(f"{name} has no {metric}; it has {', '.join(known) or 'none of the scores'}")
    found: dict[str, float] = {}
    for row in reader:
        value, sample_id = _value(row, metric), row["id"]
        if value is None:
            raise RegistryError(f"{name} has no {metric} of image {sample_id}")
        if sample_id in found:
            raise RegistryError(f"{name} has image {sample_id} twice")
        found[sample_id] = value
    return found


def _value(row: Mapping[str, str | None], metric: str) -> float | None:
    """Score of a row; ``None`` if it is not a finite number."""
    try:
        values = [float(row[column] or "") for column in COLUMNS[metric]]
    except ValueError:
        return None
    if not all(map(math.isfinite, values)):
        return None
    return float(values[0] < values[1]) if metric == "better_than_nothing" else values[0]


def paired_gain(new: Mapping[str, float], old: Mapping[str, float], higher: bool) -> Gain:
    """Compare two versions' scores of the same images.

    Args:
        new: score by image of the new version.
        old: score by image of the version to compare with.
        higher: whether higher scores are better.

    Raises:
        RegistryError: if the images differ, or are too few for an interval.
    """
    if new.keys() != old.keys():
        alone = sorted(new.keys() ^ old.keys())
        more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
        raise RegistryError(
            f"the images are not the same, {len(new)} against {len(old)}; only one of the two evaluations has "
            f"{', '.join(alone[:SHOWN])}{more}; run stage evaluate on the same ones"
        )
    if len(new) < FEWEST:
        raise RegistryError(f"an interval needs {FEWEST} images; the evaluations have {len(new)}")
    sign = 1.0 if higher else -1.0
    differences = [sign * (new[name] - old[name]) for name in sorted(new)]
    return Gain(float(np.mean(differences)), *bootstrap_interval(differences), len(differences))
