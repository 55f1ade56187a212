"""Where a decomposer's weights are while it works, what guidance costs, and stacks too large to go through at once."""

import pytest
import torch
from accelerate.hooks import UserCpuOffloadHook

from inference.decomposer import Decomposer
from models.vae import latents
from tests.support.networks import save_tiny


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("reader"), text=True))


def images(count=2):
    return torch.rand(count, 4, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_what_does_not_compute_is_sent_back(reader, monkeypatch):
    """Two models side by side, as evaluate has them; on the GPU is what was fetched and not sent back."""
    on_gpu = set()
    monkeypatch.setattr(UserCpuOffloadHook, "offload", lambda hook: on_gpu.discard(hook.model))
    calls = []

    def watch(model):
        def fetched(module, *_):
            on_gpu.add(module)
            assert on_gpu == {module}
            calls.append(type(module).__name__)

        def alone(module, *_):
            assert not on_gpu, "the VAE works alone"
            calls.append(type(module).__name__)

        model.encoder.model.register_forward_pre_hook(fetched)
        model.network.transformer.register_forward_pre_hook(fetched)
        for half in (model.vae.encoder, model.vae.decoder):
            half.register_forward_pre_hook(alone)
        return model

    models = [watch(Decomposer.from_pretrained(reader, "cpu", offload="models")) for _ in range(2)]
    for model in (*models, *models):
        model.decompose(images(), 2, ["a", "b"], ["a shoe", ""], steps=2, seed=0, guidance=4.0, tries=2)
        assert not on_gpu
        model.reconstruct(images())
    assert len(set(calls)) == 4, "all four networks were called"


def test_guidance_without_a_caption_is_none_and_takes_no_second_call(reader):
    model, calls = Decomposer.from_pretrained(reader, "cpu"), []
    model.network.register_forward_hook(lambda *_: calls.append(1))

    def layers(captions, guidance):
        calls.clear()
        found = model.decompose(images(), 2, ["a", "b"], captions, steps=2, seed=0, guidance=guidance)
        return found, len(calls)

    plain, once = layers(None, 1.0)
    for silent in (None, ["", ""], [" ", ""]):
        found, count = layers(silent, 4.0)
        assert torch.equal(found, plain) and count == once == 2
    (told, twice), (unguided, _) = layers(["a shoe", ""], 4.0), layers(["a shoe", ""], 1.0)
    assert twice == 4 and not torch.equal(told[0], unguided[0])
    assert torch.allclose(told[1], unguided[1], atol=1e-4), "who says nothing beside others is not guided either"


def test_a_stack_goes_through_the_vae_in_parts(reader, monkeypatch):
    model, layers, sizes = Decomposer.from_pretrained(reader, "cpu"), images(5), []
    whole = model.reconstruct(layers)
    assert torch.equal(whole, model.vae.decode(model.vae.encode(layers).mode(), clamp=True))
    monkeypatch.setattr(latents, "PIXELS_AT_ONCE", 2 * 32 * 32)
    for half in (model.vae.encoder, model.vae.decoder):
        half.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    assert torch.allclose(model.reconstruct(layers), whole, atol=1e-5)
    assert sizes == [2, 2, 2, 2, 1, 1], "encoded and decoded part by part"
