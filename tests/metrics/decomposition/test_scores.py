"""The decomposition metric against LayerD's own numbers, against the protocol written plainly, and by its laws."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.decomposition_metric import plain_levels
from metrics.decomposition import alignment
from metrics.decomposition.alignment import composite_peels
from metrics.decomposition.pairs import pair_measure
from metrics.decomposition.scores import aggregate, score_sample
from tests.metrics.decomposition.stacks import EXPECTED, SCORES, close, flat, random_layer, stacks, vector


def assert_scores(levels, reference):
    """Levels equal the reference's entries; the last entry is carried forward."""
    assert levels[-1].taken == len(reference) - 1
    for level in levels:
        entry = reference[min(level.merges, len(reference) - 1)]
        for name in SCORES:
            assert getattr(level, name) == close(entry[name]), (level.merges, name)


class TestReferenceSamples:
    @pytest.mark.parametrize("name", sorted(EXPECTED["samples"]))
    @pytest.mark.parametrize("merge_gt", [True, False])
    def test_scores_merges_and_paths(self, name, merge_gt):
        suffix = "" if merge_gt else "_pred_merges_only"
        sample = EXPECTED["samples"][name]
        levels = score_sample(*vector(name), merge_gt=merge_gt)
        assert [level.merges for level in levels] == [0, 1, 2, 3, 4, 5]
        assert_scores(levels, sample[f"results{suffix}"])
        for level, step in zip(levels, sample[f"trace{suffix}"]["steps"], strict=False):
            assert level.path == tuple(map(tuple, step["path"]))
            if step["merge"] is None:
                assert level.merge is None
            else:
                assert level.merge.side == step["merge"]["side"]
                assert [level.merge.index, level.merge.index + 1] == step["merge"]["merged"]
                assert level.merge.gain == close(step["merge"]["gain"])

    @pytest.mark.parametrize("name", sorted(EXPECTED["samples"]))
    def test_groups(self, name):
        for layers, key in zip(vector(name), ("pred_groups", "gt_groups"), strict=True):
            assert composite_peels(layers)[0] == EXPECTED["samples"][name]["trace"][key]

    @pytest.mark.parametrize("name", sorted(EXPECTED["samples"]))
    def test_pairs(self, name):
        pred, gt = vector(name)
        expected = EXPECTED["samples"][name]["pairwise_ungrouped"]
        for i, p in enumerate(pred):
            for j, g in enumerate(gt):
                measure = pair_measure(p, g)
                for score in SCORES:
                    assert getattr(measure, score) == close(expected[score][i][j])
                assert pair_measure(g, p).cost == close(expected["cost_reversed"][i][j])

    def test_aggregate(self):
        means = aggregate([score_sample(*vector(name)) for name in EXPECTED["samples"]])
        assert len(means) == 6
        for mean, entry in zip(means, EXPECTED["aggregate_all_samples"], strict=True):
            assert mean.merges == entry["max_edits"]
            assert mean.taken == close(entry["avg_edits"])
            assert mean.count == entry["count"]
            for score in SCORES:
                assert getattr(mean, score) == close(entry[f"avg_{score}"])

    def test_a_sample_hits_exact_ties(self, monkeypatch):
        """Guards the tie rules: if no sample had a tie, the tests above would not see them."""
        monkeypatch.setattr(alignment, "_Search", Recorder)
        Recorder.made = []
        score_sample(*vector("001"))
        assert Recorder.made[0].margin == 0.0
        assert len(Recorder.made) == 2  # settled by the reference's roundings


class Recorder(alignment._Search):
    made: list = []  # noqa: RUF012

    def __init__(self, *args):
        super().__init__(*args)
        self.made.append(self)


