"""Write a preset into params.yaml: what differs is changed, comments stay.

    python -m stages.use_preset presets/qwen.yaml
    git checkout params.yaml                         # and back to the default

What has been set in params.yaml stays where the preset does not say otherwise, such as the place of a dataset. A stage
with ``--params presets/qwen.yaml`` computes with the same values and writes nothing into params.yaml.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from config.errors import ParamsError
from config.overlays import PRESET, layers_of, written_into
from config.params import Params, parse_params, read_params
from config.paths import PARAMS, workspace
from layers.files import write_whole
from stages.cli import command


def run(arguments: argparse.Namespace) -> None:
    """Write the overlay into the file that it builds on, and print what changes.

    Raises:
        ParamsError: if it is no overlay of the project's params.yaml, or breaks the schema; nothing is written then.
    """
    (base, _), *overlays = layers_of(arguments.preset)
    target = workspace() / PARAMS
    if not overlays or base.resolve() != target.resolve():
        raise ParamsError(f"{arguments.preset}: builds on {base if overlays else 'nothing'}, expected {target}")
    name = os.path.relpath(arguments.preset, target.parent)
    wanted = parse_params(read_params(arguments.preset) | {PRESET: name}, name)
    before = target.read_text(encoding="utf-8")
    after = before
    for _, overlay in overlays:
        after = written_into(after, overlay, Params)
    after = written_into(after, {PRESET: name}, Params)
    assert parse_params(yaml.safe_load(after), PARAMS) == wanted
    write_whole(target, after.encode(), alone=True)
    lines: Any = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    changed = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
    print("\n".join([*changed, f"{PARAMS}: {name} is written in, {len(changed)} lines changed"]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("preset", type=Path, help="an overlay, such as presets/qwen.yaml")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return command(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
