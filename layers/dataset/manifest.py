"""Manifest of a bucketed dataset: one line per sample, with its bucket or the reason why it was dropped.

``metadata/manifest.json`` is one JSON document and at the same time a file of lines, so that 250,000 samples can be
written, searched and read without all being in memory. While a stage works, finished records go to a journal, from
which a killed stage continues.
"""

from __future__ import annotations

import glob
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from config.errors import UserError
from layers.files import whole_file

MANIFEST = Path("metadata") / "manifest.json"
FORMAT = 2
_RECORD = b'{"id":'
_DIGITS = 16
# Keys that a record has in the journal only.
_OURS = ("state", "mark")


class DatasetError(UserError, ValueError):
    """The bucketed dataset is missing or empty; the message holds its path."""


def journal_path(root: str | Path) -> Path:
    """Path of the journal: beside the dataset's folder, so that the folder holds results only."""
    root = Path(root)
    return root.with_name(f".{root.name}.journal")


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every record line; a line that a killed process left incomplete is no record."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            body = line.rstrip(b",\n")
            if body.startswith(_RECORD) and body.endswith(b"}") and line.endswith(b"\n"):
                yield offset, body
            offset += len(line)


def read_header(root: str | Path) -> dict[str, Any]:
    """First line of the manifest: ``format``, ``recipe``, ``settings``, ``counts``; empty if there is none."""
    path = Path(root) / MANIFEST
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        first = file.readline()
    try:
        return orjson.loads(first.rstrip(b",\n") + b"}")
    except orjson.JSONDecodeError:
        return {}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def states_paths(root: str | Path) -> list[Path]:
    """Files with the source states of manifests that have been written to this root."""
    journal = journal_path(root)
    return sorted(journal.parent.glob(f"{glob.escape(journal.stem)}.{'[0-9a-f]' * _DIGITS}.states"))


