"""Command line of all stages: arguments, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from config.errors import UserError
from config.params import Params, load_params
from config.paths import PARAMS, with_home, workspace


def command(
    run: Callable[[argparse.Namespace], None],
    description: str | None,
    argv: Sequence[str] | None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse arguments and run a command; a user's error is one line and exit code 2.

    Args:
        run: the command.
        description: shown by ``--help``.
        argv: arguments; those of the process if ``None``.
        add_arguments: adds its flags.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if add_arguments:
        add_arguments(parser)
    # File names are bytes; printing one that the terminal cannot encode must not end the command.
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
        # The reader, such as head, has closed the pipe; otherwise Python would report it again on exit.
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
    """Run a command that reads params.yaml, as :func:`command` does, after checking the parameters.

    The stage works in the folder that :func:`config.paths.workspace` names, wherever the command is started. Flags of
    type :class:`~pathlib.Path` are relative to the folder where it is started.
    """
    defaults: dict[str, Any] = {}

    def add_all(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--params", type=Path, help="parameter file (default: params.yaml of the project)")
        if add_arguments:
            add_arguments(parser)
        # Defaults are paths in the project, not relative to where the command is started.
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


def training_command(run: Callable[[Params], None], description: str | None, argv: Sequence[str] | None) -> int:
    """Run a training stage, as :func:`stage_command` does; ``--plan`` only prints what every stage would take."""

    def run_or_plan(params: Params, arguments: argparse.Namespace) -> None:
        if arguments.plan:
            # Imported by name, so that DVC's dependencies lack the planner, which changes no result.
            importlib.import_module("stages.plan").print_plan(params)
        else:
            run(params)

    words = "print parameters, tokens and estimated memory of every stage, and do nothing"
    return stage_command(
        run_or_plan, description, argv, lambda parser: parser.add_argument("--plan", action="store_true", help=words)
    )


def _seen_from(folder: Path, value: Any) -> Any:
    """Make paths of the user's folder relative to ``folder``, or absolute outside of it; other values stay."""
    if isinstance(value, list | tuple):
        return type(value)(_seen_from(folder, item) for item in value)
    if not isinstance(value, Path):
        return value
    path = Path(os.path.normpath(Path.cwd() / with_home(value)))
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def place(text: str) -> Path | str:
    """Parse a flag that is a local folder or the name of something remote."""
    try:
        local = text.startswith((".", "~")) or Path(text).exists()
    except OSError:  # too long for a file name
        local = False
    return Path(text) if local else text
