"""The alignment loss against the metric that it imitates, its gradients, and what it must prefer."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from metrics.decomposition.alignment import align
from tests.training.decompose.test_layer_costs import noise, tensor
from training.decompose.alignment_loss import alignment_loss, level_costs
from training.decompose.layer_costs import pair_cost
from training.decompose.soft_dtw import soft_alignment, soft_dtw

COLD = 1e-5  # so cold that the soft alignment is the metric's, if nothing is tied
loss = partial(alignment_loss, gamma=COLD, max_merges=0, merge_penalty=0.0, merge_temperature=0.01)
SHAPE = (12, 14)


def random_stack(rng, count):
    """Boxes on transparency and whole images, of noise or of one colour."""
    layers = []
    for _ in range(count):
        size = SHAPE if rng.integers(2) else (1, 1)
        layer = np.broadcast_to(rng.integers(0, 256, (*size, 4), dtype=np.uint8), (*SHAPE, 4)).copy()
        if rng.integers(4):
            top, left = rng.integers(0, 6, 2)
            outside = np.ones(SHAPE, bool)
            outside[top : top + 7, left : left + 8] = False
            layer[outside] = 0
        layers.append(layer)
    return layers


def disturbed(rng, layers, count):
    """The first ``count`` layers with other colours and alphas."""
    change = [rng.integers(-20, 21, layer.shape) * (layer[..., 3:] > 0) for layer in layers[:count]]
    return [np.clip(layer + by, 0, 255).astype(np.uint8) for layer, by in zip(layers, change, strict=False)]


def samples():
    """Unrelated stacks, and a stack against its disturbed self, of 1 to 6 layers."""
    for seed in range(24):
        rng = np.random.default_rng(seed)
        predicted = random_stack(rng, rng.integers(1, 7))
        related = disturbed(rng, predicted, max(1, len(predicted) - seed % 3))
        yield predicted, related if seed % 2 else random_stack(rng, rng.integers(1, 7))


def quarters():
    """Four opaque boxes of different colours that tile the canvas, over nothing."""
    layers = torch.full((1, 4, 4, 8, 8), -1.0, dtype=torch.double)
    for k, (top, left) in enumerate(itertools.product((0, 4), (0, 4))):
        layers[0, k, :3, top : top + 4, left : left + 4] = noise(3, 1, 1, seed=k)
        layers[0, k, 3, top : top + 4, left : left + 4] = 1.0
    return layers


def split(layers, index):
    """Layer ``index`` cut into its left and its right half."""
    left, right = layers[:, index].clone(), layers[:, index].clone()
    columns = torch.where((layers[0, index, 3] > 0).any(0))[0]
    middle = columns[len(columns) // 2]
    left[:, :, :, middle:] = right[:, :, :, :middle] = -1.0
    return torch.cat([layers[:, :index], torch.stack([left, right], 1), layers[:, index + 1 :]], 1)


def test_without_merges_the_cold_loss_is_the_metric():
    for predicted, true in samples():
        expected = align(predicted, true, 0)[0].cost
        assert loss(tensor(predicted), tensor(true)).item() == pytest.approx(expected, abs=1e-6)


def test_merge_levels_are_the_metrics():
    merges, sides = 0, set()
    for predicted, true in samples():
        expected = align(predicted, true, 3)
        costs, reached = level_costs(tensor(predicted), tensor(true), gamma=COLD, max_merges=3)
        assert reached[0].sum() == len(expected), "as many merges"
        # The metric rounds merged layers to 8 bits.
        assert costs[0][reached[0]].tolist() == pytest.approx([level.cost for level in expected], abs=5e-4)
        assert (costs >= 0.0).all() and (costs <= 1.0).all()
        merges += len(expected) - 1
        sides |= {level.merge.side for level in expected[1:]}
    assert merges > 20 and sides == {"pred", "gt"}


def test_the_loss_is_the_soft_minimum_over_levels():
    predicted, true = max(samples(), key=lambda pair: len(align(*pair, 3)))
    costs, reached = level_costs(tensor(predicted), tensor(true), gamma=0.02, max_merges=3)
    assert reached.all()
    value = loss(tensor(predicted), tensor(true), gamma=0.02, max_merges=3, merge_penalty=0.1, merge_temperature=0.05)
    levels = costs[0] + 0.1 * torch.arange(4)
    assert torch.allclose(value[0], -0.05 * torch.log(torch.exp(-levels / 0.05).sum()))
    assert levels.min() - 0.05 * np.log(4) <= value.item() <= levels.min()


def test_levels_beyond_the_last_merge_do_not_count():
    layers = quarters()
    costs, reached = level_costs(layers, layers, gamma=COLD, max_merges=5)
    assert costs.shape == (1, 5), "2 + 2 layers can go, no more"
    assert reached.tolist() == [[True] + [False] * 4], "nothing to gain"
    value = loss(layers, layers, max_merges=5, merge_temperature=1.0)
    assert torch.equal(value, costs[:, 0]) and value.item() < 1e-6


def test_a_split_layer_is_nearly_free_with_a_merge():
    true = quarters()
    for index in range(4):
        predicted = split(true, index)
        plain = loss(predicted, true).item()
        merged = loss(predicted, true, max_merges=1).item()
        assert plain > 0.05 and abs(merged) < 1e-3
        assert loss(predicted, true, max_merges=1, merge_penalty=0.03).item() == pytest.approx(0.03, abs=5e-3)
        # And the other way round: one predicted layer for two true ones.
        assert loss(true, predicted).item() > 0.05 and abs(loss(true, predicted, max_merges=1).item()) < 1e-3


def test_two_layers_are_never_merged():
    true = quarters()[:, :2]
    predicted = split(true, 1)
    assert level_costs(predicted, true, gamma=COLD, max_merges=3)[0].shape == (1, 2)
    assert level_costs(true, true[:, :1], gamma=COLD, max_merges=3)[0].shape == (1, 1)


def test_order_matters():
    """Layers that overlap, so that merging a swapped pair does not give the same image."""
    true = torch.full((1, 4, 4, 8, 8), -1.0, dtype=torch.double)
    for k in range(4):
        true[0, k, :3, k : k + 5, k : k + 5] = noise(3, 1, 1, seed=k)
        true[0, k, 3, k : k + 5, k : k + 5] = 1.0
    for merges, least in ((0, 0.15), (1, 0.08), (2, 0.03)):
        right = loss(true, true, gamma=0.01, max_merges=merges)
        assert abs(right) < 1e-3
        for order in ([3, 2, 1, 0], [1, 0, 2, 3], [0, 2, 1, 3]):
            wrong = loss(true[:, order], true, gamma=0.01, max_merges=merges)
            assert wrong > right + least, (merges, order)


def test_a_level_follows_the_alignment_and_not_its_choice():
    """The gradient is soft-DTW's over the expected path length, at any temperature."""
    predicted, true = (0.9 * noise(2, 3, 4, 3, 4)).requires_grad_(), noise(2, 4, 4, 3, 4, seed=1)
    for gamma in (0.05, 1.0):
        cost = pair_cost(predicted, true)
        length = soft_alignment(cost, gamma).sum((1, 2))
        (expected,) = torch.autograd.grad((soft_dtw(cost, gamma) / length).sum(), predicted)
        value = loss(predicted, true, gamma=gamma)
        (gradient,) = torch.autograd.grad(value.sum(), predicted)
        assert torch.allclose(gradient, expected)
        assert torch.allclose(value, (soft_alignment(cost, gamma) * cost).sum((1, 2)) / length)


