"""What becomes of a row: its images, boxes, order and words, and what a bad one says."""

import numpy as np
import pytest
from PIL import Image

from config.errors import SampleError
from layers.imaging.codec import MAX_PIXELS
from layers.imaging.stack import MAX_LAYERS
from tests.layers.sources.prism.rows import (
    HEIGHT,
    IMAGE,
    WIDTH,
    a_row,
    coded,
    distinct,
    on_canvas,
    opened,
    png,
    read_one,
    solid,
    struct,
    table,
)


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
def test_every_form_of_an_image_and_of_its_column(tmp_path, form, suffix):
    crop = distinct(4, 5)
    row = {"base_image": form(solid(9)), f"layer_00{suffix}": form(crop), "layer_00_box": [1, 2, 6, 6]}
    sample = read_one(tmp_path, row)
    assert sample.sample_id == "train-00000-of-00001-000000" and sample.preview is None and sample.caption == ""
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(crop, 1, 2))


def test_an_image_by_path_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "base.png").write_bytes(png(solid(9)))
    row = {"base_image": {"bytes": None, "path": "images/base.png"}, "layer_count": 0}
    assert read_one(tmp_path, row, base_image=IMAGE).layers[0].image[0, 0, 0] == 9
    table(tmp_path, {**row, "base_image": {"bytes": None, "path": "../outside.png"}}, base_image=IMAGE)
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
    sample = read_one(tmp_path, a_row(layer_00_box=box, layer_count=1, whole_image=None), whole_image=IMAGE)
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
    sample = read_one(tmp_path, row, layer_05=IMAGE, layer_12=IMAGE)
    expected = [1, *(100 + number for number in range(12) if number != 5)]
    assert [int(layer.image[0, 0, 0]) for layer in sample.layers] == expected
    assert sample.notes == ('slot without an image: "layer_05"',)


def test_without_a_count_all_images_are_layers(tmp_path):
    assert len(read_one(tmp_path, a_row(layer_count=...)).layers) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"base_image": None}, "no base_image"),
        ({"base_image": {"bytes": b"", "path": ""}}, r"base_image: not a readable image \(zero bytes"),
        ({"layer_00": {"bytes": png(distinct(4, 5))[:60], "path": ""}}, "layer_00: not a readable image"),
        ({"layer_00": "data:image/png;base64,###"}, "layer_00: not valid base64"),
        ({"layer_00": "data:image/png;base64,"}, "layer_00: not a readable image"),
        ({"layer_00": "nowhere.png"}, r"nowhere\.png: cannot be read"),
        ({"layer_00": 7}, "layer_00: a int is no image"),
        ({"layer_00": [1, 2]}, "layer_00: a list is no image"),
        ({"whole_image": b"junk"}, "whole_image: not a readable image"),
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
    types = {key: IMAGE for key in ("base_image",) if changes.get(key, 0) is None}
    with pytest.raises(SampleError, match=reason):
        read_one(tmp_path, a_row(**changes), **types)


def test_a_box_may_be_json_text(tmp_path):
    sample = read_one(tmp_path, a_row(layer_00_box="[3, 2, 8, 6]"))
    np.testing.assert_array_equal(sample.layers[1].image, on_canvas(distinct(4, 5), 3, 2))
