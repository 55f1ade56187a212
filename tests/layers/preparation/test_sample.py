import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config.errors import SampleError
from layers.dataset.buckets import BucketLimits
from layers.dataset.storage import FileWriter
from layers.imaging.compositing import composite, to_float
from layers.imaging.stack import Layer, LayeredSample
from layers.preparation.patches import Patch
from layers.preparation.sample import Preparation, fit_to_bucket, prepare_sample
from layers.sources.base import Source
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource
from tests.conftest import write_rendered

LIMITS = BucketLimits(min_side=32, max_side=64, max_pixels=4096, max_aspect=2.3)


def layer(columns, colour, alpha=255, kind="image", words=""):
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, columns] = (*colour, alpha)
    return Layer(image, kind, words)


BACKGROUND = layer(slice(0, 64), (9, 90, 200), kind="background")
ACROSS = (
    BACKGROUND,
    layer(slice(0, 40), (255, 0, 0)),
    layer(slice(10, 50), (0, 255, 0)),
    layer(slice(20, 60), (0, 0, 255), alpha=200),
)


def fit(layers, preview=None, **changes):
    return fit_to_bucket(LayeredSample("s", tuple(layers), preview=preview), Preparation(LIMITS, **changes))


def test_too_many_layers_and_none_are_reasons():
    with pytest.raises(SampleError, match="4 layers, more than max_layers 3"):
        fit(ACROSS, max_layers=3)
    with pytest.raises(SampleError, match="every layer is empty"):
        fit([Layer(np.zeros((64, 64, 4), np.uint8))])


def test_grouping_is_always_never_or_only_for_the_crowded():
    apart = (BACKGROUND, *(layer(slice(k, k + 5), (k, 9, 9)) for k in (0, 20, 40)))
    assert [len(fit(apart, group=group, max_layers=4).layers) for group in ("peels", "max_layers", "none")] == [2, 4, 4]
    assert len(fit(apart, group="max_layers", max_layers=3).layers) == 2
    with pytest.raises(SampleError, match="4 layers, more than max_layers 3"):
        fit(apart, group="none", max_layers=3)


def test_what_was_dropped_and_merged_is_counted():
    stack = (
        BACKGROUND,
        Layer(np.zeros((64, 64, 4), np.uint8)),
        layer(slice(0, 5), (1, 1, 1)),
        layer(slice(9, 12), (2, 2, 2)),
    )
    figures = fit(stack).figures
    assert figures["dropped_layers"] == {"empty": 1} and figures["merged_layers"] == 1


def test_the_preview_is_compared_over_white_at_any_size():
    flat = composite([to_float(x.image) for x in ACROSS])
    same = np.rint(flat * 255).astype(np.uint8)
    assert fit(ACROSS, same).figures["preview_error"] < 0.5
    larger = np.asarray(Image.fromarray(same).resize((128, 128), Image.Resampling.NEAREST))
    assert fit(ACROSS, larger).figures["preview_error"] < 2.0
    wrong = same.copy()
    wrong[:, :32, :3] = 255 - wrong[:, :32, :3]
    error = fit(ACROSS, wrong).figures["preview_error"]
    assert error == pytest.approx(np.abs(wrong.astype(float) - same)[..., :3].mean(), rel=0.05) and error > 50
    with pytest.raises(SampleError, match=r"levels from the preview, more than preview_tolerance 8\.0"):
        fit(ACROSS, wrong, drop_mismatched=True)
    assert "preview_error" not in fit(ACROSS).figures


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(33, 150), st.integers(33, 150))
@settings(max_examples=60, deadline=None)
def test_stored_layers_recompose_to_the_stored_composite(seed, count, height, width):
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(count):
        image = np.zeros((height, width, 4), np.uint8)
        top, left = rng.integers(0, height), rng.integers(0, width)
        part = image[top : top + rng.integers(1, 80), left : left + rng.integers(1, 80)]
        part[...] = rng.integers(0, 256, (*part.shape[:2], 4) if rng.random() < 0.5 else 4)
        layers.append(Layer(image))
    try:
        fitted = fit(layers, max_layers=9)
    except SampleError as error:
        reasons = ("fits no bucket", "every layer", "aspect", "no layer changes the composite")
        assert any(reason in str(error) for reason in reasons)
        return
    size = fitted.composite.shape[:2]
    flat = composite([to_float(patch.on_canvas(size)) for patch in fitted.layers])
    difference = Patch(fitted.composite).premultiplied - np.concatenate(
        [flat[..., :3] * flat[..., 3:], flat[..., 3:]], 2
    )
    assert np.abs(difference).max() <= 1 / 255
    # Reordered haze, up to overlap_alpha at each of count layers, and what was dropped for changing nothing.
    assert fitted.figures["change"] <= 16 * count + 2
    assert fit(layers, max_layers=9, overlap_alpha=0).figures["change"] <= 1 + count


def rendered_source(root):
    return RenderedSource(Location(root / "rendered", "rendered_root"), Location(root / "layouts", "layout_root"))


def test_what_is_written_is_the_promised_layout(tmp_path):
    write_rendered(tmp_path, "one", size=(96, 64), components=2)
    source = rendered_source(tmp_path)
    record = prepare_sample(source, "one", "val", Preparation(LIMITS), FileWriter(tmp_path / "out"))
    assert record["composite"] == {"path": "val/w64-h32/one_composite.png"}
    assert [x["path"] for x in record["layers"]] == [f"val/w64-h32/one_comp{k:03d}.png" for k in range(3)]
    assert [x["description"] for x in record["layers"]] == ["", "disc 0", "disc 1"]
    assert json.dumps(record)
    with Image.open(tmp_path / "out" / record["composite"]["path"]) as image:
        assert image.mode == "RGBA" and image.size == (64, 32)
    again = prepare_sample(source, "one", "val", Preparation(LIMITS), FileWriter(tmp_path / "out2"))
    assert again == record, "the same pixels give the same digest"


def test_a_bad_sample_is_dropped_with_its_reason(tmp_path):
    write_rendered(tmp_path, "bad")
    (tmp_path / "rendered" / "bad" / "component_1.png").write_bytes(b"\x89PNG\r\n")
    record = prepare_sample(
        rendered_source(tmp_path), "bad", "train", Preparation(LIMITS), FileWriter(tmp_path / "out")
    )
    assert record["id"] == "bad" and "component_1.png: not a readable image" in record["reason"]
    assert not (tmp_path / "out").exists()


class Faulty(Source):
    def sample_ids(self):
        return ["a"]

    def read(self, sample_id):
        return {}["nothing"]

    def signature(self, sample_id):
        return ""


def test_a_fault_of_a_reader_costs_one_sample(tmp_path):
    record = prepare_sample(Faulty(), "a", "train", Preparation(LIMITS), FileWriter(tmp_path))
    assert record["reason"] == "the reader failed with KeyError: 'nothing'"


def test_the_recipe_knows_every_setting():
    recipes = {
        Preparation(LIMITS).recipe(),
        Preparation(LIMITS, group="none").recipe(),
        Preparation(LIMITS, overlap_alpha=3).recipe(),
        Preparation(BucketLimits(min_side=32, max_side=96, max_pixels=4096, max_aspect=2.3)).recipe(),
    }
    assert len(recipes) == 4 and Preparation(LIMITS).recipe() in recipes
