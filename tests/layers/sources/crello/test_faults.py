"""Bad rows, broken files and impossible arguments: each is refused with its reason."""

import json

import pyarrow.parquet as pq
import pytest

from config.errors import SampleError, UserError
from tests.layers.sources.crello.designs import (
    GEOMETRY,
    SIDES_4,
    TYPES_4,
    design,
    element,
    label,
    many,
    noise,
    read,
    save,
    source,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"left": [NAN]}, r"element 0 \(ImageElement\): left is nan, no finite number"),
        ({"angle": [INF]}, "angle is inf"),
        ({"top": [None]}, "top is None"),
        ({"width": [1e9]}, "box reaches farther than 1000000 pixels"),
        ({"left": [-3e38]}, "box reaches farther"),
        ({"angle": [3e38]}, "box reaches farther"),
        ({"height": [-4.0]}, "its box is 3x-4 pixels"),
        ({"opacity": [1.5]}, "opacity is 1.5, expected 0 to 1"),
        ({"opacity": [-0.5]}, "opacity is -0.5"),
        ({"opacity": [NAN]}, "opacity is nan"),
        ({"left": [1.0, 2.0]}, "column left has 2 entries for 1 elements"),
        ({"type": [0, 0]}, "column type has 2 entries"),
        ({"text": []}, "column text has 0 entries"),
        ({"image": []}, "column image has 0 entries"),
        ({"width": None}, "column width has None"),
        ({"length": 0}, "there are no elements"),
        ({"length": None}, "there are no elements"),
        ({"length": -1}, "there are no elements"),
        ({"length": 501}, "501 elements, more than 500"),
        ({"type": [17]}, "type is 17, which is none of the 6 classes"),
        ({"type": [None]}, "type is None"),
        ({"type": None}, "type is None"),
        ({"canvas_width": None}, "canvas_width is None, no number of pixels"),
        ({"canvas_height": 0}, "canvas_height is 0"),
        ({"canvas_width": 2**62}, "is above 64000000 pixels"),
        ({"image": [{"bytes": b"\x89PNG\r\n\x1a\nbroken", "path": None}]}, "image: not a readable image"),
        ({"image": [{"bytes": b"", "path": None}]}, "image: not a readable image"),
        ({"image": [None]}, "no element shows anything on the canvas"),
        ({"image": [{"bytes": None, "path": "a.png"}]}, "no element shows anything"),
    ],
)
def test_a_bad_row_gives_its_reason(tmp_path, change, reason):
    item = element(noise(3, 3))
    with pytest.raises(SampleError, match=reason):
        read(tmp_path, item, override=change)


@pytest.mark.parametrize(
    ("colour", "reason"),
    [
        ("blue", "cannot be read"),
        ("rgba(1, 2)", "cannot be read"),
        ("rgba(1, 2, nan)", "cannot be read"),
        ("rgba(1, 2, 1e999)", "cannot be read"),
        ("rgba(1, 2, 300, 1)", "is out of range"),
        ("rgba(1, 2, 3, 7)", "is out of range"),
    ],
)
def test_a_bad_colour_gives_its_reason(tmp_path, colour, reason):
    with pytest.raises(SampleError, match=rf"element 0 \(ColoredBackground\): colour .*{reason}"):
        read(tmp_path, element(None, kind="ColoredBackground", color=[colour]))


def test_a_row_of_nulls_is_refused(tmp_path):
    rows = many(2)
    nulls = dict.fromkeys((*GEOMETRY, "opacity", "type", "image", "text", "color", "length", "title"))
    rows[0]["override"] = nulls | {"canvas_width": None, "canvas_height": None}
    save(tmp_path / "train-0.parquet", *rows)
    with pytest.raises(SampleError, match="type is None"):
        source(tmp_path).read("id00")
    assert source(tmp_path).read("id01").layers


@pytest.mark.parametrize("side", [-1, 5, None])
def test_a_version_4_canvas_without_a_class_is_refused(tmp_path, side):
    with pytest.raises(SampleError, match=f"canvas_width is {side}, which is none of the 5 classes"):
        read(tmp_path, element(noise(3, 3), color=[]), version=4, override={"canvas_width": side})


def test_a_version_4_canvas_whose_class_is_no_number_is_refused(tmp_path):
    names = {"type": label(TYPES_4, True), "canvas_width": label(["wide"]), "canvas_height": label(SIDES_4)}
    rows = [design(element(noise(3, 3), color=[]), override={"canvas_width": 0})]
    save(tmp_path / "train-0.parquet", *rows, version=4, metadata=json.dumps({"info": {"features": names}}))
    with pytest.raises(SampleError, match="canvas_width is 'wide', no number of pixels"):
        source(tmp_path).read("a")


def test_missing_optional_columns_leave_words_and_preview_empty(tmp_path):
    save(tmp_path / "train-0.parquet", *many(1), without=("title", "text", "color", "preview"))
    sample = source(tmp_path).read("id00")
    assert (sample.caption, sample.preview, sample.layers[0].description) == ("", None, "")


def test_an_unknown_id_is_a_sample_error(dataset):
    with pytest.raises(SampleError, match='no row has the id "nobody"'):
        source(dataset).read("nobody")


def test_a_file_that_breaks_after_it_was_listed_is_a_sample_error(dataset):
    reader = source(dataset)
    (dataset / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing else")
    (dataset / "data" / "validation-00000-of-00001.parquet").unlink()
    for name in ("id14", "id12"):
        with pytest.raises(SampleError, match="cannot be read"):
            reader.read(name)
    assert reader.read("id00").layers


def test_reading_goes_on_after_a_connection_broke(dataset, monkeypatch):
    def broken(*args, **more):
        yield from ()
        raise ConnectionResetError("gone")

    reader = source(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "iter_batches", broken)
        with pytest.raises(SampleError, match=r"row 1 cannot be read \(ConnectionResetError\)"):
            reader.read("id01")
    assert reader.read("id01").layers[0].image[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"without": ("left", "image")}, r"data\.crello: train-0\.parquet has no column left, image"),
        ({"without": ("id",)}, "has no column id"),
        ({"metadata": ""}, "has no class names of column type"),
        ({"metadata": "{"}, "has huggingface metadata that cannot be read"),
        ({"metadata": "[]"}, "has huggingface metadata that cannot be read"),
        ({"metadata": '{"info": {"features": {"type": {"dtype": "int64"}}}}'}, "has no class names of column type"),
        ({"metadata": json.dumps({"info": {"features": {"type": label(TYPES_4, True)}}})}, "mixes versions"),
    ],
)
def test_files_that_are_not_crellos_are_refused(tmp_path, options, reason):
    save(tmp_path / "train-0.parquet", *many(1), **options)
    with pytest.raises(UserError, match=reason):
        source(tmp_path)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.crello: .* has no parquet files of split 'test'"):
        source(tmp_path, "test")
    (tmp_path / "test-0.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"data\.crello: test-0\.parquet cannot be read as parquet"):
        source(tmp_path, "test")


@pytest.mark.parametrize("options", [{"split": "dev"}, {"short_side": 0}, {"short_side": True}, {"short_side": 3.5}])
def test_impossible_arguments_are_refused(dataset, options):
    with pytest.raises(UserError, match=rf"data\.crello: {next(iter(options))}"):
        source(dataset, **options)
