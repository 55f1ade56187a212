"""Rows of Crello's parquet files, read one at a time, with class labels turned into their names.

    data/{train,validation,test}-<i>-of-<n>.parquet, or such files anywhere below the root, or <split>/<file>.parquet
    schema metadata ``huggingface``: {"info": {"features": {<column>: ClassLabel with "names", or a list of it, ...}}}

A class label is stored as a number whose meaning differs by version, so it is decoded by these names alone. They also
distinguish versions 3 and 4 from 5: there the canvas sizes are class labels (whose names hold numbers) and names of
element types begin in lower case. In these versions positions are fractions of the canvas and angles are in radians.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from config.errors import SampleError, UserError
from layers.sources.location import Location, parse_json

SPLITS = ("train", "validation", "test", "all")
REQUIRED = (
    *("id", "length", "canvas_width", "canvas_height"),
    *("type", "left", "top", "width", "height", "angle", "opacity", "image"),
)
OPTIONAL = ("title", "text", "color", "preview")
LABELS = ("type", "canvas_width", "canvas_height")
# Rows that are decoded from parquet to Arrow at once; each holds a dozen images.
BATCH_ROWS = 8
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class _File:
    """One parquet file.

    Attributes:
        name: relative to the root.
        first: number of its first row among all files' rows.
        groups: first row of each row group, and the number of rows.
        columns: the columns that are read.
        names: class names by column.
        fractional: whether geometry is in fractions of the canvas and radians (versions 3 and 4).
    """

    name: str
    first: int
    groups: tuple[int, ...]
    columns: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    fractional: bool


class CrelloTable:
    """Access to rows by id. Ids are held in memory, rows are read on demand, with file handles per process.

    Reading in the order of :meth:`ids` is fast; in any other order each row costs the decoding of all earlier rows of
    its row group.

    Args:
        root: location of the dataset.
        split: one of :data:`SPLITS`.

    Raises:
        UserError: if there are no such files or they are not Crello's.
    """

    def __init__(self, root: Location, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"{root.key}: split {split!r} is unknown, expected one of {', '.join(SPLITS)}")
        self.root = root
        self._files: list[_File] = []
        self._rows: dict[str, int] = {}
        self._repeated: set[str] = set()
        self._signatures: dict[str, str] = {}
        self._drop_handles()
        for name in root.find([".parquet"]):
            if _of_split(name, split):
                self._add(name)
        if not self._files:
            raise UserError(
                f"{root.key}: {root.url} has no parquet files of split {split!r}; expected data/{split}-*.parquet"
            )

    def ids(self) -> list[str]:
        """All ids, in the order of files and rows."""
        return list(self._rows)

    def signature(self, sample_id: str) -> str:
        """String that changes when the row's file does."""
        file, row = self._find(sample_id)
        if file.name not in self._signatures:
            self._signatures[file.name] = self.root.signature([file.name])
        return f"{self._signatures[file.name]}-{row}"

    def row(self, sample_id: str) -> dict[str, Any]:
        """One row as plain Python values: class labels as names, and ``fractional``, the unit of its geometry.

        Raises:
            SampleError: if there is no such id or more than one, the file cannot be read, or a class label has no name.
        """
        file, row = self._find(sample_id)
        if sample_id in self._repeated:
            raise SampleError(f'more than one row has the id "{sample_id}"')
        try:
            values = self._read(file, row)
        except SampleError:
            raise
        # A remote file system may raise any exception, and pyarrow passes it on.
        except Exception as error:
            self._drop_handles()
            raise SampleError(f"{file.name}: row {row} cannot be read ({type(error).__name__})") from None
        for column, names in file.names.items():
            values[column] = _decoded(values[column], names, column)
        return values | {"fractional": file.fractional}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_at", "_batches", "_batch", "_parquet")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._drop_handles()

    def _drop_handles(self) -> None:
        self._at: tuple[Any, ...] = ()
        self._parquet: pq.ParquetFile | None = None
        self._batches = iter(())
        self._batch: tuple[int, pa.RecordBatch | None] = (0, None)

    def _find(self, sample_id: str) -> tuple[_File, int]:
        if sample_id not in self._rows:
            raise SampleError(f'no row has the id "{sample_id}"')
        number = self._rows[sample_id]
        file = self._files[bisect_right(self._files, number, key=lambda file: file.first) - 1]
        return file, number - file.first

    def _read(self, file: _File, row: int) -> dict[str, Any]:
        group = bisect_right(file.groups, row) - 1
        row -= file.groups[group]
        # A forked process shares the file offset of its parent's handle, so it opens its own.
        if self._at != (os.getpid(), file.name, group) or row < self._batch[0]:
            if self._at[:2] != (os.getpid(), file.name):
                self._drop_handles()
                self._parquet = pq.ParquetFile(self.root.open(file.name))
            self._batches = self._parquet.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=list(file.columns), use_threads=False
            )
            self._batch = (0, None)
            self._at = (os.getpid(), file.name, group)
        first, batch = self._batch
        while batch is None or row >= first + batch.num_rows:
            first += batch.num_rows if batch is not None else 0
            batch = next(self._batches)
            self._batch = (first, batch)
        return batch.slice(row - first, 1).to_pylist()[0]

    def _add(self, name: str) -> None:
        where = f"{self.root.key}: {name}"
        try:
            with self.root.open(name) as handle:
                parquet = pq.ParquetFile(handle)
                schema, metadata = parquet.schema_arrow, parquet.metadata
                if missing := [column for column in REQUIRED if column not in schema.names]:
                    raise UserError(f"{where} has no column {', '.join(missing)}; expected cyberagent/crello's files")
                ids = parquet.read(["id"], use_threads=False).column(0).to_pylist()
        except (pa.ArrowException, SampleError, OSError, ValueError) as error:
            raise UserError(f"{where} cannot be read as parquet ({type(error).__name__})") from None
        names = _class_names(schema, where)
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        first = self._files[-1].first + self._files[-1].groups[-1] if self._files else 0
        columns = tuple(column for column in (*REQUIRED, *OPTIONAL) if column in schema.names)
        groups = tuple(accumulate(sizes, initial=0))
        self._files.append(_File(name, first, groups, columns, names, _is_fractional(names, where)))
        for row, value in enumerate(ids):
            usable = isinstance(value, str) and SAFE_ID.fullmatch(value)
            sample_id = value if usable else f"{PurePosixPath(name).stem}-row{row}"
            if sample_id in self._rows:
                self._repeated.add(sample_id)
            self._rows.setdefault(sample_id, first + row)


