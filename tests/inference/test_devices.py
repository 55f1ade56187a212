"""Models in use, on a GPU that is not there (tests.support.fake_gpu): decompose, evaluate and the served model."""

import base64
import dataclasses
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.utils import send_to_device

from config.evaluate import Evaluate
from evaluation.designs import EvaluationSample
from evaluation.samples import evaluated
from inference import offloading
from inference.decomposer import Decomposer
from inference.offloading import OFFLOADS, place
from layers.imaging.codec import encode_png
from metrics.reconstruction.perceptual import Perceptual
from tests.support.fake_gpu import GPU, fake_gpu, move_own, moved
from tests.support.networks import save_tiny
from tests.support.workspace import SMOKE
from tracking.serving import ServedDecomposer

COUNT = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("reader"), text=True))


def loaded(folder):
    """A model in main memory; safetensors give no fake tensors, so before fake_gpu."""
    return Decomposer.from_pretrained(folder, "cpu", torch.bfloat16)


def visiting(module, onload_device, offload_device, **_):
    """As diffusers' group offloading, whose assignments to ``data`` fake tensors do not follow; a module at a time."""

    def arrive(part, given, named):
        move_own(part, onload_device)
        return send_to_device((given, named), onload_device) if part is module else None

    for part in module.modules():
        part.register_forward_pre_hook(arrive, with_kwargs=True)
        part.register_forward_hook(lambda part, *_: move_own(part, offload_device))


def placed(model, how, monkeypatch):
    """The model as from_pretrained places it on a GPU; inside fake_gpu."""
    monkeypatch.setattr(offloading, "apply_group_offloading", visiting)
    moved(model.vae, GPU)
    place([model.encoder.model, model.network.transformer], GPU, how, [model.vae.encoder, model.vae.decoder])
    return dataclasses.replace(model, device=GPU)


@pytest.mark.parametrize("how", OFFLOADS)
def test_decompose(folder, how, monkeypatch):
    model, seen = loaded(folder), []
    model.network.transformer.proj_out.register_forward_hook(lambda _, __, out: seen.append(out.device))
    with fake_gpu():
        model = placed(model, how, monkeypatch)
        effort = {"steps": 2, "seed": 0, "tries": 2, "guidance": 4.0}
        layers = model.decompose(torch.zeros(COUNT, 4, 32, 32), 3, ["a", "b"], ["a shoe", ""], **effort)
        assert layers.shape == (COUNT, 3, 4, 32, 32) and layers.device.type == "cpu"
        assert model.reconstruct(layers[0]).device.type == "cpu"
    assert set(seen) == {GPU}


@pytest.mark.parametrize("how", OFFLOADS)
def test_every_row_of_evaluate(folder, how, monkeypatch):
    settings = {
        "captions": "both",
        "restore": True,
        "tries": 2,
        "guidance": 4.0,
        "steps": 1,
        "jobs": 1,
        "max_merges": 1,
    }
    settings["baselines"] = {"start": {"model": folder, "steps": 1, "guidance": 1.0}}
    settings = Evaluate.model_validate(SMOKE["evaluate"] | settings)
    image, layer = np.full((32, 32, 4), 255, np.uint8), np.zeros((32, 32, 4), np.uint8)
    names = {field.name for field in dataclasses.fields(EvaluationSample)}
    fields = {"sample_id": "a", "image": image, "layers": [image, layer], "kinds": ["background", "text"]}
    fields |= {"caption": "a shoe", "model_size": (32, 32), "layers_asked": 2, "bucket": "32x32"}
    sample = EvaluationSample(**{name: value for name, value in fields.items() if name in names})
    models, distance = [loaded(folder) for _ in range(2)], Perceptual()
    with fake_gpu():
        model, other = (placed(model, how, monkeypatch) for model in models)
        batches = iter([[sample] * COUNT])
        rows = list(
            evaluated(
                model, batches, others={}, distance=moved(distance, GPU), settings=settings, baselines={"start": other}
            )
        )
    assert len(rows) == COUNT
    assert {"model", "start", "model_told_captions", "model_as_predicted"} <= rows[0].levels.keys()


@pytest.mark.parametrize("how", OFFLOADS)
def test_the_served_model(folder, how, monkeypatch):
    served, model = ServedDecomposer(), loaded(folder)
    served._one_at_a_time = threading.Lock()
    text = base64.b64encode(encode_png(np.full((32, 32, 4), 255, np.uint8))).decode()
    asked = {"layers": 2, "steps": 1, "seed": 0, "tries": 2, "caption": "a shoe", "guidance": 4.0}
    with fake_gpu():
        served._model = placed(model, how, monkeypatch)
        (answer,) = served.predict(None, pd.DataFrame({"picture": [text]}), asked)
    assert (answer["width"], answer["height"], len(answer["layers"])) == (32, 32, 2)
