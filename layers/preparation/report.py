"""Report on a prepared dataset: counts, buckets, reasons of dropped samples, a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from config.params import PrepareBuckets
from layers.dataset.buckets import bucket_name
from layers.dataset.loaders import StackDataset
from layers.dataset.splits import SPLITS
from layers.imaging.tensors import to_image
from layers.imaging.view import grid
from layers.preparation.dataset import Summary

SHEET_SAMPLES = 8
LISTED = 20


def bucket_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row per split and bucket (H, W, L): samples, their share, mean crop share and mean scale."""
    total = sum(summary.samples.values())
    return [
        {
            "split": split,
            "bucket": f"{split} {bucket_name((height, width))}-l{layers}",
            "samples": int(count),
            "share": float(count / total),
            "mean_crop_share": float(crop / count),
            "mean_scale": float(scale / count),
        }
        for (split, height, width, layers), (count, crop, scale) in sorted(summary.buckets.items())
    ]


def report(summary: Summary, rows: list[dict[str, Any]], settings: PrepareBuckets) -> dict[str, Any]:
    """Content of ``metrics/reports/prepare_buckets.json``."""
    total = sum(summary.samples.values())
    worst = sorted(summary.mismatched.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    asked = counts_of(settings)
    return {
        "samples": dict(sorted(summary.samples.items())),
        "asked_for": {split: count for split, count in asked.items() if count is not None},
        "layers": {name: summary.layers[name] for name in ("kept", "merged", "empty", "hidden", "unchanging")},
        "dropped": dict(sorted(summary.reasons.items())),
        "in_several_splits": summary.shared,
        "buckets": {row["bucket"]: row["samples"] for row in rows},
        "mean_crop_share": sum(row["mean_crop_share"] * row["share"] for row in rows),
        "mean_scale": sum(row["mean_scale"] * row["share"] for row in rows),
        "previews": {
            "compared": summary.compared,
            "not_recomposed": len(summary.mismatched),
            "worst": dict(worst),
        },
        "notes": dict(sorted(summary.noted.items(), key=lambda item: (-item[1], item[0]))[:LISTED]),
        "largest_change": summary.change,
        "usable_share": total / (total + summary.dropped),
    }


def contact_sheet(root: Path) -> np.ndarray:
    """The first training stacks, one per row: composite, then layers bottom to top; ``(H, W, 3)`` uint8."""
    stacks = StackDataset(root, "train")
    items = [stacks[i] for i in range(min(SHEET_SAMPLES, len(stacks)))]
    return grid([[to_image(item["composite"]), *to_image(item["layers"])] for item in items], scale=2)


def counts_of(settings: PrepareBuckets) -> dict[str, int | None]:
    """Maximum number of samples of each split."""
    return {split: getattr(settings, f"{split}_count") for split in SPLITS}
