import math

import pytest
import torch

from metrics.decomposition.alignment import dtw_path
from training.decompose.soft_dtw import TIE, first_within_tie, hard_path, soft_alignment, soft_dtw

SHAPES = [(1, 1), (1, 4), (4, 1), (2, 2), (3, 5), (5, 3), (4, 4)]


def costs(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def all_paths(rows, columns):
    """Every path from (0, 0) to (rows - 1, columns - 1)."""
    if rows < 1 or columns < 1:
        return []
    if rows == columns == 1:
        return [[(0, 0)]]
    before = [path for i, j in ((1, 1), (1, 0), (0, 1)) for path in all_paths(rows - i, columns - j)]
    return [[*path, (rows - 1, columns - 1)] for path in before]


def test_there_are_as_many_paths_as_delannoy_counts():
    assert [len(all_paths(n, n)) for n in (1, 2, 3, 4)] == [1, 3, 13, 63]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [0.05, 1.0])
def test_value_and_alignment_are_those_of_all_paths(shape, gamma):
    cost = costs(2, *shape)
    paths = all_paths(*shape)
    for sample, value, expected in zip(cost, soft_dtw(cost, gamma), soft_alignment(cost, gamma), strict=True):
        sums = torch.stack([sum(sample[i, j] for i, j in path) for path in paths])
        assert torch.allclose(value, -gamma * torch.logsumexp(-sums / gamma, 0))
        share = torch.softmax(-sums / gamma, 0)
        marginal = torch.zeros_like(sample)
        for path, p in zip(paths, share, strict=True):
            for i, j in path:
                marginal[i, j] += p
        assert torch.allclose(expected, marginal)
        lengths = torch.tensor([len(path) for path in paths], dtype=torch.double)
        assert torch.allclose(expected.sum(), (share * lengths).sum()), "E sums to the expected path length"


@pytest.mark.parametrize("shape", SHAPES)
def test_no_temperature_is_classic_dtw(shape):
    cost = costs(3, *shape, seed=1)
    value, expected, hard = soft_dtw(cost, 1e-5), soft_alignment(cost, 1e-5), hard_path(cost)
    for k, sample in enumerate(cost):
        path, _ = dtw_path(sample.tolist())
        assert [tuple(pair) for pair in hard[k].nonzero().tolist()] == path
        assert value[k].item() == pytest.approx(sum(sample[i, j].item() for i, j in path), abs=1e-4)
        assert torch.allclose(expected[k], hard[k].double(), atol=1e-6)


def test_hard_ties_go_as_in_the_metric():
    tied = torch.tensor(
        [[[0, 0, 9], [0, 9, 0], [9, 0, 0]], [[0, 0, 0]] * 3, [[0, 1, 0], [1, 0, 1], [0, 1, 0]]]
    ).double()
    noisy = tied + 1e-8 * costs(*tied.shape)  # rounding of float32 sums must not choose
    for k, sample in enumerate(tied):
        path, _ = dtw_path(sample.tolist())
        for cost in (tied, noisy):
            assert [tuple(pair) for pair in hard_path(cost)[k].nonzero().tolist()] == path


def test_soft_ties_share_the_path():
    # Both ways around the dear corner cost 1: E halves them, where the metric takes one.
    expected = soft_alignment(torch.tensor([[[0.0, 0.5], [0.5, 0.0]]]), 1e-3)
    assert torch.allclose(expected, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), atol=1e-6)
    expected = soft_alignment(torch.tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]), 1e-3)
    assert torch.allclose(expected[0, 0, 1] + expected[0, 1, 1], torch.tensor(4.0 / 3.0), atol=1e-5)


def test_gradient_by_finite_differences():
    cost = costs(2, 3, 4).requires_grad_()
    for gamma in (0.02, 0.5):
        assert torch.autograd.gradcheck(lambda c, gamma=gamma: soft_dtw(c, gamma), cost)
        (gradient,) = torch.autograd.grad(soft_dtw(cost, gamma).sum(), cost)
        assert torch.allclose(gradient, soft_alignment(cost, gamma))


def test_padding_has_no_influence():
    rows, columns = torch.tensor([1, 2, 3, 3]), torch.tensor([4, 2, 1, 4])
    cost = costs(4, 3, 4)
    padded = cost.clone()
    for k in range(4):
        padded[k, rows[k] :] = padded[k, :, columns[k] :] = -100.0
    for k, (n, m) in enumerate(zip(rows, columns, strict=True)):
        own = cost[k : k + 1, :n, :m]
        assert torch.allclose(soft_dtw(padded, 0.1, rows, columns)[k], soft_dtw(own, 0.1)[0])
        for function in (hard_path, lambda *a: soft_alignment(a[0], 0.1, *a[1:])):
            there = function(padded, rows, columns)[k]
            assert torch.allclose(there[:n, :m].double(), function(own)[0].double())
            assert there.sum() == there[:n, :m].sum()


@pytest.mark.parametrize("gamma", [1e-6, 1e-2, 1e3])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_single_precision_stays_finite(gamma, value):
    cost = torch.full((2, 6, 5), value, requires_grad=True)
    total = soft_dtw(cost, gamma)
    (gradient,) = torch.autograd.grad(total.sum(), cost)
    assert total.isfinite().all() and gradient.isfinite().all()
    assert total.dtype == torch.float32 and (total <= 6 * value + 1e-5).all()
    assert (total >= 6 * value - gamma * math.log(len(all_paths(6, 5))) * (1 + 1e-5) - 1e-5).all()


def test_alignment_needs_no_graph_around_it():
    cost = costs(1, 3, 3)
    expected = soft_alignment(cost, 0.1)
    with torch.no_grad():
        assert torch.equal(soft_alignment(cost, 0.1), expected)
    with torch.inference_mode():
        assert torch.equal(soft_alignment(cost + 0.0, 0.1), expected)
    assert not soft_alignment(cost.requires_grad_(), 0.1).requires_grad


def test_the_first_of_equals_is_taken():
    values = torch.tensor([[0.0, 1.0, 1.0 + TIE / 2], [-torch.inf] * 3, [0.0, 1.0, 1.0 + 4 * TIE]], dtype=torch.double)
    assert first_within_tie(values, 1).tolist() == [1, 0, 2]
