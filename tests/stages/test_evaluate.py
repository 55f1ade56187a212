"""What evaluate says of any model, in one process, with networks of a few thousand random weights."""

import csv
import json
import shutil
from itertools import count

import numpy as np
import pytest
from PIL import Image

from config.params import flatten
from evaluation.panels import chosen, error_map
from evaluation.summary import CURVES
from layers.dataset.digest import digest
from metrics.decomposition.folders import evaluate_folders, read_stack
from stages import decompose
from stages.evaluate import main
from tests.layers.sources.crello.designs import design, element, plain, save
from tests.support.networks import save_tiny
from tests.support.workspace import make_workspace


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def project(bucketed_root, model, tmp_path, monkeypatch):
    """Runs evaluate, each time in a workspace of its own; gives the folder of reports."""
    numbers = count()

    def evaluate(*arguments, expect=0, **block):
        # A folder made anew at the same place would meet MLflow's open connection to the store that lay there.
        root = tmp_path / f"project_{next(numbers)}"
        changes = {"model": str(model), "steps": 2, "jobs": 1, "panels": 3, "max_merges": 2} | block
        make_workspace(root, bucketed_root, evaluate=changes, tracking={"system_metrics": False})
        monkeypatch.chdir(root)
        monkeypatch.setenv("DVC_ROOT", str(root))
        assert main(list(arguments)) == expect
        return root / "metrics" / "reports"

    return evaluate


def report_of(folder, name="evaluate"):
    return json.loads((folder / f"{name}.json").read_text())


def true_layers(bucketed_root, target):
    """The validation split as a folder of predictions that are the truth."""
    manifest = json.loads((bucketed_root / "metadata" / "manifest.json").read_text())
    for sample in manifest["samples"]:
        if sample["split"] == "val":
            (target / sample["id"]).mkdir(parents=True)
            for k, layer in enumerate(sample["layers"]):
                shutil.copy(bucketed_root / layer["path"], target / sample["id"] / f"{k:02d}.png")
    return target


def test_the_report_holds_every_block(project):
    report = report_of(project())
    assert report["setting"]["samples"] == 4 and report["setting"]["skipped"] == {}
    assert set(report["decomposition"]) == {"model", "composite_only", "true_layers_through_vae", "model_as_predicted"}
    for name, levels in report["decomposition"].items():
        assert [level["merges"] for level in levels] == [0, 1, 2]
        low, high = report["intervals"][name]["cost"]
        assert low <= levels[0]["cost"] <= high
        assert report["at_0_merges"][name] | {"merges": 0} == levels[0]
    assert set(report["recomposition"]) == {"psnr_white", "ssim_white", "lpips_white", "alpha_l1"}
    assert {"psnr", "ssim", "lpips"} <= set(report["vae_layers_nine_backgrounds"])
    assert sum(entry["samples"] for entry in report["breakdown"]["layers"].values()) == 4
    assert sum(entry["samples"] for entry in report["breakdown"]["bucket"].values()) == 4
    assert set(report["breakdown"]["kind"]) <= {"background", "image", "group", "shape", "text", "shadow"}
    assert report["seconds_per_picture"] > 0.0 and report["peak_memory_mib"] > 100.0


def test_what_captions_are_worth_is_a_row_beside(project, tmp_path):
    reader = str(save_tiny(tmp_path / "reader", text=True))
    both, none, told = (report_of(project(model=reader, captions=said, panels=1)) for said in ("both", "none", "told"))
    rows = both["decomposition"]
    assert rows["model"] == none["decomposition"]["model"] and "model_told_captions" not in none["decomposition"]
    assert rows["model_told_captions"] == told["decomposition"]["model"] != rows["model"]
    assert both["difference"]["model_told_captions"]["cost"]
    assert [report["setting"]["text"] for report in (both, none, told)] == ["none", "none", "minilm"]


def test_what_restoring_is_worth_is_a_row_beside(project):
    restored, plain = (report_of(project(restore=choice, panels=1)) for choice in (True, False))
    assert restored["decomposition"]["model_as_predicted"] == plain["decomposition"]["model"]
    assert "model_as_predicted" not in plain["decomposition"]
    assert restored["decomposition"]["model"] != plain["decomposition"]["model"]
    assert restored["recomposition"] == plain["recomposition"], "of what was predicted: restored layers flatten to it"
    assert restored["vae_layers_nine_backgrounds"] == plain["vae_layers_nine_backgrounds"]
    assert [report["setting"]["restored"] for report in (restored, plain)] == ["yes", "no"]