class TestEdgeCases:
    """The table in section 2 of the protocol."""

    @pytest.mark.parametrize(
        ("pred", "gt", "rgb_l1", "alpha_iou"),
        [
            (flat(9, 9, 9, 0), flat(200, 0, 0, 0), 0.0, 0.0),  # both empty: IoU 0, not 1
            (flat(9, 9, 9, 255), flat(0, 0, 0, 0), 0.0, 0.0),
            (flat(0, 0, 0, 0), flat(255, 255, 255, 255, (512, 512)), 1.0, 0.0),
            (flat(0, 0, 0, 255), flat(255, 255, 255, 1), 1.0, 1 / 255),  # alpha 1 counts in full
            (flat(255, 255, 255, 0), flat(255, 255, 255, 255), 0.0, 0.0),  # colour under alpha 0 is compared
        ],
    )
    def test_pairs(self, pred, gt, rgb_l1, alpha_iou):
        pred = np.broadcast_to(pred[:1, :1], gt.shape)
        measure = pair_measure(pred, gt)
        assert measure.rgb_l1 == close(rgb_l1)
        assert measure.alpha_iou == close(alpha_iou)
        assert measure.cost == close((rgb_l1 + 1 - alpha_iou) / 2)

    def test_epsilon_counts(self):
        assert pair_measure(flat(0, 0, 0, 0), flat(255, 255, 255, 255)).rgb_l1 == 20 / (20 + 1e-8) < 1.0

    def test_one_layer_takes_all(self):
        rng = np.random.default_rng(0)
        gt = [random_layer(rng, (6, 6)) | np.array([0, 0, 0, 1], np.uint8) for _ in range(4)]
        levels = score_sample(gt[:1], gt, 1, merge_gt=False)
        assert levels[-1].path == ((0, 0), (0, 1), (0, 2), (0, 3))
        assert levels[-1].taken == 0

    def test_never_below_two_layers(self):
        rng = np.random.default_rng(1)
        layers = [random_layer(rng, (8, 8)) | np.array([0, 0, 0, 1], np.uint8) for _ in range(12)]
        levels = score_sample(layers[:6], layers[6:], 20)
        assert len(levels) == 21
        assert min(1 + max(i for i, _ in levels[-1].path), 1 + max(j for _, j in levels[-1].path)) >= 2
        assert levels[-1].taken >= 1

    def test_empty_layers_join_the_front_peel(self):
        layers = [flat(1, 2, 3, 255), flat(0, 0, 0, 0), flat(4, 5, 6, 255), flat(0, 0, 0, 0)]
        groups, peels = composite_peels(layers)
        assert groups == [[0], [1, 2, 3]]
        np.testing.assert_array_equal(peels[1], flat(4, 5, 6, 255))

    def test_opaque_layers_stay_apart(self):
        assert composite_peels([flat(k, k, k, 255) for k in range(3)])[0] == [[0], [1], [2]]

    @pytest.mark.parametrize(
        ("pred", "gt", "words"),
        [
            ([], [flat(0, 0, 0, 0)], "prediction has no layers"),
            ([flat(0, 0, 0, 0)], [], "ground truth has no layers"),
            ([flat(0, 0, 0, 0, (7, 9))], [flat(0, 0, 0, 0, (4, 5))], "9x7.*5x4"),
            ([flat(0, 0, 0, 0), flat(0, 0, 0, 0, (5, 4))], [flat(0, 0, 0, 0)], "layer 1 is 4x5.*5x4"),
            ([np.zeros((4, 5, 3), np.uint8)], [flat(0, 0, 0, 0)], r"prediction layer 0.*\(4, 5, 3\)"),
            ([flat(0, 0, 0, 0)], [np.zeros((4, 5, 4), np.float32)], "ground truth layer 0.*float32"),
            ([np.zeros((0, 5, 4), np.uint8)], [np.zeros((0, 5, 4), np.uint8)], "non-empty"),
        ],
    )
    def test_bad_stacks(self, pred, gt, words):
        with pytest.raises(ValueError, match=words):
            score_sample(pred, gt)

    def test_bad_options(self):
        layers = [flat(0, 0, 0, 0)]
        with pytest.raises(ValueError, match="max_merges"):
            score_sample(layers, layers, -1)
        with pytest.raises(ValueError, match="alpha_threshold"):
            score_sample(layers, layers, alpha_threshold=256)

    def test_aggregate_of_nothing(self):
        assert aggregate([]) == []


# Found by comparing with LayerD: a layer with two partners, so that the layer above standing in for it gains.
OUTNUMBERED = [
    [flat(254, 127, 0, 127), flat(254, 127, 0, 127), flat(0, 127, 127, 254), flat(254, 127, 0, 127)],
    [flat(254, 127, 0, 127), flat(0, 127, 127, 254), flat(254, 127, 0, 127), flat(254, 127, 0, 127)],
]


