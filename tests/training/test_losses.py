from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from layers.imaging import tensors
from training.losses import (
    BACKGROUND_MEAN,
    BACKGROUND_SQUARE,
    abmse,
    adaptive_weight,
    alpha_aware_l1,
    hinge_discriminator,
    hinge_generator,
    kl_between,
    kl_to_unit,
    perceptual,
    slot_errors,
    weighted_slot_error,
)

METHODOLOGY = Path(__file__).resolve().parents[2] / "docs" / "methodology.md"


def images(*shape):
    torch.manual_seed(0)
    return torch.rand(*shape, dtype=torch.double) * 2 - 1, torch.rand(*shape, dtype=torch.double) * 2 - 1


def test_abmse_is_the_expectation_over_backgrounds():
    predicted, target = images(2, 4, 3, 3)
    mean, square = torch.tensor(BACKGROUND_MEAN), torch.tensor(BACKGROUND_SQUARE)
    std = (square - mean**2).sqrt()
    total = 0.0
    # Two points mean ± std have exactly the two moments that the closed form knows.
    for sign in (-1.0, 1.0):
        background = (mean + sign * std).view(3, 1, 1).double()

        def over(image, background=background):
            alpha = (image[:, 3:] + 1) / 2
            return image[:, :3] * alpha + background * (1 - alpha)

        total += (over(predicted) - over(target)).square().mean() / 2
    assert torch.allclose(abmse(predicted, target), total, atol=1e-6)


def test_colour_under_alpha_zero_costs_nothing():
    predicted, target = images(1, 4, 4, 4)
    predicted[:, 3] = target[:, 3] = -1.0
    assert abmse(predicted, target) == 0.0
    assert alpha_aware_l1(predicted, target) == 0.0


def test_losses_are_means_so_size_and_batch_do_not_change_their_scale():
    predicted, target = images(1, 4, 4, 4)
    for loss in (abmse, alpha_aware_l1):
        tiled = loss(predicted.repeat(3, 1, 2, 2), target.repeat(3, 1, 2, 2))
        assert torch.allclose(loss(predicted, target), tiled)


def test_loss_gradients_by_finite_differences():
    predicted, target = images(1, 4, 2, 3)
    predicted.requires_grad_()
    for loss in (abmse, alpha_aware_l1):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, target), predicted)


def test_l1_closed_form():
    predicted, target = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 1.0)
    target[:, 3] = 0.0  # white at alpha 1/2: over black it is 0, over white 1
    assert torch.allclose(alpha_aware_l1(predicted, target), torch.tensor((1.0 + 0.0 + 1.0) / 3))


def test_kl_equals_torch():
    mean, logvar = images(2, 3, 4)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    assert torch.allclose(kl_to_unit(mean, logvar), expected)


def test_kl_between_equals_torch():
    mean, logvar = images(2, 3, 4)
    mean_r, logvar_r = images(2, 3, 4)[::-1]
    ours, theirs = Normal(mean, (0.5 * logvar).exp()), Normal(mean_r, (0.5 * logvar_r).exp())
    assert torch.allclose(kl_between(mean, logvar, mean_r, logvar_r), kl_divergence(ours, theirs).mean())
    assert kl_between(mean, logvar, mean, logvar) == 0.0


def test_perceptual_is_the_mean_of_black_and_white_composites():
    predicted, target = images(2, 4, 5, 5)
    seen = []

    def distance(a, b):
        seen.append((a, b))
        return (a - b).square().mean((1, 2, 3))

    value = perceptual(predicted, target, distance)
    expected = (
        sum(
            (tensors.over_background(predicted, g) - tensors.over_background(target, g)).square().mean()
            for g in (-1.0, 1.0)
        )
        / 2
    )
    assert torch.allclose(value, expected)
    assert seen[0][0].shape == (4, 3, 5, 5), "colour alone, both backgrounds in one go"


def test_hinge_losses_closed_form():
    real, fake = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-3.0, 0.5])
    assert torch.allclose(hinge_discriminator(real, fake), torch.tensor(0.5 * ((0 + 1 + 2) / 3 + (0 + 1.5) / 2)))
    assert torch.allclose(hinge_generator(fake), torch.tensor(1.25))


