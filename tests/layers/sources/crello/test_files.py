"""The parquet files: splits, rows in any order, processes, signatures and ids."""

import os
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from config.errors import SampleError
from layers.sources.location import Location
from tests.layers.sources.crello.designs import many, save, source


@pytest.mark.parametrize(
    ("split", "numbers"), [("train", range(12)), ("validation", (12, 13)), ("test", (14, 15, 16)), ("all", range(17))]
)
def test_splits_are_told_by_file_names(dataset, split, numbers):
    ids = source(dataset, split).sample_ids()
    assert sorted(ids) == [f"id{i:02d}" for i in numbers]
    reader = source(dataset / "data", split)
    assert reader.sample_ids() == ids
    assert [reader.split_key(sample_id) for sample_id in ids] == ids


def test_files_may_lie_in_a_folder_named_after_the_split(tmp_path):
    save(tmp_path / "default" / "test" / "0000.parquet", *many(2))
    save(tmp_path / "default" / "train" / "0000.parquet", *many(2, 2))
    assert source(tmp_path, "test").sample_ids() == ["id00", "id01"]


def test_rows_are_found_in_any_order_across_files_and_row_groups(dataset):
    reader = source(dataset)
    order = np.random.default_rng(0).permutation(17).tolist()
    for i in [*range(17), *range(16, -1, -1), *order]:
        assert reader.read(f"id{i:02d}").layers[0].image[0, 0, 0] == i


def test_a_long_row_group_is_read_forwards_and_backwards(tmp_path):
    save(tmp_path / "train-0.parquet", *many(40), group_rows=100)
    reader = source(tmp_path)
    for i in (30, 3, 4, 39, 0):
        assert reader.read(f"id{i:02d}").layers[0].image[0, 0, 0] == i


def test_a_reader_travels_with_an_open_file_and_reads_on(dataset):
    reader = source(dataset)
    reader.read("id08")
    state = pickle.dumps(reader)
    assert len(state) < 4000
    copy = pickle.loads(state)
    for i in (9, 8, 0):
        assert copy.read(f"id{i:02d}").layers[0].image[0, 0, 0] == i


def test_a_forked_process_opens_its_own_file(dataset, monkeypatch):
    reader = source(dataset)
    reader.read("id00")
    opened = []
    real = Location.open
    monkeypatch.setattr(Location, "open", lambda self, name: opened.append(name) or real(self, name))
    reader.read("id01")
    assert opened == []
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert reader.read("id02").layers[0].image[0, 0, 0] == 2
    assert opened == ["data/train-00000-of-00002.parquet"]


def test_one_sample_reads_one_row_group(dataset, monkeypatch):
    read_groups = []
    real = pq.ParquetFile.iter_batches

    def spy(self, *args, row_groups, **more):
        read_groups.append(row_groups)
        return real(self, *args, row_groups=row_groups, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    reader = source(dataset)
    for i in (3, 4, 5, 6):
        reader.read(f"id{i:02d}")
    assert read_groups == [[1], [2]]


def test_signature_changes_with_file_row_and_rendering(dataset):
    reader = source(dataset)
    first = reader.signature("id00")
    assert first == source(dataset).signature("id00")
    others = [reader.signature("id01"), reader.signature("id08"), source(dataset, short_side=9).signature("id00")]
    assert len({first, *others}) == 4
    save(dataset / "data" / "train-00000-of-00002.parquet", *many(8), group_rows=3)
    assert source(dataset).signature("id00") != first


def test_repeated_ids_are_listed_once_and_refused(tmp_path):
    save(tmp_path / "train-0.parquet", *many(2))
    save(tmp_path / "test-0.parquet", *many(2, 1))
    reader = source(tmp_path)
    assert sorted(reader.sample_ids()) == ["id00", "id01", "id02"]
    with pytest.raises(SampleError, match='more than one row has the id "id01"'):
        reader.read("id01")
    assert reader.read("id02").layers


@pytest.mark.parametrize("bad", [None, "", "../up", "a/b"])
def test_a_row_without_a_usable_id_is_called_after_its_place(tmp_path, bad):
    rows = many(3)
    rows[1]["id"] = bad
    save(tmp_path / "train-0.parquet", *rows)
    reader = source(tmp_path)
    assert reader.sample_ids() == ["id00", "train-0-row1", "id02"]
    assert reader.read("train-0-row1").layers[0].image[0, 0, 0] == 1
