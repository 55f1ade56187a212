import base64
import io
import json
import multiprocessing
import os
import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layers.errors import SampleError, UserError
from layers.images import MAX_PIXELS
from layers.sources.kept import LIMIT
from layers.sources.location import Location
from layers.sources.prism_layers import PrismLayersSource
from layers.stack import MAX_LAYERS

WIDTH, HEIGHT = 16, 12
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def solid(colour, size=(WIDTH, HEIGHT)):
    return np.full((size[1], size[0], 4), colour, np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def struct(pixels):
    return {"bytes": png(pixels), "path": "some.png"}


def coded(pixels):
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def distinct(height, width, alpha=255):
    """A crop of which every pixel is another, so that any shift shows."""
    rows, columns = np.indices((height, width))
    return np.stack([rows * 9 + 1, columns * 9 + 2, rows + columns, np.full_like(rows, alpha)], -1).astype(np.uint8)


def a_row(**changes):
    row = {
        "id": "one",
        "style_category": "toy",
        "whole_image": struct(solid(7, (32, 24))),
        "whole_caption": " a poster ",
        "base_image": struct(solid((10, 20, 30, 255))),
        "base_caption": "a wall",
        "layer_count": 2,
        "layer_00": struct(distinct(4, 5)),
        "layer_00_box": [3, 2, 8, 6],
        "layer_00_caption": "a cat",
        "layer_01": struct(distinct(3, 3, 128)),
        "layer_01_box": [10, 8, 13, 11],
        "layer_01_caption": 'The text "Hello"',
        "layer_02": None,
        "layer_02_box": None,
        "layer_02_caption": None,
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def table(root, *rows, name="data/train-00000-of-00001.parquet", group=100, **types):
    """Write rows; Arrow infers the types but of columns that are null throughout, and of those given."""
    columns = dict.fromkeys(key for row in rows for key in row)
    arrays = {key: pa.array([row.get(key) for row in rows], type=types.get(key)) for key in columns}
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path, row_group_size=group)


def opened(root, split=None):
    return PrismLayersSource(Location(root, "prepare_buckets.root"), split=split)


def read_one(root, *rows, **types):
    table(root, *rows, **types)
    source = opened(root)
    return source.read(source.sample_ids()[0])


def on_canvas(crop, left, top):
    canvas = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return canvas


def test_a_row_becomes_a_background_with_its_layers_over_it(tmp_path):
    sample = read_one(tmp_path, a_row())
    assert (
        sample.sample_id == "one"
        and sample.caption == "a poster"
        and sample.notes == ('the whole image has another size: "32x24"',)
    )
    assert [layer.kind for layer in sample.layers] == ["background", "image", "text"]
    assert [layer.description for layer in sample.layers] == ["a wall", "a cat", 'The text "Hello"']
    np.testing.assert_array_equal(sample.layers[0].image, solid((10, 20, 30, 255)))
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(distinct(4, 5), 3, 2))
    np.testing.assert_array_equal(sample.layers[2].image, on_canvas(distinct(3, 3, 128), 10, 8))
    np.testing.assert_array_equal(sample.preview, solid(7, (32, 24)))


@pytest.mark.parametrize("form", [struct, coded, png])
@pytest.mark.parametrize("suffix", ["", "_image"])
def test_every_form_of_a_picture_and_of_its_column(tmp_path, form, suffix):
    crop = distinct(4, 5)
    row = {"base_image": form(solid(9)), f"layer_00{suffix}": form(crop), "layer_00_box": [1, 2, 6, 6]}
    sample = read_one(tmp_path, row)
    assert sample.sample_id == "train-00000-of-00001-000000" and sample.preview is None and sample.caption == ""
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(crop, 1, 2))


def test_a_picture_by_path_alone(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "base.png").write_bytes(png(solid(9)))
    row = {"base_image": {"bytes": None, "path": "pictures/base.png"}, "layer_count": 0}
    assert read_one(tmp_path, row, base_image=PICTURE).layers[0].image[0, 0, 0] == 9
    table(tmp_path, {**row, "base_image": {"bytes": None, "path": "../outside.png"}}, base_image=PICTURE)
    with pytest.raises(SampleError, match="points outside"):
        opened(tmp_path).read("train-00000-of-00001-000000")