def test_tables_panels_and_page_are_written(project):
    folder = project()
    with (folder / "evaluate_samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    mean = np.mean([float(row["cost"]) for row in rows])
    assert mean == pytest.approx(report_of(folder)["decomposition"]["model"][0]["cost"], abs=1e-5)
    with (folder / "decomposition.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert {row["merges"] for row in curves} == {"0", "1", "2"}, "the paper's rows end where ours do"
    assert {row["dataset"] for row in curves if row["row"] == "model"} == {"this evaluation"}
    assert any("Crello" in row["dataset"] for row in curves)
    names = sorted(path.name for path in (folder / "panels").iterdir())
    assert names == ["01_best.png", "02_median.png", "03_worst.png"]
    assert "Evaluation" in (folder / "report.html").read_text()


def test_figures_do_not_depend_on_the_batch(project):
    def figures(batch_size):
        report = report_of(project(batch_size=batch_size))
        del report["seconds_per_picture"], report["peak_memory_mib"]
        return {key: value for key, value in flatten(report).items() if isinstance(value, float)}

    assert figures(1) == pytest.approx(figures(16), abs=1e-4)


def test_somebody_elses_layers_stand_beside_and_what_is_missing_counts_as_worst(project, bucketed_root, tmp_path):
    truth = true_layers(bucketed_root, tmp_path / "truth")
    report = report_of(project(others={"truth": str(truth)}))
    assert report["decomposition"]["truth"][0] == {"merges": 0, "rgb_l1": 0.0, "alpha_iou": 1.0, "cost": 0.0}
    assert report["missing"] == {"truth": {}, "model_as_predicted": {}}
    gone = next(truth.iterdir())
    shutil.rmtree(gone)
    report = report_of(project("--other", f"truth={truth}"))
    assert report["missing"] == {"truth": {gone.name: "no layers"}, "model_as_predicted": {}}
    assert report["decomposition"]["truth"][0]["cost"] == 0.25, "one of four has cost 1"


def test_written_predictions_score_the_same_by_the_folder_command(project, bucketed_root, tmp_path):
    report = report_of(project(predictions=str(tmp_path / "pred")))
    truth = true_layers(bucketed_root, tmp_path / "truth")
    again = evaluate_folders(tmp_path / "pred", truth, 2)
    assert not again["skipped"] and not again["missing"]
    for ours, theirs in zip(report["decomposition"]["model"], again["mean"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("batch", ["1", "4"])
def test_what_is_scored_is_what_the_command_writes_bit_by_bit(project, bucketed_root, model, tmp_path, batch):
    how = {"steps": 2, "tries": 3, "seed": 5}
    report = report_of(project(predictions=str(tmp_path / "scored"), captions="none", guidance=1.0, **how))
    manifest = json.loads((bucketed_root / "metadata" / "manifest.json").read_text())
    for sample in (sample for sample in manifest["samples"] if sample["split"] == "val"):
        image = tmp_path / f"{sample['id']}.png"
        shutil.copy(bucketed_root / sample["composite"]["path"], image)
        flags = [part for name, value in how.items() for part in (f"--{name}", str(value))]
        flags += ["--layers", str(len(sample["layers"])), "--model", str(model), "--batch-size", batch]
        assert decompose.main([str(image), "--out", str(tmp_path / "written"), *flags]) == 0
        theirs, ours = (read_stack(tmp_path / name / sample["id"]) for name in ("written", "scored"))
        assert len(theirs) == len(ours) == len(sample["layers"])
        for k, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            assert np.array_equal(one, other), f"{sample['id']}: layer {k}, what alpha hides included"
    again = evaluate_folders(tmp_path / "written", true_layers(bucketed_root, tmp_path / "truth"), 2)
    assert not again["skipped"] and not again["missing"]
    for ours, theirs in zip(report["decomposition"]["model"], again["mean"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6), "reports keep six digits"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: Image.new("RGBA", (5, 7)).save(path), "layer 0 is 5x7 pixels, expected "),
        (lambda path: path.write_bytes(b"no image"), "cannot read "),
    ],
)
def test_bad_predictions_of_others_end_nothing_and_are_told(project, bucketed_root, tmp_path, spoil, reason):
    truth = true_layers(bucketed_root, tmp_path / "truth")
    spoilt = next(truth.iterdir())
    spoil(spoilt / "00.png")
    report = report_of(project(others={"truth": str(truth)}))
    assert list(report["missing"]["truth"]) == [spoilt.name]
    assert report["missing"]["truth"][spoilt.name].startswith(reason)
    assert report["decomposition"]["truth"][0]["cost"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--other", "nonsense"], "expected NAME=DIR"),
        (["--other", "theirs=nowhere"], "evaluate.others.theirs: no folder at nowhere"),
        (["--other", "model=x"], "names that no other row has"),
        (["--baseline", "a=x", "--other", "a=."], "names that no other row has"),
        (["--baseline", "nonsense"], "--baseline: got 'nonsense', expected NAME=MODEL"),
        (["--baseline", "other=nowhere/at/all"], "no folder at nowhere/at/all"),
        (["--source", "cinema", "--location", "x"], "prepare_buckets.source: got 'cinema'"),
        (["--source", "crello", "--location", ".", "--count", "0"], "--count: got 0"),
        (["--source", "composer", "--location", "."], "composer"),
        (["--source", "psd"], "--source psd: no --location"),
        (["--model", "nowhere/at/all"], "no folder at nowhere/at/all"),
    ],
)
def test_bad_arguments_are_one_sentence(project, capsys, arguments, sentence):
    project(*arguments, expect=2)
    assert sentence in capsys.readouterr().err


def test_guidance_of_a_network_without_text_is_one_sentence(project, capsys):
    project(guidance=4.0, expect=2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "error: evaluate.guidance: got 4, expected 1: this network was trained without captions"


def test_crello_is_scored_at_its_own_size_and_reported_apart(project, tmp_path):
    designs = [
        design(
            element(plain((30, 60, 90))),
            element(plain((200, 20, 20)), left=8 + k, top=6, width=40, height=30),
            width=96, height=64, sample_id=f"d{k}",
        )
        for k in range(3)
    ]  # fmt: skip
    lonely = design(element(plain((1, 2, 3))), width=96, height=64, sample_id="lonely")
    save(tmp_path / "crello" / "data" / "test-00000-of-00001.parquet", *designs, lonely)
    folder = project("--source", "crello", "--location", str(tmp_path / "crello"), "--short-side", "48")
    report = report_of(folder, "evaluate_crello")
    assert report["setting"]["samples"] == 3
    assert "'short_side': 48" in report["setting"]["source"] and "'layerd_filters': True" in report["setting"]["source"]
    assert list(report["setting"]["skipped"]) == ["lonely"]
    assert not (folder / "evaluate.json").exists(), "the pipeline's own report is left alone"
    assert (folder / "report_crello.html").is_file() and (folder / "panels_crello").is_dir()


@pytest.fixture
def strangers(rendered_root, tmp_path):
    """The twelve designs with a stratum each."""
    folder = tmp_path / "strangers"
    shutil.copytree(rendered_root, folder)
    for number, path in enumerate(sorted((folder / "layouts").iterdir())):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"stratum": ("slide", "cover")[number % 2]}))
    return folder


