"""Atomic writes of files and folders, durable after a power cut, and the lock of a run on its outputs."""

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
    """Another live run writes the same outputs; the message says which and where."""


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    folder, windows = path.is_dir(), os.name == "nt"
    if folder and windows:  # Windows does not open folders
        return
    # Windows needs a writable handle; elsewhere a read-only handle will do, also for files that DVC made read-only.
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not folder:  # some file systems do not support fsync of folders
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path, *, alone: bool = False, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``, renamed to ``path`` when the block succeeds; makes the folder.

    Args:
        path: the file.
        alone: whether no other process writes it now. Then the temporary file that a kill leaves has a fixed name, and
            the next write replaces it.
        sync: whether the file is on disk before the rename. ``False`` for many small files, before one ``sync_all()``.
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
    """Write a file, complete or not at all; arguments as in :func:`whole_file`."""
    with whole_file(path, alone=alone, sync=sync) as part:
        part.write_bytes(data)


def sync_all() -> None:
    """Wait until all written data are on disk; for many small files far cheaper than one by one."""
    if hasattr(os, "sync"):  # not on Windows
        os.sync()


def sync_folder(folder: Path) -> None:
    """Wait until all files below a folder are on disk."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if path.is_file():  # not a broken link
                _to_disk(path)
        _to_disk(Path(place))


def put_folder(part: Path, folder: Path, *, sync: bool = True) -> None:
    """Rename a complete folder ``part`` to ``folder``; an earlier folder of that name is removed."""
    if sync:
        sync_folder(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    if sync:
        _to_disk(folder.parent)


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock, which the system releases if the process is killed.

    It is a lock of the system (flock), not the file: a leftover file locks nothing. On NFS it holds for all machines if
    the server supports locks. Processes forked from this one do not hold it.

    Args:
        path: path of the lock's file; its folder is made.
        what: description of a run that may hold it, for the message.
        wait: whether to wait for a live process that holds it.

    Raises:
        LockedError: if a live process holds it and ``wait`` is not set, or the file system cannot lock.
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
        # The file is removed while the lock is held; a waiting process checks whether the file still has its name.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