@pytest.mark.parametrize(
    ("box", "where", "part"),
    [
        ([-2, -1, 3, 3], (0, 0), np.s_[1:, 2:]),
        ([13, 9, 18, 13], (13, 9), np.s_[:3, :3]),
        ([-2, 9, 3, 13], (0, 9), np.s_[:3, 2:]),
    ],
)
def test_boxes_beyond_the_canvas_are_cut(tmp_path, box, where, part):
    crop = distinct(4, 5)
    sample = read_one(tmp_path, a_row(layer_00_box=box, layer_count=1, whole_image=None), whole_image=PICTURE)
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(crop[part], *where))
    assert sample.notes == ('left out, beyond layer_count: "layer_01"', 'cut at the canvas\'s edge: "layer_00"')


def test_layers_outside_the_canvas_are_empty_and_noted(tmp_path):
    sample = read_one(tmp_path, a_row(layer_00_box=[16, 0, 21, 4], layer_01_box=[-900_000_000, 5, -899_999_997, 8]))
    assert not sample.layers[1].image.any() and not sample.layers[2].image.any()
    assert sample.notes[0] == 'outside the canvas: "layer_00, layer_01"'


@pytest.mark.parametrize("box", [[2, 1, 12, 9], [-4, -3, 6, 5], [10, 8, 22, 20], [-30, -30, 46, 42]])
def test_a_crop_of_another_size_fills_its_box(tmp_path, box):
    crop = distinct(4, 5)
    crop[:, :2, 3] = 0
    sample = read_one(tmp_path, a_row(layer_00=struct(crop), layer_00_box=box))
    # Independently: Pillow resizes the whole premultiplied crop, which is then pasted. Where alpha overshoots 1, so do
    # the colours.
    straight = crop.astype(np.float32) / 255
    channels = [straight[..., c] * straight[..., 3] for c in range(3)] + [straight[..., 3]]
    size = (box[2] - box[0], box[3] - box[1])
    bands = [np.asarray(Image.fromarray(band).resize(size, Image.Resampling.LANCZOS)) for band in channels]
    premultiplied = np.clip(np.stack(bands, -1) / np.maximum(bands[3], 1)[..., None], 0, 1)
    expected = np.zeros((HEIGHT, WIDTH, 4), np.float32)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if box[0] <= x < box[2] and box[1] <= y < box[3]:
                expected[y, x] = premultiplied[y - box[1], x - box[0]]
    image = sample.layers[1].image.astype(np.float32) / 255
    image[..., :3] *= image[..., 3:]
    assert np.abs(image - expected).max() < 2 / 255
    assert image[..., 3].max() > 0.8
    assert not sample.layers[1].image[sample.layers[1].image[..., 3] == 0].any()


def test_fractions_of_pixels_are_rounded_and_noted(tmp_path):
    row = a_row(layer_00_box=[2.9, 2.2, 8.1, 5.8], layer_01_box=[10.0, 8.0, 13.0, 11.0])
    sample = read_one(tmp_path, row)
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(distinct(4, 5), 3, 2))
    assert sample.notes[0] == 'box rounded to pixels: "layer_00_box"'


def test_colours_under_alpha_0_are_cleared(tmp_path):
    row = a_row(base_image=struct(solid((9, 9, 9, 0))), layer_00=struct(distinct(4, 5, 0)))
    sample = read_one(tmp_path, row)
    assert not sample.layers[0].image.any() and not sample.layers[1].image.any()