def test_other_datasets_have_reports_of_their_own_by_stratum(project, strangers, capsys):
    where = {"source": "rendered", "location": str(strangers / "rendered"), "layout_root": str(strangers / "layouts")}
    datasets = {"real": where | {"long_side": 64, "count": 4}, "absent": where | {"location": "nowhere"}}
    folder = project(datasets=datasets)
    assert "evaluate.datasets.absent: no folder at nowhere; left out" in capsys.readouterr().out
    own, real = report_of(folder), report_of(folder, "evaluate_real")
    assert own["setting"]["samples"] == 4 and own["strata"] == {} and real["setting"]["samples"] == 4
    assert (
        real["setting"]["source"].endswith("designs of 64 px, the first 4")
        and not (folder / "evaluate_absent.json").exists()
    )
    assert {name: part["samples"] for name, part in real["strata"].items()} == {"cover": 2, "slide": 2}
    with (folder / "evaluate_samples_real.csv").open() as file:
        rows = list(csv.DictReader(file))
    for stratum, part in real["strata"].items():
        costs = [float(row["cost"]) for row in rows if row["stratum"] == stratum]
        entry = part["rows"]["model"]["cost"]
        assert (
            entry["mean"] == pytest.approx(np.mean(costs), abs=1e-5) and entry["low"] <= entry["mean"] <= entry["high"]
        )
        assert part["rows"].keys() == real["decomposition"].keys()
    assert (folder / "report_real.html").is_file() and (folder / "panels_real").is_dir()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "a=x", "--dataset", "a=y"], "--dataset: got one name twice in a, a"),
        (
            ["--dataset", "a=x", "--source", "rendered", "--location", "y"],
            "--dataset and --source: expected one of them",
        ),
        (["--location", "y"], "--location, --short-side: got no --source"),
        (["--count", "3"], "--count: got neither --source nor --dataset"),
    ],
)
def test_flags_that_would_be_dropped_are_refused(project, capsys, arguments, sentence):
    project(*arguments, expect=2)
    assert sentence in capsys.readouterr().err


