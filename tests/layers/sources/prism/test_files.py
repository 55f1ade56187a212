"""Tables and folders: ids, splits, damage, signatures, and reading from several processes."""

import json
import multiprocessing
import os
import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config.errors import SampleError, UserError
from layers.sources.memo import LIMIT
from tests.layers.sources.prism.rows import HEIGHT, WIDTH, a_row, distinct, on_canvas, opened, png, solid, struct, table


def test_rows_are_found_in_any_order_across_groups_and_files(tmp_path):
    for file in range(2):
        rows = [a_row(id=f"{file}-{number}", base_image=struct(solid(10 * file + number))) for number in range(7)]
        table(tmp_path, *rows, name=f"data/x-0000{file}-of-00002.parquet", group=3)
    source = opened(tmp_path)
    assert source.sample_ids() == [f"{file}-{number}" for file in range(2) for number in range(7)]
    for name in [*source.sample_ids(), "1-6", "0-5", "0-3", "1-4", "1-4", "0-0"]:
        file, number = map(int, name.split("-"))
        assert source.read(name).layers[0].image[0, 0, 0] == 10 * file + number
    with pytest.raises(SampleError, match="no sample '2-0'"):
        source.read("2-0")
    assert isinstance(source.signature("2-0"), str)


def test_ids_are_unique_and_fit_for_file_names(tmp_path):
    first = [a_row(id=name) for name in ("a", "../b", "", "a", ".hidden", None)]
    table(tmp_path, *first, name="x/part.parquet")
    table(tmp_path, *(a_row(sample_id=number, id=...) for number in (7, 8)), name="y/part.parquet")
    table(tmp_path, a_row(id=...), name="z.parquet")
    stems = [f"x-part-{number:06d}" for number in range(1, 6)]
    source = opened(tmp_path)
    assert source.sample_ids() == ["a", *stems, "7", "8", "z-000000"]
    assert all(source.read(name).sample_id == name for name in source.sample_ids())


def test_splits(tmp_path):
    names = [
        *("data/pop-00000-of-00002.parquet", "data/pop-00001-of-00002-abcdef01.parquet"),
        *("data/pop-art-00000-of-00001.parquet", "pop/0000.parquet", "pop.parquet", ".cache/pop.parquet"),
    ]
    for number, name in enumerate(names):
        table(tmp_path, a_row(id=str(number)), name=name)
    assert sorted(opened(tmp_path, "pop").sample_ids()) == ["0", "1", "3", "4"]
    assert opened(tmp_path, "pop-art").sample_ids() == ["2"]
    assert len(opened(tmp_path).sample_ids()) == 5
    with pytest.raises(UserError, match=r"^prepare_buckets\.root: .* no parquet file of split 'toy'.*pop-00000"):
        opened(tmp_path, "toy")


def test_a_wrong_root_is_one_clear_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"^prepare_buckets\.root: .* has neither parquet files nor folders"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"^prepare_buckets\.root: split '\.\./x' cannot be used"):
        opened(tmp_path, "../x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"^prepare_buckets\.root: broken\.parquet cannot be read as parquet"):
        opened(tmp_path).sample_ids()
    pq.write_table(pa.table({"other": [1]}), tmp_path / "broken.parquet")
    with pytest.raises(UserError, match="has no column base_image"):
        opened(tmp_path).sample_ids()


def test_a_damaged_page_costs_its_rows_alone(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 4), np.uint8)
    noise[..., 3] = 255
    rows = [a_row(id=str(number), base_image=struct(noise[number])) for number in range(2)]
    table(tmp_path, *rows, name="x.parquet", group=1)
    group = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    chunk, data = chunks["base_image.bytes"], bytearray((tmp_path / "x.parquet").read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    (tmp_path / "x.parquet").write_bytes(data)
    source = opened(tmp_path)
    for _ in range(2):
        with pytest.raises(SampleError, match=r"x\.parquet: row 0 cannot be read"):
            source.read("0")
        np.testing.assert_array_equal(source.read("1").layers[0].image, noise[1])


def folder(root, name="sample_1", metadata=None, **images):
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    known = {"base_image": solid((10, 20, 30, 255)), "whole_image": solid(7), "layer_00": distinct(4, 5)}
    for stem, pixels in (known | images).items():
        if pixels is not None:
            (path / f"{stem}.png").write_bytes(png(pixels))
    if metadata is not None:
        (path / "metadata.json").write_text(metadata if isinstance(metadata, str) else json.dumps(metadata))
    return path


LISTED = {
    "whole_caption": "a poster",
    "base_caption": "a wall",
    "layers": [
        {"layer_idx": 1, "image_path": "layer_01.png", "box": [10, 8, 13, 11], "type": "caption", "caption": "Hello"},
        {"layer_idx": 0, "image_path": "layer_00.png", "box": [3, 2, 8, 6], "caption": "a cat"},
    ],
}


def test_the_form_of_folders(tmp_path):
    folder(tmp_path, metadata=LISTED, layer_01=distinct(3, 3), layer_07=solid(1))
    (tmp_path / "sample_2").mkdir()
    source = opened(tmp_path)
    assert source.sample_ids() == ["sample_1", "sample_2"]
    sample = source.read("sample_1")
    assert [layer.kind for layer in sample.layers] == ["background", "image", "text"]
    assert [layer.description for layer in sample.layers] == ["a wall", "a cat", "Hello"]
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(distinct(4, 5), 3, 2))
    np.testing.assert_array_equal(sample.layers[2].image, on_canvas(distinct(3, 3), 10, 8))
    assert sample.caption == "a poster" and sample.preview[0, 0, 0] == 7
    assert sample.notes == ('left out, not listed: "layer_07.png"',)
    with pytest.raises(SampleError, match=r"metadata\.json: cannot be read"):
        source.read("sample_2")


