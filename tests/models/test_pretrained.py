"""The weights that ship: small, in the formats promised, and better than doing nothing where they never trained."""

import json

import pytest
import torch
from safetensors import safe_open

from inference.decomposer import Decomposer
from layers.composer.compose import compose
from layers.dataset.buckets import BucketLimits
from layers.imaging.tensors import to_image, to_tensor
from layers.preparation.sample import Preparation, fit_to_bucket
from metrics.decomposition.scores import aggregate, score_sample
from models.vae.autoencoder import RGBAVAE
from tests.support.imports import ROOT

FAMILY = ROOT / "models" / "pretrained"
MEGABYTES = 40
HELD_OUT = 24  # designs; two fit at once
TESTED = 8
MARGIN = 0.03  # half of what was measured on more of them (docs/log.md)


@pytest.fixture(scope="module")
def model():
    return Decomposer.from_pretrained(str(FAMILY / "model"), "cpu")


def test_all_of_it_is_small_and_safetensors_in_half_precision():
    files = [path for path in FAMILY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 10**6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".yaml"}
    for path in (FAMILY / "model").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}, path  # noqa: SIM118


def test_the_family_is_an_rgb_vae_an_rgba_vae_and_a_network_that_may_choose(model):
    rgb = RGBAVAE.from_pretrained(FAMILY / "rgb_vae", "vae")
    assert (rgb.config.input_channels, model.vae.config.input_channels) == (3, 4)
    assert model.trained_for.surplus_layers is not None and model.condition.encoder == "minilm"


@pytest.mark.parametrize("name", ["rgb_vae", "model"])
def test_the_card_says_what_it_is(name):
    card = (FAMILY / name / "README.md").read_text()
    for word in ("stages.pretrain", "recipe.yaml", "seconds", "psnr_white", "seed"):
        assert word in card
    assert json.loads((FAMILY / name / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderKLQwenImage"


def test_designs_of_assets_it_never_saw_are_decomposed_better_than_by_doing_nothing(model):
    preparation = Preparation(BucketLimits(max_side=96, min_side=64, max_pixels=6144, max_aspect=2.3))
    found, nothing = [], []
    for index in range(HELD_OUT):
        sample = fit_to_bucket(compose(index, seed=0, size=192, pool="held_out"), preparation)
        if not 2 <= len(sample.layers) <= 3 or len(found) == TESTED:
            continue
        height, width = sample.composite.shape[:2]
        true = [patch.on_canvas((height, width)) for patch in sample.layers]
        image = to_tensor(sample.composite)[None]
        (stack,) = model.decompose(image, len(true), [str(index)], None, steps=8, seed=0)
        found.append(score_sample(list(to_image(stack)), true, 0))
        nothing.append(score_sample([sample.composite], true, 0))
    assert len(found) == TESTED
    ours, theirs = aggregate(found)[0], aggregate(nothing)[0]
    assert ours.cost < theirs.cost - MARGIN and ours.alpha_iou > theirs.alpha_iou + MARGIN
