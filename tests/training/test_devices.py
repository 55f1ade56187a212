"""Every path that computes, on a GPU that is not there: a tensor on the wrong device fails, and so does a wait.

Backward passes do not run on fake GPUs; their tensors are those of the forward pass.
"""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from config.decompose import Refine, TrainDecompose
from config.vae import TrainVAE
from layers.dataset.loaders import StackDataset
from metrics.reconstruction.perceptual import Perceptual
from models.transformer.lora import add_lora
from models.transformer.sampling import Guidance, decompose_latents, slots_noise
from models.vae.latents import empty_latents
from models.vae.opaque import as_rgba
from tests.support.fake_gpu import GPU, fake_gpu, moved
from tests.support.networks import tiny_network, tiny_vae
from tests.support.workspace import SMOKE
from training.decompose import flow_objective
from training.decompose.captions import Captions
from training.decompose.edits import EDITS
from training.decompose.flow_objective import FlowObjective
from training.decompose.latents import LatentStacks, cached_stacks, encode_missing, open_cache
from training.decompose.pixel_terms import PixelTerms
from training.decompose.refine_objective import RefineObjective, held_out_terms
from training.decompose.validation import held_out_velocity_error, preview, sampled_scores
from training.vae.objective import VAEObjective
from training.vae.validation import reconstruction_grid, validate

TEXTS = [["a poster", "a disc"], ["", "ground"]]


class FakeProcess:
    """The accelerator of a single process with a GPU."""

    device, process_index, num_processes, is_main_process = GPU, 0, 1, True


def settings(stage, kind, **changes):
    raw = copy.deepcopy(SMOKE[stage])
    for path, value in changes.items():
        place = raw
        *parents, name = path.split("__")
        for parent in parents:
            place = place[parent]
        place[name] = value
    return kind.model_validate(raw)


class Said:
    """A cache of token states of three or four tokens."""

    def get(self, key):
        length = 3 + int(key, 16) % 2
        return {"embedding": torch.zeros(length, 8), "mask": torch.ones(length, dtype=torch.bool)}


def captions():
    return Captions(Said(), 8)


def every(block, weight=0.5):
    return {f"loss__{name}": weight for name in block if name != "velocity"}


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_a_step_of_stage_two_with_every_term(half):
    chosen = settings("train_vae", TrainVAE, rgb_checkpoint="x", opaque_share=0.5, **every(SMOKE["train_vae"]["loss"]))
    vae = tiny_vae()
    vae.compute_dtype = half
    built = VAEObjective(vae, chosen)
    batch = {name: torch.rand(2, 4, 32, 32) for name in ("component", "composite")}
    with fake_gpu() as reads:
        terms = moved(built, GPU)({**batch, "seen": 10**9})
        assert {value.device for value in terms.values()} == {GPU} and len(terms) > 8
    assert reads == []


@pytest.mark.parametrize("channels", [3, 4])
def test_validation_of_stage_two(bucketed_root, channels):
    vae, truth, distance = tiny_vae(input_channels=channels), StackDataset(bucketed_root, "val"), Perceptual()
    with fake_gpu():
        moved(vae, GPU), moved(distance, GPU)
        assert "psnr_white" in validate(vae, truth, distance, FakeProcess())
        assert reconstruction_grid(vae, truth, GPU).shape[2] == 3
        assert as_rgba(vae)(torch.zeros(1, 4, 32, 32, device=GPU)).device == GPU


