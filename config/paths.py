"""Where the files lie that parameters name: one meaning of a relative path, wherever a stage runs.

A stage runs in one of four kinds of folder: the project itself, DVC's copy of it (``dvc exp run --temp``), the folder
of a trial (:mod:`experiments.study.trial`) or that of a pretraining (:mod:`stages.pretrain`). The last three hold what
the pipeline reads and writes, and lack what only the project has: weights and datasets that neither git nor DVC
tracks.

- Files of the pipeline (``output_root``, ``models/weights``, ``metrics/reports``) belong to the working folder:
  :func:`in_workspace`.
- Inputs from elsewhere (checkpoints, datasets, lists) are looked for in the working folder, then in the project:
  :func:`find_input`.
- What outlives a run (runs, studies, predictions) belongs to the project: :func:`in_project`.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path, PurePath

from config.errors import UserError

# Set by whoever starts a stage in a folder that stands for the project (a trial, a pretraining).
WORKSPACE = "QIL_WORKSPACE"
PARAMS = "params.yaml"
PIPELINE = "dvc.yaml"
# Outputs of stages: what one has not written here is never taken from elsewhere.
OUTPUTS = tuple(Path("models") / "weights" / name for name in ("vae", "decompose", "refine"))
# What file managers, archives and NAS boxes leave beside people's files; macOS and editors begin theirs with a dot.
LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})


def visible(name: str | os.PathLike) -> bool:
    """Whether a person put this file there, by its name relative to the folder that was asked for.

    ``.DS_Store``, AppleDouble's ``._poster.png``, ``Thumbs.db`` and whatever lies in a hidden folder are nobody's data.
    """
    parts = PurePath(name).parts
    return not any(part.startswith(".") or part.lower() in LEFT_BEHIND for part in parts)


def visible_files(folder: Path, suffixes: Container[str] | None = None, deep: bool = True) -> list[Path]:
    """The :func:`visible` files of a folder, sorted by path.

    Args:
        folder: where to look; its own path may be hidden.
        suffixes: in small letters; ``None`` for all.
        deep: folders below too.
    """
    found = folder.glob("**/*" if deep else "*")
    wanted = (path for path in found if suffixes is None or path.suffix.lower() in suffixes)
    return sorted(path for path in wanted if visible(path.relative_to(folder)) and path.is_file())


class PlaceError(UserError, OSError):
    """What a flag names cannot be written; the message is one sentence."""


def check_place(place: Path, key: str, *, folder: bool) -> None:
    """Ask before the work whether its result can be written.

    Args:
        place: of the result; it and folders above it may be missing.
        key: the flag that named it, for messages.
        folder: whether a folder is to be written or a file.

    Raises:
        PlaceError: if it is the other of the two, lies below a file, or in a folder that cannot be written.
    """
    kinds = ("folder", "file") if folder else ("file", "folder")
    if place.exists() and place.is_dir() != folder:
        raise PlaceError(f"{key}: {place} is a {kinds[1]}, expected a {kinds[0]}")
    above = next(path for path in (place, *place.absolute().parents) if path.exists())
    if above != place and not above.is_dir():
        raise PlaceError(f"{key}: {place} lies below {above}, which is a file, expected a folder")
    if not os.access(above, os.W_OK):
        raise PlaceError(f"{key}: {place} cannot be written: no permission to write {above}")


def _enclosing_project(folder: Path) -> Path | None:
    for candidate in (folder, *folder.parents):
        if (candidate / PIPELINE).is_file() and (candidate / PARAMS).is_file():
            return candidate
    return None


def project_root() -> Path:
    """The project that owns mlruns/, studies and resume points.

    That is DVC's root where DVC or we started this process, else the project around the current folder, else a current
    folder with a params.yaml, else this checkout.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    if found := _enclosing_project(here):
        return found
    return here if (here / PARAMS).is_file() else Path(__file__).resolve().parents[1]


def workspace(params: str | os.PathLike | None = None) -> Path:
    """The folder that relative paths of a parameter file start from, and that a stage works in.

    Args:
        params: parameter file of the command line, relative to the current folder; ``None`` if none was given.

    Returns:
        Where a stage was started by us or by DVC, the folder it was started in. Else the current folder if it has a
        params.yaml, else the project around it, else the one around ``params``, else the current folder.
    """
    here = Path.cwd()
    if told := os.environ.get(WORKSPACE):
        return Path(told)
    if "DVC_STAGE" in os.environ or (here / PARAMS).is_file():
        return here
    around = _enclosing_project(Path(params).absolute().parent) if params is not None else None
    return _enclosing_project(here) or around or here


def resume_root() -> Path:
    """Folder of the resume points: of a trial or a pretraining its own, else the project's.

    DVC removes the copy of a temporary experiment that was killed; its resume points have to outlive that.
    """
    return Path(os.environ.get(WORKSPACE) or project_root())


def _leads_out(path: Path) -> bool:
    return Path(os.path.normpath(path)).parts[:1] == (os.pardir,)


def with_home(path: str | os.PathLike) -> Path:
    """A path whose ``~`` is the home folder; that of a user who does not exist stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def find_input(path: str | os.PathLike) -> Path:
    """An input that a parameter names: as it is if absolute, else of the working folder, else of the project.

    A path that leads out of the folder (``../designs``) starts from the project. An output of a stage is of the working
    folder alone. What is nowhere comes back as given, so that messages name what the user wrote. In a copy of the
    project that has a part of a folder, because git tracks a file of it, that part is what is found.
    """
    given = with_home(path)
    if given.is_absolute() or (given.exists() and not _leads_out(given)):
        return given
    if any(Path(os.path.normpath(given)).is_relative_to(output) for output in OUTPUTS):
        return given
    found = project_root() / given
    return found if found.exists() else given


def in_workspace(path: str | os.PathLike) -> Path:
    """A file of the pipeline: of the working folder, unless its path leads out of it: then it starts from the project.

    There is no second place to look: what an earlier stage has not written here must not be taken from elsewhere.
    """
    given = with_home(path)
    return project_root() / given if not given.is_absolute() and _leads_out(given) else given


def in_project(path: str | os.PathLike) -> Path:
    """What outlives a run: a relative path starts from the project."""
    return project_root() / with_home(path)


def sqlite_in_project(url: str) -> str:
    """A database's URL; the relative path of a SQLite file, ``sqlite:///mlruns/optuna.db``, starts from the project.

    Raises:
        PlaceError: for SQLite's own ``file:`` addresses, of which nobody here could say which file they are.
    """
    scheme, _, path = url.partition(":///")
    if scheme.split("+")[0] != "sqlite" or not path or path.startswith(":memory:"):
        return url
    if path.startswith("file:"):
        raise PlaceError(f"{url}: got an address that begins with file:, expected such as sqlite:///mlruns/optuna.db")
    return f"{scheme}:///{in_project(path)}"


REPORTS = Path("metrics") / "reports"


WEIGHTS = Path("models") / "weights"


CACHE = Path("data") / "cache"
