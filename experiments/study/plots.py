"""Plots and tables of a study: an interactive page, the same plots as PNGs, all trials, the best values."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import plotly.io
from optuna.trial import TrialState

from experiments.study.apply import yaml_lines
from experiments.study.plan import ranked, values_of
from experiments.study.storage import ERROR, VALUES
from tracking.run import Run, report_metrics

matplotlib.use("agg")

import matplotlib.pyplot as plt
import optuna.visualization as interactive
import optuna.visualization.matplotlib as still

ARTIFACTS = "study"


def _kinds(study: optuna.Study) -> list[tuple[str, str, dict[str, Any]]]:
    """Plots that fit the study: file name, name of Optuna's function, and its arguments."""
    names = list(study.user_attrs["objectives"])
    if len(names) == 1:
        target: list[tuple[str, dict[str, Any]]] = [("", {"target_name": names[0]})]
    else:
        target = [
            (f"_{name}", {"target": lambda trial, index=index: trial.values[index], "target_name": name})
            for index, name in enumerate(names)
        ]
    found = [
        (f"{kind}{suffix}", f"plot_{kind}", arguments)
        for kind in ("optimization_history", "param_importances", "parallel_coordinate", "slice")
        for suffix, arguments in target
    ]
    if len(names) in (2, 3):
        found.append(("pareto_front", "plot_pareto_front", {"target_names": names}))
    if len(names) == 1:
        found.append(("intermediate_values", "plot_intermediate_values", {}))
    return found


def _drawn(draw: Callable[..., Any], study: optuna.Study, arguments: dict[str, Any]) -> Any:
    """Draw a plot; ``None`` if the study has too few trials: importances need two that differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return draw(study, **arguments)
        except (ValueError, RuntimeError):
            return None


def _save_image(axes: Any, path: Path) -> None:
    first = axes.flat[0] if hasattr(axes, "flat") else axes
    figure = first.figure
    figure.set_size_inches(max(8.0, figure.get_size_inches()[0]), 5.0)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw every plot that the study has trials for.

    Images are drawn by Matplotlib, because plotly's need a Chrome, which training machines lack.

    Returns:
        Paths of ``plots.html``, which embeds plotly and makes no request, and of one PNG a plot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, paths = [], []
    for name, function, arguments in _kinds(study):
        figure = _drawn(getattr(interactive, function), study, arguments)
        if figure is None:
            continue
        parts.append(plotly.io.to_html(figure, full_html=False, include_plotlyjs=not parts))
        axes = _drawn(getattr(still, function), study, arguments)
        if axes is not None:
            paths.append(folder / f"{name}.png")
            _save_image(axes, paths[-1])
    page = folder / "plots.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><title>{study.study_name}</title>\n' + "\n".join(parts), encoding="utf-8"
    )
    return [page, *paths]


def write_trials(study: optuna.Study, path: Path) -> Path:
    """Write a table of all trials: number, state, objectives, parameters, reason of a failure."""
    names = list(study.user_attrs["objectives"])
    searched = list(dict.fromkeys(key for trial in study.trials for key in trial.user_attrs.get(VALUES, {})))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", *names, *searched, "error"])
        for trial in study.trials:
            values, found = trial.user_attrs.get(VALUES, {}), trial.values or [""] * len(names)
            error = trial.user_attrs.get(ERROR, "")
            writer.writerow([trial.number, trial.state.name, *found, *(values.get(key, "") for key in searched), error])
    return path


def write_best(study: optuna.Study, path: Path) -> Path:
    """Write the best trial's values as YAML, dotted path to value; of a Pareto front, one block a trial."""
    trials = ranked(study)
    if len(study.directions) == 1:
        text = yaml_lines(values_of(trials[0]))
    else:
        text = "".join(f"trial_{trial.number}:\n{yaml_lines(values_of(trial), '  ')}" for trial in trials)
    path.write_text(text, encoding="utf-8")
    return path


def publish(study: optuna.Study, folder: Path, run: Run) -> None:
    """Write plots, table and best values to a folder and log them to the study's run."""
    paths = draw_plots(study, folder / "plots")
    paths += [write_trials(study, folder / "trials.csv"), write_best(study, folder / "best.yaml")]
    for path in paths:
        run.artifact(path, ARTIFACTS)
    best, names = ranked(study)[0], list(study.user_attrs["objectives"])
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    figures = report_metrics(study.user_attrs["stage"], dict(zip(names, best.values, strict=True)))
    best_of = {f"best/{name}": value for name, value in figures.items()}
    run.metrics({**(best_of if len(names) == 1 else {"front": len(ranked(study))}), "trials": len(complete)})
