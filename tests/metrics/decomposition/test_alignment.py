"""Pairs, compositing and paths: the parts of the decomposition metric."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.decomposition_metric import plain_alpha_iou, plain_rgb_l1
from metrics.decomposition.alignment import dtw_path
from metrics.decomposition.pairs import PairMeter, PixelLayer, over_8bit, pair_measure
from metrics.decomposition.scores import score_sample
from tests.metrics.decomposition.stacks import close, flat, random_layer, stacks, vector


def formula_over(bottom, top):
    """Section 1.3 in plain integers."""

    def div255(x):
        return (x + (x >> 8)) >> 8

    bottom, top = bottom.astype(np.int64), top.astype(np.int64)
    below, above = bottom[..., 3:], top[..., 3:]
    whole = 255 * above + below * (255 - above)
    weight = above * 255 * 255 * 128 // np.maximum(whole, 1)
    rgb = div255(top[..., :3] * weight + bottom[..., :3] * (255 * 128 - weight) + 128 * 128) >> 7
    out = np.concatenate([rgb, div255(whole + 128)], axis=-1)
    return np.where(above == 0, bottom, out).astype(np.uint8)


def test_over_is_the_integer_formula():
    rng = np.random.default_rng(2)
    bottom, top = rng.integers(0, 256, (2, 256, 256, 4), dtype=np.uint8)
    bottom[..., 3], top[..., 3] = np.indices((256, 256))  # every pair of alphas
    np.testing.assert_array_equal(over_8bit(bottom, top), formula_over(bottom, top))
    np.testing.assert_array_equal(over_8bit(bottom, top)[:, 0], bottom[:, 0])  # hidden colour stays


class TestPairs:
    # 362 x 363 pixels are more than one block and no whole number of lanes.
    @pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 32), (362, 363)])
    @pytest.mark.parametrize("soft", [False, True])
    def test_equals_plain_numpy(self, shape, soft):
        rng = np.random.default_rng(3)
        for _ in range(3):
            first, second = random_layer(rng, shape), random_layer(rng, shape)
            measure = pair_measure(first, second, soft)
            assert measure.rgb_l1 == pytest.approx(plain_rgb_l1(first, second, soft), rel=1e-12)
            assert measure.alpha_iou == pytest.approx(plain_alpha_iou(first, second), rel=1e-12)

    def test_lanes_do_not_overflow(self):
        shape = (700, 700)
        measure = pair_measure(flat(0, 0, 0, 255, shape), flat(255, 255, 255, 255, shape))
        assert (measure.rgb_l1, measure.alpha_iou) == (close(1.0), 1.0)
        assert pair_measure(flat(0, 0, 0, 0, shape), flat(0, 0, 0, 255, shape)).alpha_iou == 0.0

    def test_float_sums_are_the_references_to_the_last_bit(self):
        rng = np.random.default_rng(4)
        for shape in [(1, 1), (5, 3), (40, 61)]:
            first, second = random_layer(rng, shape), random_layer(rng, shape)
            measure = PairMeter(shape[0] * shape[1], float_sums=True).measure(PixelLayer(first), PixelLayer(second))
            assert measure.rgb_l1 == plain_rgb_l1(first, second)
            assert measure.alpha_iou == plain_alpha_iou(first, second)

    @settings(deadline=None, max_examples=50)
    @given(stacks())
    def test_bound_holds(self, drawn):
        """A merge that the bound rules out could not have been the best."""
        meter = PairMeter(drawn[0][0].shape[0] * drawn[0][0].shape[1])
        layers, others = ([PixelLayer(image) for image in side] for side in drawn)
        for layer in layers:
            for other in others:
                meter.measure(layer, other)
        for pair in pairwise(layers):
            merged = PixelLayer(over_8bit(pair[0].image, pair[1].image))
            for other in others:
                assert meter.similarity(merged, [other]) <= meter.similarity_bound(pair, [other]) + 1e-12

    def test_every_pair_is_measured_once(self, monkeypatch):
        seen = []
        plain = PairMeter._difference_sums

        def record(self, first, second):
            seen.append((first.identifier, second.identifier))
            return plain(self, first, second)

        monkeypatch.setattr(PairMeter, "_difference_sums", record)
        levels = score_sample(*vector("006"))
        assert levels[-1].taken == 5
        assert len(seen) == len(set(seen)) < 14 * 6 + 60  # all pairs of layers, then what the merges add


class TestPath:
    def test_ties_take_the_diagonal_first(self):
        assert dtw_path([[0.0] * 3] * 3) == ([(0, 0), (1, 1), (2, 2)], 0.0)

    def test_then_the_row_above(self):
        # Back from (2, 2) the cell above and the cell before cost the same, the diagonal more.
        assert dtw_path([[0, 0, 9], [0, 9, 0], [9, 0, 0]])[0] == [(0, 0), (0, 1), (1, 2), (2, 2)]

    def test_margin(self):
        assert dtw_path([[0.25]]) == ([(0, 0)], np.inf)
        assert dtw_path([[0, 1], [1, 0]])[1] == 1.0

    @settings(deadline=None, max_examples=60)
    @given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
    def test_is_the_cheapest(self, rows, columns, seed):
        cost = np.random.default_rng(seed).random((rows, columns)).tolist()

        def cheapest(i, j):
            before = [cheapest(a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
            return cost[i][j] + min(before, default=0.0)

        path, _ = dtw_path(cost)
        assert sum(cost[i][j] for i, j in path) == pytest.approx(cheapest(rows - 1, columns - 1))
