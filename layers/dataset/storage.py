"""Storage of a bucketed dataset's images: plain files, or WebDataset tars for sets too large for a file system.

    files    <split>/w<W>-h<H>/<id>_comp<k:03d>.png     layers, bottom to top, k from 0
             <split>/w<W>-h<H>/<id>_composite.png
    shards   shards/<split>-<number:06d>.tar, holding <id>.comp<k:03d>.png, <id>.composite.png and <id>.json

The manifest holds the place of every image: ``path``, and in a tar ``range``, its offset and size. So single images
are read from tars as fast as from files.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from layers.dataset.digest import text_digest
from layers.dataset.splits import SPLITS
from layers.files import whole_file, write_whole
from layers.imaging.codec import ImageError, decode_rgba, encode_png

SHARDS = Path("shards")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def file_stem(sample_id: str) -> str:
    """The id as part of file names: letters, digits, ``_`` and ``-``, since a WebDataset key ends at the first dot.

    An id of other characters, or a very long one, gets a digest that keeps it unique.
    """
    stem = _UNSAFE.sub("_", sample_id)[:60]
    if stem and stem == sample_id:
        return stem
    return f"{stem}-{text_digest(sample_id.encode(errors='surrogateescape'), 12)}"


class Writer(Protocol):
    """Writer of the images of one sample; returns each one's place for the manifest."""

    def write(
        self, record: Mapping[str, Any], layers: Sequence[np.ndarray], composite: np.ndarray
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Write ``(H, W, 4)`` uint8 layers, bottom to top, and their composite."""


class FileWriter:
    """One PNG per image, each complete or absent; call :func:`layers.files.sync_all` before a manifest lists them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(
        self, record: Mapping[str, Any], layers: Sequence[np.ndarray], composite: np.ndarray
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """See :class:`Writer`."""
        folder = Path(record["split"]) / record["bucket"]
        stem = file_stem(record["id"])
        places = [{"path": str(folder / f"{stem}_comp{k:03d}.png")} for k in range(len(layers))]
        flat = {"path": str(folder / f"{stem}_composite.png")}
        for place, image in zip([*places, flat], [*layers, composite], strict=True):
            write_whole(self.root / place["path"], encode_png(image), sync=False)
        return places, flat


class ShardWriter:
    """One tar of samples; it appears under its name when it is complete."""

    def __init__(self, file: Any, path: Path) -> None:
        self.path = path
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def _add(self, name: str, data: bytes) -> dict[str, Any]:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        # The image begins after the member's header, which is one block for names as short as these.
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(member, io.BytesIO(data))
        return {"path": str(self.path), "member": name, "range": [start, len(data)]}

    def write(
        self, record: Mapping[str, Any], layers: Sequence[np.ndarray], composite: np.ndarray
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """See :class:`Writer`."""
        stem = file_stem(record["id"])
        places = [self._add(f"{stem}.comp{k:03d}.png", encode_png(image)) for k, image in enumerate(layers)]
        flat = self._add(f"{stem}.composite.png", encode_png(composite))
        self._add(f"{stem}.json", orjson.dumps({**record, "layers": record["layers"]}))
        return places, flat

    def close(self) -> None:
        """Write the end of the tar."""
        self._tar.close()


def shard_path(split: str, number: int) -> Path:
    """Name of a tar, relative to the dataset's root."""
    return SHARDS / f"{split}-{number:06d}.tar"


@contextmanager
def open_shard(root: Path, split: str, number: int) -> Iterator[ShardWriter]:
    """Open a tar for writing samples; a kill in between leaves nothing under its name."""
    with whole_file(root / shard_path(split, number)) as part, part.open("wb") as file:
        writer = ShardWriter(file, shard_path(split, number))
        yield writer
        writer.close()


@lru_cache(maxsize=64)
def _open_tar(path: str, process: int) -> Any:
    del process  # part of the cache key: reads of a forked worker would move the position of a shared handle
    return Path(path).open("rb", buffering=0)


def _read_at(file: Any, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    file.seek(offset)  # on Windows; threads of one process would move each other's position
    return file.read(size)


def read_image(root: Path, place: Mapping[str, Any]) -> np.ndarray:
    """Read one image of the manifest as ``(H, W, 4)`` uint8.

    Raises:
        ImageError: if it is missing or broken; the message names it.
    """
    name = place.get("member") or Path(place["path"]).name
    try:
        if "range" in place:
            offset, size = place["range"]
            data = _read_at(_open_tar(str(root / place["path"]), os.getpid()), size, offset)
        else:
            data = (root / place["path"]).read_bytes()
    except OSError as error:
        raise ImageError(f"{name}: not a readable image ({type(error).__name__})") from None
    return decode_rgba(data, name)


def mark(root: Path, record: Mapping[str, Any]) -> int:
    """A number that changes when images of a record are rewritten or truncated, from their times and sizes."""
    files = {place["path"] for place in (*record["layers"], record["composite"])}
    found = [(root / file).stat() for file in files if (root / file).is_file()]
    return sum(stat.st_mtime_ns + stat.st_size for stat in found)


def present(root: Path, record: Mapping[str, Any], sizes: dict[str, int]) -> bool:
    """Whether all images of a record exist; ``sizes`` caches the sizes of tars."""
    for place in (*record["layers"], record["composite"]):
        path = place["path"]
        if "range" not in place:
            if not (root / path).is_file():
                return False
            continue
        if path not in sizes:
            sizes[path] = (root / path).stat().st_size if (root / path).is_file() else 0
        if sum(place["range"]) > sizes[path]:
            return False
    return True


def remove_strays(root: Path, expected: Iterator[str]) -> int:
    """Delete images and tars below the splits' and shards' folders that the manifest does not list.

    Args:
        root: folder of the dataset.
        expected: relative paths that stay.

    Returns:
        Number of deleted files.
    """
    # Digests, because the paths of millions of files would fill the memory.
    kept = {hash(path) for path in expected}
    removed = 0
    for top in (*SPLITS, str(SHARDS)):
        for folder, _, names in os.walk(root / top, topdown=False):
            relative = os.path.relpath(folder, root)
            for name in names:
                if hash(f"{relative}/{name}") not in kept:
                    Path(folder, name).unlink()
                    removed += 1
            if not any(os.scandir(folder)):
                Path(folder).rmdir()
    return removed
