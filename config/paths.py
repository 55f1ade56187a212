"""Paths that parameters name: the same meaning of a relative path wherever a stage runs.

A stage runs in the project itself, in DVC's copy of it (``dvc exp run --temp``), in the folder of a trial
(:mod:`experiments.study.trial`) or in that of a pretraining (:mod:`stages.pretrain`). The last three hold the
pipeline's inputs and outputs. They lack what only the project has: weights and datasets that neither git nor DVC
tracks.

- Files of the pipeline (``output_root``, ``models/weights``, ``metrics/reports``) belong to the working folder:
  :func:`in_workspace`.
- Inputs from elsewhere (checkpoints, datasets, lists) are searched in the working folder, then in the project:
  :func:`find_input`.
- Results that outlive a run (MLflow runs, studies, predictions) belong to the project: :func:`in_project`.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path, PurePath

from config.errors import UserError

# Environment variable, set by the parent process of a stage that runs in a trial's or a pretraining's folder.
WORKSPACE = "QIL_WORKSPACE"
PARAMS = "params.yaml"
PIPELINE = "dvc.yaml"
# Outputs of stages: they are never taken from another folder.
OUTPUTS = tuple(Path("models") / "weights" / name for name in ("vae", "decompose", "refine"))
# Files that file managers, archives and NAS boxes leave beside a user's; those of macOS and editors begin with a dot.
LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})


def visible(name: str | os.PathLike) -> bool:
    """Whether a file is the user's data, by its name relative to the folder that was given.

    ``.DS_Store``, AppleDouble's ``._poster.png``, ``Thumbs.db`` and the content of hidden folders are not.
    """
    parts = PurePath(name).parts
    return not any(part.startswith(".") or part.lower() in LEFT_BEHIND for part in parts)


def visible_files(folder: Path, suffixes: Container[str] | None = None, deep: bool = True) -> list[Path]:
    """The :func:`visible` files of a folder, sorted by path.

    Args:
        folder: where to look; its own path may be hidden.
        suffixes: in lower case; ``None`` for all.
        deep: sub-folders too.
    """
    found = folder.glob("**/*" if deep else "*")
    wanted = (path for path in found if suffixes is None or path.suffix.lower() in suffixes)
    return sorted(path for path in wanted if visible(path.relative_to(folder)) and path.is_file())


class PlaceError(UserError, OSError):
    """The path that a flag names cannot be used; the message is one sentence."""


def check_place(place: Path, key: str, *, folder: bool) -> None:
    """Check before the work whether its result can be written.

    Args:
        place: path of the result; it and folders above it may be missing.
        key: the flag that named it, for messages.
        folder: whether a folder is to be written or a file.

    Raises:
        PlaceError: if it is of the other kind, lies below a file, or in a folder that cannot be written.
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

    That is DVC's root where DVC or this project started the process. Else it is the project around the current folder,
    else a current folder with a params.yaml, else this checkout.
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
        The folder in which this project or DVC started the stage. Else the current folder if it has a params.yaml,
        else the project around it, else the one around ``params``, else the current folder.
    """
    here = Path.cwd()
    if told := os.environ.get(WORKSPACE):
        return Path(told)
    if "DVC_STAGE" in os.environ or (here / PARAMS).is_file():
        return here
    around = _enclosing_project(Path(params).absolute().parent) if params is not None else None
    return _enclosing_project(here) or around or here


def resume_root() -> Path:
    """Folder of the resume points: a trial's or a pretraining's own, else the project's.

    DVC removes the copy of a temporary experiment that was killed; resume points have to outlive it.
    """
    return Path(os.environ.get(WORKSPACE) or project_root())


def _leads_out(path: Path) -> bool:
    return Path(os.path.normpath(path)).parts[:1] == (os.pardir,)


def with_home(path: str | os.PathLike) -> Path:
    """Expand ``~`` to the home folder; ``~name`` of an unknown user stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def find_input(path: str | os.PathLike) -> Path:
    """Resolve an input path: as it is if absolute, else in the working folder, else in the project.

    A path that leads out of the folder (``../designs``) starts from the project. Outputs of stages are searched in the
    working folder alone. A path found nowhere is returned as given, so that messages name what the user wrote. A copy
    of the project may hold part of a folder, because git tracks a file of it; then that part is found.
    """
    given = with_home(path)
    if given.is_absolute() or (given.exists() and not _leads_out(given)):
        return given
    if any(Path(os.path.normpath(given)).is_relative_to(output) for output in OUTPUTS):
        return given
    found = project_root() / given
    return found if found.exists() else given


def in_workspace(path: str | os.PathLike) -> Path:
    """Resolve a file of the pipeline: in the working folder, or from the project if the path leads out of the folder.

    No second place is searched: an output that is missing here must not be taken from another folder.
    """
    given = with_home(path)
    return project_root() / given if not given.is_absolute() and _leads_out(given) else given


def in_project(path: str | os.PathLike) -> Path:
    """Resolve the path of a result that outlives a run: a relative one starts from the project."""
    return project_root() / with_home(path)


def sqlite_in_project(url: str) -> str:
    """Resolve a database URL: a relative SQLite path, as in ``sqlite:///mlruns/optuna.db``, starts from the project.

    Raises:
        PlaceError: for SQLite's own ``file:`` addresses, whose file cannot be determined here.
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
