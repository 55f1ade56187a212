import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from metrics.decomposition.pairs import PairMeasure
from metrics.decomposition.scores import score_sample
from metrics.decomposition.structure import order_agreement, stack_structure
from tests.metrics.decomposition.stacks import stacks


def box(top, left, size=6, colour=200, shape=(16, 24)):
    layer = np.zeros((*shape, 4), np.uint8)
    layer[top : top + size, left : left + size] = (colour, 10, 90, 255)
    return layer


def ground(colour=120, shape=(16, 24)):
    return np.full((*shape, 4), (colour, colour, colour, 255), np.uint8)


def compared(pred, gt, kinds):
    return stack_structure(pred, gt, kinds, score_sample(pred, gt, 0)[0].path)


STACK = [ground(), box(2, 2, 8), box(4, 4, 8, colour=90), box(6, 6, 8, colour=30)]  # each over all below
KINDS = ("background", "image", "text", "shadow")


def test_the_truth_itself_has_no_fault():
    found = compared(STACK, STACK, KINDS)
    assert (found.layers, found.empty_layers, found.count_error, found.order_agreement) == (4, 0, 0, 1.0)
    assert [peel.kind for peel in found.peels] == list(KINDS)
    assert all((peel.rgb_l1, peel.alpha_iou, peel.cost) == (0.0, 1.0, 0.0) for peel in found.peels)


def test_empty_layers_are_counted_and_do_not_count_as_layers():
    empty = np.zeros_like(STACK[0])
    found = compared([STACK[0], empty, STACK[1], empty], STACK, KINDS)
    assert (found.layers, found.empty_layers, found.count_error) == (4, 2, 2)


def test_layers_side_by_side_are_one_peel_of_a_group():
    gt = [ground(), box(1, 1), box(1, 14)]
    found = compared([ground(), np.maximum(gt[1], gt[2])], gt, ("background", "text", "image"))
    assert [peel.kind for peel in found.peels] == ["background", "group"]
    assert found.count_error == 0 and found.peels[1].cost == 0.0
    assert compared(gt, gt, ("background", "text", "text")).peels[1].kind == "text"


def test_two_swapped_layers_of_four_disorder_one_pair_of_six():
    swapped = [STACK[0], STACK[2], STACK[1], STACK[3]]
    assert compared(swapped, STACK, KINDS).order_agreement == pytest.approx(5 / 6)
    assert compared(STACK[::-1], STACK, KINDS).order_agreement == 0.0


def test_what_shares_nothing_has_no_order():
    assert compared([box(0, 0, 3)], [box(8, 14, 3)], ("image",)).order_agreement is None


@given(st.permutations(range(5)))
def test_order_agreement_is_kendalls_tau_brought_to_0_and_1(places):
    measures = [[PairMeasure(0.0, float(places[column] == row)) for column in range(5)] for row in range(5)]
    expected = (kendalltau(range(5), places).statistic + 1.0) / 2.0
    assert order_agreement(measures) == pytest.approx(expected)


@given(stacks())
def test_figures_of_peels_come_from_the_protocols_path(pair):
    pred, gt = pair
    level = score_sample(pred, gt, 0)[0]
    found = stack_structure(pred, gt, ["image"] * len(gt), level.path)
    counts = [len(list(group)) for _, group in itertools.groupby(sorted(j for _, j in level.path))]
    assert len(counts) == len(found.peels)
    total = sum(count * peel.cost for count, peel in zip(counts, found.peels, strict=True))
    assert total / sum(counts) == pytest.approx(level.cost, abs=1e-9)
