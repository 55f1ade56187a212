import json

import numpy as np
import pytest
from PIL import Image

from layers.buckets import BucketLimits
from layers.compositing import composite, group_into_peels, to_float
from layers.errors import SampleError
from layers.images import MAX_PIXELS, PictureError, read_rgba, write_png
from layers.prepare import Preparation, fit_to_bucket, group_layers, prepare_sample
from layers.sources.rendered import RenderedSource
from layers.stack import Layer, LayeredSample
from tests.conftest import write_rendered

LIMITS = BucketLimits(min_side=32, max_side=64, max_pixels=4096, max_aspect=2.3)


def layer(columns, alpha=255, kind="image", words=""):
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, columns] = (*np.random.default_rng(columns.start).integers(0, 255, 3), alpha)
    return Layer(image, kind, words)


BACKGROUND = layer(slice(0, 64), kind="background")


def test_layers_side_by_side_become_one():
    merged = group_layers([BACKGROUND, layer(slice(0, 9), kind="text", words="a"), layer(slice(20, 30), words="b")])
    assert [(x.kind, x.description) for x in merged] == [("background", ""), ("group", "a, b")]
    flat = composite([to_float(x.image) for x in merged])
    assert np.abs(flat[:, 20:30] * 255 - layer(slice(20, 30)).image[:, 20:30]).max() < 0.5


def test_haze_gives_no_order():
    hazy = np.maximum(layer(slice(0, 9)).image, layer(slice(9, 12), alpha=10).image)
    stack = [BACKGROUND, Layer(hazy), layer(slice(10, 30))]
    assert len(group_layers(stack, overlap_alpha=0)) == 3
    assert len(group_layers(stack, overlap_alpha=16)) == 2


def test_the_evaluation_groups_peels_no_further():
    rng = np.random.default_rng(0)
    for _ in range(20):
        stack = [BACKGROUND]
        for _ in range(6):
            left = int(rng.integers(0, 50))
            stack.append(layer(slice(left, left + int(rng.integers(3, 20))), alpha=int(rng.integers(5, 256))))
        peels = group_layers(stack, overlap_alpha=16)
        assert group_into_peels([x.image[..., 3] for x in peels]) == [[i] for i in range(len(peels))]


def test_too_many_layers_and_none_are_reasons():
    stack = LayeredSample("s", (BACKGROUND, layer(slice(0, 40)), layer(slice(10, 50)), layer(slice(20, 60))))
    with pytest.raises(SampleError, match="4 layers, more than max_layers 3"):
        fit_to_bucket(stack, Preparation(LIMITS, "peels", 16, 3))
    empty = LayeredSample("s", (Layer(np.zeros((64, 64, 4), np.uint8)),))
    with pytest.raises(SampleError, match="every layer is empty"):
        fit_to_bucket(empty, Preparation(LIMITS, "peels", 16, 3))


def test_what_is_written_is_the_promised_layout(tmp_path):
    write_rendered(tmp_path, "one", size=(96, 64), components=2)
    source = RenderedSource(tmp_path / "rendered", tmp_path / "layouts")
    record = prepare_sample(source, "one", "val", Preparation(LIMITS, "peels", 16, 6), tmp_path / "out")
    assert record["composite"] == "val/w64-h32/one_composite.png"
    assert [x["path"] for x in record["layers"]] == [f"val/w64-h32/one_comp{k:03d}.png" for k in range(3)]
    assert [x["description"] for x in record["layers"]] == ["", "disc 0", "disc 1"]
    assert json.dumps(record)
    with Image.open(tmp_path / "out" / record["composite"]) as picture:
        assert picture.mode == "RGBA" and picture.size == (64, 32)
    again = prepare_sample(source, "one", "val", Preparation(LIMITS, "peels", 16, 6), tmp_path / "out2")
    assert again == record, "the same pixels give the same md5"


def test_a_bad_sample_is_dropped_with_its_reason(tmp_path):
    write_rendered(tmp_path, "bad")
    (tmp_path / "rendered" / "bad" / "component_1.png").write_bytes(b"\x89PNG\r\n")
    source = RenderedSource(tmp_path / "rendered", tmp_path / "layouts")
    record = prepare_sample(source, "bad", "train", Preparation(LIMITS, "peels", 16, 6), tmp_path / "out")
    assert record["id"] == "bad" and "component_1.png: not a readable picture" in record["reason"]
    assert not list((tmp_path / "out").rglob("*.png"))


def test_bombs_are_refused_unread(tmp_path):
    side = int(MAX_PIXELS**0.5) + 8
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(PictureError, match=r"bomb\.png"):
        read_rgba(tmp_path / "bomb.png")


def test_writing_is_whole_or_not_at_all(tmp_path):
    with pytest.raises(TypeError):
        write_png(tmp_path / "x.png", np.zeros((2, 2, 7), np.uint8))
    assert not list(tmp_path.iterdir())
