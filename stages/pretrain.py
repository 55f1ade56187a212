"""Make the weights in models/pretrained again, or others like them: the project's own stages, one after the other.

    python -m stages.pretrain                       # hours; the same command goes on where it was stopped
    python -m stages.pretrain --recipe RECIPE --home FOLDER --until STEP

A recipe (models/pretrained/recipe.yaml) is a list of steps: a stage, and what it changes in a preset. Each runs in
``--home`` with outputs and resume points of its own there; what it leaves is kept under its name, and a step whose
parameters or predecessors have changed is done again. After the last one, the weights are written in bfloat16 beside
the recipe, with a card that says how they were made and what they score. Runs are in the project's MLflow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError

from layers.errors import UserError
from layers.files import put_folder
from layers.paths import project_root
from stages.cli import REPORTS, WEIGHTS, stage_command
from stages.pretrain_ship import ship
from stages.tune_space import with_values
from stages.tune_trial import OUTPUTS, environment_in, launch_command
from training.param_types import Block
from training.params import Params, load_params, parse_params
from training.tracking import tracking_uri

RECIPE = Path("models") / "pretrained" / "recipe.yaml"
HOME = Path("data") / "pretraining"
KEPT, RECORD = "kept", "step.json"
INPUTS = {"train_decompose": WEIGHTS / "vae", "refine": WEIGHTS / "decompose", "evaluate": WEIGHTS / "refine"}


class RecipeError(UserError):
    """A recipe cannot be followed, or a step of it has failed; the message says which and why."""


class Step(Block):
    """One run of a stage.

    Attributes:
        name: of what is kept.
        stage: of the pipeline.
        start: step whose output the stage finds in its input's place; ``None`` for none.
        change: dotted path to value, over the preset; ``{name}`` in a text is the folder that a step has left.
    """

    name: str
    stage: Literal["prepare_buckets", "train_vae", "train_decompose", "refine", "evaluate"]
    start: str | None = None
    change: dict[str, Any] = Field(default_factory=dict)


class Recipe(Block):
    """Steps in their order.

    Attributes:
        preset: parameters that steps change, a file below the project's root.
        steps: to be done.
        shipped: name of a shipped folder and the step whose output it is.
    """

    preset: str
    steps: list[Step]
    shipped: dict[str, str]


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: if it is none, or a step needs one that does not come before it.
    """
    try:
        recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise RecipeError(f"{path}: no recipe ({' '.join(str(error).split())[:200]})") from None
    names: list[str] = []
    for step in recipe.steps:
        if step.name in names:
            raise RecipeError(f"{path}: there are two steps {step.name}")
        if step.start is not None and step.start not in names:
            raise RecipeError(f"{path}: step {step.name} starts from {step.start}, which does not come before it")
        names.append(step.name)
    if missing := sorted(set(recipe.shipped.values()) - set(names)):
        raise RecipeError(f"{path}: shipped: there is no step {missing[0]}")
    return recipe


def params_of(step: Step, preset: Params, before: Mapping[str, Path]) -> Params:
    """The parameters of a step.

    Args:
        step: of the recipe.
        preset: what it changes.
        before: what the steps before it have left, as seen from where stages run.

    Raises:
        RecipeError: if a text names a step that does not come before.
        ParamsError: if a path or a value does not fit.
    """
    try:
        values = {k: v.format(**before) if isinstance(v, str) else v for k, v in step.change.items()}
    except (KeyError, IndexError) as error:
        raise RecipeError(f"step {step.name}: there is no step {error} before it") from None
    return parse_params(with_values(preset.model_dump(), values), f"step {step.name}")


def record_of(step: Step, params: Params, before: str) -> dict[str, Any]:
    """What makes a step's output what it is; ``before`` stands for all steps before it."""
    block = params.model_dump()[step.stage]
    described = json.dumps([step.stage, step.start, block, before], sort_keys=True, default=str)
    return {"stage": step.stage, "params": block, "key": hashlib.sha256(described.encode()).hexdigest()[:16]}


def is_done(folder: Path, key: str) -> bool:
    """Whether what is kept is of a step with this key."""
    record = folder / RECORD
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["key"] == key


def run_stage(step: Step, params: Params, home: Path) -> float:
    """Run the stage of a step in ``home``; returns its seconds.

    Raises:
        RecipeError: if it fails.
    """
    (home / "params.yaml").write_text(yaml.safe_dump(params.model_dump(), sort_keys=False), encoding="utf-8")
    if step.start is not None:
        place = home / INPUTS[step.stage]
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(home / KEPT / step.start, place, ignore=shutil.ignore_patterns(RECORD))
    environment = {**os.environ, **environment_in(home), "MLFLOW_TRACKING_URI": tracking_uri()}
    command = launch_command("python" if step.stage in ("prepare_buckets", "evaluate") else params.launcher, step.stage)
    start = time.monotonic()
    code = subprocess.run(command, cwd=home, env=environment, check=False).returncode
    if code == 130 or code < 0:
        raise KeyboardInterrupt
    if code:
        raise RecipeError(f"step {step.name}: the stage {step.stage} ended with code {code}; it says why above")
    return time.monotonic() - start


def keep(step: Step, record: dict[str, Any], home: Path, seconds: float) -> None:
    """Put a step's output and report aside, whole or not at all."""
    folder = home / KEPT / step.name
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    if step.stage in OUTPUTS:
        shutil.copytree(home / WEIGHTS / OUTPUTS[step.stage], part)
    part.mkdir(parents=True, exist_ok=True)
    report = json.loads((home / REPORTS / f"{step.stage}.json").read_text(encoding="utf-8"))
    hardware = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }
    record |= {"seconds": round(seconds), "date": time.strftime("%Y-%m-%d"), "hardware": hardware, "report": report}
    (part / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    put_folder(part, folder)


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Go through the recipe, then write what is shipped."""
    del params
    root, recipe = project_root(), read_recipe(arguments.recipe)
    if arguments.until is not None and arguments.until not in [step.name for step in recipe.steps]:
        raise RecipeError(f"--until: {arguments.recipe} has no step {arguments.until}")
    preset, home = load_params(str(root / recipe.preset)), arguments.home
    home.mkdir(parents=True, exist_ok=True)
    before: dict[str, Path] = {}
    key = ""
    for number, step in enumerate(recipe.steps, 1):
        settings = params_of(step, preset, before)
        record = record_of(step, settings, key)
        key, record["order"] = record["key"], number
        told = f"pretrain: step {number} of {len(recipe.steps)}, {step.name} ({step.stage})"
        if is_done(home / KEPT / step.name, key):
            print(f"{told}: done", flush=True)
        else:
            print(told, flush=True)
            keep(step, record, home, run_stage(step, settings, home))
        before[step.name] = Path(KEPT) / step.name
        if step.name == arguments.until:
            return
    ship({name: home / KEPT / step for name, step in recipe.shipped.items()}, home / KEPT, arguments.recipe)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: %(default)s; weights go beside it")
    parser.add_argument("--home", type=Path, default=HOME, help="folder to work in (default: %(default)s)")
    parser.add_argument("--until", metavar="STEP", help="stop after this step, and ship nothing")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return stage_command(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