def test_folders_whose_metadata_has_the_columns_names_or_nothing(tmp_path):
    boxes = {"layer_count": 1, "layer_00_box": [3, 2, 8, 6], "layer_00_caption": "a cat", "layer_00": "../x.png"}
    folder(tmp_path, "a", boxes)
    folder(tmp_path, "b", {}, layer_00=solid(3), layer_01=solid(4), whole_image=None)
    source = opened(tmp_path)
    np.testing.assert_array_equal(source.read("a").layers[1].image, on_canvas(distinct(4, 5), 3, 2))
    assert [int(layer.image[0, 0, 0]) for layer in source.read("b").layers] == [10, 3, 4]
    assert source.read("b").preview is None


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("{", r"metadata\.json: not valid JSON"),
        ("[]", r"metadata\.json is no JSON object"),
        ('{"layers": [{"image_path": "layer_00.png", "box": [0, 0, NaN, 1]}]}', "NaN is no JSON number"),
        ('{"layers": [{"image_path": "layer_00.png", "box": [0, 0, 1e999, 1]}]}', "not four finite numbers"),
        ({"layers": {"a": 1}}, "layers is no list of objects"),
        ({"layers": [3]}, "layers is no list of objects"),
        ({"layers": [{}]}, "layer 0 has no image_path"),
        ({"layers": [{"image_path": "../secret.png"}]}, "points outside"),
        ({"layers": [{"image_path": "missing.png"}]}, r"missing\.png: cannot be read"),
        ({"layers": [LISTED["layers"][1]] * 2}, "several layers have one layer_idx"),
        ({"layers": [{"image_path": "layer_00.png"}] * 1200}, "1200 layers and a background are above 500"),
        ({}, "layer_00: no box, and 5x4|no box, and 5x4"),
        ({"layer_count": 10**400}, "layers and a background are above 500"),
    ],
)
def test_a_bad_folder_gives_its_reason_and_leaves_the_others(tmp_path, metadata, reason):
    folder(tmp_path, "a", metadata)
    folder(tmp_path, "b", LISTED, layer_01=distinct(3, 3))
    source = opened(tmp_path)
    with pytest.raises(SampleError, match=reason):
        source.read("a")
    assert len(source.read("b").layers) == 3
    with pytest.raises(SampleError, match="points outside"):
        source.read("../a")


def test_folders_of_a_split_and_links_out_of_the_root(tmp_path):
    folder(tmp_path / "data" / "toy", "a", LISTED, layer_01=distinct(3, 3))
    folder(tmp_path / "outside", "b", LISTED, layer_01=distinct(3, 3))
    (tmp_path / "data" / "toy" / "_link").symlink_to(tmp_path / "outside" / "b")
    source = opened(tmp_path / "data", "toy")
    assert source.sample_ids() == ["_link", "a"] and len(source.read("a").layers) == 3
    with pytest.raises(SampleError, match="points outside"):
        source.read("_link")
    assert isinstance(source.signature("_link"), str)
    with pytest.raises(UserError, match="in folder film"):
        opened(tmp_path / "data", "film")


def test_signatures(tmp_path):
    table(tmp_path / "table", a_row(id="a"), a_row(id="b"))
    source = opened(tmp_path / "table")
    before = [source.signature(name) for name in "ab"]
    assert before == [opened(tmp_path / "table").signature(name) for name in "ab"] and before[0] != before[1]
    os.utime(tmp_path / "table" / "data" / "train-00000-of-00001.parquet", (0, 0))
    assert [source.signature(name) for name in "ab"] != before

    path = folder(tmp_path / "folders", "a", LISTED)
    folder(tmp_path / "folders", "b", LISTED)
    source = opened(tmp_path / "folders")
    before = [source.signature(name) for name in "ab"]
    (path / "layer_09.png").write_bytes(b"new")
    after = [source.signature(name) for name in "ab"]
    assert after[0] != before[0] and after[1] == before[1]


def test_it_reads_from_another_file_system_and_travels(tmp_path):
    table(tmp_path, *(a_row(id=str(number)) for number in range(3)))
    files = fsspec.filesystem("memory")
    files.put(f"{tmp_path}/", "/prism-test/", recursive=True)
    source = opened("memory://prism-test")
    source.read("1")
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 2000
    for _ in range(LIMIT + 1):
        opened("memory://prism-test").read("0")
    assert [len(reader.read(name).layers) for reader in (source, copy) for name in "210"] == [3] * 6
    files.rm("/prism-test", recursive=True)


def first_values(source, names, answers):
    answers.put([int(source.read(name).layers[0].image[0, 0, 0]) for name in names])


def test_forked_processes_do_not_share_a_handle(tmp_path):
    rows = [a_row(id=str(number), base_image=struct(solid(number))) for number in range(40)]
    table(tmp_path, *rows, group=5)
    source = opened(tmp_path)
    source.read("3")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    names = source.sample_ids()
    workers = [context.Process(target=first_values, args=(source, names, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [int(source.read(name).layers[0].image[0, 0, 0]) for name in names] == list(range(40))
    assert [answers.get(timeout=60) for _ in workers] == [list(range(40))] * 2
    for worker in workers:
        worker.join(60)
