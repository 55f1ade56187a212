import numpy as np
import pytest
import torch

from metrics.decomposition.pairs import over_8bit, pair_measure
from tests.metrics.decomposition.stacks import random_layer
from training.decompose.layer_costs import HALF_STEP, clamp_inward, over, pair_cost, unit_pair_cost, unit_range


def tensor(images):
    """Exactly what 8 bits say: ``(N, H, W, 4)`` uint8 to ``(1, N, 4, H, W)`` double in [-1, 1]."""
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2)[None].double() / 127.5 - 1.0


def noise(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 12)])
def test_pair_cost_is_the_metrics(shape):
    rng = np.random.default_rng(0)
    predicted, true = ([random_layer(rng, shape) for _ in range(n)] for n in (4, 3))
    true.append(np.zeros_like(true[0]))
    expected = [[pair_measure(p, g).cost for g in true] for p in predicted]
    assert torch.allclose(pair_cost(tensor(predicted), tensor(true))[0], torch.tensor(expected, dtype=torch.double))
    single = pair_cost(tensor(predicted).float(), tensor(true).float())[0]
    assert torch.allclose(single.double(), torch.tensor(expected, dtype=torch.double), atol=1e-6)


def test_colour_counts_where_the_true_alpha_has_a_bit():
    predicted, true = torch.full((1, 1, 4, 1, 2), 1.0), torch.full((1, 1, 4, 1, 2), -1.0)  # white, and black
    predicted[:, :, 3, :, 1] = -1.0
    true[:, :, 3, 0, 1] = 2 * 1.01 * HALF_STEP - 1.0
    assert pair_cost(predicted, true).item() == pytest.approx((1.0 + 1.0) / 2, abs=1e-3), "hidden colour is compared"
    true[:, :, 3, 0, 1] = 2 * 0.99 * HALF_STEP - 1.0
    assert pair_cost(predicted, true).item() == pytest.approx((0.0 + 1.0) / 2, abs=1e-3), "rounds to an empty layer"


@pytest.mark.parametrize("alphas", [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0 + 1e-7, -1.0 + 1e-7)])
def test_empty_layers_have_cost_and_gradient(alphas):
    predicted, true = noise(1, 1, 4, 3, 3), noise(1, 1, 4, 3, 3, seed=1)
    predicted[:, :, 3], true[:, :, 3] = alphas
    predicted = predicted.float().requires_grad_()
    cost = pair_cost(predicted, true.float())
    (gradient,) = torch.autograd.grad(cost.sum(), predicted)
    assert cost.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() < 1.0
    assert cost.item() == pytest.approx(0.5, abs=1e-6) or alphas[1] == 1.0


def test_gradient_by_finite_differences():
    predicted, true = (0.9 * noise(2, 2, 4, 2, 3)).requires_grad_(), noise(2, 3, 4, 2, 3, seed=1)
    true[0, 1, 3] = -1.0
    assert torch.autograd.gradcheck(lambda x: pair_cost(x, true), predicted)
    assert torch.autograd.gradcheck(
        lambda x: unit_pair_cost(true, x), (unit_range(predicted)).detach().requires_grad_()
    )


def test_matched_pixels_are_left_alone():
    """Where prediction and truth agree nothing pulls, though the layers differ elsewhere."""
    true = noise(1, 1, 4, 4, 4)
    true[:, :, 3, :2] = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.double)
    predicted = true.clone()
    predicted[..., 2:, :] = 0.5 * noise(1, 1, 4, 2, 4, seed=1)
    predicted[:, :, 3, :2] *= 1.05  # beyond the range on the right side
    predicted.requires_grad_()
    (gradient,) = torch.autograd.grad(pair_cost(predicted, true).sum(), predicted)
    assert (gradient[..., :2, :] == 0.0).all() and (gradient[:, :, 3, 2:] != 0.0).all()


def test_clamp_lets_through_what_leads_back():
    values = torch.tensor([-1.5, -1.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    clamped = clamp_inward(values)
    assert clamped.tolist() == [-1.0, -1.0, -0.5, 0.5, 1.0, 1.0]
    clamped.backward(torch.tensor([-2.0, 2.0, 2.0, -2.0, -2.0, 2.0]))  # descent goes against the gradient
    assert values.grad.tolist() == [-2.0, 0.0, 2.0, -2.0, 0.0, 2.0]


def test_descent_brings_a_lost_layer_back():
    true = torch.full((1, 1, 4, 2, 2), 1.0)
    predicted = torch.full_like(true, -1.2, requires_grad=True)  # transparent black where it should be opaque white
    for _ in range(100):
        (gradient,) = torch.autograd.grad(pair_cost(predicted, true).sum(), predicted)
        predicted = (predicted - gradient).detach().requires_grad_()
    assert pair_cost(predicted, true) < 0.05
    assert pair_cost(torch.full_like(predicted, 9.0), true) < 1e-6


@pytest.mark.parametrize("shape", [(9, 11)])
def test_over_is_pillows_but_for_rounding(shape):
    rng = np.random.default_rng(1)
    bottom, top = random_layer(rng, shape), random_layer(rng, shape)
    ours = over(unit_range(tensor([bottom])), unit_range(tensor([top])))[0, 0].permute(1, 2, 0) * 255.0
    theirs = torch.tensor(over_8bit(bottom, top)).double()
    hidden = torch.tensor(top[..., 3] == 0)
    assert torch.allclose(ours, theirs, atol=0.51 + 0.2, rtol=0.0)
    assert torch.allclose(ours[hidden], torch.tensor(bottom).double()[hidden]), "hidden colour stays"


def test_over_is_associative():
    a, b, c = unit_range(noise(3, 1, 4, 5, 5))
    assert torch.allclose(over(over(a, b), c), over(a, over(b, c)))


def test_over_has_bounded_gradients():
    layers = unit_range(noise(2, 1, 4, 2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: over(x[0], x[1]), layers)
    for below, above in ((0.0, 0.0), (0.0, 1.0), (1e-9, 1e-9), (HALF_STEP, HALF_STEP), (1.0, 0.0)):
        layers = torch.rand(2, 4, 2, 2)
        layers[0, 3], layers[1, 3] = below, above
        layers.requires_grad_()
        out = over(layers[0], layers[1])
        (gradient,) = torch.autograd.grad(out.sum(), layers)
        assert out.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() < 3.0 / HALF_STEP


def test_half_precision_is_summed_in_single():
    predicted, true = noise(1, 2, 4, 32, 32), noise(1, 2, 4, 32, 32, seed=1)
    half = pair_cost(predicted.bfloat16(), true.bfloat16())
    assert half.dtype == torch.float32
    assert torch.allclose(half.double(), pair_cost(predicted, true), atol=3e-3)
