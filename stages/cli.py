"""What all stage commands share: arguments, one-line errors, report files."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layers.errors import UserError
from layers.files import whole_file, write_whole
from layers.paths import PARAMS, with_home, workspace
from training.params import Params, load_params

REPORTS = Path("metrics") / "reports"
WEIGHTS = Path("models") / "weights"
CACHE = Path("data") / "cache"


def command(
    run: Callable[[argparse.Namespace], None],
    description: str | None,
    argv: Sequence[str] | None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse arguments, run a command; what a user can cause is one line and exit code 2.

    Args:
        run: the command.
        description: shown by ``--help``.
        argv: arguments; those of the process if ``None``.
        add_arguments: adds its flags.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if add_arguments:
        add_arguments(parser)
    # File names are bytes; one that the terminal's encoding lacks must not end the command that names it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        run(parser.parse_args(argv))
        sys.stdout.flush()
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who reads, such as head, has enough; else Python would complain once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last resume point", file=sys.stderr)
        return 130
    return 0


def stage_command(
    run: Callable[[Params, argparse.Namespace], None],
    description: str | None,
    argv: Sequence[str] | None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """As :func:`command`, for what reads params.yaml: check it, then run.

    The stage works in the folder that :func:`layers.paths.workspace` names, wherever the command was given; flags of
    type :class:`~pathlib.Path` are relative to where it was given.
    """
    defaults: dict[str, Any] = {}

    def add_all(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--params", type=Path, help="parameter file (default: params.yaml of the project)")
        if add_arguments:
            add_arguments(parser)
        # Defaults are the project's paths, not relative to where the command is given.
        defaults.update((action.dest, action.default) for action in parser._actions)

    def run_in_workspace(arguments: argparse.Namespace) -> None:
        folder = workspace(arguments.params)
        for name, value in vars(arguments).items():
            if value != defaults.get(name):
                setattr(arguments, name, _seen_from(folder, value))
        if root := os.environ.get("DVC_ROOT"):
            os.environ["DVC_ROOT"] = str(Path(root).absolute())
        with contextlib.chdir(folder):
            arguments.params = arguments.params or Path(PARAMS)
            run(load_params(arguments.params), arguments)

    return command(run_in_workspace, description, argv, add_all)


def _seen_from(folder: Path, value: Any) -> Any:
    """A flag that is a path, written from where the user stands, as ``folder`` sees it; absolute outside of it."""
    if isinstance(value, list | tuple):
        return type(value)(_seen_from(folder, item) for item in value)
    if not isinstance(value, Path):
        return value
    path = Path(os.path.normpath(Path.cwd() / with_home(value)))
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def place(text: str) -> Path | str:
    """Type of a flag that is a folder, or else the name of something remote."""
    try:
        local = text.startswith((".", "~")) or Path(text).exists()
    except OSError:  # longer than a name may be
        local = False
    return Path(text) if local else text


def _finite(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}: a report never holds what is not finite")
        return round(value, 6)
    return value


def write_report(name: str, content: Mapping[str, Any]) -> Path:
    """Write ``metrics/reports/<name>.json``; refuses values that are not finite."""
    path = REPORTS / f"{name}.json"
    write_whole(path, (json.dumps(_finite(content, name), indent=2) + "\n").encode(), alone=True)
    return path


def write_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``metrics/reports/<name>.csv`` for ``dvc plots``; columns are the first row's keys."""
    path = REPORTS / f"{name}.csv"
    with whole_file(path, alone=True) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_finite(list(rows), name))
    return path
