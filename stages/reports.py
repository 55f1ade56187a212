"""Reports of stages: JSON and CSV files below metrics/reports, with finite numbers only."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config.paths import REPORTS
from layers.files import whole_file, write_whole


def _finite(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}: a report never holds what is not finite")
        return round(value, 6)
    return value


def write_report(name: str, content: Mapping[str, Any]) -> Path:
    """Write ``metrics/reports/<name>.json``; refuses values that are not finite."""
    path = REPORTS / f"{name}.json"
    write_whole(path, (json.dumps(_finite(content, name), indent=2) + "\n").encode(), alone=True)
    return path


def write_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``metrics/reports/<name>.csv`` for ``dvc plots``; columns are the first row's keys."""
    path = REPORTS / f"{name}.csv"
    with whole_file(path, alone=True) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_finite(list(rows), name))
    return path
