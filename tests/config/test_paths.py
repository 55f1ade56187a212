"""One meaning of a relative path: from the project, a copy of it, a trial, a pretraining, another folder."""

import os
from pathlib import Path

import pytest

from config.paths import (
    WORKSPACE,
    find_input,
    in_project,
    in_workspace,
    project_root,
    resume_root,
    visible_files,
    workspace,
)
from config.paths import sqlite_in_project as sqlite

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("DVC_ROOT", "DVC_STAGE", WORKSPACE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with a sub-folder, an input of its own and one beside it."""
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    (root / "weights").mkdir()
    (tmp_path / "designs").mkdir()
    (root / "params.yaml").touch()
    (root / "dvc.yaml").touch()
    return root


@pytest.fixture(params=["copy", "trial", "copy_elsewhere"])
def elsewhere(request, project, tmp_path, monkeypatch) -> Path:
    """A folder that stands for the project: DVC's copy, or one that we started a stage in."""
    inside, outside = project / ".dvc" / "tmp" / "exps" / "copy", tmp_path / "scratch" / "deep" / "copy"
    folder = outside if request.param == "copy_elsewhere" else inside
    folder.mkdir(parents=True)
    (folder / "params.yaml").touch()
    monkeypatch.setenv("DVC_ROOT", str(project))
    if request.param == "trial":
        monkeypatch.setenv(WORKSPACE, str(folder))
    else:
        (folder / "dvc.yaml").touch()
        monkeypatch.setenv("DVC_STAGE", "train_vae")
    monkeypatch.chdir(folder)
    return folder


def test_in_the_project_paths_stay_as_they_are_written(project, monkeypatch):
    monkeypatch.chdir(project)
    assert find_input("weights") == Path("weights") and in_workspace("data/x") == Path("data/x")
    assert find_input("nowhere/at/all") == Path("nowhere/at/all"), "messages name what was written"
    assert find_input("../designs").samefile(project.parent / "designs")


def test_inputs_are_found_in_the_project_from_a_folder_that_stands_for_it(project, elsewhere):
    assert find_input("weights").samefile(project / "weights")
    assert find_input("../designs").samefile(project.parent / "designs")
    assert find_input(str(project / "weights")) == project / "weights"
    assert find_input("owner/name") == Path("owner/name")


def test_what_the_folder_has_itself_comes_first(project, elsewhere):
    (elsewhere / "weights").mkdir()
    assert find_input("weights") == Path("weights")
    # But a path that leads out never means what happens to lie beside the folder.
    (elsewhere.parent / "designs").mkdir()
    assert find_input("../designs").samefile(project.parent / "designs")


def test_files_of_the_pipeline_are_never_taken_from_the_project(project, elsewhere):
    assert in_workspace("weights") == Path("weights") and not in_workspace("weights").exists()
    assert in_workspace("../designs").samefile(project.parent / "designs")


def test_what_outlives_a_run_goes_to_the_project(project, elsewhere):
    assert project_root() == project
    assert in_project("predictions") == project / "predictions"
    assert sqlite("sqlite:///mlruns/optuna.db") == f"sqlite:///{project}/mlruns/optuna.db"
    assert sqlite("sqlite+pysqlite:///a.db?timeout=3") == f"sqlite+pysqlite:///{project}/a.db?timeout=3"


@pytest.mark.parametrize("url", ["sqlite:////a/b.db", "sqlite://", "sqlite:///:memory:", "postgresql://u@h/d", "x"])
def test_other_stores_stay_as_they_are(project, monkeypatch, url):
    monkeypatch.chdir(project)
    assert sqlite(url) == url


def test_resume_points_outlive_a_copy_and_a_trial_has_its_own(project, elsewhere, monkeypatch):
    assert resume_root() == (elsewhere if WORKSPACE in os.environ else project)


def test_the_working_folder_is_the_one_that_a_stage_was_started_in(elsewhere):
    assert workspace() == elsewhere and workspace(Path("presets/x.yaml")) == elsewhere


def test_the_working_folder_by_hand(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    assert workspace() == workspace(Path("presets/smoke.yaml")) == project
    monkeypatch.chdir(project / "notebooks")
    assert workspace() == project_root() == project
    assert workspace(Path("../params.yaml")) == project
    monkeypatch.chdir(tmp_path)
    assert workspace(project / "notebooks" / "mine.yaml") == project
    assert workspace() == tmp_path and project_root() == CHECKOUT
    (tmp_path / "params.yaml").touch()
    assert workspace(project / "params.yaml") == tmp_path == project_root()


def test_a_home_folder_is_written_as_a_tilde(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(project.parent))
    assert find_input("~/designs") == project.parent / "designs"


def test_an_unknown_users_home_stays_as_it_is(project, monkeypatch):
    monkeypatch.chdir(project)
    assert find_input("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


def test_outputs_of_stages_are_never_taken_from_the_project(project, elsewhere):
    for name in ("refine", "mine"):
        (project / "models" / "weights" / name).mkdir(parents=True)
    assert find_input("models/weights/refine") == Path("models/weights/refine")
    assert find_input("models/weights/mine").samefile(project / "models" / "weights" / "mine")


def test_files_that_nobody_put_there_are_not_visible(tmp_path):
    names = (
        "b.png",
        "deep/a.PNG",
        "notes.txt",
        "._b.png",
        ".git/a.png",
        "deep/@eaDir/a.png",
        "thumbs.DB",
        "Desktop.ini",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in visible_files(tmp_path)]
    assert found == ["b.png", "deep/a.PNG", "notes.txt"]
    assert visible_files(tmp_path, {".png"}, deep=False) == [tmp_path / "b.png"]
