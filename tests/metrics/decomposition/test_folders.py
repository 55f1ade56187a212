"""The decomposition metric over folders, as its command line runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metrics.decomposition.folders import evaluate_folders, main, read_stack
from metrics.decomposition.scores import score_sample
from tests.metrics.decomposition.stacks import EXPECTED, SCORES, VECTORS, close, random_layer
from tests.support.imports import ROOT


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


@pytest.mark.parametrize("name", ["._0000.png", ".hidden.png"])
def test_what_file_managers_leave_behind_is_no_layer_and_no_sample(folders, name):
    before = evaluate_folders(*folders)
    for root in folders:
        (root / ".ipynb_checkpoints").mkdir()
        (root / "__MACOSX").mkdir()
        (root / ".DS_Store").write_bytes(b"")
        for sample in ("good", "perfect"):
            (root / sample / name).write_bytes(b"\0\5\x16\7")
            (root / sample / "Thumbs.db").write_bytes(b"")
    assert evaluate_folders(*folders) == before


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        ("broken", "none of 1 samples can be scored; the first, broken: cannot read broken/0001.png"),
        ("short", "none of 1 samples can be scored; the first, short: fewer than 2 layers"),
        (None, "--pred holds no sample folder; expected those of --gt, broken among them"),
    ],
)
def test_nothing_scored_is_no_success(folders, tmp_path, capsys, kept, sentence):
    for folder in folders[0].iterdir():
        if folder.is_dir() and folder.name != kept:
            folder.rename(tmp_path / folder.name)
    out = tmp_path / "report.json"
    assert main(["--pred", str(folders[0]), "--gt", str(folders[1]), "--out", str(out)]) == 2
    assert f"error: {sentence}" in capsys.readouterr().err
    report = json.loads(out.read_text())
    assert (report["samples"], report["mean"]) == ({}, []) and len(report["missing"]) >= 6


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
        arguments = ["--pred", str(tmp_path / "no"), "--gt", str(tmp_path), "--out", str(tmp_path / "report.json")]
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.strip() == f"error: {tmp_path / 'no'} is not a folder"


@pytest.mark.parametrize(
    "names", [["layer_2.png", "layer_10.png"], ["2.png", "10.png"], ["background.png", "layer.png"]]
)
def test_numbers_in_names_count_by_their_value(tmp_path, names):
    for index, name in enumerate(names):
        Image.new("RGBA", (4, 4), (index, 0, 0, 255)).save(tmp_path / name)
    assert [int(layer[0, 0, 0]) for layer in read_stack(tmp_path)] == [0, 1]
