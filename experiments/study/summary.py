"""Summary of a study for the terminal: trials, importances, confirmation, next command."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from experiments.study.confirm import read_confirmation, verdict
from experiments.study.plan import is_today, ranked
from experiments.study.storage import KEPT, VALUES

SHOWN = 30  # trials of the table, the best ones; trials.csv has all


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the objective's variance that each parameter explains (Optuna's fANOVA); empty with too few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError):
            return {}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _without_stage(path: str) -> str:
    return path.partition(".")[2]


def table(study: optuna.Study) -> list[str]:
    """Table of trials, one line each, the best first: number, objectives, values, and state."""
    names = list(study.user_attrs["objectives"])
    trials = ranked(study)
    others = [trial for trial in study.trials if trial.number not in {best.number for best in trials}]
    shown = [*trials, *others][:SHOWN]
    searched = list(dict.fromkeys(path for trial in shown for path in trial.user_attrs.get(VALUES, {})))
    rows = [["trial", *names, *map(_without_stage, searched), ""]]
    for trial in shown:
        values: Mapping[str, Any] = trial.user_attrs.get(VALUES, {})
        figures = [f"{value:.4f}" for value in trial.values] if trial.values else ["-"] * len(names)
        notes = ["today's"] if is_today(study, trial) else []
        if KEPT in trial.user_attrs:
            notes.append(f"kept {trial.user_attrs[KEPT]}")
        note = ", ".join(notes)
        if trial.state != TrialState.COMPLETE:
            note = trial.state.name.lower()
        rows.append([str(trial.number), *figures, *(_short(values.get(path, "-")) for path in searched), note])
    return _aligned(rows)


def _took(study: optuna.Study) -> str:
    spent = sum((trial.duration for trial in study.trials if trial.duration is not None), timedelta())
    return f"{spent.total_seconds():.0f} s of trials"


def _head(study: optuna.Study, trials: Sequence[FrozenTrial], names: Sequence[str]) -> str:
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    states = [trial.state for trial in study.trials]
    rest = "".join(
        f", {states.count(state)} {state.name.lower()}"
        for state in (TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        if state in states
    )
    if len(names) > 1:
        return f"tune: {len(trials)} of {complete} trials are on the Pareto front{rest}; {_took(study)}"
    best = trials[0]
    return f"tune: best {names[0]} {best.value:.4f} in trial {best.number} of {complete}{rest}; {_took(study)}"


def _beside(differences: Mapping[str, float]) -> list[str]:
    """Changes of the stage's other metrics, because a gain may cost something elsewhere."""
    told = [f"{name} {value:+.4f}" for name, value in differences.items() if f"{value:.4f}".strip("-") != "0.0000"]
    return [f"with it, the stage's other figures change by: {', '.join(told)}"] if told else []


def _whether_it_holds(study: optuna.Study) -> list[str]:
    best, found = ranked(study)[0], read_confirmation(study)
    if is_today(study, best):
        return ["today's parameters are the best of these trials: nothing to apply"]
    if found is None:
        return ["not trained again with other seeds: the best of several trials looks better than it is"]
    (objective,) = study.user_attrs["objectives"]
    best, today = (", ".join(f"{row[objective]:.4f}" for row in rows) for rows in (found.best, found.today))
    return [
        f"seeds {', '.join(map(str, found.seeds))}: trial {found.trial} {best}; today's {today}",
        verdict(found.gains(objective, study.directions[0] == StudyDirection.MAXIMIZE)),
        *_beside({name: value for name, value in found.changes().items() if name != objective}),
    ]


def summary(study: optuna.Study, folder: Path) -> str:
    """Summary of a study for the terminal.

    Args:
        study: one with a completed trial.
        folder: where :func:`experiments.study.plots.publish` has written plots and tables.
    """
    names, trials = list(study.user_attrs["objectives"]), ranked(study)
    lines = [_head(study, trials, names), *table(study)]
    single = len(names) == 1
    if single and (shares := importances(study)):
        told = ", ".join(f"{_without_stage(path)} {share:.2f}" for path, share in shares.items())
        lines.append(f"importance: {told}")
    if single:
        lines += _whether_it_holds(study)
    apply = f"python -m stages.tune --apply {study.study_name}" + ("" if single else " --trial N")
    lines.append(f"plots: {folder / 'plots' / 'plots.html'}, and in MLflow below study/")
    if not single or not is_today(study, trials[0]):
        lines.append(f"next: {apply} writes the values into params.yaml, then dvc repro trains with them")
    return "\n".join(lines)
