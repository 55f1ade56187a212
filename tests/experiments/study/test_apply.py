"""From a study back into the pipeline."""

import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.errors import ParamsError, UserError
from config.overlays import written_into, yaml_scalar
from config.params import Params, load_params, nested
from experiments.study.apply import apply_trial, choose, queue_experiments
from experiments.study.plan import StudyError, ranked
from tests.support.imports import ROOT

VALUES = {
    "train_vae.loss.kl": 1.0e-4,
    "train_vae.loss.gan": 0.0,
    "train_vae.optimisation.learning_rate": 3.16238766016838e-05,
    "train_vae.optimisation.schedule": "constant",
    "train_vae.discriminator.width": 128,
}


def finished(values=VALUES, figures=(1.0, 3.0, 2.0), directions=("maximize",)) -> optuna.Study:
    """A study of trials that have ended, each with values of its own."""
    found = optuna.create_study(study_name="train_vae-losses", directions=directions)
    for number, figure in enumerate(figures):
        trial = found.ask()
        trial.set_user_attr("values", {**values, "train_vae.loss.l1": 0.25 * (number + 1)})
        found.tell(trial, figure)
    return found


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_written_so_that_every_yaml_reader_gets_it_back(value):
    text = yaml_scalar(value)
    assert yaml.safe_load(text) == value and isinstance(yaml.safe_load(text), float) and "." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1.0e-4"), (2.5e-05, "2.5e-5"), (0.25, "0.25"), (True, "true"), (None, "null"), (8, "8"), ("no", "'no'")],
)
def test_scalars_are_written_as_the_files_write_them(value, text):
    assert yaml_scalar(value) == text


def test_only_the_values_change():
    """Comments, their columns, blank lines, quotes and flow lists stay as they are, to the last character."""
    before = (ROOT / "params.yaml").read_text()
    after = written_into(before, nested(VALUES), Params)
    old, new = before.splitlines(), after.splitlines()
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert 0 < len(changed) <= len(VALUES)
    for a, b in changed:
        assert a.partition("#")[2] == b.partition("#")[2] and a.split(":")[0] == b.split(":")[0]
        assert a.find("#") == b.find("#") or " #" in b, "the comment stays in its column if there is room"
    wanted = yaml.safe_load(before)
    for path, value in VALUES.items():
        *parents, last = path.split(".")
        block = wanted
        for parent in parents:
            block = block[parent]
        block[last] = value
    assert yaml.safe_load(after) == wanted
    assert written_into(after, nested(VALUES), Params) == after


def test_the_best_trial_is_applied_and_its_diff_is_shown(tmp_path, capsys):
    path = tmp_path / "params.yaml"
    shutil.copy2(ROOT / "params.yaml", path)
    study = finished()
    apply_trial(path, study, choose(study, None))
    said = capsys.readouterr().out
    assert "--- a/params.yaml\n+++ b/params.yaml\n" in said
    assert "-    kl: 1.0e-5                     # to the unit Gaussian, per latent element\n" in said
    assert "+    kl: 1.0e-4                     # to the unit Gaussian, per latent element\n" in said
    params = load_params(path).train_vae
    assert (params.loss.kl, params.loss.l1, params.optimisation.schedule) == (1.0e-4, 0.5, "constant")
    assert params.optimisation.learning_rate == VALUES["train_vae.optimisation.learning_rate"]
    apply_trial(path, study, choose(study, 1))
    assert capsys.readouterr().out == "tune: params.yaml has the values of trial 1 already\n"
    apply_trial(path, study, choose(study, 2))
    assert load_params(path).train_vae.loss.l1 == 0.75


