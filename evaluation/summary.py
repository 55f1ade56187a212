"""Summary of many samples for the reports: means, intervals, breakdowns, tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from config.evaluate import CEILING, MODEL, NOTHING, TOLD
from evaluation.literature import decomposition_rows
from evaluation.samples import Measured
from metrics.decomposition.scores import MergeLevel, aggregate, level_entry
from metrics.editability.scores import mean_edit_scores
from metrics.intervals import bootstrap_interval
from metrics.reconstruction.rgba import mean_metrics

CURVES = ("rgb_l1", "alpha_iou", "cost")
HERE = "this evaluation"


def rows_of(measured: Sequence[Measured], max_merges: int) -> dict[str, list[list[MergeLevel]]]:
    """Scores of every sample for each row, by merge level.

    A missing prediction of another folder counts as worst. In the row with captions, a sample without a caption has
    the scores of the model without captions.
    """
    names = [MODEL, NOTHING, CEILING, *_others(measured)]
    worst = [MergeLevel(merges, 1.0, 0.0, 1.0, 0, ()) for merges in range(max_merges + 1)]
    return {
        name: [sample.levels.get(name, sample.levels[MODEL] if name == TOLD else worst) for sample in measured]
        for name in names
    }


def summarise(measured: Sequence[Measured], setting: Mapping[str, Any], max_merges: int) -> dict[str, Any]:
    """Content of ``evaluate.json``; docs/evaluation.md explains every figure.

    Args:
        measured: at least one sample.
        setting: those of :func:`evaluation.settings.setting_of`.
        max_merges: of the protocol.
    """
    rows = rows_of(measured, max_merges)
    means = {name: aggregate(levels) for name, levels in rows.items()}
    agreements = [m.structure.order_agreement for m in measured if m.structure.order_agreement is not None]
    layers = sum(m.structure.layers for m in measured)
    return {
        "setting": dict(setting),
        # Main metrics by name, because DVC and MLflow show no lists.
        "at_0_merges": {name: {key: getattr(levels[0], key) for key in CURVES} for name, levels in means.items()},
        "decomposition": {name: [level_entry(level) for level in levels] for name, levels in means.items()},
        "intervals": {
            name: {key: list(bootstrap_interval([getattr(sample[0], key) for sample in levels])) for key in CURVES}
            for name, levels in rows.items()
        },
        "difference": {name: differences(rows[MODEL], levels) for name, levels in rows.items() if name != MODEL},
        "strata": strata(measured, rows),
        "edits": {name: mean_edit_scores([m.edits[name] for m in measured]) for name in measured[0].edits},
        "missing": {
            name: {m.sample_id: m.missing[name] for m in measured if name in m.missing} for name in _others(measured)
        },
        "better_than_nothing": _better_than_nothing(measured),
        "recomposition": mean_metrics([m.recomposition for m in measured]),
        "vae_layers_nine_backgrounds": mean_metrics([row for m in measured for row in m.vae_layers]),
        "layers": {
            "empty_share": sum(m.structure.empty_layers for m in measured) / layers,
            "count_error": float(np.mean([m.structure.count_error for m in measured])),
            "order_agreement": float(np.mean(agreements)) if agreements else None,
        },
        "breakdown": {
            "layers": _grouped((str(m.peels), m.levels[MODEL][0]) for m in measured),
            "bucket": _grouped((m.bucket, m.levels[MODEL][0]) for m in measured),
            "kind": _grouped(((p.kind, p) for m in measured for p in m.structure.peels), counted="layers"),
        },
        "seconds_per_picture": float(np.mean([m.seconds for m in measured])),
    }


def strata(measured: Sequence[Measured], rows: Mapping[str, Sequence[Sequence[MergeLevel]]]) -> dict[str, Any]:
    """Number of samples in each part of the set, and each row's means at 0 merges with 95 % intervals."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, sample in enumerate(measured):
        if sample.stratum:
            places[sample.stratum].append(place)
    return {
        stratum: {
            "samples": len(chosen),
            "better_than_nothing": _better_than_nothing([measured[place] for place in chosen]),
            "rows": {
                name: {key: _mean_and_interval([getattr(levels[place][0], key) for place in chosen]) for key in CURVES}
                for name, levels in rows.items()
            },
        }
        for stratum, chosen in sorted(places.items())
    }


def _better_than_nothing(measured: Sequence[Measured]) -> float:
    """Share of samples on which the model's layers cost less than the composite baseline."""
    return float(np.mean([m.levels[MODEL][0].cost < m.levels[NOTHING][0].cost for m in measured]))


def _mean_and_interval(values: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def differences(
    model: Sequence[Sequence[MergeLevel]], other: Sequence[Sequence[MergeLevel]]
) -> dict[str, dict[str, float]]:
    """Paired difference at 0 merges, the model minus another row: mean and its 95 % interval.

    Pairing removes the difficulty of the images: intervals of two means may overlap while this one excludes 0.
    """
    found = {}
    for key in CURVES:
        values = [getattr(ours[0], key) - getattr(theirs[0], key) for ours, theirs in zip(model, other, strict=True)]
        found[key] = _mean_and_interval(values)
    return found


def _others(measured: Sequence[Measured]) -> list[str]:
    names = set().union(*(sample.levels.keys() | sample.missing.keys() for sample in measured))
    return sorted(names - {MODEL, NOTHING, CEILING})


def _grouped(entries: Iterable[tuple[str, Any]], counted: str = "samples") -> dict[str, dict[str, float]]:
    """Mean scores at 0 merges by group, and the number of entries in each."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for name, entry in entries:
        groups[name].append(entry)
    return {
        name: {counted: len(found)} | {key: float(np.mean([getattr(entry, key) for entry in found])) for key in CURVES}
        for name, found in sorted(groups.items())
    }


def curve_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Long rows for ``decomposition.csv``: every row at every merge level, then published ones on their dataset."""
    ours = [
        {"merges": level["merges"], "row": name, "dataset": HERE} | {key: level[key] for key in CURVES}
        for name, levels in report["decomposition"].items()
        for level in levels
    ]
    merges = {row["merges"] for row in ours}
    return ours + [row for row in decomposition_rows() if row["merges"] in merges]


def sample_rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Rows of ``evaluate_samples.csv``, one a sample; an undefined order agreement is left empty."""
    return [
        {
            "id": m.sample_id,
            "bucket": m.bucket,
            "stratum": m.stratum,
            "layers": m.peels,
            **{key: getattr(m.levels[MODEL][0], key) for key in CURVES},
            "composite_only_cost": m.levels[NOTHING][0].cost,
            **{key: m.recomposition[key] for key in ("psnr_white", "ssim_white", "lpips_white")},
            "empty_layers": m.structure.empty_layers,
            "count_error": m.structure.count_error,
            "order_agreement": m.structure.order_agreement,
            "seconds": m.seconds,
        }
        for m in measured
    ]
