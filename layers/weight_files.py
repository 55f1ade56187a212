"""Weight files in safetensors format, with one-sentence errors for files that are something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from config.errors import UserError

LFS_POINTER = b"version https://git-lfs"


class WeightsFileError(UserError, ValueError):
    """A model's file or folder is missing, broken or of another kind; the message is one sentence."""


def what_is_wrong(path: Path, reason: object, expected: str = "safetensors") -> str:
    """Describe in one sentence why a file cannot be read.

    Args:
        path: the file.
        reason: the reader's error, for a file with none of the usual faults.
        expected: the expected kind of file.
    """
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(LFS_POINTER):
        return f"{path} is a pointer of Git LFS, expected {expected}: git lfs pull gets the file"
    if start.startswith(b"<"):
        return f"{path} is a page of HTML, expected {expected}: download the file itself"
    if not start:
        return f"{path} is empty, expected {expected}"
    words = " ".join(str(reason).split()) or type(reason).__name__
    return f"{path} is cut short, damaged or something else, expected {expected} ({words})"


def check_weights(path: Path) -> None:
    """Check a file's size by its header.

    Raises:
        WeightsFileError: if it is no complete safetensors file.
    """
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise WeightsFileError(what_is_wrong(path, error)) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; raises as :func:`check_weights` does."""
    check_weights(path)
    return load_file(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a model's config or index.

    Raises:
        WeightsFileError: if it is no JSON object.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError(f"a {type(said).__name__}")
    except ValueError as error:
        raise WeightsFileError(what_is_wrong(path, error, "a JSON object")) from None
    return said
