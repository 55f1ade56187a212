"""Transfer of a study's results into the pipeline: values to params.yaml, trials to DVC experiments."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from config.errors import UserError
from config.overlays import written_into, yaml_scalar
from config.params import Params, nested, parse_params, read_params, with_values
from experiments.study.plan import StudyError, ranked, values_of


def yaml_lines(values: Mapping[str, Any], indent: str = "") -> str:
    """Format dotted paths and their values as YAML, a line each."""
    return "".join(f"{indent}{path}: {yaml_scalar(value)}\n" for path, value in values.items())


def choose(study: optuna.Study, number: int | None) -> FrozenTrial:
    """Find a trial by its number, or the best one.

    Raises:
        StudyError: if there is no such trial, or no single best one.
    """
    best = ranked(study)
    if number is None:
        if not best:
            raise StudyError(f"tune: no trial of {study.study_name} has ended well")
        if len(study.directions) > 1:
            front = ", ".join(str(trial.number) for trial in best)
            raise StudyError(
                f"tune: {study.study_name} has several objectives and no single best trial; expected --trial with one "
                f"of its Pareto front: {front}"
            )
        return best[0]
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for trial in complete:
        if trial.number == number:
            return trial
    numbers = ", ".join(str(trial.number) for trial in complete) or "none"
    raise StudyError(f"tune: {study.study_name} has no trial {number} that ended well; there are: {numbers}")


def apply_trial(path: str | Path, study: optuna.Study, trial: FrozenTrial) -> None:
    """Write a trial's values into a parameter file and print what changes.

    Raises:
        ParamsError: if there is no such parameter, or it does not accept the value.
    """
    path = Path(path)
    before = path.read_text(encoding="utf-8")
    values = values_of(trial)
    parse_params(with_values(read_params(path), values), path.name)
    after = written_into(before, nested(values), Params)
    path.write_text(after, encoding="utf-8")
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path.name}", f"b/{path.name}"
    )
    changes = "".join(lines)
    print(changes or f"tune: {path.name} has the values of trial {trial.number} already\n", end="")


def queue_experiments(study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Queue trials as DVC experiments named ``<study>-<number>``: whole trainings, without the study's budget.

    Raises:
        StudyError: if there is no trial.
        UserError: with DVC's message, if DVC refuses.
    """
    if not trials:
        raise StudyError(f"tune: no trial of {study.study_name} has ended well")
    for trial in trials:
        name = f"{study.study_name}-{trial.number}"
        changes = [f"{path}={yaml_scalar(value)}" for path, value in values_of(trial).items()]
        flags = [word for change in changes for word in ("-S", change)]
        result = subprocess.run(
            [sys.executable, "-m", "dvc", "exp", "run", "--queue", "-n", name, *flags],
            env={key: value for key, value in os.environ.items() if key != "DVC_ROOT"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            said = (result.stderr or result.stdout).strip().splitlines() or ["nothing"]
            raise UserError(f"dvc exp run --queue -n {name}: {said[0].removeprefix('ERROR: ')}")
        print(f"tune: queued {name}: {', '.join(changes)}")
    print("tune: dvc queue start runs them; dvc exp show compares them")
