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
    # torchrun and accelerate lie beside the interpreter, wherever the tuner was started from.
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def launch_command(launcher: str, stage: str) -> list[str]:
    """Command line of a stage under the launcher of params.yaml, whose files are found from any folder.

    Raises:
        ParamsError: if there is no such launcher.
    """
    words = shlex.split(launcher)
    if words[0] == "python":
        words[0] = sys.executable
    elif (found := shutil.which(words[0], path=_search_path())) is not None:
        # It is started in other folders: a relative one, or one of a relative PATH, would not be found there.
        words[0] = str(Path(found).absolute())
    else:
        raise ParamsError(f"launcher: {words[0]!r} is not found; expected a command, such as python or torchrun")
    return [words[0], *map(_found_from_anywhere, words[1:]), "-m", f"stages.{stage}"]


def _found_from_anywhere(word: str) -> str:
    """A word of the launcher; a file's (``presets/x.yaml``, ``--config_file=presets/x.yaml``) as an absolute path."""
    option, equals, name = word.rpartition("=")
    found = find_input(name)
    # A lone number or name is hardly meant as a file, even if one is called so.
    return f"{option}{equals}{found.resolve()}" if found.suffix and found.is_file() else word


def environment_in(folder: Path) -> dict[str, str]:
    """Environment in which a stage works in ``folder``, with the code of this checkout and the runs of this project."""
    return {
        # The folder's own models/ and metrics/ hold outputs, not packages.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": str(CODE),
        "DVC_ROOT": str(project_root().resolve()),
        WORKSPACE: str(folder.resolve()),
    }
