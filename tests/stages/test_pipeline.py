"""The default pipeline, on few samples, in a git repository of its own: as a user, with DVC and MLflow for real."""

import json
import math
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

from config.params import flatten
from layers.dataset.digest import digest
from tests.support.imports import ROOT
from tests.support.workspace import SMALLER, commit, dvc, make_clone, make_workspace, run, stage
from tests.test_pipeline_file import STAGES

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A repository with this checkout's files, its parameters but for sizes, and one finished ``dvc repro``."""
    root = make_clone(tmp_path_factory.mktemp("clone") / "a clone")
    dvc(root, "repro")
    commit(root, "first repro")
    return root


def runs(root: Path) -> list:
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("qwen-image-layered")
    assert experiment.artifact_location.startswith(str(root)), "images must land in the repository"
    return client.search_runs([experiment.experiment_id], max_results=1000)


def tune(root: Path, *arguments: str):
    """The clone's own code, as of all that DVC runs."""
    return run(stage("tune", *arguments), root, PYTHONPATH=str(root))


def test_the_default_is_what_runs_but_for_sizes(clone):
    """What ships and what a user's ``dvc repro`` computes: no other network, loss or weight is tested here."""
    default, tested = (flatten(yaml.safe_load((root / "params.yaml").read_text())) for root in (ROOT, clone))
    assert {path for path in default | tested if default.get(path) != tested.get(path)} == set(SMALLER)
    assert all(type(default[path]) is type(value) and default[path] >= value for path, value in SMALLER.items())
    texts = [(root / "params.yaml").read_text() for root in (ROOT, clone)]
    assert len({text.count("#") for text in texts}) == 1, "comments stay"


def test_every_out_is_there_in_its_promised_form(clone):
    manifest = json.loads((clone / "data/rgba_layers/metadata/manifest.json").read_text())
    assert {sample["split"] for sample in manifest["samples"]} == {"train", "val", "test"}
    for sample in manifest["samples"]:
        folder = clone / "data/rgba_layers" / sample["split"] / sample["bucket"]
        assert (folder / f"{sample['id']}_composite.png").is_file()
        assert all((folder / f"{sample['id']}_comp{k:03d}.png").is_file() for k in range(len(sample["layers"])))
    AutoencoderKLQwenImage.from_pretrained(clone / "models/weights/vae/vae")
    for model in ("decompose", "refine"):
        folder = clone / "models/weights" / model
        AutoencoderKLQwenImage.from_pretrained(folder / "vae")
        QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
        assert (folder / "scheduler" / "scheduler_config.json").is_file()
    assert {p.name for p in (clone / "metrics/reports/val_recon").iterdir()} == {
        "val_recon_epoch_1.png",
        "val_recon_epoch_2.png",
    }
    assert len(list((clone / "metrics/reports/panels").glob("*.png"))) == 2
    assert (clone / "metrics/reports/report.html").is_file()


def test_reports_are_finite_and_complete(clone):
    def numbers(value):
        if isinstance(value, dict):
            return [number for item in value.values() for number in numbers(item)]
        if isinstance(value, list):
            return [number for item in value for number in numbers(item)]
        return [value] if isinstance(value, int | float) else []

    for name in STAGES:
        report = json.loads((clone / f"metrics/reports/{name}.json").read_text())
        assert numbers(report) and all(math.isfinite(number) for number in numbers(report))
    evaluated = json.loads((clone / "metrics/reports/evaluate.json").read_text())
    for rows in evaluated["decomposition"].values():
        assert [row["merges"] for row in rows] == list(range(6))
        assert all(0 <= row["alpha_iou"] <= 1 and 0 <= row["rgb_l1"] <= 1 for row in rows)
    upper, model = evaluated["decomposition"]["true_layers_through_vae"][0], evaluated["decomposition"]["model"][0]
    assert upper["cost"] < model["cost"]