def test_a_dataset_is_found_from_where_the_user_stands(project, strangers, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    params = project("--dataset", f"real={strangers}", "--count", "1").parents[1] / "params.yaml"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--dataset", "real=../strangers", "--count", "1", "--params", str(params)]) == 0


def test_a_dataset_by_flag_is_scored_alone(project, strangers):
    folder = project("--dataset", f"real={strangers}", "--count", "2")
    assert report_of(folder, "evaluate_real")["setting"]["samples"] == 2
    assert not (folder / "evaluate.json").exists(), "the split's report stays as it is"


def test_a_dataset_that_is_asked_for_has_to_be_there(project, tmp_path, capsys):
    project("--dataset", f"real={tmp_path / 'nowhere'}", expect=2)
    said = capsys.readouterr().err
    assert "--dataset real: no folder at " in said and "expected rendered/ and layouts/ beside each other" in said
    project("--dataset", "Real Designs=x", expect=2)
    assert "got the name 'Real Designs'" in capsys.readouterr().err


def test_a_folder_of_renderings_is_a_source_too(project, rendered_root):
    folder = project("--source", "rendered", "--location", str(rendered_root / "rendered"), "--count", "3")
    report = report_of(folder, "evaluate_rendered")
    assert report["setting"]["samples"] == 3
    assert report["breakdown"]["layers"].keys() <= {"1", "2", "3", "4"}


@pytest.mark.parametrize(("count", "titles"), [(1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])])
def test_panels_are_spread_from_best_to_worst(count, titles):
    costs = [0.5, 0.1, 0.9, 0.3, 0.7]
    found = chosen(costs, count)
    assert [title for title, _ in found] == titles
    assert [index for _, index in found] == {1: [1], 2: [1, 2], 3: [1, 0, 2]}[count]


def test_more_panels_than_samples_are_all_samples():
    assert [index for _, index in chosen([0.2, 0.1], 6)] == [1, 0]


def test_the_error_map_is_black_where_nothing_differs_and_white_from_a_quarter_on():
    image = np.full((2, 2, 4), (100, 100, 100, 255), np.uint8)
    other = image.copy()
    other[0, 0, :3] = 164
    assert error_map(image, other)[..., 0].tolist() == [[255, 0], [0, 0]]


def test_another_model_stands_beside_on_the_same_images_and_noise(project, model, tmp_path):
    other = save_tiny(tmp_path / "other", seed=2)
    own = {"model": str(model), "steps": 1, "offload": "models"}
    folder = project(baselines={"same": str(model), "own": own})
    report = report_of(folder)
    assert report["decomposition"]["same"] == report["decomposition"]["model"] != report["decomposition"]["own"]
    assert report["difference"]["same"] == {key: {"mean": 0.0, "low": 0.0, "high": 0.0} for key in CURVES}
    assert report["setting"]["rows"] == {"same": {}, "own": {"steps": 1, "offload": "models"}}
    assert "sampling steps: 1; offloaded to main memory: models" in (folder / "report.html").read_text()
    folder = project("--baseline", f"other={other}")
    report = report_of(folder)
    assert report["setting"]["rows"] == {"other": {"model": str(other), "weights_md5": digest(other)}}
    model_row, other_row = (report["at_0_merges"][name] for name in ("model", "other"))
    assert model_row != other_row
    for key, entry in report["difference"]["other"].items():
        assert entry["mean"] == pytest.approx(model_row[key] - other_row[key], abs=1e-5)
        assert entry["low"] <= entry["mean"] <= entry["high"]
    assert "The model less each other row" in (folder / "report.html").read_text()
