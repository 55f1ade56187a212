"""Reader of DiffSynth-Studio's datasets for Qwen-Image-Layered.

    <root>/<metadata>    .json: a list of records; .jsonl: one a line; .csv: one a row
    record:              {"image": [full image, lowest layer, ..., highest layer], "layer_input_image": full image,
                          "layer_num": number of layers, "prompt": caption}

Paths are relative to the root. In a CSV, ``image`` holds its list as JSON or as Python writes it. The order of the
layers, bottom to top, is that of the released model, the datasets' target; DiffSynth-Studio does not document it.
"""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from config.errors import SampleError, UserError
from layers.dataset.digest import text_digest
from layers.imaging.stack import LayeredSample
from layers.sources.base import Source
from layers.sources.listed import Entry, by_id, json_lines, read_stack, record
from layers.sources.location import Location, parse_json
from layers.sources.memo import kept

EXPECTED = "DiffSynth-Studio's metadata as .json (a list), .jsonl or .csv"


def _csv_rows(text: str) -> list[tuple[str, Entry]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[tuple[str, Entry]] = []
    while True:
        name = f"row-{len(rows) + 1:06d}"
        try:
            rows.append((name, json.dumps(next(reader)).encode()))
        except StopIteration:
            return rows
        except csv.Error as error:
            rows.append((name, f"row is not valid CSV ({error})"))


def _images(entry: dict[str, Any]) -> list[str]:
    """All paths of a record, the full image's first."""
    value = entry.get("image")
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _list_in_text(value)
    if not isinstance(value, list):
        raise SampleError("image is no list of the full image and its layers")
    if not value or not all(isinstance(name, str) and name for name in value):
        raise SampleError("image lists something that is no path")
    return value


def _list_in_text(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


def _first_path(entry: dict[str, Any]) -> Any:
    return _images(entry)[0]


def _check_count(entry: dict[str, Any], layers: int) -> None:
    count = entry.get("layer_num")
    if count in (None, ""):
        return
    try:
        same = not isinstance(count, bool) and float(count) == layers
    except (TypeError, ValueError, OverflowError):
        same = False
    if not same:
        words = repr(count)[:40] if isinstance(count, (str, int, float)) else f"a {type(count).__name__}"
        raise SampleError(f"layer_num is {words}, but image lists {layers} layers after the full image")


def _notes(entry: dict[str, Any], full: str) -> list[str]:
    notes = ["context_image is not used"] if entry.get("context_image") else []
    if (given := entry.get("layer_input_image")) not in (None, "", full):
        notes.append(f'layer_input_image is not the full image: "{given if isinstance(given, str) else ""}"')
    return notes


class DiffSynthSource(Source):
    """A DiffSynth-Studio dataset for Qwen-Image-Layered.

    Args:
        root: base folder of the images.
        metadata: name of the metadata file, relative to ``root``; ``.json``, ``.jsonl`` or ``.csv``.

    Raises:
        UserError: if there is no such file, or it is no metadata.
    """

    def __init__(self, root: Location, *, metadata: str) -> None:
        self.root, self.metadata = root, metadata
        self._token = uuid4().hex
        self._suffix = PurePosixPath(metadata).suffix.lower()
        try:
            found = self._suffix in (".json", ".jsonl", ".csv") and root.exists(metadata)
        except SampleError as error:
            raise UserError(f"{root.key}: {error}; expected {EXPECTED}") from None
        if not found:
            raise UserError(f"{root.key}: {root.url} has no file {metadata}; expected {EXPECTED}")

    def sample_ids(self) -> list[str]:
        """Stems of the full images, in the order of the metadata; ids of broken records are their line or row.

        Raises:
            UserError: if the metadata as a whole cannot be read.
        """
        return list(self._index())

    def read(self, sample_id: str) -> LayeredSample:
        """Read one sample; layers bottom to top, the full image as preview.

        Raises:
            SampleError: with the missing or broken part.
        """
        found = self._index().get(sample_id)
        if found is None:
            raise SampleError(f"no sample {sample_id!r}")
        entry = record(found)
        names = _images(entry)
        _check_count(entry, len(names) - 1)
        caption = entry.get("prompt")
        caption = caption.strip() if isinstance(caption, str) else ""
        return read_stack(self.root, sample_id, names, caption, _notes(entry, names[0]))

    def signature(self, sample_id: str) -> str:
        """Digest of the sample's record, and of the names, sizes and times of its images."""
        found = self._index().get(sample_id, "")
        try:
            names = _images(record(found))
        except SampleError:
            names = []
        return f"{text_digest(found, 16)}-{self.root.signature(names)}"

    def _index(self) -> dict[str, Entry]:
        return kept(self._token, lambda: by_id(self._entries(), _first_path))

    def _entries(self) -> list[tuple[str, Entry]]:
        try:
            data = self.root.read(self.metadata)
            if self._suffix == ".jsonl":
                return json_lines(data)
            if self._suffix == ".csv":
                # A byte that is no UTF-8 breaks only its row: the JSON parser refuses its replacement.
                return _csv_rows(data.decode("utf-8-sig", "surrogateescape"))
            records = parse_json(data)
            if not isinstance(records, list):
                raise ValueError(f"a {type(records).__name__}, not a list")
            return [(f"row-{number:06d}", json.dumps(entry).encode()) for number, entry in enumerate(records, 1)]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.root.key}: {self.metadata} cannot be read ({error}); expected {EXPECTED}") from None
