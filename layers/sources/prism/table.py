"""Rows of PrismLayers' parquet files, found by id and read one at a time."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from config.errors import SampleError, UserError
from layers.sources.location import Location
from layers.sources.memo import forget, kept

COLUMN = re.compile(r"(base|whole)_(image|caption)|layer_count|layer_[0-9]{2,3}(_image|_box|_caption)?")
ID_COLUMNS = ("id", "sample_id")
SAFE_ID = re.compile(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,119}")
# Read-ahead buffer per column, in bytes. Without it, pyarrow holds a whole row group in memory twice, compressed and
# decompressed, and a row group may be 1 GB.
BUFFER = 1 << 18


@dataclass(frozen=True)
class _Index:
    """Index of the rows; ``first`` holds the number of each file's first row among all rows."""

    rows: dict[str, int]
    first: list[int]


class _Reader:
    """One open file. Rows in ascending order are decoded once; a step back starts the row group again."""

    def __init__(self, root: Location, name: str) -> None:
        self.name = name
        self._parquet = pq.ParquetFile(root.open(name), buffer_size=BUFFER, pre_buffer=False)
        self._columns = [column for column in self._parquet.schema_arrow.names if COLUMN.fullmatch(column)]
        metadata = self._parquet.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._groups = list(accumulate(sizes, initial=0))
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._group = self._next = -1

    def row(self, number: int) -> dict[str, Any]:
        group = bisect_right(self._groups, number) - 1
        if group != self._group or number < self._next:
            self._batches = self._parquet.iter_batches(1, row_groups=[group], columns=self._columns, use_threads=False)
            self._group, self._next = group, self._groups[group]
        while True:
            batch = next(self._batches)
            self._next += 1
            if self._next > number:
                return batch.to_pylist()[0]


class PrismTable:
    """Access to rows by id. The index is cached per process; only file names are pickled to others.

    Args:
        root: location of the dataset.
        files: its parquet files, relative to it.
    """

    def __init__(self, root: Location, files: Sequence[str]) -> None:
        self._root, self._files = root, list(files)
        self._token = uuid4().hex

    def ids(self) -> list[str]:
        """All ids, in the order of files and rows; a row without a unique id that is a valid file name has a number."""
        return list(self._index().rows)

    def signature(self, sample_id: str) -> str:
        """String that changes when the row's file does."""
        if sample_id not in self._index().rows:
            return "unknown"
        name, row = self._find(sample_id)
        return f"{self._root.signature([name])}-{row}"

    def row(self, sample_id: str) -> dict[str, Any]:
        """The columns of one row that are needed for a design.

        Raises:
            SampleError: if there is no such id, or the file cannot be read.
        """
        name, row = self._find(sample_id)
        # A forked process shares the file offset of its parent's handle, so it opens its own.
        key = ("prism", self._token, os.getpid())
        try:
            reader = kept(key, lambda: _Reader(self._root, name))
            if reader.name != name:
                # One open file at a time, since each holds its current row group.
                forget(key)
                reader = kept(key, lambda: _Reader(self._root, name))
            return reader.row(row)
        except SampleError:
            raise
        # A remote file system may raise any exception, and pyarrow passes it on.
        except Exception as error:
            forget(key)
            raise SampleError(f"{name}: row {row} cannot be read ({type(error).__name__})") from None

    def _find(self, sample_id: str) -> tuple[str, int]:
        index = self._index()
        if sample_id not in index.rows:
            raise SampleError(f"no sample {sample_id!r}")
        number = index.rows[sample_id]
        file = bisect_right(index.first, number) - 1
        return self._files[file], number - index.first[file]

    def _index(self) -> _Index:
        return kept(("prism", self._token), self._indexed)

    def _indexed(self) -> _Index:
        stems = Counter(PurePosixPath(name).stem for name in self._files)
        index = _Index({}, [])
        for name in self._files:
            path = PurePosixPath(name)
            stem = path.stem if stems[path.stem] == 1 else str(path.with_suffix("")).replace("/", "-")
            index.first.append(len(index.rows))
            for row, value in enumerate(self._ids_of(name)):
                usable = value if SAFE_ID.fullmatch(value) and value not in index.rows else f"{stem}-{row:06d}"
                while usable in index.rows:
                    usable += "-again"
                index.rows[usable] = len(index.rows)
        return index

    def _ids_of(self, name: str) -> list[str]:
        """Ids of a file's rows, empty where there is none."""
        where = f"{self._root.key}: {name}"
        try:
            with self._root.open(name) as handle:
                parquet = pq.ParquetFile(handle)
                if "base_image" not in parquet.schema_arrow.names:
                    raise UserError(f"{where} has no column base_image; expected PrismLayers' files")
                column = next((column for column in ID_COLUMNS if column in parquet.schema_arrow.names), None)
                if column is None:
                    return [""] * parquet.metadata.num_rows
                values = parquet.read([column], use_threads=False).column(0).to_pylist()
        except UserError:
            raise
        # As above: any exception that pyarrow passes on.
        except Exception as error:
            raise UserError(f"{where} cannot be read as parquet ({type(error).__name__})") from None
        return [str(value) if isinstance(value, str | int) else "" for value in values]