class Ledger:
    """Records of all samples while a dataset is being prepared: earlier ones and those of this run.

    The state of a sample's source files (``state``) is not in the manifest: times of files differ between machines, and
    equal datasets must have equal manifests. States and the journal lie beside the dataset's folder. DVC may check out
    an earlier dataset, so the states' file name holds the digest of the manifest they belong to.

    Args:
        root: folder of the bucketed dataset.
        recipe: digest of all that decides what is written, but for the samples; records of other recipes are dropped.
    """

    def __init__(self, root: str | Path, recipe: str) -> None:
        self.root, self.recipe = Path(root), recipe
        self.manifest, self.journal = self.root / MANIFEST, journal_path(root)
        self.known: dict[str, tuple[int, int, int]] = {}
        self.states: dict[str, str] = {}
        if read_header(root).get("recipe") == recipe and (states := self._states_path(self.manifest)).is_file():
            entries = (orjson.loads(body) for _, body in _records(states))
            self.states = {entry["id"]: entry["state"] for entry in entries}
            self._learn(0, self.manifest)
        if self.journal.is_file():
            with self.journal.open("rb") as file:
                same = file.readline().rstrip() == recipe.encode()
            if same:
                self._learn(1, self.journal)
            else:
                self.journal.unlink()
        self.manifest.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.journal.is_file()
        self._appended = self.journal.open("ab")
        # A line feed also ends a line that a killed run left incomplete.
        self._appended.write(recipe.encode() + b"\n" if fresh else b"\n")
        self._appended.flush()
        self._readers = [path.open("rb") if path.is_file() else None for path in (self.manifest, self.journal)]

    def _states_path(self, manifest: Path) -> Path:
        return self.journal.with_suffix(f".{_digest(manifest)}.states")

    def _learn(self, which: int, path: Path) -> None:
        for offset, body in _records(path):
            record = orjson.loads(body)
            self.known[record["id"]] = (which, offset, len(body))
            if which == 1:
                self.states[record["id"]] = record["state"]

    def record(self, sample_id: str) -> dict[str, Any]:
        """The latest record of a known sample."""
        which, offset, size = self.known[sample_id]
        reader = self._readers[which]
        reader.seek(offset)
        return orjson.loads(reader.read(size))

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the record of a finished sample with its ``state``; from here on it survives a kill.

        By its ``mark`` (:func:`layers.dataset.storage.mark`) a later run sees whether its images are unchanged.
        """
        body = orjson.dumps(record)
        self.known[record["id"]] = (1, self._appended.tell(), len(body))
        self.states[record["id"]] = record["state"]
        self._appended.write(body + b"\n")
        self._appended.flush()

    def forget(self, sample_id: str) -> None:
        """Drop the record of a sample."""
        del self.known[sample_id], self.states[sample_id]

    def finish(self, head: Mapping[str, Any]) -> Path:
        """Write the manifest of all records, samples by split and id, and end the journal.

        Args:
            head: ``settings`` and ``counts`` for the first line.
        """
        order = []
        for sample_id in self.known:
            record = self.record(sample_id)
            order.append(("reason" in record, record["split"], sample_id))
        order.sort()
        with whole_file(self.manifest, alone=True) as part:
            with part.open("wb") as file:
                first = orjson.dumps({"format": FORMAT, "recipe": self.recipe, **head})
                file.write(first[:-1] + b',\n"samples": [\n')
                self._write_lines(file, [name for dropped, _, name in order if not dropped])
                file.write(b'],\n"dropped": [\n')
                self._write_lines(file, [name for dropped, _, name in order if dropped])
                file.write(b"]}\n")
            # Before the manifest gets its name: a kill in between loses neither the old states nor the new ones.
            states = self._states_path(part)
            with whole_file(states, alone=True) as states_part, states_part.open("wb") as file:
                file.writelines(orjson.dumps({"id": name, "state": self.states[name]}) + b"\n" for _, _, name in order)
            self.close()
        for path in states_paths(self.root):
            if path != states:
                path.unlink()
        self.journal.unlink()
        return self.manifest

    def _write_lines(self, file: BinaryIO, names: Sequence[str]) -> None:
        for index, name in enumerate(names):
            record = {key: value for key, value in self.record(name).items() if key not in _OURS}
            file.write(orjson.dumps(record) + (b",\n" if index + 1 < len(names) else b"\n"))

    def close(self) -> None:
        """Close the files."""
        self._appended.close()
        for reader in self._readers:
            if reader is not None:
                reader.close()


def write_manifest(root: str | Path, records: Iterable[Mapping[str, Any]], recipe: str = "") -> Path:
    """Write a manifest of finished records at once."""
    ledger = Ledger(root, recipe)
    for record in records:
        ledger.add({"state": "", **record})
    return ledger.finish({"settings": {}, "counts": {}})


class ManifestIndex:
    """Index of one split: each sample's offset in the manifest and its bucket; 24 bytes of memory per sample.

    Args:
        root: folder of the bucketed dataset.
        split: ``train``, ``val`` or ``test``.

    Raises:
        DatasetError: if there is no manifest or the split is empty.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.path = Path(root) / MANIFEST
        if not self.path.is_file():
            raise DatasetError(f"{self.path}: no manifest; run the stage prepare_buckets first")
        self._offsets, self._sizes, self._bucket = array("q"), array("l"), array("l")
        self.buckets: list[tuple[int, int, int]] = []
        numbers: dict[tuple[int, int, int], int] = {}
        for offset, body in _records(self.path):
            record = orjson.loads(body)
            if record["split"] != split or "bucket" not in record:
                continue
            bucket = (record["height"], record["width"], len(record["layers"]))
            if bucket not in numbers:
                numbers[bucket] = len(self.buckets)
                self.buckets.append(bucket)
            self._offsets.append(offset)
            self._sizes.append(len(body))
            self._bucket.append(numbers[bucket])
        if not self._offsets:
            raise DatasetError(
                f"{self.path}: the split {split!r} is empty; raise prepare_buckets.{split}_count or look at val_share"
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def bucket(self, index: int) -> tuple[int, int, int]:
        """Bucket (H, W, L) of a sample."""
        return self.buckets[self._bucket[index]]

    def record(self, index: int) -> dict[str, Any]:
        """The record of a sample, read from the file."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return orjson.loads(file.read(self._sizes[index]))


def plain(text: str) -> str:
    """A text with lone surrogates, which names of files may hold, spelt out, as the manifest requires."""
    return text.encode("utf-8", "backslashreplace").decode()
