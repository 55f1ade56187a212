import pytest
import torch

from models.transformer.sampling import decompose_images, decompose_latents, slots_noise, start_noise
from models.vae.latents import decode_layers, encode_images, encode_stack
from tests.support.networks import tiny_network, tiny_vae
from training.vae.statistics import latent_statistics


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@pytest.fixture(scope="module")
def network():
    return tiny_network()


def test_a_samples_noise_is_its_own():
    together = start_noise(["a", "b"], (3, 2, 2), seed=1)
    assert torch.equal(together[1:], start_noise(["b"], (3, 2, 2), seed=1))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, start_noise(["a", "b"], (3, 2, 2), seed=2))


def test_a_batch_decomposes_as_its_samples(network, vae):
    condition = encode_images(vae, torch.rand(3, 4, 16, 32) * 2 - 1)
    ids = ["a", "b", "c"]
    whole = decompose_images(network, vae, condition, slots_noise(condition, 3, ids, seed=0), steps=3)
    assert whole.shape == (3, 3, 4, 16, 32)
    assert whole.min() >= -1.0 and whole.max() <= 1.0
    for k, name in enumerate(ids):
        one = condition[k : k + 1]
        alone = decompose_images(network, vae, one, slots_noise(one, 3, [name], seed=0), steps=3)
        assert torch.allclose(alone[0], whole[k], atol=1e-4)


def test_slot_zero_is_dropped_and_the_rest_keeps_its_order(network, vae):
    condition = torch.randn(1, 4, 4, 4)
    latents = decompose_latents(network, condition, slots_noise(condition, 2, ["a"], seed=0), steps=2)
    assert latents.shape == (1, 3, 4, 4, 4)
    images = decode_layers(vae, latents)
    single = vae.decode(vae.denormalise(latents[0, 2:]), clamp=True)
    assert torch.allclose(images[0, 2:], single, atol=1e-5)


def test_encoding_puts_the_composite_first_and_normalises(vae):
    torch.manual_seed(2)
    composite, layers = torch.rand(2, 4, 16, 16) * 2 - 1, torch.rand(2, 3, 4, 16, 16) * 2 - 1
    vae.set_latent_statistics([0.5] * 4, [2.0] * 4)
    latents = encode_stack(vae, composite, layers)
    assert latents.shape == (2, 4, 4, 4, 4)
    with torch.no_grad():
        assert torch.allclose(latents[:, 0], (vae.encode(composite).mode() - 0.5) / 2.0, atol=1e-5)
        assert torch.allclose(latents[:, 3], (vae.encode(layers[:, 2]).mode() - 0.5) / 2.0, atol=1e-5)
    vae.set_latent_statistics([0.0] * 4, [1.0] * 4)


def test_measured_statistics_normalise_what_they_were_measured_on(vae):
    batches = [torch.rand(3, 4, 16, 16) * 2 - 1, torch.rand(2, 4, 16, 32) * 2 - 1]
    vae.set_latent_statistics(*latent_statistics(vae, batches))
    with torch.no_grad():
        flat = torch.cat([vae.normalise(vae.encode(b).mode()).transpose(0, 1).flatten(1) for b in batches], dim=1)
    assert torch.allclose(flat.mean(1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(flat.std(1, correction=0), torch.ones(4), atol=1e-4)
    vae.set_latent_statistics([0.0] * 4, [1.0] * 4)
