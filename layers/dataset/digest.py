"""Digests of content: of a text, a file, a folder, a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from config.paths import find_input, visible_files
from layers.dataset.manifest import MANIFEST


def text_digest(text: str | bytes, digits: int = 32) -> str:
    """First hex digits of the sha256 of a text in UTF-8, which may hold the lone surrogates of a file's name."""
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:digits]


def digest(path: str | Path) -> str:
    """md5 of a file, or of a folder's content.

    The digest of a bucketed dataset is that of its manifest, which lists the md5 of every sample's pixels.

    Raises:
        FileNotFoundError: if the path does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected what an earlier stage writes (dvc repro)")
    md5 = hashlib.md5(usedforsecurity=False)
    if (path / MANIFEST).is_file():
        path = path / MANIFEST
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                md5.update(chunk)
        return md5.hexdigest()
    for file_path in visible_files(path):
        md5.update(f"{file_path.relative_to(path)}:{digest(file_path)}\n".encode())
    return md5.hexdigest()


def digests(paths: Sequence[str]) -> dict[str, str]:
    """The md5 of each path, resolved like the paths in parameters (:mod:`config.paths`).

    Raises:
        FileNotFoundError: if one of them does not exist.
    """
    return {path: digest(find_input(path)) for path in paths}
