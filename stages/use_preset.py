"""Write a preset into params.yaml: changed values only, comments stay.

    python -m stages.use_preset presets/qwen.yaml
    git checkout params.yaml                         # and back to the default

Values in params.yaml that the preset does not set, such as the folder of a dataset, stay. Uncommitted values that the
preset would replace are lost only with ``--force``. A stage with ``--params presets/qwen.yaml`` uses the same values
and leaves params.yaml unchanged.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from config.committed import different, uncommitted
from config.errors import ParamsError
from config.overlays import PRESET, layers_of, written_into
from config.params import Params, parse_params, read_params
from config.paths import PARAMS, workspace
from layers.files import write_whole
from stages.cli import command


def run(arguments: argparse.Namespace) -> None:
    """Write the preset into the params.yaml that it builds on, and print the changes.

    Raises:
        ParamsError: if it is no overlay of the project's params.yaml, is invalid, or would replace uncommitted values;
            nothing is written then.
    """
    (base, raw), *overlays = layers_of(arguments.preset)
    target = workspace() / PARAMS
    if not overlays or base.resolve() != target.resolve():
        raise ParamsError(f"{arguments.preset}: builds on {base if overlays else 'nothing'}, expected {target}")
    name = os.path.relpath(arguments.preset, target.parent)
    changed = read_params(arguments.preset) | {PRESET: name}
    wanted = parse_params(changed, name)
    lost = sorted(uncommitted(target, raw) & different(raw, changed) - {PRESET})
    if lost and not arguments.force:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        raise ParamsError(
            f"{PARAMS}: {lost[0]}{more}: {name} would replace what is in no commit; expected it committed, or --force"
        )
    before = target.read_text(encoding="utf-8")
    after = before
    for _, overlay in overlays:
        after = written_into(after, overlay, Params)
    after = written_into(after, {PRESET: name}, Params)
    assert parse_params(yaml.safe_load(after), PARAMS) == wanted
    write_whole(target, after.encode(), alone=True)
    lines: Any = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    new = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
    print("\n".join([*new, f"{PARAMS}: {name} is written in, {len(new)} lines changed"]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("preset", type=Path, help="an overlay, such as presets/qwen.yaml")
    parser.add_argument("--force", action="store_true", help="replace values that are in no commit, too")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return command(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
