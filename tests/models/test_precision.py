"""Networks compute in half precision by themselves; what compares their results does not."""

import pytest
import torch

from metrics.reconstruction.perceptual import Perceptual
from metrics.reconstruction.rgba import reconstruction_metrics
from models.vae.discriminator import PatchDiscriminator
from models.vae.opaque import OpaqueVAE
from tests.support.networks import tiny_network, tiny_vae
from tests.training.vae.test_objective import settings
from training.vae.objective import VAEObjective


def outputs(module, kind):
    """Dtypes of what layers of a kind give from now on."""
    found = []
    for layer in module.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(lambda _module, _input, result: found.append(result.dtype))
    return found


def calls():
    torch.manual_seed(0)
    images = torch.rand(2, 4, 32, 32) * 2 - 1
    vae, network, judge = tiny_vae(), tiny_network(), PatchDiscriminator(8, 1)
    noisy, sigma = torch.randn(2, 3, 4, 4, 4), torch.rand(2)
    return {
        "encode": (vae, lambda: vae.encode(images).mode()),
        "decode": (vae, lambda: vae.decode(torch.randn(2, vae.config.z_dim, 8, 8))),
        "predict": (network, lambda: network(noisy, noisy[:, 0], sigma)),
        "judge": (judge, lambda: judge(images)),
    }


@pytest.mark.parametrize("name", ["encode", "decode", "predict", "judge"])
def test_a_network_computes_in_half_and_gives_float32(name):
    network, call = calls()[name]
    torch.manual_seed(1)
    full = call()
    found = outputs(network, (torch.nn.Linear, torch.nn.Conv2d))
    network.compute_dtype = torch.bfloat16
    torch.manual_seed(1)
    half = call()
    assert found and set(found) == {torch.bfloat16}
    assert half.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    assert 0.0 < (half - full).abs().max() < 0.1 * full.abs().max()
    half.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_double_precision_stays():
    vae = tiny_vae().double()
    assert vae.decode(vae.encode(torch.rand(1, 4, 32, 32).double()).mode()).dtype == torch.float64


def test_the_terms_of_a_loss_are_float32_where_networks_compute_in_half():
    vae = tiny_vae()
    vae.compute_dtype = torch.bfloat16
    objective = VAEObjective(vae, settings(lpips=0.1, gan=0.5, kl=0.01))
    assert objective.discriminator.compute_dtype == torch.bfloat16
    seen = {}
    objective.perceptual.register_forward_hook(lambda _m, args, _r: seen.update(distance=args[0].dtype))
    torch.manual_seed(0)
    batch = {name: torch.rand(2, 4, 32, 32) * 2 - 1 for name in ("component", "composite")}
    terms = objective({**batch, "seen": 10**9})
    assert {value.dtype for value in terms.values()} == {torch.float32} == {seen["distance"]}


def test_an_rgb_network_is_asked_for_its_precision():
    vae = tiny_vae(input_channels=3)
    vae.compute_dtype = torch.bfloat16
    assert OpaqueVAE(vae).compute_dtype == torch.bfloat16


def test_equal_images_score_one_whatever_networks_compute_in():
    """Under autocast SSIM of these was 0.984; metrics must not be called in it, as validation was."""
    torch.manual_seed(0)
    image = torch.rand(1, 4, 64, 64) * 2 - 1
    (row,) = reconstruction_metrics(image, image, distance=Perceptual())
    assert row["ssim"] == pytest.approx(1.0, abs=1e-6) and row["lpips"] == 0.0
