import copy

import torch

from tests.networks import tiny_network, tiny_vae
from training.flow_objective import FlowObjective, RefineObjective
from training.params import DecomposeLoss, RefineLoss, Timestep

TIMESTEP = Timestep(density="logit_normal", mean=0.0, std=1.0, shift=1.0)


class Perfect(torch.nn.Module):
    """Knows the clean latents, so its velocity is exact."""

    def __init__(self, clean):
        super().__init__()
        self.clean, self.idle = clean, torch.nn.Parameter(torch.zeros(1))

    def forward(self, noisy, condition, sigma):
        return (noisy - self.clean) / sigma.view(-1, 1, 1, 1, 1) + self.idle


def test_a_perfect_network_has_no_flow_loss():
    clean = torch.randn(2, 3, 4, 4, 4)
    terms = FlowObjective(Perfect(clean), TIMESTEP, DecomposeLoss(composite=1.0, layers=1.0))({"latents": clean})
    assert all(value.item() < 1e-8 for value in terms.values())


def test_the_condition_is_the_clean_composite():
    seen = {}

    class Spy(Perfect):
        def forward(self, noisy, condition, sigma):
            seen.update(noisy=noisy, condition=condition)
            return super().forward(noisy, condition, sigma)

    clean = torch.randn(2, 3, 4, 4, 4)
    FlowObjective(Spy(clean), TIMESTEP, DecomposeLoss(composite=1.0, layers=1.0))({"latents": clean})
    assert torch.equal(seen["condition"], clean[:, 0])
    assert not torch.equal(seen["noisy"][:, 0], clean[:, 0]), "slot 0 is noisy all the same"


def test_a_perfect_network_has_no_pixel_loss():
    vae = tiny_vae()
    clean = torch.randn(2, 3, 4, 4, 4)
    objective = RefineObjective(
        Perfect(clean), vae, TIMESTEP, RefineLoss(velocity=1.0, recomposition=0.0, layer_pixels=1.0)
    )
    terms = objective({"latents": clean})
    assert terms["layer_pixels"].item() < 1e-6 and terms["velocity"].item() < 1e-8


def test_refinement_trains_the_network_and_leaves_the_vae_alone():
    vae, network = tiny_vae(), tiny_network()
    before = copy.deepcopy(vae.state_dict())
    weights = RefineLoss(velocity=0.0, recomposition=1.0, layer_pixels=1.0)
    objective = RefineObjective(network, vae, TIMESTEP, weights).train()
    assert not vae.training
    terms = objective({"latents": torch.randn(2, 3, 4, 4, 4)})
    terms["loss"].backward()
    assert all(p.grad is None for p in vae.parameters())
    assert network.transformer.proj_out.weight.grad.abs().max() > 0, "pixels reach the network through the decoder"
    assert all(torch.equal(before[k], v) for k, v in vae.state_dict().items())


def test_pixel_terms_fade_with_noise():
    vae, network = tiny_vae(), tiny_network()
    objective = RefineObjective(network, vae, TIMESTEP, RefineLoss(velocity=1.0, recomposition=1.0, layer_pixels=1.0))
    clean, noise = torch.randn(1, 3, 4, 4, 4), torch.randn(1, 3, 4, 4, 4)
    pure = objective.terms(clean, noise, torch.ones(1))
    assert pure["recomposition"] == 0.0 and pure["layer_pixels"] == 0.0 and pure["velocity"] > 0.0