class TestLaws:
    @settings(deadline=None, max_examples=150)
    @given(stacks(), st.booleans())
    @example(OUTNUMBERED, True)
    def test_equals_the_plain_protocol(self, drawn, merge_gt):
        assert_scores(score_sample(*drawn, merge_gt=merge_gt), plain_levels(*drawn, merge_gt=merge_gt))

    @pytest.mark.parametrize(
        ("shape", "colors", "order"),
        [
            ((2, 3), [(254, 127, 0, 127), (127, 0, 254, 127), (127, 0, 254, 127)], [2, 1, 0]),
            ((9, 4), [(0, 254, 0, 0), (254, 254, 254, 254), (0, 0, 127, 254), (127, 127, 254, 127)], [0, 3, 2, 1]),
        ],
    )
    def test_equals_the_plain_protocol_where_rounding_decides(self, shape, colors, order):
        """Here LayerD takes one of two equal choices for the last bit of a float sum."""
        layers = [flat(*color, shape) for color in colors]
        others = [layers[index] for index in order]
        assert_scores(score_sample(layers, others), plain_levels(layers, others))

    def test_equals_the_plain_protocol_on_ties(self):
        """Flat layers in another order tie all the time."""
        rng = np.random.default_rng(5)
        for _ in range(60):
            shape = tuple(rng.integers(2, 24, 2))
            layers = [flat(*rng.integers(0, 3, 4) * 127, shape) for _ in range(rng.integers(3, 7))]
            others = [layers[index] for index in rng.permutation(len(layers))]
            assert_scores(score_sample(layers, others), plain_levels(layers, others))

    @settings(deadline=None, max_examples=40)
    @given(stacks())
    def test_soft_weight_equals_the_plain_protocol(self, drawn):
        plain = plain_levels(*drawn, soft_alpha_weight=True)
        level = score_sample(*drawn, 0, soft_alpha_weight=True)[0]
        assert level.cost == close(plain[0]["cost"])

    @settings(deadline=None, max_examples=40)
    @given(stacks(count=1))
    def test_identity(self, drawn):
        layers = [layer | np.array([0, 0, 0, 1], np.uint8) for layer in drawn[0]]
        for level in score_sample(layers, layers):
            assert (level.rgb_l1, level.alpha_iou, level.cost) == (0.0, 1.0, 0.0)
            assert level.taken == 0

    @settings(deadline=None, max_examples=40)
    @given(stacks(), st.integers(0, 4))
    def test_fewer_merges_are_a_prefix(self, drawn, fewer):
        for few, more in zip(score_sample(*drawn, fewer), score_sample(*drawn, 5)[: fewer + 1], strict=True):
            for key in ("merges", "taken", "path", "merge"):
                assert getattr(few, key) == getattr(more, key)
            # Sums over pixels may be taken in another order: equal but for the last bit.
            for score in SCORES:
                assert getattr(few, score) == close(getattr(more, score))

    @settings(deadline=None, max_examples=40)
    @given(stacks())
    def test_levels(self, drawn):
        levels = score_sample(*drawn)
        assert len(levels) == 6
        sides = []
        for level in levels:
            assert all(0.0 <= getattr(level, score) <= 1.0 for score in SCORES)
            assert level.cost == close((level.rgb_l1 + 1 - level.alpha_iou) / 2)
            (i, j), (n, m) = level.path[0], level.path[-1]
            assert (i, j) == (0, 0)
            assert max(n, m) < len(level.path) <= n + m + 1
            steps = {(c - a, d - b) for (a, b), (c, d) in pairwise(level.path)}
            assert steps <= {(1, 1), (1, 0), (0, 1)}
            sides.append(n + m)
        for before, after, level in zip(sides, sides[1:], levels[1:], strict=False):
            assert after == before - (level.merge is not None)


class TestVariants:
    def test_soft_weight(self):
        pred, gt = flat(0, 0, 0, 255, (1, 2)), flat(255, 255, 255, 255, (1, 2))
        gt[0, 1] = (0, 0, 0, 51)
        assert pair_measure(pred, gt).rgb_l1 == close(1 / 2, abs=1e-7)
        assert pair_measure(pred, gt, soft_alpha_weight=True).rgb_l1 == close(1 / 1.2, abs=1e-7)

    def test_snapping_removes_haze(self):
        left, right = flat(9, 9, 9, 3), flat(90, 90, 90, 3)
        left[:, :2, 3], right[:, 3:, 3] = 200, 200
        clean = [left.copy(), right.copy()]
        clean[0][:, 2:, 3] = clean[1][:, :3, 3] = 0
        base = flat(0, 0, 0, 255)
        raw = score_sample([base, left, right], [base, *clean], 0)[0]
        snapped = score_sample([base, left, right], [base, *clean], 0, alpha_threshold=4)[0]
        assert raw.path[-1] == (2, 1)  # haze makes the two layers overlap
        assert snapped.path[-1] == (1, 1)
        assert snapped.cost == 0.0 < raw.cost
        assert score_sample([base, left, right], [base, *clean], 0, alpha_threshold=3)[0] == raw  # 3 is not below 3
        assert left[0, 4, 3] == 3  # the input is left alone