def test_layers_are_ordered_by_number_and_null_slots_are_unused(tmp_path):
    row = {"base_image": struct(solid(1)), "layer_count": 12}
    for number in (11, 2, 10, 0, 1, 3, 4, 6, 7, 8, 9):
        row[f"layer_{number:02d}"] = struct(solid(100 + number))
        row[f"layer_{number:02d}_box"] = [0, 0, WIDTH, HEIGHT]
    row["layer_05"], row["layer_12"] = {"bytes": None, "path": None}, None
    sample = read_one(tmp_path, row, layer_05=PICTURE, layer_12=PICTURE)
    expected = [1, *(100 + number for number in range(12) if number != 5)]
    assert [int(layer.image[0, 0, 0]) for layer in sample.layers] == expected
    assert sample.notes == ('slot without a picture: "layer_05"',)


def test_without_a_count_all_pictures_are_layers(tmp_path):
    assert len(read_one(tmp_path, a_row(layer_count=...)).layers) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"base_image": None}, "no base_image"),
        ({"base_image": {"bytes": b"", "path": ""}}, r"base_image: not a readable picture \(zero bytes"),
        ({"layer_00": {"bytes": png(distinct(4, 5))[:60], "path": ""}}, "layer_00: not a readable picture"),
        ({"layer_00": "data:image/png;base64,###"}, "layer_00: not valid base64"),
        ({"layer_00": "data:image/png;base64,"}, "layer_00: not a readable picture"),
        ({"layer_00": "nowhere.png"}, r"nowhere\.png: cannot be read"),
        ({"layer_00": 7}, "layer_00: a int is no picture"),
        ({"layer_00": [1, 2]}, "layer_00: a list is no picture"),
        ({"whole_image": b"junk"}, "whole_image: not a readable picture"),
        ({"layer_00_box": [float("nan"), 0.0, 5.0, 4.0]}, "layer_00_box: not four finite numbers"),
        ({"layer_00_box": [0.0, 0.0, float("inf"), 4.0]}, "layer_00_box: not four finite numbers"),
        ({"layer_00_box": [0.0, 0.0, 1e300, 4.0]}, "layer_00_box: not four finite numbers"),
        ({"layer_00_box": [0, 0, 100_000, 100_000]}, f"layer_00_box: 100000x100000 is above {MAX_PIXELS} pixels"),
        ({"layer_00_box": [0, 0, 0, 4]}, r"layer_00_box: \[0, 0, 0, 4\] is empty"),
        ({"layer_00_box": [8, 6, 3, 2]}, "is empty"),
        ({"layer_00_box": [1, 2, 3]}, "layer_00_box: not four numbers"),
        ({"layer_00_box": [None, 0, 5, 4]}, "layer_00_box: not four numbers"),
        ({"layer_00_box": "[0, 0, NaN, 4]"}, "layer_00_box: not valid JSON"),
        ({"layer_00_box": {"x": 3}}, "layer_00_box: not four numbers"),
        ({"layer_00_box": None}, "layer_00: no box, and 5x4 is not the canvas's 16x12"),
        ({"layer_count": -1}, "layer_count is '-1'"),
        ({"layer_count": 1.5}, "layer_count is '1.5'"),
        ({"layer_count": float("nan")}, "layer_count is 'nan'"),
        ({"layer_count": float("inf")}, "layer_count is 'inf'"),
        ({"layer_count": "two"}, "layer_count is 'two'"),
        ({"layer_count": 4}, "layer_count is 4, but there are columns for 3 layers"),
        ({"layer_count": MAX_LAYERS}, "500 layers and a background are above 500"),
        ({"layer_count": 1e300}, "layers and a background are above 500"),
    ],
)
def test_a_bad_row_gives_its_reason(tmp_path, changes, reason):
    types = {key: PICTURE for key in ("base_image",) if changes.get(key, 0) is None}
    with pytest.raises(SampleError, match=reason):
        read_one(tmp_path, a_row(**changes), **types)


def test_a_box_may_be_json_text(tmp_path):
    sample = read_one(tmp_path, a_row(layer_00_box="[3, 2, 8, 6]"))
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(distinct(4, 5), 3, 2))


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


def folder(root, name="sample_1", metadata=None, **pictures):
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    known = {"base_image": solid((10, 20, 30, 255)), "whole_image": solid(7), "layer_00": distinct(4, 5)}
    for stem, pixels in (known | pictures).items():
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
