"""Optuna study over the loss weights and rates of one training stage.

    python -m stages.tune [--stage STAGE] [--trials N]

Each trial is a process of its own in a working folder of its own, so a crash fails one trial and the pipeline's outputs
stay as they are. Today's params.yaml is the first trial. The objective is a held-out metric of the stage's report,
never the reweighted loss. The same command goes on with the same study.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import yaml

from stages.cli import REPORTS, WEIGHTS, stage_command
from training.params import Params, ParamsError, SearchRange, flatten, parse_params
from training.tracking import Run, project_root, stage_run

TRIALS = Path(".tune")
OUTPUTS = {"train_vae": "vae", "train_decompose": "decompose", "refine": "refine"}


def with_values(raw: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Copy nested parameters with some dotted paths set.

    Raises:
        ParamsError: if a path does not exist.
    """
    changed = copy.deepcopy(raw)
    for path, value in values.items():
        *parents, last = path.split(".")
        block = changed
        for name in parents:
            block = block.get(name) if isinstance(block, dict) else None
        if not isinstance(block, dict) or last not in block:
            raise ParamsError(f"tune: {path}: no such parameter in params.yaml")
        block[last] = value
    return changed


def suggest(trial: optuna.Trial, space: dict[str, SearchRange]) -> dict[str, Any]:
    """Draw one value for every searched parameter."""
    return {
        path: trial.suggest_categorical(path, bounds.choices)
        if bounds.choices is not None
        else trial.suggest_float(path, bounds.low, bounds.high, log=bounds.log)
        for path, bounds in space.items()
    }


def _working_folder(root: Path, stage: str, number: int, study: str) -> Path:
    """A folder that looks like the project's root to a stage, but whose outputs are its own."""
    folder = root / TRIALS / study / f"trial_{number:04d}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / WEIGHTS).mkdir(parents=True)
    (folder / REPORTS).mkdir(parents=True)
    for entry in root.iterdir():
        if entry.name not in {"models", "metrics", "params.yaml"} and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    inputs = (root / WEIGHTS).iterdir() if (root / WEIGHTS).is_dir() else []
    for entry in inputs:
        if entry.name != OUTPUTS[stage]:
            (folder / WEIGHTS / entry.name).symlink_to(entry)
    return folder


def run_trial(stage: str, raw: dict[str, Any], number: int, study: str, parent: Run) -> dict[str, Any]:
    """Run a stage with given parameters in a process of its own and read its report.

    Raises:
        RuntimeError: with the end of the log, if the process fails.
    """
    root = project_root()
    folder = _working_folder(root, stage, number, study)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    launcher = shlex.split(raw["launcher"])
    if launcher[0] == "python":
        # -P: the folder's own models/ and metrics/ hold outputs, not packages.
        launcher = [sys.executable, "-P", *launcher[1:]]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "DVC_ROOT": str(root),
        "QIL_PARENT_RUN_ID": parent.run_id or "",
    }
    log = folder / "log.txt"
    with log.open("w") as file:
        code = subprocess.run(
            [*launcher, "-m", f"stages.{stage}"],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code != 0:
        lines = log.read_text().strip().splitlines() or ["(no output)"]
        raise RuntimeError(f"trial {number} ended with code {code}: {lines[-1]} (whole log: {log})")
    return json.loads((folder / REPORTS / f"{stage}.json").read_text())


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Run or continue the study, print and log the best values."""
    settings = params.tune
    stage, trials = arguments.stage or settings.stage, arguments.trials or settings.trials
    base = with_values(params.model_dump(), settings.budget)
    current = {path: flatten(base).get(path) for path in settings.space}
    parse_params(with_values(base, current), "tune.budget")
    Path("mlruns").mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name=settings.study,
        storage=settings.storage,
        direction=settings.direction,
        sampler=optuna.samplers.TPESampler(seed=params.train_vae.seed),
        load_if_exists=True,
    )
    study.enqueue_trial(current, skip_if_exists=True)
    with stage_run("tune", params, inputs={}) as parent:

        def objective(trial: optuna.Trial) -> float:
            raw = with_values(base, suggest(trial, settings.space))
            report = flatten(run_trial(stage, raw, trial.number, settings.study, parent))
            if settings.metric not in report:
                raise ParamsError(
                    f"tune.metric: {settings.metric!r} is not in the report of {stage}; it has {', '.join(report)}"
                )
            parent.metrics({settings.metric: report[settings.metric]}, trial.number)
            return report[settings.metric]

        study.optimize(objective, n_trials=trials, catch=(RuntimeError,), show_progress_bar=True)
        done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
        if not done:
            raise ParamsError(
                f"tune: none of {len(study.trials)} trials ended well; logs are in {TRIALS / settings.study}"
            )
        best = Path(TRIALS) / settings.study / "best.yaml"
        best.write_text(yaml.safe_dump(study.best_params), encoding="utf-8")
        parent.artifact(best)
        parent.metrics({f"best/{settings.metric}": study.best_value, "trials": len(done)})
    print(f"tune: best {settings.metric} {study.best_value:.4f} in trial {study.best_trial.number} of {len(done)}")
    print(yaml.safe_dump(study.best_params).rstrip())


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=tuple(OUTPUTS), help="overrides tune.stage")
    parser.add_argument("--trials", type=int, help="overrides tune.trials")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return stage_command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