@pytest.mark.parametrize("phase", ["text_to_rgba", "text_to_layers", "image_to_layers"])
def test_a_step_of_stage_three_with_every_term(phase, monkeypatch):
    chosen = settings(
        "train_decompose", TrainDecompose, loss__alpha_colour=0.1, loss__alignment=0.1, surplus__share=1.0
    )
    monkeypatch.setattr(flow_objective, "phase_at", lambda *_: phase)
    vae, network = tiny_vae(), tiny_network()
    add_lora(network.transformer, 2)
    pixels = PixelTerms(vae, chosen.loss.model_dump(), chosen.alignment, decode_scale=0.5, trust=1.0)
    built = FlowObjective(network, chosen, captions(), pixels, lambda size: empty_latents(vae, size))
    with fake_gpu() as reads:
        moved(built, GPU)
        terms = built({"latents": torch.randn(2, 3, 4, 8, 8), "texts": TEXTS, "seen": 0})
        assert {value.device for value in terms.values()} == {GPU}
    assert reads == []


@pytest.mark.parametrize("edit", EDITS)
def test_a_step_of_stage_four_with_every_term(edit):
    chosen = settings("refine", Refine, **every(SMOKE["refine"]["loss"]))
    vae, network = tiny_vae(), tiny_network()
    add_lora(network.transformer, 2)
    built = RefineObjective(network, vae, chosen, captions(), Perceptual())
    with fake_gpu() as reads:
        moved(built, GPU)
        clean = torch.randn(2, 4, 4, 8, 8, device=GPU)
        sigma, index = torch.rand(2, device=GPU), torch.tensor([1, 0], device=GPU)
        terms = built.terms(clean, torch.randn_like(clean), sigma, edit=edit, index=index, texts=TEXTS)
        assert {value.device for value in terms.values()} == {GPU} and "edit_kept" in terms
        assert built({"latents": clean.cpu(), "texts": TEXTS, "seen": 0})["loss"].device == GPU
    assert reads == []


@pytest.fixture
def stacks(bucketed_root, tmp_path):
    truth = StackDataset(bucketed_root, "val")
    cache = open_cache("tiny", tmp_path / "cache")
    encode_missing(tiny_vae(), truth, cache, Accelerator(cpu=True), torch.float32)
    return cached_stacks(truth, cache), truth


def test_validation_of_stages_three_and_four(stacks, monkeypatch):
    data, truth = stacks
    ready = [data.stack(index) for index in range(len(data))]  # safetensors give no fake tensors
    monkeypatch.setattr(LatentStacks, "stack", lambda _, index: ready[index])
    vae, network, process = tiny_vae(), tiny_network(), FakeProcess()
    objective = RefineObjective(
        network, vae, settings("refine", Refine, **every(SMOKE["refine"]["loss"])), captions(), Perceptual()
    )
    with fake_gpu():
        moved(objective, GPU)
        assert "velocity_layers" in held_out_velocity_error(network, data, process, captions())
        assert "cost" in sampled_scores(network, vae, data, truth, process, captions=captions(), samples=2, steps=2)
        assert preview(network, vae, data, process, captions()).dtype == np.uint8
        assert "edit_velocity" in held_out_terms(objective, data, process)


def test_latents_are_encoded_there_and_kept_here(bucketed_root, tmp_path):
    vae, truth, kept = tiny_vae(), StackDataset(bucketed_root, "val"), []
    cache = open_cache("tiny", tmp_path / "cache")
    cache.put = kept.append
    with fake_gpu():
        encode_missing(moved(vae, GPU), truth, cache, FakeProcess(), torch.bfloat16)
    found = [entry["latents"] for shard in kept for entry in shard.values()]
    assert len(found) == len(truth)
    assert {(latents.device.type, latents.dtype) for latents in found} == {("cpu", torch.bfloat16)}


def test_a_sampler_waits_for_nothing():
    network = tiny_network()
    text = captions()
    with fake_gpu() as reads:
        moved(network, GPU)
        condition = torch.randn(2, 4, 8, 8, device=GPU)
        guidance = Guidance(4.0, text([" ", " "], GPU), normalise=True)
        said = text(["a", "b"], GPU)
        noise = slots_noise(condition, 3, ["a", "b"], seed=0)
        found = decompose_latents(network, condition, noise, steps=3, text=said, guidance=guidance)
        assert found.device == GPU
    assert reads == []
