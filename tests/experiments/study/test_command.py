"""The command, in this process, over a stub for the stage."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from optuna.trial import TrialState

from config.params import load_params
from experiments.study import objective
from experiments.study.plan import measured
from stages import tune
from tests.experiments.study.studies import params_file, runs, stub_workspace, study

SQLITE = "sqlite:///mlruns/optuna.db"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return stub_workspace(tmp_path_factory.mktemp("tune") / "work")


@pytest.fixture
def tuned(root, monkeypatch):
    """Runs the command in this process, in the workspace."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "QIL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)

    def command(params: Path, *arguments: str, **more: str) -> int:
        with monkeypatch.context() as patch:
            for key, value in {"STUB_SECONDS": "0.3", **more}.items():
                patch.setenv(key, value)
            return tune.main(["--params", params.name, *arguments])

    return command


def test_a_trial_that_runs_out_of_memory_fails_alone(root, tuned, capsys):
    params = params_file(root, "memory")
    assert tuned(params, "--trials", "2", STUB_FAIL="1") == 2
    reason = "ended with code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == (
        f"error: tune: none of 2 trials of train_vae-memory has ended well; the last one {reason}; "
        "logs are in .tune/train_vae-memory"
    )
    assert tuned(params, "--trials", "1") == 0
    assert "in trial 2 of 1, 2 fail" in capsys.readouterr().out
    trials = study(root, SQLITE, "memory").trials
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert trials[0].user_attrs["error"] == reason
    (parent,) = runs(root, optuna__study="train_vae-memory", stage="tune")
    assert parent.info.status == "FINISHED"
    nested = runs(root, mlflow__parentRunId=parent.info.run_id)
    assert sorted(run.data.tags["optuna.state"] for run in nested) == ["COMPLETE", "FAIL", "FAIL"]
    assert {run.data.tags.get("optuna.error") for run in nested} == {reason, None}
    assert {run.info.status for run in nested if run.data.tags["optuna.state"] == "FAIL"} == {"FAILED"}


def test_a_poor_trial_is_ended_early(root, tuned):
    params = params_file(
        root, "pruned",
        budget={"train_vae.optimisation.epochs": 4},
        # The stub is best at 1e-4: the first trial is close to it, and others are not.
        space={"train_vae.loss.kl": {"low": 1.0e-12, "high": 1.0e-5, "log": True}},
    )  # fmt: skip
    assert tuned(params, "--trials", "3", STUB_SECONDS="1.0") == 0
    trials = study(root, SQLITE, "pruned").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert sorted(trials[0].intermediate_values) == [1, 2, 3, 4] and len(trials[1].intermediate_values) < 4
    assert not (root / ".tune/train_vae-pruned/trial_0001/metrics/reports/train_vae.json").exists()
    killed = runs(root, optuna__state="PRUNED")
    assert {run.data.tags["optuna.trial"] for run in killed} == {"1", "2"}
    assert {run.info.status for run in killed} == {"KILLED"}


def test_hyperband_prunes_by_epochs(root, tuned):
    params = params_file(
        root, "hyperband",
        pruner={"kind": "hyperband", "min_epochs": 1, "reduction_factor": 2},
        budget={"train_vae.optimisation.epochs": 4},
    )  # fmt: skip
    assert tuned(params, "--trials", "2", STUB_SECONDS="0.1") == 0
    assert isinstance(study(root, SQLITE, "hyperband").trials[0].intermediate_values[1], float)


def test_several_objectives_have_a_front_and_no_best_trial(root, tuned, capsys):
    objectives = {"train_vae.psnr_white": "maximize", "train_vae.lpips": "minimize"}
    params = params_file(root, "front", objectives=objectives, pruner=None)
    assert tuned(params, "--trials", "5") == 0
    assert "on the Pareto front" in capsys.readouterr().out
    found = study(root, SQLITE, "front")
    assert all(len(trial.values) == 2 for trial in found.trials)
    folder = root / ".tune" / "train_vae-front"
    names = {path.name for path in (folder / "plots").iterdir()}
    assert {"plots.html", "pareto_front.png", "slice_lpips.png", "parallel_coordinate_psnr_white.png"} <= names
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert set(best) == {f"trial_{trial.number}" for trial in found.best_trials}
    before = params.read_text()
    assert tuned(params, "--apply") == 2
    assert "no single best trial; expected --trial with one of its Pareto front" in capsys.readouterr().err
    number = found.best_trials[0].number
    assert tuned(params, "--apply", "train_vae-front", "--trial", str(number)) == 0
    assert "+    kl: " in capsys.readouterr().out or params.read_text() == before
    kl = load_params(params).train_vae.loss.kl
    assert kl == found.trials[number].params["train_vae.loss.kl"]


def test_everything_a_study_found_is_an_artifact(root, tuned, capsys):
    params = params_file(root, "artifacts", pruner=None)
    assert tuned(params, "--trials", "4") == 0
    first = capsys.readouterr().out
    assert tuned(params, "--report") == 0
    again = capsys.readouterr().out
    assert first.endswith(again) and again.startswith("tune: best psnr_white")
    assert [line.split(": psnr")[0] for line in first.splitlines()[:4]] == [f"trial {n}: complete" for n in range(4)]
    (parent,) = runs(root, optuna__study="train_vae-artifacts", stage="tune")
    folder = Path(parent.info.artifact_uri) / "study"
    kinds = {"optimization_history", "param_importances", "parallel_coordinate", "slice", "intermediate_values"}
    names = {path.name for path in folder.iterdir()}
    assert names == {"plots.html", "trials.csv", "best.yaml", *(f"{kind}.png" for kind in kinds)}
    page = (folder / "plots.html").read_text()
    assert page.count("plotly-graph-div") == len(kinds) and 'src="http' not in page
    assert 3e6 < len(page) < 9e6, "plotly is in it, once"
    best = study(root, SQLITE, "artifacts").best_params
    assert yaml.safe_load((folder / "best.yaml").read_text()) == best
    assert parent.data.metrics["trials"] == 4 and parent.data.tags["optuna.storage"] == SQLITE


