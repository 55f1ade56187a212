import json
import os
from pathlib import Path

import optuna
import pytest
import yaml

from stages import tune, tune_storage
from stages.tune_space import first_trial, suggest, with_values
from stages.tune_storage import WORKER, open_storage, shown, signature
from stages.tune_study import make_plan, make_sampler
from stages.tune_trial import failure, launch_command
from tests.stages.studies import params_file, runs, stub_workspace, study
from tests.stages.workspace import make_workspace
from training.params import ParamsError, flatten, load_params, parse_params
from training.params_tune import Sampler, SearchRange

SQLITE = "sqlite:///mlruns/optuna.db"
TPE = Sampler(kind="tpe", multivariate=True, startup_trials=4, seed=0)


def test_values_are_set_by_their_dotted_paths():
    raw = {"a": {"b": {"c": 1}, "d": 2}}
    assert with_values(raw, {"a.b.c": 5, "a.d": 6}) == {"a": {"b": {"c": 5}, "d": 6}}
    assert raw["a"]["b"]["c"] == 1


@pytest.mark.parametrize("path", ["a.x", "x", "a.b.c.d"])
def test_a_path_that_does_not_exist_is_named(path):
    with pytest.raises(ParamsError, match=f"tune: {path}: no such parameter"):
        with_values({"a": {"b": {"c": 1}}}, {path: 1})


SPACE = {
    "rate": SearchRange(low=1.0e-4, high=1.0e-2, log=True),
    "kind": SearchRange(choices=["cosine", "constant"]),
    "layers": SearchRange(low=2, high=8, step=2, integer=True),
    "gan": SearchRange(low=0.1, high=1.0, disabled=0.0),
    "width": SearchRange(choices=[8, 16], when={"gan": "above 0"}),
    "warmup": SearchRange(low=0.0, high=1.0, when={"kind": ["cosine"]}),
}
BASE = {"rate": 1.0e-3, "kind": "constant", "layers": 4, "gan": 0.0, "width": 64, "warmup": 5.0}


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_what_is_drawn_is_in_range_and_depends_on_what_it_says(kind):
    found = optuna.create_study(sampler=make_sampler(TPE.model_copy(update={"kind": kind}), SPACE))
    found.enqueue_trial(first_trial(SPACE, BASE))
    seen = []
    for _ in range(40):
        trial = found.ask()
        values = suggest(trial, SPACE, BASE)
        assert 1.0e-4 <= values["rate"] <= 1.0e-2 and values["kind"] in ("cosine", "constant")
        assert values["layers"] in (2, 4, 6, 8) and isinstance(values["layers"], int)
        assert values["gan"] == 0.0 or 0.1 <= values["gan"] <= 1.0
        assert ("width" in values) == (values["gan"] > 0) and ("warmup" in values) == (values["kind"] == "cosine")
        found.tell(trial, values["rate"] + values["gan"])
        seen.append(values)
    assert seen[0] == {"rate": 1.0e-3, "kind": "constant", "layers": 4, "gan": 0.0}
    assert {values["gan"] > 0 for values in seen} == {True, False}


