"""Folders of the diffusers format: where they are, and the weights in them. Only safetensors are read, no pickle."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from layers.paths import find_input

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INDEX_FILE = WEIGHTS_FILE + ".index.json"


def locate(source: str | os.PathLike, subfolder: str | None = None) -> Path:
    """Find a model's folder; a hub repository is downloaded, its JSON, text and safetensors only.

    Args:
        source: a Path: a local folder. A string: a folder here or in the project (:func:`layers.paths.find_input`), or,
            if ``owner/name`` is no folder, a Hugging Face repository.
        subfolder: folder inside it, such as ``vae``.

    Raises:
        FileNotFoundError: if folder or repository are missing.
    """
    root = find_input(source) if isinstance(source, str) else Path(source)
    if not root.is_dir():
        if not isinstance(source, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
            raise FileNotFoundError(f"no folder at {root}")
        from huggingface_hub import snapshot_download

        prefix = f"{subfolder}/" if subfolder else ""
        try:
            kinds = ("json", "txt", "safetensors")
            root = Path(snapshot_download(source, allow_patterns=[f"{prefix}*.{kind}" for kind in kinds]))
        except Exception as error:
            reason = " ".join(str(error).split())
            raise FileNotFoundError(f"no folder at {root}, and the hub does not give {source}: {reason}") from error
    folder = root / subfolder if subfolder else root
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {subfolder} in {root}")
    return folder


def load_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, sharded or not.

    Raises:
        FileNotFoundError: if there are no safetensors; a ``.bin`` is never read.
        ValueError: if the index names a file that is not beside it.
    """
    if (folder / INDEX_FILE).is_file():
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
    else:
        shards = [WEIGHTS_FILE]
    state = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{INDEX_FILE} in {folder} names {shard}; expected files beside it")
        if not (folder / shard).is_file():
            raise FileNotFoundError(f"no {shard} in {folder}; weights are read from safetensors only")
        state.update(load_file(folder / shard))
    return state
