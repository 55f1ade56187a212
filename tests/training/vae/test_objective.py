import copy

import pytest
import torch

from config.vae import TrainVAE
from tests.support.networks import tiny_vae
from tests.support.workspace import SMOKE
from training.vae.objective import VAEObjective, over_colours, replay_opaque

WEIGHTS = {"abmse": 1.0, "l1": 0.5, "lpips": 0.0, "kl": 0.01, "reference_kl": 0.0, "gan": 0.0}


def settings(start=0, **weights):
    raw = copy.deepcopy(SMOKE["train_vae"])
    raw["loss"] = WEIGHTS | weights
    raw |= {"opaque_share": 0.0, "rgb_checkpoint": "somewhere"}
    raw["discriminator"]["start_samples"] = start
    return TrainVAE.model_validate(raw)


def batch(seen=0, size=32):
    torch.manual_seed(1)
    component, composite = torch.rand(2, 2, 4, size, size) * 2 - 1
    composite[:, 3] = 1.0
    return {"component": component, "composite": composite, "seen": seen}


def test_the_loss_is_its_weighted_terms_and_reaches_every_parameter():
    vae = tiny_vae()
    terms = VAEObjective(vae, settings(lpips=0.3, reference_kl=0.2))(batch())
    assert set(terms) == {"loss", "abmse", "l1", "kl", "lpips", "reference_kl"}
    weights = WEIGHTS | {"lpips": 0.3, "reference_kl": 0.2}
    assert torch.allclose(terms["loss"], sum(weights[name] * terms[name] for name in terms if name != "loss"))
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_a_term_without_weight_is_not_computed():
    objective = VAEObjective(tiny_vae(), settings())
    assert objective.perceptual is objective.reference is objective.discriminator is None
    assert set(objective(batch())) == {"loss", "abmse", "l1", "kl"}


def test_the_reference_is_the_encoder_as_it_was():
    vae = tiny_vae()
    objective = VAEObjective(vae, settings(reference_kl=1.0))
    assert objective(batch())["reference_kl"].item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        vae.encoder.conv_in.weight.add_(0.1)
    terms = objective(batch())
    assert terms["reference_kl"] > 1e-3
    terms["loss"].backward()
    assert all(p.grad is None for p in objective.reference.parameters())
    # Transparent or not makes no difference to it: it is asked about opaque images.
    see_through = batch()
    see_through["composite"][:, :3], see_through["composite"][:, 3] = 0.3, -1.0
    black = batch()
    black["composite"] = see_through["composite"].clone()
    black["composite"][:, :3] = -0.9
    values = [objective(b)["reference_kl"].item() for b in (see_through, black)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_discriminator_waits_for_its_start():
    objective = VAEObjective(tiny_vae(), settings(start=100, gan=0.5))
    assert "gan" not in objective(batch(seen=96))
    terms = objective(batch(seen=100))
    assert {"gan", "gan_factor", "discriminator"} <= set(terms)


def test_neither_side_of_the_game_feels_the_loss_of_the_other():
    vae = tiny_vae()
    objective = VAEObjective(vae, settings(gan=0.5, kl=0.0))

    def gradients(loss):
        objective.zero_grad(set_to_none=True)
        loss.backward()
        return [
            [None if p.grad is None else p.grad.clone() for p in m.parameters()] for m in (vae, objective.discriminator)
        ]

    torch.manual_seed(0)
    terms = objective(batch())
    assert torch.allclose(
        terms["loss"],
        terms["abmse"] + 0.5 * terms["l1"] + 0.5 * terms["gan_factor"] * terms["gan"] + terms["discriminator"],
    )
    both = gradients(terms["loss"])
    torch.manual_seed(0)
    judged = gradients(objective(batch())["discriminator"])
    torch.manual_seed(0)
    terms = objective(batch())
    made = gradients(terms["loss"] - terms["discriminator"])
    assert all(g is None for g in judged[0]), "the discriminator's loss stops at the reconstruction"
    assert all(g is None or g.abs().max() == 0 for g in made[1]), "the generator's loss leaves the discriminator alone"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(both[1], judged[1], strict=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(both[0], made[0], strict=True))


def test_a_trained_discriminator_tells_them_apart():
    torch.manual_seed(0)
    objective = VAEObjective(tiny_vae(), settings(gan=1.0))
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), lr=1e-3)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        terms = objective(batch())
        terms["discriminator"].backward()
        optimizer.step()
        history.append(terms["discriminator"].item())
    assert history[-1] < 0.5 * history[0]


def test_opaque_replay():
    torch.manual_seed(0)
    images = torch.rand(400, 4, 4, 4) * 2 - 1
    assert torch.equal(replay_opaque(images, 0.0), images)
    shown = replay_opaque(images, 0.3)
    changed = (shown != images).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    assert (shown[changed][:, 3] == 1.0).all()
    clear = images[:50].clone()
    clear[:, 3] = -1.0
    colours = replay_opaque(clear, 1.0)[:, :3, 0, 0]
    assert set(colours.unique().tolist()) == {-1.0, 0.0, 1.0}
    half = torch.zeros(1, 4, 1, 1)
    half[:, :3] = 1.0
    assert torch.allclose(
        over_colours(half, torch.tensor([[-1.0, 0.0, 1.0]]))[0, :, 0, 0], torch.tensor([0, 0.5, 1, 1.0])
    )