@pytest.mark.parametrize("merges", [0, 1, 3])
def test_gradient_by_finite_differences(merges):
    """So cold that the choices are constant; the temperature over the levels is warm, so that all of them count."""
    true = noise(2, 3, 4, 3, 4, seed=3)
    predicted = torch.cat([0.9 * true[:, :1], noise(2, 2, 4, 3, 4, seed=4), 0.9 * true[:, 1:]], 1)
    predicted = (0.95 * predicted).requires_grad_()
    _, reached = level_costs(predicted, true, gamma=1e-4, max_merges=merges)
    assert reached.sum(1).max() == merges + 1
    function = partial(loss, gamma=1e-4, max_merges=merges, merge_temperature=0.5, merge_penalty=0.02)
    # Along some directions: gradcheck of all entries takes half a minute, and its fast mode misses a cut branch.
    for seed in range(6):
        direction = noise(*predicted.shape, seed=20 + seed)
        value = function(predicted, true)
        for k in range(2):
            (gradient,) = torch.autograd.grad(value[k], predicted, retain_graph=True)
            step = 1e-6 * direction
            difference = (function(predicted + step, true) - function(predicted - step, true))[k] / 2e-6
            assert torch.allclose((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)


def test_the_truth_gets_no_gradient():
    predicted, true = noise(1, 3, 4, 2, 2).requires_grad_(), noise(1, 3, 4, 2, 2, seed=1).requires_grad_()
    loss(predicted, true, max_merges=2).sum().backward()
    assert true.grad is None and predicted.grad.abs().sum() > 0


def ragged():
    """A batch of stacks of different lengths, padded with noise, and its samples one by one."""
    chosen = [pair for pair in samples() if len(pair[0]) >= 2][:8]
    counts = [torch.tensor([len(pair[side]) for pair in chosen]) for side in (0, 1)]
    stacks = [noise(8, 6, 4, *SHAPE, seed=9), noise(8, 6, 4, *SHAPE, seed=10)]
    for k, pair in enumerate(chosen):
        for side in (0, 1):
            stacks[side][k, : len(pair[side])] = tensor(pair[side])[0]
    return chosen, stacks, counts


def test_a_ragged_batch_equals_its_samples():
    chosen, (predicted, true), (rows, columns) = ragged()
    assert len(set(rows.tolist())) > 2 and len(set(columns.tolist())) > 2
    options = {"gamma": 0.02, "max_merges": 3}
    costs, reached = level_costs(predicted, true, **options, predicted_counts=rows, true_counts=columns)
    assert len(set(reached.sum(1).tolist())) > 2, "samples stop at different levels"
    options |= {"merge_penalty": 0.01, "merge_temperature": 0.05}
    predicted.requires_grad_()
    values = loss(predicted, true, **options, predicted_counts=rows, true_counts=columns)
    (gradient,) = torch.autograd.grad(values.sum(), predicted)
    for k, pair in enumerate(chosen):
        alone, other = tensor(pair[0]).requires_grad_(), tensor(pair[1])
        own, levels = level_costs(alone, other, gamma=0.02, max_merges=3)
        assert torch.allclose(costs[k][reached[k]], own[0][levels[0]])
        value = loss(alone, other, **options)
        assert torch.allclose(values[k], value[0])
        (expected,) = torch.autograd.grad(value.sum(), alone)
        assert torch.allclose(gradient[k, : rows[k]], expected[0])
        assert (gradient[k, rows[k] :] == 0.0).all()


def test_padding_is_not_merged():
    """Not even where it would be just what is missing."""
    true = quarters()
    padded = split(true, 3)  # the right half is beyond the count
    options = {"gamma": COLD, "max_merges": 2}
    costs, reached = level_costs(padded, true, **options, predicted_counts=torch.tensor([4]))
    expected, levels = level_costs(padded[:, :4], true, **options)
    assert torch.equal(reached, levels) and torch.allclose(costs[reached], expected[levels])
    costs, reached = level_costs(true, padded, **options, true_counts=torch.tensor([4]))
    expected, levels = level_costs(true, padded[:, :4], **options)
    assert torch.equal(reached, levels) and torch.allclose(costs[reached], expected[levels])


def test_each_sample_has_its_weight():
    predicted, true, weight = noise(3, 3, 4, 4, 4), noise(3, 3, 4, 4, 4, seed=1), torch.tensor([0.0, 0.5, 2.0])
    plain = loss(predicted, true, max_merges=2)
    assert plain.shape == (3,)
    assert torch.allclose(loss(predicted, true, max_merges=2, weight=weight), plain * weight)


EXTREMES = {
    "empty": (-1.0, -1.0),
    "empty white": (1.0, -1.0),
    "opaque": (0.2, 1.0),
    "far out": (1e4, 1e4),
    "far below": (-1e4, -1e4),
    "haze": (0.3, -1.0 + 1e-6),
}


@pytest.mark.parametrize("theirs", EXTREMES)
@pytest.mark.parametrize("ours", EXTREMES)
def test_extremes_are_finite_in_single_precision(ours, theirs):
    stacks = []
    for colour, alpha in (EXTREMES[ours], EXTREMES[theirs]):
        stack = torch.full((1, 4, 4, 3, 3), colour)
        stack[:, :, 3] = alpha
        stacks.append(stack)
    true = stacks[1].clamp(-1.0, 1.0)
    for mixed in (False, True):
        predicted = stacks[0].clone()
        if mixed:  # one layer as it should be among extreme ones
            predicted[:, 1], true[:, 2] = noise(2, 1, 4, 3, 3).float()
        predicted.requires_grad_()
        for gamma in (1e-4, 1.0):
            value = loss(predicted, true, gamma=gamma, max_merges=3, merge_temperature=1e-3)
            (gradient,) = torch.autograd.grad(value.sum(), predicted)
            assert value.dtype == torch.float32 and value.isfinite().all() and gradient.isfinite().all()


def test_runs_on_any_device_without_looking_at_values():
    """On the meta device there are none, and tensors of another device do not mix with it."""
    predicted, true = torch.rand(2, 4, 4, 8, 8, device="meta"), torch.rand(2, 3, 4, 8, 8, device="meta")
    predicted.requires_grad_()
    value = loss(predicted, true, max_merges=3, weight=torch.rand(2, device="meta"))
    assert value.shape == (2,)
    value.sum().backward()
    assert predicted.grad.shape == predicted.shape


def test_the_same_without_gradients():
    predicted, true = noise(1, 4, 4, 4, 4), noise(1, 3, 4, 4, 4, seed=1)
    expected = loss(predicted, true, gamma=0.05, max_merges=2)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(loss(predicted, true, gamma=0.05, max_merges=2), expected)


@pytest.mark.parametrize(
    "change", [{"gamma": 0.0}, {"max_merges": -1}, {"merge_penalty": -0.1}, {"merge_temperature": 0.0}]
)
def test_bad_parameters_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        loss(noise(1, 2, 4, 2, 2), noise(1, 2, 4, 2, 2), **change)


@pytest.mark.parametrize("shape", [(1, 2, 4, 2, 3), (2, 2, 4, 2, 2), (1, 2, 3, 2, 2), (2, 4, 2, 2), (1, 0, 4, 2, 2)])
def test_stacks_that_do_not_fit_are_refused(shape):
    for pair in ((noise(*shape), noise(1, 2, 4, 2, 2)), (noise(1, 2, 4, 2, 2), noise(*shape))):
        with pytest.raises(ValueError, match="expected"):
            loss(*pair)
