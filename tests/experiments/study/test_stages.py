"""Studies over real stages at smoke scale."""

import json

import optuna
import pytest

from tests.experiments.study.studies import params_file, runs
from tests.support.workspace import make_workspace, run, stage
from training.engine.progress import VALIDATION_LOG, announce


def test_validations_are_announced_where_the_environment_says(tmp_path, monkeypatch):
    announce(1, 20, {"psnr_white": 20.0})
    monkeypatch.setenv(VALIDATION_LOG, str(tmp_path / "log"))
    announce(1, 20, {"psnr_white": 20.0})
    announce(2, 40, {"psnr_white": 21.0})
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == [
        {"epoch": 1, "samples": 20, "metrics": {"psnr_white": 20.0}},
        {"epoch": 2, "samples": 40, "metrics": {"psnr_white": 21.0}},
    ]


def test_a_trial_is_a_run_below_the_study_and_a_poor_one_is_ended(bucketed_root, tmp_path):
    """The first trial learns; the others' rates are so small that nothing moves."""
    root = make_workspace(tmp_path / "work", bucketed_root, train_vae={"init": "random", "loss": {"gan": 0.0}})
    params = params_file(
        root, "real", "python",
        budget={"train_vae.optimisation.epochs": 3},
        space={"train_vae.optimisation.learning_rate": {"low": 1.0e-15, "high": 1.0e-3, "log": True}},
    )  # fmt: skip
    # A resume point of the pipeline's own run: trials have theirs elsewhere.
    kept = root / ".checkpoints" / "train_vae" / "0123456789abcdef"
    kept.mkdir(parents=True)
    (kept / "state.json").write_text("{}")
    first = run(stage("tune", "--params", params.name, "--trials", "2"), root)
    assert "in trial 0 of 1, 1 pruned" in first.stdout, first.stdout
    assert (kept / "state.json").is_file() and not (root / "models").exists()
    study = optuna.load_study(study_name="train_vae-real", storage=f"sqlite:///{root}/mlruns/optuna.db")
    done, pruned = study.trials
    assert done.params == {"train_vae.optimisation.learning_rate": 1.0e-3}
    (parent,) = runs(root, stage="tune")
    nested = {int(run.data.tags["optuna.trial"]): run for run in runs(root, mlflow__parentRunId=parent.info.run_id)}
    assert {number: run.info.status for number, run in nested.items()} == {0: "FINISHED", 1: "KILLED"}
    assert [nested[number].data.tags["optuna.state"] for number in (0, 1)] == ["COMPLETE", "PRUNED"]
    assert all(run.data.tags["optuna.study"] == "train_vae-real" for run in nested.values())
    drawn = pruned.params["train_vae.optimisation.learning_rate"]
    assert float(nested[1].data.params["train_vae.optimisation.learning_rate"]) == drawn
    assert nested[0].data.metrics["train_vae/psnr_white"] == pytest.approx(done.value, abs=1e-6)
    assert "val/psnr_white" in nested[1].data.metrics and "train_vae/psnr_white" not in nested[1].data.metrics
    assert list(done.intermediate_values) == [1, 2, 3] and len(pruned.intermediate_values) < 3
