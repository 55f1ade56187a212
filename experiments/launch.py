"""Launch of a stage in another folder: its command line under the launcher, and its environment."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from config.errors import ParamsError
from config.paths import WORKSPACE, find_input, project_root

OUTPUTS = {"train_vae": "vae", "train_decompose": "decompose", "refine": "refine"}


CODE = Path(__file__).resolve().parents[1]


def _search_path() -> str:
    # torchrun and accelerate are in the interpreter's folder, which need not be on PATH.
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def launch_command(launcher: str, stage: str) -> list[str]:
    """Command line of a stage under the launcher of params.yaml; it works from any folder.

    Raises:
        ParamsError: if there is no such launcher.
    """
    words = shlex.split(launcher)
    if words[0] == "python":
        words[0] = sys.executable
    elif (found := shutil.which(words[0], path=_search_path())) is not None:
        # Absolute, because the launcher is started in other folders, where a relative path would not be found.
        words[0] = str(Path(found).absolute())
    else:
        raise ParamsError(f"launcher: {words[0]!r} is not found; expected a command, such as python or torchrun")
    return [words[0], *map(_found_from_anywhere, words[1:]), "-m", f"stages.{stage}"]


def _found_from_anywhere(word: str) -> str:
    """One word of the launcher; files (``presets/x.yaml``, ``--config_file=presets/x.yaml``) become absolute paths."""
    option, equals, name = word.rpartition("=")
    found = find_input(name)
    # A word without a suffix, such as a number, is not meant as a file, even if a file has that name.
    return f"{option}{equals}{found.resolve()}" if found.suffix and found.is_file() else word


def environment_in(folder: Path) -> dict[str, str]:
    """Environment for a stage that works in ``folder``, with this checkout's code and this project's MLflow runs."""
    return {
        # Without it Python would import the folder's own models/ and metrics/, which hold outputs.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": str(CODE),
        "DVC_ROOT": str(project_root().resolve()),
        WORKSPACE: str(folder.resolve()),
    }
