"""Tensor cache: safetensors shards keyed by a digest of everything that determines them, so it is never stale."""

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
    """A cached tensor differs from its checksum; its shard has been removed."""


class UnreadableError(UserError):
    """A file cannot be read now (file handles, permissions or a faulty disk); it is not removed."""


def _checksum(tensor: Tensor) -> str:
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else b""
    return f"{zlib.crc32(flat):08x}"


class TensorCache:
    """Cached entries of named tensors, each under a key derived from its input.

    Args:
        root: folder with the caches of all identities.
        identity: everything besides the input that determines the tensors, such as the digest of a network's weights, a
            prompt template, a resize policy, a dtype. Its hash names the folder; its text is written into it.

    Raises:
        UnreadableError: if the folder or a shard cannot be read now.

    Shards are written atomically. A damaged shard counts as absent when the cache is opened, and each tensor's checksum
    is compared when it is read. Only shards proven damaged are removed.
    """

    def __init__(self, root: str | Path, identity: Mapping[str, str]) -> None:
        described = json.dumps(dict(sorted(identity.items())), indent=1)
        self.folder = Path(root) / text_digest(described, 24)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "identity.json").is_file():
            write_whole(self.folder / "identity.json", described.encode())
        self._shards: dict[str, Path] = {}
        # Per object, so that a cache opened again sees rewritten files.
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
        # Pickled for a spawned loader process, which opens the files itself.
        return {name: value for name, value in vars(self).items() if name != "_opened"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _opened=lru_cache(maxsize=256)(_opened))

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys without an entry, in order, without duplicates."""
        return [key for key in dict.fromkeys(keys) if key not in self._shards]

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Write entries as one shard; keys must not contain ``/``."""
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
        """Read the entry of a key.

        Raises:
            KeyError: if the key has no entry.
            DamagedCacheError: if a checksum differs; the shard is removed, so that the same command encodes it again.
            UnreadableError: if the shard cannot be opened.
        """
        path = self._shards[key]
        entry, damaged = self._read(path, key)
        if damaged:
            # The file may be intact by now: another process may have met the same damage and rewritten it.
            self._opened.cache_clear()
            entry, damaged = self._read(path, key)
        if damaged:
            path.unlink(missing_ok=True)
            raise DamagedCacheError(f"{path}: {damaged} of {key} is damaged; removed, run the same command again")
        return entry

    def _read(self, path: Path, key: str) -> tuple[Entry, str | None]:
        """An entry, and the name of its first damaged part, or ``None``."""
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
    """Open a safetensors file; distinguish a corrupt file from one that cannot be opened now.

    Raises:
        SafetensorError: if it is proven corrupt.
        FileNotFoundError: if it does not exist.
        UnreadableError: if it cannot be opened for another reason.
    """
    try:
        return safe_open(path, "pt")
    except OSError:
        try:
            # safetensors reports every file that does not open as "no such file".
            with path.open("rb"):
                pass
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = error.strerror
        else:
            reason = "memory mapping fails"
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
    """Encode and cache the embedding and mask of every text that the cache lacks.

    Args:
        encode: maps texts to embeddings ``(B, T, D)`` and masks ``(B, T)``, 1 where a token is real.
        texts: any order, repetitions allowed.
        cache: with an identity of encoder weights, template and dtype.
        batch_size: texts per call of ``encode``.
        progress: whether to show a bar.

    Each entry holds ``embedding`` ``(T, D)`` and ``mask`` ``(T,)`` of the real tokens only: padding depends on the
    batch and must not be cached.
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
