"""Report page of an evaluation, one HTML file: tables, curves, scores of each sample, images.

Styles, script, charts and images are embedded, and the content security policy forbids every request. The text is in
``page.html.j2``.
"""

from __future__ import annotations

import base64
import io
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.charts import CURVES, REFERENCES, costs_of, draw_curves, draw_scatter, lines_of
from layers.export.templates import templates_in
from metrics.intervals import FEWEST

TEMPLATE = Path(__file__).with_name("page.html.j2")
EMPTY = "–"


@dataclass(frozen=True)
class Panel:
    """One image of the report.

    Attributes:
        title: heading, plain text.
        caption: description, plain text.
        image: ``(H, W, 3)`` uint8.
    """

    title: str
    caption: str
    image: np.ndarray

    @property
    def source(self) -> str:
        """Image as a ``data:`` URL of a WebP, less than half the size of its PNG beside the page.

        Raises:
            ValueError: if it is not ``(H, W, 3)`` uint8.
        """
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"panel {self.title!r}: expected (H, W, 3) uint8, got {self.image.shape} of {self.image.dtype}"
            )
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "WEBP", quality=90, method=6)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def number(value: Any, key: str = "") -> str:
    """Format a value for the page: integers whole, dB, seconds and MiB short, everything else to four digits.

    Args:
        value: a number or text; None or "" for a missing value.
        key: its name, which determines the unit.
    """
    if value is None or value == "":
        return EMPTY
    if isinstance(value, str | numbers.Integral):
        return str(value)
    digits = 2 if key.startswith("psnr") else 3 if key.startswith("seconds") else 0 if key.endswith("_mib") else 4
    return f"{value:.{digits}f}"


def best_rows(decomposition: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[str]]:
    """Rows of models with the best value of each metric at 0 merges; none if there is only one model."""
    models = {name: levels[0] for name, levels in decomposition.items() if name not in REFERENCES}
    best = {}
    for key in CURVES if len(models) > 1 else ():
        value = (max if key == "alpha_iou" else min)(level[key] for level in models.values())
        best[key] = [name for name, level in models.items() if level[key] == value]
    return best


def write_page(
    path: Path,
    report: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
) -> Path:
    """Write the report page; equal inputs give equal bytes.

    Args:
        path: the HTML file; its folder is created.
        report: content of ``metrics/reports/evaluate.json``.
        curves: rows of ``merges``, ``row``, ``dataset`` and :data:`CURVES`; a dataset other than
            :data:`evaluation.charts.HERE` is literature, drawn dashed and labelled as not comparable.
        samples: one row an image; all have the keys of the first.
        panels: images, in the order shown.

    Returns:
        ``path``.

    Raises:
        ValueError: if a panel is not ``(H, W, 3)`` uint8.
    """
    lines, costs = lines_of(curves), costs_of(samples)
    environment = templates_in(TEMPLATE.parent)
    environment.filters["number"] = number
    html = environment.get_template(TEMPLATE.name).render(
        report=report,
        keys=CURVES,
        fewest=FEWEST,
        lines=lines,
        draw=lambda key, description: draw_curves(lines, key, description),
        scatter=draw_scatter(costs) if len(costs) else None,
        compared=len(costs),
        better=int((costs[:, 1] < costs[:, 0]).sum()),
        best=best_rows(report["decomposition"]),
        samples=samples,
        panels=panels,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path
