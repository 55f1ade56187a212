"""Diffusers folders: finding them and reading their weights. Only safetensors are read, no pickle."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from config.paths import find_input
from layers.weight_files import WeightsFileError, check_weights, read_json

CONFIG_FILE = "config.json"
STEM = "diffusion_pytorch_model"
WEIGHTS_FILE = f"{STEM}.safetensors"
INDEX_FILE = WEIGHTS_FILE + ".index.json"

# Prefix of owner/name that selects the Hugging Face repository, whatever local folders exist.
HUB = "hf://"
HUB_SECONDS = 10
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# In the hub's patterns * also matches slashes: "*.json" would match the files of all folders.
BESIDE_CONFIG = [CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, f"{STEM}-*.safetensors"]
BESIDE_CONFIG += [f"{STEM}.*.safetensors", f"{WEIGHTS_FILE}.index.*.json"]
# Some releases have their weights only under a name that includes the dtype: diffusers' variants.
VARIANTS = ("fp32", "bf16", "fp16")


def locate(source: str | os.PathLike, subfolder: str | None = None) -> Path:
    """Find a model's folder; of a hub repository only that folder's JSON, text and safetensors are downloaded.

    Args:
        source: a Path is a local folder. A string is a folder, here or in the project
            (:func:`config.paths.find_input`). If ``owner/name`` and ``owner`` are no folders, it is a Hugging Face
            repository, as a line on stderr says. ``hf://owner/name`` is always the repository.
        subfolder: folder inside it, such as ``vae``.

    Raises:
        FileNotFoundError: if folder or repository are missing.
    """
    kinds = ("json", "txt", "safetensors")
    root = _root(source, [f"{subfolder}/*.{kind}" for kind in kinds] if subfolder else BESIDE_CONFIG)
    folder = root / subfolder if subfolder else root
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {subfolder} in {root}" if subfolder else f"no folder at {root}")
    return folder


def locate_model(source: str | os.PathLike, name: str, class_name: str) -> Path:
    """Find the folder of one model of a release: ``source`` itself, or its subfolder ``name``.

    Args:
        source: as in :func:`locate`; a hub repository of either kind.
        name: name of the subfolder, such as ``vae``.
        class_name: class of the model. ``source`` wins if its config names it; in some releases it names no class.

    Returns:
        ``source`` itself if neither has a config.

    Raises:
        FileNotFoundError: if folder or repository are missing.
    """
    root = _root(source, [CONFIG_FILE, f"{name}/{CONFIG_FILE}"])
    inside = (root / name / CONFIG_FILE).is_file() and _class_of(root / CONFIG_FILE) != class_name
    return locate(source, name if inside else None)


def _class_of(config: Path) -> str | None:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def local_folder(source: str | os.PathLike) -> Path | None:
    """Local folder that ``source`` names, as in :func:`locate`; ``None`` if it names a hub repository.

    Raises:
        FileNotFoundError: if it is neither. The hub is not contacted.
    """
    if not isinstance(source, str):
        if Path(source).is_dir():
            return Path(source)
        raise FileNotFoundError(f"no folder at {source}")
    if source.startswith(HUB):
        if not HUB_NAME.fullmatch(source.removeprefix(HUB)):
            raise FileNotFoundError(f"no Hugging Face repository has the name {source}; expected {HUB}owner/name")
        return None
    root = find_input(source)
    if root.is_dir():
        return root
    if not HUB_NAME.fullmatch(source):
        raise FileNotFoundError(f"no folder at {root}; expected a folder, or owner/name of a Hugging Face repository")
    owner = source.partition("/")[0]
    if find_input(owner).is_dir():
        raise FileNotFoundError(
            f"no folder at {root}, and {owner} is a folder: taken for a mistyped path; expected a folder, "
            f"or {HUB}{source} for the Hugging Face repository"
        )
    return None


def _root(source: str | os.PathLike, patterns: list[str]) -> Path:
    """Folder that ``source`` names, or the downloaded copy of a repository's files that match the patterns."""
    root = local_folder(source)
    if root is not None:
        return root
    name = source.removeprefix(HUB)
    if name != source:
        return _download(name, patterns, "")
    place = find_input(source)
    _say_once(f"no folder at {place}: taking it for the Hugging Face repository {source}")
    return _download(source, patterns, f"no folder at {place}, and ")


def _download(repository: str, patterns: list[str], before: str) -> Path:
    from huggingface_hub import snapshot_download

    answers = _hub_answers(repository)
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=not answers))
    except Exception as error:
        said = " ".join(str(error).split()) if answers else f"no answer in {HUB_SECONDS} s, and no local copy"
        raise FileNotFoundError(f"{before}the hub does not give {repository}: {said}") from error


@cache
def _hub_answers(repository: str) -> bool:
    # snapshot_download falls back to earlier downloads without a network, but waits endlessly for a silent server. All
    # other errors it raises itself, at once.
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repository, timeout=HUB_SECONDS)
    except Exception as error:
        return not type(error).__name__.endswith("Timeout")
    return True


@cache
def _say_once(sentence: str) -> None:
    # A model has up to five folders, each located separately.
    print(sentence, file=sys.stderr, flush=True)


def weight_files(folder: Path, stem: str = STEM) -> tuple[str | None, list[Path]]:
    """Complete weight files of a model, sharded or not.

    Args:
        folder: folder of the model.
        stem: start of the file names: :data:`STEM` for diffusers, ``model`` for transformers.

    Returns:
        The variant (``None``, or the first of :data:`VARIANTS` found if there are no plain files) and the files.

    Raises:
        FileNotFoundError: if there are no safetensors; a ``.bin`` is never read.
        WeightsFileError: if a file is truncated or not safetensors, or the index names missing files.
    """
    for variant in (None, *VARIANTS):
        mark = f".{variant}" if variant else ""
        index, single = folder / f"{stem}.safetensors.index{mark}.json", folder / f"{stem}{mark}.safetensors"
        if index.is_file() or single.is_file():
            break
    else:
        raise FileNotFoundError(f"no {stem}.safetensors in {folder}; weights are read from safetensors only")
    shards = _shards(index) if index.is_file() else [single.name]
    for shard in shards:
        if not (folder / shard).is_file():
            raise FileNotFoundError(f"no {shard} in {folder}; weights are read from safetensors only")
        check_weights(folder / shard)
    return variant, [folder / shard for shard in shards]


def _shards(index: Path) -> list[str]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise WeightsFileError(f"{index} has no weight_map of names; expected the index of a model's weights")
    for shard in sorted(set(named.values())):
        if Path(shard).name != shard:
            raise WeightsFileError(f"{index.name} in {index.parent} names {shard}; expected files beside it")
    return sorted(set(named.values()))


def load_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, see :func:`weight_files`."""
    _, files = weight_files(folder)
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
