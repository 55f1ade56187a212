"""From a study back into the pipeline: values into params.yaml, trials into DVC experiments."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from config.errors import UserError
from config.params import ParamsError, parse_params
from experiments.study.plan import StudyError, ranked, values_of

SMALL, LARGE = 1.0e-3, 1.0e6


def yaml_scalar(value: Any) -> str:
    """Write a scalar so that YAML 1.1 and 1.2 read the same: a float has a point and all of its digits."""
    if isinstance(value, float):
        if value != 0.0 and not SMALL <= abs(value) < LARGE:
            sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
            first, *rest = map(str, digits)
            return f"{'-' * sign}{first}.{''.join(rest) or 0}e{exponent + len(rest):+d}"
        return repr(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def yaml_lines(values: Mapping[str, Any], indent: str = "") -> str:
    """Write dotted paths and their values, a line each."""
    return "".join(f"{indent}{path}: {yaml_scalar(value)}\n" for path, value in values.items())


def _node(root: yaml.Node | None, path: str) -> yaml.ScalarNode:
    node = root
    for name in path.split("."):
        children = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
        node = children.get(name)
    if not isinstance(node, yaml.ScalarNode):
        raise ParamsError(f"tune: {path}: no such parameter in the parameter file")
    return node


def set_values(text: str, values: Mapping[str, Any]) -> str:
    """Replace values in a YAML text where they stand; every other character, comments included, stays.

    A comment behind a value stays in its column where the room before it allows.

    Args:
        text: of a parameter file.
        values: dotted path to scalar.

    Raises:
        ParamsError: if a path is not in it.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    places = {path: _node(root, path) for path in values}
    for path, node in sorted(places.items(), key=lambda item: -item[1].start_mark.index):
        start, end = node.start_mark.index, node.end_mark.index
        old, new = text[start:end], yaml_scalar(values[path])
        if yaml.safe_load(new) == yaml.safe_load(old):
            continue
        rest = text[end:]
        room = len(rest) - len(rest.lstrip(" "))
        if rest[room : room + 1] == "#":
            rest = " " * max(1, room + len(old) - len(new)) + rest[room:]
        text = text[:start] + new + rest
    return text


def choose(study: optuna.Study, number: int | None) -> FrozenTrial:
    """A trial by its number, or the best one.

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
        ParamsError: if the file lacks one of them, or does not accept it.
    """
    path = Path(path)
    before = path.read_text(encoding="utf-8")
    after = set_values(before, values_of(trial))
    parse_params(yaml.safe_load(after), path.name)
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
        UserError: with what DVC says, if it refuses.
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