def test_the_adaptive_weight_makes_gradients_equally_long():
    last = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    x = torch.randn(4, dtype=torch.double)
    reconstruction, adversarial = (last @ x).square().sum(), 0.01 * (last @ x).sum()
    factor = adaptive_weight(reconstruction, adversarial, last)
    (pulled,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (pushed,) = torch.autograd.grad(factor * adversarial, last)
    assert not factor.requires_grad and torch.allclose(pulled.norm(), pushed.norm(), rtol=1e-2)


def test_slot_weights_are_normalised():
    predicted, target = images(2, 4, 3, 2, 2)
    errors = slot_errors(predicted, target)
    assert errors.shape == (2, 4)
    assert torch.allclose(errors[1, 2], (predicted[1, 2] - target[1, 2]).square().mean())
    equal = weighted_slot_error(errors, composite=1.0, layers=1.0)
    assert torch.allclose(equal, (predicted - target).square().mean())
    assert torch.allclose(weighted_slot_error(errors, composite=7.0, layers=7.0), equal)
    assert torch.allclose(weighted_slot_error(errors, composite=0.0, layers=1.0), errors[:, 1:].mean())


def test_composite_is_the_papers_recursion():
    layers, _ = images(2, 3, 4, 5, 5)
    flat = torch.zeros(2, 3, 5, 5, dtype=torch.double)
    for k in range(3):  # paper sec. 3.1 in [0, 1], C_0 = 0
        alpha, rgb = (layers[:, k, 3:] + 1) / 2, (layers[:, k, :3] + 1) / 2
        flat = alpha * rgb + (1 - alpha) * flat
    assert torch.allclose((tensors.composite(layers) + 1) / 2, flat)
    assert torch.allclose(tensors.composite(layers[:, :1]), tensors.over_background(layers[:, 0], -1.0))


@pytest.mark.parametrize("side", [32, 48])
def test_the_published_sums_are_our_means_with_the_weights_of_the_methodology(side):
    """AlphaVAE sums ABMSE over 3HW and its KL over latent elements; LPIPS is one number an image."""
    torch.manual_seed(0)
    predicted, target = (torch.rand(2, 4, side, side) * 2 - 1 for _ in range(2))
    mean, logvar = torch.randn(2, 16, side // 8, side // 8), torch.randn(2, 16, side // 8, side // 8)
    lpips = torch.tensor([0.3, 0.7])
    alphas, colours = [(image[:, 3:] + 1) / 2 for image in (predicted, target)], (predicted[:, :3], target[:, :3])
    lit, cover = colours[0] * alphas[0] - colours[1] * alphas[1], alphas[0] - alphas[1]
    first, second = (torch.tensor(moment).view(1, 3, 1, 1) for moment in (BACKGROUND_MEAN, BACKGROUND_SQUARE))
    squares = (lit**2 - 2 * first * lit * cover + second * cover**2).sum()
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum()
    published = (squares + 0.5 * lpips.sum() + 1e-6 * divergence) / 2

    values, elements = 3 * side**2, 16 * (side // 8) ** 2
    ours = abmse(predicted, target) + 0.5 / values * lpips.mean() + 1e-6 * elements / values * kl_to_unit(mean, logvar)
    assert float(published / values) == pytest.approx(float(ours), rel=1e-5)


def test_the_methodology_states_these_weights_at_1024_px():
    values, elements = 3 * 1024**2, 16 * 128**2
    rows = {row.split("`")[1]: row for row in METHODOLOGY.read_text(encoding="utf-8").splitlines() if row[:3] == "| `"}
    for name, summed, weight in [
        ("lpips", "0.5", 0.5 / values),
        ("kl", "1e-6", 1e-6 * elements / values),
        ("reference_kl", "1e-16", 1e-16 * elements / values),
    ]:
        assert f"| {summed}, **{weight:.1e}** |".replace("e-0", "e-") in rows[name]
