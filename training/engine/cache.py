"""Tensors by content: safetensors shards under the digest of all that decides them, so a cache is never stale."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from config.errors import UserError
from layers.dataset.digest import text_digest
from layers.files import write_whole

logger = logging.getLogger(__name__)
Entry = dict[str, Tensor]


class DamagedCacheError(UserError):
    """What was read is not what was written; the shard has been removed."""


class UnreadableError(UserError):
    """A file cannot be read now, for want of handles, rights or a healthy disk; it is left alone."""


def _checksum(tensor: Tensor) -> str:
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else b""
    return f"{zlib.crc32(flat):08x}"


class TensorCache:
    """Entries of named tensors, each under a key that stands for its input.

    Args:
        root: folder of caches of all identities.
        identity: what besides the input decides the tensors, such as the digest of a network's weights, a prompt
            template, a resize policy, a dtype. It is hashed to the folder's name and written into the folder.

    Raises:
        UnreadableError: if the folder or a shard cannot be read now.

    A shard is written whole or not at all; a damaged one counts as absent when the cache is opened, and every tensor's
    checksum is compared when it is read. Only what is proven damaged is removed.
    """

    def __init__(self, root: str | Path, identity: Mapping[str, str]) -> None:
        described = json.dumps(dict(sorted(identity.items())), indent=1)
        self.folder = Path(root) / text_digest(described, 24)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "identity.json").is_file():
            write_whole(self.folder / "identity.json", described.encode())
        self._shards: dict[str, Path] = {}
        # Of this object, so that a cache opened again sees files written anew.
        self._opened = lru_cache(maxsize=256)(_opened)
        try:
            paths = sorted(self.folder.glob("*.safetensors"))
        except OSError as error:
            raise UnreadableError(f"{self.folder}: cannot be read now ({error.strerror})") from None
        for path in paths:
            self._learn(path)

    def _learn(self, path: Path) -> None:
        try:
            with open_tensors(path) as file:
                names = file.keys()
                keys = {name.rsplit("/", 1)[0] for name in names}
        except FileNotFoundError:  # another process has just removed it
            return
        except SafetensorError as error:
            logger.warning("removed %s, a damaged cache shard (%s)", path, error)
            path.unlink(missing_ok=True)
            return
        self._shards.update(dict.fromkeys(keys, path))

    def __getstate__(self) -> dict[str, Any]:
        # To a loader's process that is not forked; it opens files itself.
        return {name: value for name, value in vars(self).items() if name != "_opened"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _opened=lru_cache(maxsize=256)(_opened))

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those keys that have no entry, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._shards]

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Write a shard of entries; keys hold no ``/``."""
        tensors = {
            f"{key}/{name}": tensor.detach().cpu().contiguous()
            for key, entry in entries.items()
            for name, tensor in entry.items()
        }
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        digest = text_digest("\n".join(sorted(entries)), 24)
        path = self.folder / f"{digest}.safetensors"
        write_whole(path, save(tensors, metadata=checksums))
        self._opened.cache_clear()
        self._shards.update(dict.fromkeys(entries, path))

    def get(self, key: str) -> Entry:
        """The entry of a key.

        Raises:
            KeyError: if there is none.
            DamagedCacheError: if a checksum differs; the shard is removed, so that the same command makes it anew.
            UnreadableError: if the shard cannot be opened.
        """
        path = self._shards[key]
        entry, damaged = self._read(path, key)
        if damaged:
            # What is there now may be whole: another process met the same damage and has written it anew.
            self._opened.cache_clear()
            entry, damaged = self._read(path, key)
        if damaged:
            path.unlink(missing_ok=True)
            raise DamagedCacheError(f"{path}: {damaged} of {key} is damaged; removed, run the same command again")
        return entry

    def _read(self, path: Path, key: str) -> tuple[Entry, str | None]:
        """An entry, and the name of a tensor of it that is not what was written."""
        try:
            file, checksums, names = self._opened(str(path), os.getpid())
        except SafetensorError:
            return {}, "the header"
        except FileNotFoundError:
            raise UnreadableError(f"{path}: is gone; run the same command again") from None
        entry = {name: file.get_tensor(f"{key}/{name}") for name in names[key]}
        damaged = (name for name, tensor in entry.items() if _checksum(tensor) != checksums.get(f"{key}/{name}"))
        return entry, next(damaged, None)


def open_tensors(path: Path) -> safe_open:
    """Open a safetensors file, and tell a broken one from one that does not open now.

    Raises:
        SafetensorError: if it is proven broken.
        FileNotFoundError: if it is not there.
        UnreadableError: if that cannot be said now.
    """
    try:
        return safe_open(path, "pt")
    except OSError:
        try:
            # safetensors calls every file that does not open "no such file".
            with path.open("rb"):
                pass
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = error.strerror
        else:
            reason = "it does not map"
        raise UnreadableError(f"{path}: cannot be read now ({reason}); nothing was removed") from None


def _opened(path: str, process: int) -> tuple[safe_open, dict[str, str], dict[str, list[str]]]:
    del process  # Each process maps the file itself.
    file = open_tensors(Path(path)).__enter__()
    names: dict[str, list[str]] = {}
    for full in file.keys():  # noqa: SIM118 (no mapping)
        key, name = full.rsplit("/", 1)
        names.setdefault(key, []).append(name)
    return file, file.metadata() or {}, names


def embed_texts(
    encode: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
    texts: Sequence[str],
    cache: TensorCache,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> None:
    """Make sure the cache holds embedding and mask of every text.

    Args:
        encode: texts to embeddings ``(B, T, D)`` and masks ``(B, T)``, 1 where a token is real.
        texts: any order, repetitions allowed.
        cache: with an identity of encoder weights, template and dtype.
        batch_size: texts at once.
        progress: whether to show a bar.

    Each entry holds ``embedding`` ``(T, D)`` and ``mask`` ``(T,)`` of the real tokens only: what padding a text got
    depends on its batch, and must not be remembered.
    """
    by_key = {text_digest(text): text for text in texts}
    left = iter(cache.missing(by_key))
    with tqdm(desc="embed texts", unit="text", disable=not progress, mininterval=1.0) as bar:
        while keys := list(islice(left, batch_size)):
            embeddings, masks = encode([by_key[key] for key in keys])
            entries = {}
            for key, embedding, mask in zip(keys, embeddings, masks, strict=True):
                real = mask.bool()
                entries[key] = {"embedding": embedding[real], "mask": mask[real]}
            cache.put(entries)
            bar.update(len(keys))
