"""Recipe of pretraining: its steps, each a stage with changed parameters and a saved output."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError

from config.base import Block
from config.committed import different, uncommitted
from config.errors import UserError
from config.overlays import layers_of
from config.params import Params, parse_params, read_params, with_values
from config.paths import REPORTS, WEIGHTS
from experiments.launch import OUTPUTS, environment_in, launch_command
from layers.dataset.digest import text_digest
from layers.files import put_folder
from tracking.run import tracking_uri

RECIPE = Path("models") / "pretrained" / "recipe.yaml"


KEPT, RECORD = "kept", "step.json"


INPUTS = {"train_decompose": WEIGHTS / "vae", "refine": WEIGHTS / "decompose", "evaluate": WEIGHTS / "refine"}


class RecipeError(UserError):
    """An invalid recipe, or a step that failed; the message says which and why."""


class Step(Block):
    """One run of a stage.

    Attributes:
        name: of the step, and of its saved output.
        stage: of the pipeline.
        start: step whose output becomes the stage's input; ``None`` for none.
        change: dotted path to value, over the preset; ``{name}`` in a text stands for the output folder of a step.
    """

    name: str
    stage: Literal["prepare_buckets", "train_vae", "train_decompose", "refine", "evaluate"]
    start: str | None = None
    change: dict[str, Any] = Field(default_factory=dict)


class About(Block):
    """Text about a shipped folder, for its card; figures come from the record.

    Attributes:
        title: descriptive name.
        what: description, and how it is loaded.
        use: intended use, and what it is not meant for.
        limits: known limitations.
    """

    title: str
    what: str
    use: str
    limits: str


class Recipe(Block):
    """A recipe of pretraining.

    Attributes:
        preset: parameters that steps change, a file below the project's root.
        steps: in the order in which they run.
        shipped: name of a shipped folder to the step whose output it holds.
        about: text for the card of a shipped folder, by its name.
    """

    preset: str
    steps: list[Step]
    shipped: dict[str, str]
    about: dict[str, About] = Field(default_factory=dict)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: if it is invalid, or a step needs one that does not come before it.
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
    if strange := sorted(set(recipe.about) - set(recipe.shipped)):
        raise RecipeError(f"{path}: about: {strange[0]} is not shipped")
    return recipe


def uncommitted_below(recipe: Recipe, path: Path) -> list[str]:
    """Parameters of the recipe's stages that come from params.yaml below its preset, and that no commit has.

    Args:
        recipe: to be followed.
        path: of its preset; there are none if it is a complete file.

    Raises:
        ParamsError: if it cannot be read.
    """
    (base, raw), *overlays = layers_of(path)
    if not overlays:
        return []
    stages = {step.stage for step in recipe.steps}
    below = uncommitted(base, raw) - different(raw, read_params(path))
    return sorted(key for key in below if key.partition(".")[0] in stages)


def params_of(step: Step, preset: Params, before: Mapping[str, Path]) -> Params:
    """The parameters of a step.

    Args:
        step: of the recipe.
        preset: parameters that the step changes.
        before: output folders of the steps before it, relative to where stages run.

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
    """Record of a step: everything that its output depends on; ``before`` stands for the earlier steps."""
    block = params.model_dump()[step.stage]
    described = json.dumps([step.stage, step.start, block, before], sort_keys=True, default=str)
    return {"stage": step.stage, "params": block, "key": text_digest(described, 16)}


def is_done(folder: Path, key: str) -> bool:
    """Return True if the saved output is of a step with this key."""
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
    """Save a step's output and report under its name, atomically."""
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
