"""Train the weights in models/pretrained again, or others by another recipe, with the project's own stages.

    python -m stages.pretrain                       # hours; the same command goes on where it was stopped
    python -m stages.pretrain --recipe RECIPE --home FOLDER --until STEP
    python -m stages.pretrain --cards               # writes the cards again, from the recipe and its record

A recipe (models/pretrained/recipe.yaml) is a list of steps, each a stage with changes of a preset. Steps run in
``--home`` with outputs and resume points of their own. A step's output is saved under its name; the step is repeated
if its parameters or predecessors change. After the last one, the weights are written in bfloat16 beside the recipe,
with a record of all steps and model cards on how they were made and what they score. Runs are in the project's MLflow.
The preset builds on params.yaml: uncommitted values there are named before the first step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from config.params import Params, load_params
from config.paths import project_root
from experiments.pretraining.card import FAMILY_RECORD, write_cards
from experiments.pretraining.recipe import (
    KEPT,
    RECIPE,
    RecipeError,
    is_done,
    keep,
    params_of,
    read_recipe,
    record_of,
    run_stage,
    uncommitted_below,
)
from experiments.pretraining.ship import ship
from stages.cli import stage_command

HOME = Path("data") / "pretraining"


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Run the steps of the recipe, then write the shipped folders."""
    del params
    root, recipe = project_root(), read_recipe(arguments.recipe)
    if arguments.until is not None and arguments.until not in [step.name for step in recipe.steps]:
        raise RecipeError(f"--until: {arguments.recipe} has no step {arguments.until}")
    if arguments.cards:
        if not (arguments.recipe.parent / FAMILY_RECORD).is_file():
            raise RecipeError(
                f"--cards: there is no {arguments.recipe.parent / FAMILY_RECORD}; a finished recipe leaves it"
            )
        write_cards(arguments.recipe.parent, recipe, arguments.recipe.as_posix())
        return
    preset, home = load_params(str(root / recipe.preset)), arguments.home
    if yours := uncommitted_below(recipe, root / recipe.preset):
        print(f"pretrain: {recipe.preset} builds on values of params.yaml in no commit: {', '.join(yours)}", flush=True)
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
    ship(recipe, home / KEPT, arguments.recipe)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: %(default)s; weights go beside it")
    parser.add_argument("--home", type=Path, default=HOME, help="folder to work in (default: %(default)s)")
    parser.add_argument("--until", metavar="STEP", help="stop after this step, without writing the weights")
    parser.add_argument("--cards", action="store_true", help="write the cards again and do nothing else")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return stage_command(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