def test_a_trial_is_applied_to_a_preset_too(tmp_path, capsys):
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    path, before = tmp_path / "presets" / "qwen.yaml", load_params(ROOT / "presets" / "qwen.yaml")
    study = finished()
    apply_trial(path, study, choose(study, None))
    assert "+    kl: 1.0e-4" in capsys.readouterr().out
    after = load_params(path)
    assert after.train_vae.loss.kl == 1.0e-4 and after.train_vae.discriminator.width == 128
    assert (
        after.train_decompose == before.train_decompose
        and (tmp_path / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()
    )


def test_a_value_that_the_file_does_not_accept_leaves_it_alone(tmp_path):
    path = tmp_path / "params.yaml"
    shutil.copy2(ROOT / "params.yaml", path)
    study = finished({"train_vae.loss.kl": -1.0})
    with pytest.raises(ParamsError, match=r"train_vae\.loss\.kl: got -1\.0"):
        apply_trial(path, study, choose(study, None))
    assert path.read_text() == (ROOT / "params.yaml").read_text()
    with pytest.raises(ParamsError, match=r"tune: train_vae\.x: no such parameter"):
        study = finished({"train_vae.x": 1})
        apply_trial(path, study, choose(study, None))


def test_trials_are_ranked_and_chosen():
    assert [trial.number for trial in ranked(finished())] == [1, 2, 0]
    assert [trial.number for trial in ranked(finished(directions=("minimize",)))] == [0, 2, 1]
    front = finished(figures=((1.0, 1.0), (3.0, 2.0), (0.5, 2.0)), directions=("maximize", "minimize"))
    assert [trial.number for trial in ranked(front)] == [1, 0]
    with pytest.raises(StudyError, match="expected --trial with one of its Pareto front: 1, 0"):
        choose(front, None)
    with pytest.raises(StudyError, match="no trial 7 that ended well; there are: 0, 1, 2"):
        choose(front, 7)
    with pytest.raises(StudyError, match="no trial of train_vae-losses has ended well"):
        choose(finished(figures=()), None)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A git repository with one DVC stage that copies a parameter into a metric."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copy2(ROOT / "params.yaml", root / "params.yaml")
    (root / "stage.py").write_text(
        "import json, yaml\n"
        "loss = yaml.safe_load(open('params.yaml'))['train_vae']['loss']\n"
        "json.dump({'kl': loss['kl'], 'l1': loss['l1']}, open('report.json', 'w'))\n"
    )
    stage = {
        "cmd": f"{sys.executable} stage.py",
        "params": ["train_vae"],
        "metrics": [{"report.json": {"cache": False}}],
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train_vae": stage}}))
    for command in (
        ["git", "init", "--quiet"],
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@example.org"],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message", "first"],
    ):
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    return root


def test_the_best_trials_are_queued_as_experiments(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    for name in ("DVC_ROOT", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    study = finished()
    queue_experiments(study, ranked(study)[:2])
    said = capsys.readouterr().out
    assert "queued train_vae-losses-1: train_vae.loss.kl=1.0e-4" in said and "queued train_vae-losses-2" in said
    stash = subprocess.run(
        ["git", "reflog", "show", "--format=%H", "refs/exps/celery/stash"], capture_output=True, text=True, check=True
    ).stdout.split()
    found = {}
    for commit in stash:
        text = subprocess.run(["git", "show", f"{commit}:params.yaml"], capture_output=True, text=True, check=True)
        block = yaml.safe_load(text.stdout)["train_vae"]
        found[block["loss"]["l1"]] = block
    assert set(found) == {0.5, 0.75}
    for block in found.values():
        assert block["loss"]["kl"] == 1.0e-4 and block["loss"]["gan"] == 0.0
        assert block["optimisation"]["learning_rate"] == VALUES["train_vae.optimisation.learning_rate"]
        assert block["optimisation"]["schedule"] == "constant" and block["discriminator"]["width"] == 128
    assert (repository / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_without_a_repository_dvc_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = finished()
    with pytest.raises(UserError, match=r"dvc exp run --queue -n train_vae-losses-1: .*not inside of a DVC repository"):
        queue_experiments(study, ranked(study)[:1])
