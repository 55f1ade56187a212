"""How evaluate uses each of its models: steps, guidance, precision, where weights wait; and where figures are made."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from config.evaluate import MODEL, TOLD
from config.params import parse_params
from evaluation.designs import EvaluationSample
from evaluation.samples import compared, decompose, evaluated
from evaluation.sets import NamedSet
from evaluation.settings import setting_of
from evaluation.summary import summarise
from inference.decomposer import Decomposer, GuidanceError
from inference.images import NAME
from layers.imaging.tensors import to_image, to_tensor
from metrics.reconstruction.perceptual import Perceptual
from models.vae import latents
from stages.evaluate import open_models
from tests.support.networks import save_tiny
from tests.support.workspace import SMOKE

CPU = torch.device("cpu")
OWN = {"steps": 3, "tries": 2, "guidance": 4.0}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("reader"), text=True))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("other"), seed=2, text=True))


@pytest.fixture(scope="module")
def mute(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("mute")))


@pytest.fixture(scope="module")
def samples():
    def sample(name):
        rng = np.random.default_rng(len(name))
        low, high = rng.integers(0, 256, (2, 64, 64, 4), np.uint8)
        low[..., 3] = 255
        kinds = ("background", "shape")
        return EvaluationSample(name, f"a poster of a {name}", [low, high], kinds, low, (64, 64), 2)

    return [sample("shoe"), sample("watch")]


def settings_of(**block):
    raw = yaml.safe_load(yaml.safe_dump(SMOKE))
    raw["evaluate"] |= {"restore": False} | block
    return parse_params(raw).evaluate


def plain(place, samples, captions, **how):
    """Layers that the networks of a folder give, without evaluate."""
    images = torch.stack([to_tensor(sample.image) for sample in samples])
    model = Decomposer.from_pretrained(place, CPU)
    stacks = model.decompose(images, 2, [NAME] * len(samples), captions, seed=0, **{"steps": 2} | how)
    return [list(to_image(stack)) for stack in stacks]


def equal(found, expected):
    return all(
        np.array_equal(*layers) for stacks in zip(found, expected, strict=True) for layers in zip(*stacks, strict=True)
    )


def test_a_baseline_is_used_as_it_is_said_and_the_model_as_the_block_says(reader, other, samples):
    captions = [sample.caption for sample in samples]
    settings = settings_of(model=reader, baselines={"own": {"model": other} | OWN, "same": other})
    model, baselines = open_models(settings, CPU)
    results = decompose(model, samples, settings, baselines)
    own, same = ([result.beside[name] for result in results] for name in ("own", "same"))
    assert equal(own, plain(other, samples, captions, **OWN))
    assert equal(same, plain(other, samples, captions, steps=2)) and not equal(own, same)
    assert equal([result.predicted for result in results], plain(reader, samples, captions, steps=2))
    assert not equal(own, plain(other, samples, captions, steps=3, tries=2)), "guidance does something"


def test_guidance_is_of_rows_that_are_told(reader, mute, samples):
    captions = [sample.caption for sample in samples]
    settings = settings_of(model=reader, captions="both", guidance=4.0, baselines={"mute": mute})
    model, baselines = open_models(settings, CPU)
    results = decompose(model, samples, settings, baselines)
    assert equal([result.predicted for result in results], plain(reader, samples, None, steps=2))
    told = [result.beside[TOLD] for result in results]
    assert equal(told, plain(reader, samples, captions, steps=2, guidance=4.0))
    assert not equal(told, plain(reader, samples, captions, steps=2))


def test_what_has_no_caption_has_no_row_of_one_told(reader, samples):
    settings = settings_of(model=reader, captions="both")
    model, baselines = open_models(settings, CPU)
    silent = [dataclasses.replace(sample, caption="") for sample in samples]
    lpips = Perceptual()

    def report(batch):
        measured = list(evaluated(model, iter([batch]), others={}, distance=lpips, settings=settings))
        one = NamedSet("set", SimpleNamespace(description="", skipped={}, asked=""))
        setting = setting_of(one, measured, model, settings=settings, baselines=baselines, md5={})
        return measured, summarise(measured, setting, settings.max_merges)

    _, none = report(silent)
    assert none["decomposition"].keys() == none["difference"].keys() | {MODEL} and TOLD not in none["decomposition"]
    assert none["setting"]["rows"] == {}
    # Where some have one, the others count as they are untold: there is nothing to tell.
    measured, some = report([silent[0], samples[1]])
    assert [TOLD in sample.levels for sample in measured] == [False, True]
    expected = (measured[0].levels[MODEL][0].cost + measured[1].levels[TOLD][0].cost) / 2
    assert some["decomposition"][TOLD][0]["cost"] == pytest.approx(expected)
    assert some["setting"]["rows"] == {TOLD: {"text": "minilm"}}


@pytest.mark.parametrize("offload", ["models", "blocks"])
def test_where_weights_wait_changes_no_layer(reader, other, samples, offload):
    def layers(**block):
        settings = settings_of(model=reader, guidance=4.0, **block)
        model, baselines = open_models(settings, CPU)
        results = decompose(model, samples, settings, baselines)
        return [result.predicted for result in results], [result.beside["other"] for result in results]

    stayed = layers(baselines={"other": other})
    waited = layers(offload=offload, baselines={"other": other})
    mixed = layers(baselines={"other": {"model": other, "offload": offload}})
    assert all(equal(found, expected) for rows in (waited, mixed) for found, expected in zip(rows, stayed, strict=True))


def test_each_model_has_the_precision_that_is_said_and_its_vae_has_all(reader, other):
    settings = settings_of(model=reader, baselines={"half": {"model": other, "precision": "bf16"}})
    model, baselines = open_models(settings, CPU)
    kept = [
        {parameter.dtype for parameter in module.parameters()}
        for found in (model, baselines["half"])
        for module in (found.network, found.encoder.model, found.vae)
    ]
    whole, half = {torch.float32}, {torch.bfloat16}
    assert kept == [whole, whole, whole, half, half, whole], "auto on a CPU is fp32"


def test_guidance_of_a_network_without_text_names_the_model(reader, mute):
    with pytest.raises(GuidanceError, match=r"^evaluate\.guidance: got 4, expected 1: this network was trained"):
        open_models(settings_of(model=mute, guidance=4.0), CPU)
    with pytest.raises(GuidanceError, match=r"^evaluate\.baselines\.mute\.guidance: got 4, expected 1"):
        open_models(settings_of(model=reader, guidance=4.0, baselines={"mute": mute}), CPU)
    open_models(settings_of(model=reader, guidance=4.0, baselines={"mute": {"model": mute, "guidance": 1.0}}), CPU)


def test_the_setting_says_what_a_row_has_of_its_own(reader, mute, samples):
    class Images:
        description, skipped, asked = "two posters", {}, "as many as it has, at most 20"

    def setting(**block):
        settings = settings_of(model=reader, **block)
        model, baselines = open_models(settings, CPU)
        measured = [SimpleNamespace(levels={TOLD: []} if settings.captions == "both" else {}, bucket="64x64")]
        one, md5 = NamedSet("", Images()), {reader: "abc", mute: "def"}
        return setting_of(one, measured, model, settings=settings, baselines=baselines, md5=md5)

    released = {"model": reader, "precision": "bf16", "offload": "models"} | OWN
    found = setting(baselines={"released": released, "mute": mute, "same": reader})
    assert (found["guidance"], found["precision"], found["offload"], found["text"]) == (1.0, "fp32", "none", "minilm")
    assert found["weights_md5"] == "abc" and found["layers_asked"].endswith("at most 20")
    assert found["rows"] == {
        "released": {"steps": 3, "tries": 2, "guidance": 4.0, "precision": "bf16", "offload": "models"},
        "mute": {"model": mute, "weights_md5": "def", "text": "none"},
        "same": {},
    }
    found = setting(captions="both", guidance=4.0)
    assert (found["guidance"], found["text"]) == (1.0, "none")
    assert found["rows"] == {TOLD: {"text": "minilm", "guidance": 4.0}}


def test_images_are_compared_where_lpips_is(samples):
    """Fake tensors are on a GPU without one; they end where a number is read of them, after LPIPS."""
    perceptual, images = Perceptual(), [sample.image for sample in samples]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in perceptual.modules():
            for store in (module._parameters, module._buffers):
                for name, value in store.items():
                    store[name] = None if value is None else mode.from_tensor(value.detach()).to("cuda")
        with pytest.raises(DataDependentOutputException):
            compared(images, images, perceptual, torch.device("cuda"))
        with pytest.raises(RuntimeError, match="same device"):
            compared(images, images, perceptual, CPU)


def test_all_that_is_measured_of_a_batch_goes_where_the_model_is(reader, samples, monkeypatch):
    seen = []

    def metrics(again, images, backgrounds=(), distance=None):
        seen.extend(tensor.device.type for tensor in (again, images))
        return [{"psnr_white": 1.0, "ssim": 1.0, "lpips": 1.0, "alpha_l1": 0.0}] * len(again)

    settings = settings_of(model=reader, panels=0)
    (model, _) = open_models(settings, CPU)
    results = decompose(model, samples, settings)
    monkeypatch.setattr("evaluation.samples.reconstruction_metrics", metrics)
    monkeypatch.setattr("evaluation.samples.edit_scores", lambda *given: seen.append(given[-1].type) or {})
    monkeypatch.setattr("evaluation.samples.decompose", lambda *_: results)

    class Elsewhere:
        device = torch.device("meta")

    assert len(list(evaluated(Elsewhere(), [samples], others={}, distance=None, settings=settings))) == 2
    assert set(seen) == {"meta"}


def test_many_large_layers_are_compared_in_parts(samples, monkeypatch):
    again = [np.roll(sample.image, 1, 0) for sample in samples] * 2
    images = [sample.image for sample in samples] * 2
    whole = compared(again, images, Perceptual(), CPU)
    monkeypatch.setattr(latents, "PIXELS_AT_ONCE", 3 * 64 * 64)
    parts = compared(again, images, Perceptual(), CPU)
    assert len(parts) == 4
    for one, two in zip(whole, parts, strict=True):
        assert one == pytest.approx(two, abs=1e-5)


def test_the_bound_of_the_vae_is_of_the_layers_that_are_asked_for(reader, samples):
    """Layers that do not overlap are one to the metric and to the model; coded apart they would be no bound."""
    ground, shapes = samples[0].layers[0], []
    for rows in (slice(4, 20), slice(40, 60)):
        shape = np.zeros_like(ground)
        shape[rows, 10:50] = (200, 30, 90, 255)
        shapes.append(shape)
    apart = dataclasses.replace(samples[0], layers=[ground, *shapes], kinds=("background", "shape", "shape"))
    together = dataclasses.replace(samples[0], layers=[ground, shapes[0] + shapes[1]])
    settings = settings_of(model=reader)
    model, _ = open_models(settings, CPU)
    found, expected = decompose(model, [apart], settings) + decompose(model, [together], settings)
    assert len(found.peels) == 2 and equal([found.ceiling], [expected.ceiling])
    assert equal([found.peels], [together.layers])
