"""Files and folders that appear whole or not at all, also after a power cut, and the lock of what one run writes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import UserError


class LockedError(UserError):
    """Another living run writes the same; the message says which and where."""


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    folder, windows = path.is_dir(), os.name == "nt"
    if folder and windows:  # which does not open folders
        return
    # Windows wants a handle to write with; elsewhere files that DVC has made read-only can be waited for too.
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not folder:  # some file systems know no fsync of folders
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path, *, alone: bool = False, sync: bool = True) -> Iterator[Path]:
    """A place beside ``path`` to write to, which becomes ``path`` when the block ends well; makes the folder.

    Args:
        path: the file.
        alone: whether no other process writes it now. What a kill leaves then has one name, which the next write takes.
        sync: whether the file is on the disk before it gets its name. ``False`` for thousands of small files, whose
            writer calls :func:`sync_all` once before it relies on them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if alone:
        part = path.with_name(f".{path.name}.part")
    else:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        os.close(handle)
        part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        if sync:
            _to_disk(part)
        part.replace(path)
        if sync:
            _to_disk(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes, *, alone: bool = False, sync: bool = True) -> None:
    """Write a file, complete or not at all; arguments as of :func:`whole_file`."""
    with whole_file(path, alone=alone, sync=sync) as part:
        part.write_bytes(data)


def sync_all() -> None:
    """Wait until all that was written is on the disk: for many small files far cheaper than one by one."""
    if hasattr(os, "sync"):  # not on Windows
        os.sync()


def sync_folder(folder: Path) -> None:
    """Wait until all that is below a folder is on the disk."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if path.is_file():  # no link that leads nowhere
                _to_disk(path)
        _to_disk(Path(place))


def put_folder(part: Path, folder: Path, *, sync: bool = True) -> None:
    """Give a complete folder its name; what had the name before is removed."""
    if sync:
        sync_folder(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    if sync:
        _to_disk(folder.parent)


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock, which the system takes from a process that is killed.

    It is a lock of the system (flock), not the file: a file that is left behind locks nothing. On NFS it holds for all
    machines if the server locks. Processes forked from this one do not hold it.

    Args:
        path: of the lock's file; its folder is made.
        what: who else may hold it, for the message.
        wait: whether to wait for a living process that has it.

    Raises:
        LockedError: if a living process has it and ``wait`` is not set, or the file system cannot lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise LockedError(f"{what} is under way and holds {path}; wait until it ends, or end it") from None
            print(f"{what} is under way: waiting for it")
            lock.acquire()
    except OSError as error:
        raise LockedError(f"{path}: cannot be locked ({error.strerror or error}); expected a folder that can") from None
    try:
        yield
    finally:
        # The file goes while nobody else can have it; who waits for it looks whether it still has its name.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
