"""Locations of datasets: a local folder, ``s3://``, ``gs://``, ``hf://`` and all that fsspec knows, in one class."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from config.errors import SampleError, UserError
from config.paths import find_input, visible
from layers.dataset.digest import text_digest
from layers.imaging.codec import ImageError, decode_rgba

# Keys of a listing that identify a file's version, besides its size; each file system has some of them.
VERSION_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "blob_id", "checksum", "mtime", "LastModified")
# file:///x, s3://x, zip::x: names that fsspec takes for more than a path.
REMOTE = re.compile(r"://|::")
# A JSON escape that may be a lone surrogate.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class LocationError(UserError, FileNotFoundError):
    """A dataset is not where the parameters say; the message names the parameter."""


class Location:
    """A folder of files, local or remote. Names below it are relative, with ``/``, and never lead out of it.

    Args:
        url: a path, here or in the project (:mod:`config.paths`), or ``protocol://path`` as fsspec takes it.
        key: the parameter that named it, for messages.
        follow_links: whether local links may lead out of the folder; only for datasets with trusted links.

    Raises:
        LocationError: if the protocol is unknown or needs a package that is not installed, or the folder is missing.
    """

    def __init__(self, url: str | Path, key: str, *, follow_links: bool = False) -> None:
        self.url, self.key, self.follow_links = str(url), key, follow_links
        try:
            place = self.url if REMOTE.search(self.url) else str(find_input(url))
            self.files_system, self.root = fsspec.core.url_to_fs(place)
            found = self.files_system.isdir(self.root)
        except Exception as error:
            # Every file system has its own error types: packages, credentials, networks.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise LocationError(f"{key}: {self.url} cannot be opened ({reason})") from None
        if not found:
            raise LocationError(f"{key}: {self.url} is no folder; expected the root of a dataset")
        self.local = isinstance(self.files_system, LocalFileSystem)
        # Remote roots may come with a trailing slash, local ones with links in them.
        self.root = os.path.realpath(self.root) if self.local else self.root.rstrip("/")

    def path(self, name: str) -> str:
        """Full path of a relative name in its file system.

        Raises:
            SampleError: if the name, or a link on its way, leads out of the root, or it is no valid file name.
        """
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise SampleError(f"{name!r} is no file name") from None
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            raise SampleError(f"{name!r} points outside {self.key}")
        full = "/".join([self.root, *pure.parts])
        if self.local and not self.follow_links and not Path(os.path.realpath(full)).is_relative_to(self.root):
            raise SampleError(f"{name!r} points outside {self.key}")
        return full

    def _listing(self, name: str) -> list[dict[str, Any]]:
        full = self.path(name)
        try:
            entries = self.files_system.ls(full, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            reason = f"cannot be listed ({type(error).__name__})"
            raise (
                SampleError(f"{name}: {reason}") if name else LocationError(f"{self.key}: {self.url} {reason}")
            ) from None
        # The listing of a file is the file itself, and object stores also list the marker of an empty folder.
        return [entry for entry in entries if entry["name"].rstrip("/") != full]

    def _names(self, name: str, kind: str) -> list[str]:
        wanted = (entry for entry in self._listing(name) if self._kind(entry) == kind)
        found = (PurePosixPath(entry["name"].rstrip("/")).name for entry in wanted)
        return sorted(filter(visible, found))

    def _kind(self, entry: dict[str, Any]) -> str:
        # fsspec lists a local link to a folder as a link; its target's permission is checked when it is read.
        if entry["type"] not in ("file", "directory"):
            return "directory" if self.files_system.isdir(entry["name"]) else "file"
        return entry["type"]

    def folders(self, under: str = "") -> list[str]:
        """Names of the visible folders directly below, sorted; none if there is no such folder."""
        return self._names(under, "directory")

    def files(self, under: str = "") -> list[str]:
        """Names of the visible files directly below, sorted; none if there is no such folder."""
        return self._names(under, "file")

    def find(self, suffixes: Iterable[str], under: str = "") -> list[str]:
        """Relative names of all visible files below with one of the suffixes (``.psd``, in any case), sorted."""
        endings = tuple(suffix.lower() for suffix in suffixes)
        base = self.path(under)
        files = _linked_files(base) if self.local and self.follow_links else self.files_system.find(base)
        names = (name for name in files if name.lower().endswith(endings))
        return sorted(filter(visible, (name[len(self.root) :].lstrip("/") for name in names)))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.files_system.isfile(self.path(name))

    def open(self, name: str) -> BinaryIO:
        """Open a seekable file for reading.

        Raises:
            SampleError: if there is no such file or it cannot be read.
        """
        try:
            return self.files_system.open(self.path(name), "rb")
        except OSError as error:
            raise SampleError(f"{name}: cannot be read ({type(error).__name__})") from None

    def read(self, name: str) -> bytes:
        """Read all bytes of a file.

        Raises:
            SampleError: if there is no such file or it cannot be read.
        """
        try:
            return self.files_system.cat_file(self.path(name))
        except OSError as error:
            raise SampleError(f"{name}: cannot be read ({type(error).__name__})") from None

    def read_json(self, name: str) -> Any:
        """Parse a JSON file.

        Raises:
            SampleError: if it cannot be read or is no JSON; NaN and infinity are not allowed.
        """
        try:
            return parse_json(self.read(name))
        except ValueError as error:
            if isinstance(error, SampleError):
                raise
            raise SampleError(f"{name}: not valid JSON ({error})") from None

    def read_rgba(self, name: str) -> np.ndarray:
        """Read an image as ``(H, W, 4)`` uint8, straight alpha.

        Raises:
            SampleError: with the file's name and fault.
        """
        try:
            return decode_rgba(self.read(name), PurePosixPath(name).name)
        except ImageError as error:
            raise SampleError(str(error)) from None

    def signature(self, names: Iterable[str]) -> str:
        """Digest of names, sizes, and times or entity tags, which changes when one of the files does."""
        described = []
        for name in sorted(names):
            try:
                full = self.path(name)
                # fsspec gives the time of a link, which stays when its target changes.
                info = self.files_system.info(os.path.realpath(full) if self.local else full)
                # A copy or a change of permissions keeps the mtime of a local file, but not its ctime.
                versions = [str(info[key]) for key in VERSION_KEYS if info.get(key)] or [str(info.get("created"))]
                described.append(f"{name}:{info.get('size')}:{':'.join(versions)}")
            except (OSError, SampleError):
                described.append(f"{name}:-")
        return text_digest("\n".join(described))


def _linked_files(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """All files below a local folder, also through links to folders; a link to an enclosing folder is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _linked_files(entry.path, (*above, real))
            else:
                yield entry.path


def parse_json(data: bytes | str) -> Any:
    """Parse JSON strictly: NaN and infinity, which Python's parser accepts, are refused, as is invalid Unicode.

    Raises:
        ValueError: if it is no JSON, nested beyond Python's limit, or holds a lone surrogate, which cannot be written
            as UTF-8.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        parsed = json.loads(text, parse_constant=refuse)
        if SURROGATE.search(text):
            json.dumps(parsed, ensure_ascii=False).encode()
        return parsed
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeError as error:
        raise ValueError(f"not Unicode: {error.reason}") from None
