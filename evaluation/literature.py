"""Published figures from ``literature.yaml``, drawn beside ours and marked as not comparable.

Every table has ``source``, ``dataset``, ``columns``, ``caveats`` and ``rows``. A row has a name, ``row``, and a value
for each column, or a list of values over allowed merges, with null for unknown ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).with_name("literature.yaml")
# Drawn beside our curves: the paper's table, and measurements of the downloadable weights.
DRAWN = ("crello_decomposition", "crello_released")


def table(name: str) -> dict[str, Any]:
    """Read one table: ``crello_decomposition``, ``crello_released``, ``crello_ablation`` or ``aim500_reconstruction``.

    Raises:
        KeyError: if there is no such table.
    """
    tables = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    if name not in tables:
        raise KeyError(f"no table {name!r} in {TABLES.name}, expected one of {', '.join(tables)}")
    return tables[name]


def decomposition_rows(*names: str) -> list[dict[str, Any]]:
    """Tables of the decomposition protocol as long rows, method by method, from 0 merges up.

    Args:
        names: tables; none are :data:`DRAWN`. The last row of ``crello_ablation`` is also in ``crello_decomposition``.

    Returns:
        Rows of ``merges``, ``row``, ``dataset``, ``rgb_l1``, ``alpha_iou`` and ``cost``, the last three in [0, 1], at
        the known merges. No table prints the cost, (rgb_l1 + 1 - alpha_iou) / 2. It is linear, so the cost of the
        means is the mean cost.

    Raises:
        KeyError: if there is no such table.
    """
    return [
        {
            "merges": merges,
            "row": entry["row"],
            "dataset": f"{published['dataset']}, published",
            "rgb_l1": rgb_l1,
            "alpha_iou": alpha_iou,
            "cost": round((rgb_l1 + 1.0 - alpha_iou) / 2.0, 6),
        }
        for published in map(table, names or DRAWN)
        for entry in published["rows"]
        for merges, (rgb_l1, alpha_iou) in enumerate(zip(entry["rgb_l1"], entry["alpha_iou"], strict=True))
        if rgb_l1 is not None and alpha_iou is not None
    ]
