import re
from pathlib import Path

import optuna
import pytest
import yaml

from config.errors import ParamsError
from config.params import flatten, load_params, parse_params, with_values
from config.tune import Sampler, SearchRange
from experiments.launch import launch_command
from experiments.study import storage as tune_storage
from experiments.study.plan import make_plan, make_sampler
from experiments.study.space import first_trial, suggest
from experiments.study.storage import WORKER, open_storage, shown, signature
from experiments.study.trial import failure
from tests.support.workspace import make_workspace

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
    command = launch_command("torchrun --standalone", "refine")
    assert command[-2:] == ["-m", "stages.refine"] and Path(command[0]).is_file(), "wherever it is started from"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mlruns/optuna.db", "tune.storage: expected sqlite"),
        ("oracle://h/x", r"tune.storage: oracle://h/x: no driver"),
        (
            "postgresql://u:secret@127.0.0.1:1/x",
            r"postgresql://u:\*\*\*@127.0.0.1:1/x does not answer",
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
    assert re.search(message, failure(code, log)), failure(code, log)


def test_params_of_the_repository_are_searchable():
    params = load_params()
    for stage in ("train_vae", "train_decompose", "refine"):
        space = params.tune.of_stage(params.tune.space, stage)
        assert first_trial(space, flatten(params))
