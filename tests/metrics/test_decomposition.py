"""The decomposition metric against LayerD's own numbers, against the protocol written plainly, and by its laws."""

import json
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.decomposition_metric import plain_alpha_iou, plain_levels, plain_rgb_l1
from metrics import alignment, decomposition
from metrics.alignment import dtw_path, flatten_peels
from metrics.decomposition import evaluate_folders, main, read_stack
from metrics.layer_pairs import PairMeter, PixelLayer, over_8bit, pair_measure
from metrics.stack_scores import aggregate, score_sample

VECTORS = Path(__file__).parents[1] / "data" / "decomposition"
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
SCORES = ("rgb_l1", "alpha_iou", "cost")
close = partial(pytest.approx, rel=0, abs=1e-9)


def vector(name):
    return read_stack(VECTORS / "pred" / name), read_stack(VECTORS / "gt" / name)


def flat(red, green, blue, alpha, shape=(4, 5)):
    return np.full((*shape, 4), (red, green, blue, alpha), np.uint8)


def random_layer(rng, shape):
    """Few values, so that empty, opaque and equal pixels are common."""
    return rng.choice(np.array([0, 1, 3, 127, 128, 254, 255], np.uint8), (*shape, 4))


@st.composite
def stacks(draw, count=2):
    """Stacks of one size: each layer is noise, a box or one colour, so that ties and peels happen."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    drawn = []
    for _ in range(count):
        layers = []
        for kind in draw(st.lists(st.sampled_from(["noise", "box", "flat"]), min_size=1, max_size=6)):
            layer = random_layer(rng, shape if kind == "noise" else (1, 1)) * np.ones((*shape, 1), np.uint8)
            if kind == "box":
                layer[rng.integers(shape[0]) :, : rng.integers(shape[1]) + 1] = 0
            layers.append(layer)
        drawn.append(layers)
    return drawn


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
            assert flatten_peels(layers)[0] == EXPECTED["samples"][name]["trace"][key]

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
        groups, peels = flatten_peels(layers)
        assert groups == [[0], [1, 2, 3]]
        np.testing.assert_array_equal(peels[1], flat(4, 5, 6, 255))

    def test_opaque_layers_stay_apart(self):
        assert flatten_peels([flat(k, k, k, 255) for k in range(3)])[0] == [[0], [1], [2]]

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
        assert score_sample(*drawn, fewer) == score_sample(*drawn, 5)[: fewer + 1]

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


def write(folder, layers):
    folder.mkdir(parents=True)
    for index, layer in enumerate(layers):
        Image.fromarray(layer).save(folder / f"{index:04d}.png")


@pytest.fixture
def folders(tmp_path):
    """Two good samples and one of every kind that cannot be scored."""
    rng = np.random.default_rng(6)
    pred, gt = tmp_path / "pred", tmp_path / "gt"
    for name in ("good", "perfect", "broken", "sizes", "short", "short_gt", "stray", "lost"):
        layers = [random_layer(rng, (6, 7)) | np.array([0, 0, 0, 1], np.uint8) for _ in range(3)]
        others = [random_layer(rng, (6, 7)) | np.array([0, 0, 0, 1], np.uint8) for _ in range(3)]
        if name != "stray":
            write(gt / name, layers[:1] if name == "short_gt" else layers)
        if name == "sizes":
            others = [layer[:5] for layer in others]
        if name == "short":
            others = others[:1]
        if name != "lost":
            write(pred / name, layers if name == "perfect" else others)
    (pred / "broken" / "0001.png").write_bytes((pred / "broken" / "0002.png").read_bytes()[:60])
    (pred / "notes.txt").write_text("not a sample")
    return pred, gt


class TestCommandLine:
    def run(self, folders, out, *options):
        pred, gt = folders
        assert main(["--pred", str(pred), "--gt", str(gt), "--out", str(out), *options]) == 0
        return json.loads(out.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the report"))

    def test_report(self, folders, tmp_path):
        report = self.run(folders, tmp_path / "new" / "report.json", "--max-merges", "5")
        assert list(report) == ["protocol", "samples", "skipped", "missing", "mean"]
        assert sorted(report["samples"]) == ["good", "perfect"]
        levels = score_sample(read_stack(folders[0] / "good"), read_stack(folders[1] / "good"))
        expected = [{"merges": v.merges, **{score: getattr(v, score) for score in SCORES}} for v in levels]
        assert report["samples"]["good"] == expected
        assert report["samples"]["perfect"][0] == {"merges": 0, "rgb_l1": 0.0, "alpha_iou": 1.0, "cost": 0.0}
        assert [entry["merges"] for entry in report["mean"]] == [0, 1, 2, 3, 4, 5]
        assert report["mean"][3]["cost"] == close(expected[3]["cost"] / 2)
        assert report["missing"] == ["lost"]
        reasons = report["skipped"]
        assert sorted(reasons) == ["broken", "short", "short_gt", "sizes", "stray"]
        assert "broken/0001.png" in reasons["broken"]
        assert "7x5" in reasons["sizes"] and "7x6" in reasons["sizes"]
        assert "prediction: 1" in reasons["short"]
        assert "ground truth: 1" in reasons["short_gt"]
        assert "no ground truth" in reasons["stray"]
        assert report["protocol"]["mean_over_samples"] == 2
        assert report["protocol"]["versions"] == {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "pillow": Image.__version__,
        }

    def test_missing_as_worst(self, folders, tmp_path):
        plain = self.run(folders, tmp_path / "a.json")
        worst = self.run(folders, tmp_path / "b.json", "--missing-as-worst")
        assert worst["samples"] == plain["samples"]
        for before, after in zip(plain["mean"], worst["mean"], strict=True):
            assert after["rgb_l1"] == close((2 * before["rgb_l1"] + 1) / 3)
            assert after["alpha_iou"] == close(2 * before["alpha_iou"] / 3)
            assert after["cost"] == close((2 * before["cost"] + 1) / 3)

    def test_variants_reach_the_score(self, folders, tmp_path):
        options = ["--soft-alpha-weight", "--pred-merges-only", "--snap-alpha", "128", "--max-merges", "2"]
        report = self.run(folders, tmp_path / "report.json", *options)
        stacks = [read_stack(root / "good") for root in folders]
        levels = score_sample(*stacks, 2, soft_alpha_weight=True, merge_gt=False, alpha_threshold=128)
        assert [entry["cost"] for entry in report["samples"]["good"]] == [level.cost for level in levels]
        assert levels[0].cost != score_sample(*stacks, 2)[0].cost
        protocol = report["protocol"]
        assert protocol["rgb_l1_weight"] == "ground-truth alpha"
        assert protocol["merge_sides"] == ["pred"]
        assert (protocol["alpha_threshold"], protocol["max_merges"]) == (128, 2)

    def test_reference_samples(self, tmp_path):
        report = self.run((VECTORS / "pred", VECTORS / "gt"), tmp_path / "report.json")
        for mean, entry in zip(report["mean"], EXPECTED["aggregate_cli"], strict=True):
            assert [mean[score] for score in SCORES] == close([entry[f"avg_{score}"] for score in SCORES])

    def test_jobs_do_not_matter(self, folders):
        assert evaluate_folders(*folders, jobs=2) == evaluate_folders(*folders, jobs=1)

    def test_nothing_scored(self, folders, tmp_path):
        (tmp_path / "empty").mkdir()
        report = self.run((tmp_path / "empty", folders[1]), tmp_path / "report.json")
        assert (report["samples"], report["mean"]) == ({}, [])
        assert len(report["missing"]) == 7

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"--pred": "nowhere"}, "nowhere is not a folder"),
            ({"--gt": "nowhere"}, "nowhere is not a folder"),
            ({"--gt": "pred/good"}, "no sample folders"),
            ({"--out": "gt"}, "is a folder"),
            ({"--out": "pred/notes.txt/report.json"}, "notes.txt"),
            ({"--max-merges": "-1"}, "--max-merges"),
            ({"--snap-alpha": "256"}, "--snap-alpha"),
            ({"--jobs": "0"}, "--jobs"),
        ],
    )
    def test_user_errors(self, folders, tmp_path, monkeypatch, capsys, change, words):
        monkeypatch.chdir(tmp_path)
        options = {"--pred": "pred", "--gt": "gt", "--out": "report.json"} | change
        assert main([word for option in options.items() for word in option]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not Path("report.json").exists()

    def test_module_runs_without_torch(self, tmp_path):
        code = "import sys, runpy; runpy.run_module('metrics.decomposition', run_name='__main__', alter_sys=True)"
        code = f"try:\n    {code}\nfinally:\n    assert 'torch' not in sys.modules"
        root = Path(decomposition.__file__).parents[1]
        arguments = ["--pred", str(tmp_path / "no"), "--gt", str(tmp_path), "--out", str(tmp_path / "report.json")]
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.strip() == f"error: {tmp_path / 'no'} is not a folder"