def test_a_trial_draws_by_its_number_whoever_runs_it(tmp_path):
    def drawn(pauses: bool) -> list[dict]:
        storage = optuna.storages.InMemoryStorage()
        sampler, values = make_sampler(TPE, SPACE), []
        for number in range(8):
            if pauses:
                sampler = make_sampler(TPE, SPACE)
            found = optuna.create_study(storage=storage, study_name="s", sampler=sampler, load_if_exists=True)
            trial = found.ask()
            values.append(suggest(trial, SPACE, BASE))
            found.tell(trial, float(number))
        return values

    straight = drawn(pauses=False)
    assert straight == drawn(pauses=True)
    assert len({str(values) for values in straight}) == 8


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"rate": SearchRange(low=0.1, high=1.0)}, "rate: today's value 0.001 is the first trial; expected it in 0.1"),
        ({"kind": SearchRange(choices=["a", "b"])}, r"kind: today's value 'constant' .* among \['a', 'b'\]"),
        ({"layers": SearchRange(low=3, high=9, step=2, integer=True)}, "layers: today's value 4 .* on its steps"),
        ({"x": SearchRange(low=0.1, high=1.0)}, "tune.space: x: no such parameter"),
        ({"rate": SearchRange(low=0.0, high=1.0, when={"y": [1]})}, "tune.space: y: no such parameter"),
    ],
)
def test_a_space_without_todays_value_is_refused(entry, message):
    with pytest.raises(ParamsError, match=message):
        first_trial(entry, BASE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": {}}, r"tune\.objectives: nothing for train_vae"),
        ({"space": {"refine.loss.lpips": {"low": 0.0, "high": 1.0}}}, r"tune\.space: nothing for train_vae"),
        (
            {"objectives": {"train_vae.psnr": "maximize", "train_vae.lpips": "minimize"}},
            r"tune\.pruner: got median, expected null with 2 objectives",
        ),
        ({"budget": {"train_vae.x": 1}}, r"tune: train_vae\.x: no such parameter"),
        ({"space": {"loss.kl": {"low": 0.0, "high": 1.0}}}, r"tune\.space: .*begin with one of train_vae"),
        (
            {"space": {"train_vae.loss.kl": {"low": 0.0, "high": 1.0, "when": {"train_vae.loss.l1": [1.0]}},
                       "train_vae.loss.l1": {"low": 0.0, "high": 1.0}}},
            r"train_vae\.loss\.l1 listed before train_vae\.loss\.kl",
        ),
        ({"pruner": {"kind": "best"}}, r"tune\.pruner: .*'median', 'hyperband'"),
        ({"study": "a/b"}, r"tune\.study: got 'a/b'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_stage_is_one_sentence(tmp_path, change, message):
    root = make_workspace(tmp_path / "work")
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["tune"] |= change
    with pytest.raises(ParamsError, match=message) as caught:
        make_plan(parse_params(raw), "train_vae")
    assert "\n" not in str(caught.value)


def test_a_launcher_that_is_not_there_is_named():
    with pytest.raises(ParamsError, match="launcher: 'torchrunn' is not found"):
        launch_command("torchrunn --standalone", "train_vae")
    assert launch_command("torchrun --standalone", "refine")[-2:] == ["-m", "stages.refine"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mlruns/optuna.db", "tune.storage: expected sqlite"),
        ("oracle://h/x", r"tune.storage: oracle://h/x: no driver"),
        (
            "postgresql+psycopg://u:secret@127.0.0.1:1/x",
            r"postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/x does not answer",
        ),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_sentence(url, message, monkeypatch):
    monkeypatch.setattr(tune_storage, "OPEN_ATTEMPTS", 1)
    with pytest.raises((ParamsError, tune_storage.StorageError), match=message) as caught:
        open_storage(url)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert "secret" not in shown(url)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_silent_worker_of_another_machine_is_found_by_its_heartbeat(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tune_storage, "GRACE_SECONDS", 2)
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else f"journal:{tmp_path}/s.log"
    found = optuna.create_study(study_name="s", storage=open_storage(url))
    trials = [found.ask() for _ in range(3)]
    for trial in trials:
        trial.suggest_float("x", 0.0, 1.0)
        trial.set_user_attr(WORKER, signature() if trial.number == 2 else ["elsewhere", 1, 0.0])
        found._storage.record_heartbeat(trial._trial_id)
    for _ in range(7):
        for trial in trials[1:]:
            found._storage.record_heartbeat(trial._trial_id)
        tune_storage.time.sleep(0.5)
    optuna.storages.fail_stale_trials(found)
    assert [trial.state.name for trial in found.trials] == ["FAIL", "RUNNING", "RUNNING", "WAITING"]
    again = found.ask()
    assert again.suggest_float("x", 0.0, 1.0) == found.trials[0].params["x"] and WORKER not in again.user_attrs


@pytest.mark.parametrize(
    ("code", "log", "message"),
    [
        (1, "a\ntorch.OutOfMemoryError: CUDA out of memory\nmore\n====\n", "code 1: torch.OutOfMemoryError: CUDA out"),
        (2, "a\nerror: train_vae.loss: bad\n", "ended with code 2: error: train_vae.loss: bad"),
        (137, "step 3\n", "was ended by SIGKILL: step 3"),
        (1, "", r"\(no output\)"),
    ],
)
def test_a_failure_says_what_the_log_says_last(code, log, message):
    import re

    assert re.search(message, failure(code, log)), failure(code, log)


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
    failed = runs(root, optuna__study="train_vae-memory", optuna__state="FAIL")
    (parent,) = runs(root, optuna__study="train_vae-memory", stage="tune")
    assert parent.info.status == "FINISHED"
    assert not failed or {run.info.status for run in failed} == {"FAILED"}
    nested = runs(root, mlflow__parentRunId=parent.info.run_id)
    assert sorted(run.data.tags["optuna.state"] for run in nested) == ["COMPLETE", "FAIL", "FAIL"]
    assert {run.data.tags.get("optuna.error") for run in nested} == {reason, None}


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
    params = params_file(root, "artifacts")
    assert tuned(params, "--trials", "4") == 0
    first = capsys.readouterr().out
    assert tuned(params, "--report") == 0
    assert capsys.readouterr().out == first
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
    plan = make_plan_of({"layer_pixels": "minimize"})
    assert tune.measured({"before": {"layer_pixels": 2.0}, "after": {"layer_pixels": 1.0}}, plan) == [1.0]


def make_plan_of(objectives: dict) -> object:
    from types import SimpleNamespace

    return SimpleNamespace(objectives=objectives, stage="refine")


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


def test_params_of_the_repository_are_searchable():
    raw = json.loads(json.dumps(load_params().model_dump()))
    params = parse_params(raw)
    for stage in ("train_vae", "train_decompose", "refine"):
        space = params.tune.of_stage(params.tune.space, stage)
        assert first_trial(space, flatten(raw))