def test_an_interrupted_trial_is_given_back(root, tuned, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt
        yield

    params = params_file(root, "interrupted")
    with monkeypatch.context() as patch:
        patch.setattr(objective, "launch", interrupted)
        assert tuned(params, "--trials", "3") == 130
    trials = study(root, SQLITE, "interrupted").trials
    assert [trial.state.name for trial in trials] == ["FAIL", "WAITING"]
    assert tuned(params, "--trials", "1") == 0
    trials = study(root, SQLITE, "interrupted").trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"] and trials[0].params == trials[1].params


def test_a_worker_that_was_taken_for_dead_goes_on(root, tuned, monkeypatch, capsys):
    """As after a machine was suspended: its trial is no longer its own when it wakes."""
    launch = objective.launch

    def slept(*arguments, folder, **more):
        if folder == "trial_0000":
            found = study(root, SQLITE, "slept")
            found._storage.set_trial_state_values(found.trials[0]._trial_id, TrialState.FAIL)
        yield from launch(*arguments, folder=folder, **more)

    params = params_file(root, "slept")
    monkeypatch.setattr(objective, "launch", slept)
    assert tuned(params, "--trials", "2") == 0
    assert "this worker was taken for dead" in capsys.readouterr().out
    assert [trial.state.name for trial in study(root, SQLITE, "slept").trials] == ["FAIL", "COMPLETE"]


def test_a_study_under_other_conditions_is_refused(root, tuned, capsys):
    params = params_file(root, "same")
    assert tuned(params, "--trials", "1") == 0
    capsys.readouterr()
    raw = yaml.safe_load(params.read_text())
    raw["train_vae"]["base_dim"], raw["train_vae"]["loss"]["kl"] = 24, 5.0e-5
    params.write_text(yaml.safe_dump(raw))
    assert tuned(params, "--trials", "1") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train_vae.base_dim 16 before, 24 now; expected the same ones, or another tune.study" in message


def test_a_metric_that_is_not_measured_is_named(root, tuned, capsys):
    params = params_file(root, "metric", objectives={"train_vae.psnr_wite": "maximize"})
    assert tuned(params, "--trials", "1") == 2
    assert "train_vae.psnr_wite is not in the report; it has psnr_white, lpips" in capsys.readouterr().err


def test_the_report_of_refine_is_read_after_training():
    plan = SimpleNamespace(objectives={"layer_pixels": "minimize"}, stage="refine")
    assert measured({"before": {"layer_pixels": 2.0}, "after": {"layer_pixels": 1.0}}, plan) == [1.0]


def test_a_trial_that_kept_its_start_is_marked(root, tuned, capsys):
    params = params_file(root, "kept")
    assert tuned(params, "--trials", "1", STUB_KEPT="1") == 0
    assert "(epoch 0 (the start) was kept)" in capsys.readouterr().out
    assert tuned(params, "--trials", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("kept epoch 0 (the start)") for line in lines) == 1, (
        "of the table, the first trial's alone"
    )
    assert any(line.endswith("today's, kept epoch 0 (the start)") for line in lines)


def test_flags_that_do_not_go_together_are_refused(root, tuned, capsys):
    params = params_file(root, "flags")
    for arguments, message in (
        (["--trials", "0"], "--trials: got 0, expected 1 or more"),
        (["--trial", "3"], "--trial: expected --apply beside it"),
        (["--apply", "nothing"], "nothing: no such study in sqlite:///mlruns/optuna.db; there are: "),
        (["--as-dvc-experiments", "0"], "--as-dvc-experiments: got 0"),
    ):
        assert tuned(params, *arguments) == 2
        assert message in capsys.readouterr().err


def searched(**entry):
    return {"train_vae.loss.kl": {"low": 1.0e-12, "high": 1.0e-4, "log": True} | entry}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"log": False}, "numbers with log true when train_vae-NAME was begun, numbers with log false now"),
        (
            {"choices": [1.0e-5, 1.0e-6]},
            {"choices": [1.0e-5, 1.0e-7]},
            "choices [1e-05, 1e-06] when train_vae-NAME was begun, choices [1e-05, 1e-07] now",
        ),
        (
            {"choices": [1.0e-5, 1.0e-6]},
            {"choices": [1.0e-6, 1.0e-5]},
            "choices [1e-05, 1e-06] when train_vae-NAME was begun, choices [1e-06, 1e-05] now",
        ),
        (
            {"choices": [1.0e-5, 1.0e-6]},
            {},
            "choices [1e-05, 1e-06] when train_vae-NAME was begun, numbers with log true",
        ),
    ],
)
def test_a_parameter_of_another_kind_is_another_study(root, tuned, capsys, request, before, now, said):
    def space(entry):
        return {"train_vae.loss.kl": entry} if "choices" in entry else searched(**entry)

    name = f"kind{request.node.callspec.indices['before']}"
    assert tuned(params_file(root, name, space=space(before)), "--trials", "1") == 0
    capsys.readouterr()
    assert tuned(params_file(root, name, space=space(now)), "--trials", "1") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"tune.space: train_vae.loss.kl: {said}".replace("NAME", name) in line
    assert line.endswith("which one study cannot mix; expected it as it was, or another tune.study")
    if not before:
        assert tuned(params_file(root, name, space=searched(high=1.0e-3)), "--trials", "1") == 0, "bounds may change"
