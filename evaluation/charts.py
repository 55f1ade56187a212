"""Charts of the report page as inline SVG, with selectable text and the page's colours in light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from config.evaluate import CEILING, NOTHING

CURVES = ("rgb_l1", "alpha_iou", "cost")
REFERENCES = (NOTHING, CEILING)
HERE = "this evaluation"

# Matplotlib's plain colours are placeholders for variables of the page's style sheet.
INK, GRID = "#000001", "#000002"
SERIES = tuple(f"#0000{index:02x}" for index in range(16, 26))
THEME = {INK: "var(--ink)", GRID: "var(--grid)"} | {colour: f"var(--series-{k})" for k, colour in enumerate(SERIES)}
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), GRID),
}


@dataclass(frozen=True)
class Line:
    """One row of the report as a curve, and its style in charts and legend.

    Attributes:
        row: name of the row.
        dataset: the one it was measured on.
        place: index among all lines; determines colour and marker, which repeat.
        points: the row's scores, one entry a number of merges.
    """

    row: str
    dataset: str
    place: int
    points: tuple[Mapping[str, Any], ...]

    @property
    def literature(self) -> bool:
        """Whether it was measured on another dataset, and so cannot be compared."""
        return self.dataset != HERE

    @property
    def colour(self) -> int:
        """Index into :data:`SERIES`."""
        return self.place % len(SERIES)

    @property
    def marker(self) -> str:
        """Matplotlib's name of the marker; :data:`MARKERS` has its character for the legend."""
        return list(MARKERS)[self.place % len(MARKERS)]

    @property
    def sign(self) -> str:
        """The marker as a character."""
        return MARKERS[self.marker]


def lines_of(curves: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Group rows of ``merges``, ``row``, ``dataset`` and :data:`CURVES` into lines, in their order, literature last."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in curves:
        grouped.setdefault((row["dataset"], row["row"]), []).append(row)
    keys = sorted(grouped, key=lambda key: key[0] != HERE)
    return [
        Line(row, dataset, place, tuple(sorted(grouped[dataset, row], key=lambda point: point["merges"])))
        for place, (dataset, row) in enumerate(keys)
    ]


def _chart(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(size, layout="constrained", facecolor="none")
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, description: str) -> Markup:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, start, svg = buffer.getvalue().partition("<svg ")
    svg = start + svg
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    # Charts share one document, in which ids must be unique.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    # The page sets the size; a fixed one would overflow a phone.
    svg = re.sub(r'\b(width|height)="[^"]*pt" ', "", svg, count=2)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1))


def draw_curves(lines: Sequence[Line], key: str, description: str) -> Markup:
    """Draw one metric over allowed merges as inline SVG; literature is dashed.

    Args:
        lines: rows to draw.
        key: one of :data:`CURVES`; also the prefix of the chart's ids.
        description: text for screen readers.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _chart((3.9, 2.8))
        for line in lines:
            axes.plot(
                [point["merges"] for point in line.points],
                [point[key] for point in line.points],
                color=SERIES[line.colour],
                linestyle=(0, (4, 3)) if line.literature else "-",
                linewidth=1.1 if line.literature else 1.3 if line.row in REFERENCES else 2.2,
                marker=line.marker,
                markersize=3.5 if line.literature else 4.5,
                markeredgewidth=0,
            )
        axes.set_xlabel("merges allowed")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return _svg(figure, key, description)


def costs_of(samples: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Costs of the composite baseline and of the model, ``(n, 2)`` float, over samples that have both."""
    pairs = [(row.get("composite_only_cost"), row.get("cost")) for row in samples]
    return np.asarray([pair for pair in pairs if not {None, ""} & set(pair)], float).reshape(-1, 2)


def draw_scatter(costs: np.ndarray) -> Markup:
    """Draw the model's cost over that of the composite baseline as inline SVG, with the diagonal.

    Args:
        costs: ``(n, 2)`` of :func:`costs_of`, n above 0.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _chart((4.2, 4.0))
        low, high = max(costs.min() - 0.03, 0.0), costs.max() + 0.03
        axes.plot([low, high], [low, high], color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        better = costs[:, 1] < costs[:, 0]
        for chosen, colour, marker in ((better, SERIES[0], "o"), (~better, SERIES[3], "s")):
            axes.scatter(*costs[chosen].T, s=20, c=colour, marker=marker, alpha=0.7, linewidths=0)
        axes.text(0.03, 0.97, "worse than doing nothing", transform=axes.transAxes, ha="left", va="top")
        axes.text(0.97, 0.03, "better than doing nothing", transform=axes.transAxes, ha="right", va="bottom")
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="cost of the composite alone", ylabel="cost of the model")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return _svg(figure, "scatter", "cost of the model over cost of the composite alone, image by image")