def _of_split(name: str, split: str) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return False
    return split == "all" or path.name.startswith((f"{split}-", f"{split}.")) or path.parent.name == split


def _class_names(schema: pa.Schema, where: str) -> dict[str, tuple[str, ...]]:
    """Class names of the columns that are read and hold class labels."""
    try:
        features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        found = {column: _names(features.get(column)) for column in LABELS}
    except (ValueError, AttributeError):
        raise UserError(f"{where} has huggingface metadata that cannot be read") from None
    names = {column: tuple(words) for column, words in found.items() if words}
    if "type" not in names:
        raise UserError(f"{where} has no class names of column type in its huggingface metadata")
    return names


def _names(feature: Any) -> list[str]:
    # A list of class labels is {"feature": ...} or, in older files, a list of one.
    while not (isinstance(feature, dict) and feature.get("_type") == "ClassLabel"):
        feature = feature[0] if isinstance(feature, list) and feature else (feature or {}).get("feature")
        if not feature:
            return []
    return [str(name) for name in feature.get("names") or []]


def _is_fractional(names: dict[str, tuple[str, ...]], where: str) -> bool:
    signs = {column in names for column in ("canvas_width", "canvas_height")}
    signs.add(all(name[0].islower() for name in names["type"] if name))
    if len(signs) > 1:
        raise UserError(
            f"{where} mixes versions: canvas sizes as class labels and lower-case types mean 4, neither means 5"
        )
    return signs.pop()


def _decoded(value: Any, names: tuple[str, ...], column: str) -> Any:
    """Names of a class label, or of a list of them."""
    for label in value if isinstance(value, list) else [value]:
        if not isinstance(label, int) or not 0 <= label < len(names):
            raise SampleError(f"{column} is {label}, which is none of the {len(names)} classes")
    return [names[label] for label in value] if isinstance(value, list) else names[value]