def test_each_stage_is_one_run_with_its_tags(clone):
    found = {run.data.tags["stage"]: run for run in runs(clone) if "dvc.exp_name" not in run.data.tags}
    parent = found.pop("pipeline")
    assert set(found) == set(STAGES)
    assert parent.info.status == "FINISHED" and parent.data.params["refine.loss.velocity"] == "1.0"
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    for name, stage_run in found.items():
        assert stage_run.info.run_name == name and stage_run.info.status == "FINISHED"
        assert len(stage_run.data.tags["git.commit"]) == 40
        assert any(key.startswith(f"{name}.") for key in stage_run.data.params)
        assert stage_run.inputs.dataset_inputs
        if name != "prepare_buckets":
            assert len(stage_run.data.tags["input.data/rgba_layers.md5"]) == 32
    assert found["train_decompose"].data.tags["input.models/weights/vae.md5"]
    assert "val/psnr_white" in found["train_vae"].data.metrics


def test_dvc_and_mlflow_say_the_same_numbers_under_the_same_names(clone):
    found = {run.data.tags["stage"]: run.data.metrics for run in runs(clone) if "dvc.exp_name" not in run.data.tags}
    shown = json.loads(dvc(clone, "metrics", "show", "--json"))[""]["data"]
    for name in STAGES:
        numbers = {
            key: value
            for key, value in flatten(shown[f"metrics/reports/{name}.json"]["data"]).items()
            if isinstance(value, int | float)
        }
        for logged in (found[name], found["pipeline"]):
            assert {key: value for key, value in logged.items() if key.startswith(f"{name}/")} == {
                f"{name}/{key}": value for key, value in numbers.items()
            }
    assert "evaluate/at_0_merges.model.cost" in found["pipeline"]


def test_a_second_repro_runs_nothing(clone):
    assert "Running stage" not in dvc(clone, "repro")
    assert "up to date" in dvc(clone, "status")


def test_one_loss_weight_touches_its_own_stage_first(clone):
    """What follows from it is decided by outputs; the experiment below shows that it is refine and evaluate."""
    path = clone / "params.yaml"
    kept = path.read_text()
    path.write_text(kept.replace("    recomposition: 0.5", "    recomposition: 0.25"))
    try:
        plan = dvc(clone, "repro", "--dry")
        assert [name for name in STAGES if f"Running stage '{name}'" in plan] == ["refine"]
        assert "'train_vae' didn't change" in plan and "'train_decompose' didn't change" in plan
    finally:
        path.write_text(kept)


def test_an_experiment_in_a_temporary_folder_lands_in_the_main_store(clone):
    before = {run.info.run_id for run in runs(clone)}
    # Of another seed: where refine keeps its start, another loss alone gives the same weights, and nothing to evaluate.
    changes = ["-S", "refine.loss.recomposition=0.25", "-S", "train_decompose.seed=1"]
    dvc(clone, "exp", "run", "--temp", "--name", "softer", *changes)
    fresh = [run for run in runs(clone) if run.info.run_id not in before]
    assert sorted(run.data.tags["stage"] for run in fresh) == [
        "evaluate", "pipeline", "refine", "train_decompose",
    ]  # fmt: skip
    assert len({run.data.tags["pipeline.key"] for run in fresh}) == 1, "all stages see the same code"
    assert {run.data.tags["dvc.exp_name"] for run in fresh} == {"softer"}
    whole = next(run for run in fresh if run.data.tags["stage"] == "pipeline")
    assert "train_vae/psnr_white" in whole.data.metrics, "of the first repro, whose VAE it uses"
    (refined,) = (run for run in fresh if run.data.tags["stage"] == "refine")
    assert refined.data.params["refine.loss.recomposition"] == "0.25"
    assert Path(refined.info.artifact_uri).is_dir() and refined.info.artifact_uri.startswith(str(clone))
    difference = json.loads(dvc(clone, "metrics", "diff", "--json", "HEAD", "softer"))
    assert "metrics/reports/refine.json" in difference
    # Both models, that of the working tree and that of the experiment, are registered and evaluated.
    versions = mlflow.MlflowClient(f"sqlite:///{clone / 'mlruns' / 'mlflow.db'}").search_model_versions()
    versions.sort(key=lambda version: int(version.version))
    assert [version.tags.get("dvc.exp_name") for version in versions] == [None, "softer"]
    assert versions[0].tags["weights.md5"] == digest(clone / "models/weights/refine") != versions[1].tags["weights.md5"]
    assert {version.tags["weights.path"] for version in versions} == {"models/weights/refine"}
    assert {version.tags["evaluated"] for version in versions} == {"true"}


def test_an_experiment_in_a_temporary_folder_starts_from_weights_of_the_project(clone):
    """Such as somebody's own, which neither git nor DVC copies there."""
    shutil.copytree(clone / "models/pretrained/model/vae", clone / "models/weights/mine")
    changes = ["-S", "train_vae.rgb_checkpoint=models/weights/mine"]
    dvc(clone, "exp", "run", "--temp", "--name", "mine", *changes, "train_vae")
    found = {run.data.tags["stage"]: run for run in runs(clone) if run.data.tags.get("dvc.exp_name") == "mine"}
    assert sorted(found) == ["pipeline", "train_vae"]
    assert found["train_vae"].data.params["train_vae.rgb_checkpoint"] == "models/weights/mine"
    assert found["train_vae"].info.status == "FINISHED"


def test_plots_are_drawn(clone):
    page = clone / "plots"
    dvc(clone, "plots", "show", "--out", str(page))
    text = (page / "index.html").read_text()
    assert "alpha soft IoU" in text and "val_recon_epoch_2" in text


@pytest.mark.parametrize("name", ["train_vae", "train_decompose", "refine"])
def test_a_study_of_each_stage_runs_and_its_best_trial_is_applied(clone, name):
    before = (clone / "params.yaml").read_text()
    found = tune(clone, "--stage", name, "--trials", "1")
    assert "in trial 0 of 1" in found.stdout and f".tune/{name}-losses/" in found.stdout
    # Today's parameters are the first trial.
    applied = tune(clone, "--stage", name, "--apply")
    assert applied.stdout == "tune: params.yaml has the values of trial 0 already\n"
    assert (clone / "params.yaml").read_text() == before


def test_a_study_goes_on_and_changes_what_it_is_told_to(clone):
    assert dvc(clone, "status").strip().endswith("up to date."), "three studies have run"
    second = tune(clone, "--trials", "1")
    assert "of 2" in second.stdout
    studies = [run for run in runs(clone) if run.data.tags["stage"] == "tune"]
    (tuned,) = (run for run in studies if run.data.tags["optuna.study"] == "train_vae-losses")
    below = [run for run in runs(clone) if run.data.tags.get("mlflow.parentRunId") == tuned.info.run_id]
    trials = {run.data.tags["optuna.trial"]: run for run in below if "optuna.trial" in run.data.tags}
    assert sorted(trials) == ["0", "1"]
    assert trials["0"].data.params["train_vae.loss.l1"] == "0.2"
    assert trials["0"].data.params["train_vae.rgb_checkpoint"] == "models/pretrained/model/vae"
    path = clone / "params.yaml"
    before = path.read_text()
    try:
        tune(clone, "--apply", "train_vae-losses", "--trial", "1")
        changed = flatten(yaml.safe_load(path.read_text()))["train_vae.loss.l1"]
        assert changed == pytest.approx(float(trials["1"].data.params["train_vae.loss.l1"])) != 0.2
        told = dvc(clone, "status")
        assert "train_vae" in told and "train_decompose" not in told and "refine" not in told
    finally:
        path.write_text(before)


def test_what_a_user_can_get_wrong_is_one_line(clone, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text((clone / "params.yaml").read_text().replace("max_side: 32", "max_side: 33"))
    for name in ("prepare_buckets", "evaluate"):
        result = run(stage(name, "--params", str(bad)), clone, check=False)
        assert result.returncode == 2
        assert result.stderr.strip().splitlines()[-1] == (
            "error: bad.yaml: prepare_buckets.max_side: got 33, expected a multiple of 32"
        )
    missing = run(stage("train_decompose"), make_workspace(tmp_path / "empty"), check=False)
    assert missing.returncode == 2
    assert missing.stderr.strip().splitlines()[-1].startswith("error: data/rgba_layers: no such file or folder")


def test_others_get_the_models_by_name(clone, tmp_path):
    """As docs/tracking.md says: a remote, a tag, and ``dvc artifacts get`` from another folder."""
    dvc(clone, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(clone, "push", "refine")
    commit(clone, "a remote")
    for name in ("decomposer", "pretrained-decomposer"):
        run(["git", "tag", "--annotate", f"{name}@v1.0.0", "--message", "first"], clone)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, place in (("decomposer", "models/weights/refine"), ("pretrained-decomposer", "models/pretrained/model")):
        dvc(elsewhere, "artifacts", "get", str(clone), name, "--out", name)
        assert digest(elsewhere / name) == digest(clone / place), name
