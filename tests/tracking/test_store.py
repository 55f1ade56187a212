"""Where runs are: what is no store is refused in a sentence, and a project that is moved or copied keeps its runs."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import optuna
import pytest

from config.errors import UserError
from experiments.study.storage import open_storage
from tests.support.imports import ROOT
from tests.tracking.registered import FOLDER, enter_project, evaluate
from tracking import store as tracking_store
from tracking.run import stage_run
from tracking.spool import Spool, spool_folder
from tracking.store import LOCATIONS, open_experiment, open_store, tracking_uri
from tracking.versions import Registry


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project in a folder of a usual name."""
    root = tmp_path / "my project"
    root.mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize(
    ("uri", "better"),
    [
        ("file:./x", "sqlite:///x/mlflow.db"),
        ("./x", "sqlite:///x/mlflow.db"),
        ("mlruns", "sqlite:///mlruns/mlflow.db"),
        ("mlruns/mlflow.db", "sqlite:///mlruns/mlflow.db"),
        ("/a/b", "sqlite:////a/b/mlflow.db"),
        ("file:///a/b", "sqlite:////a/b/mlflow.db"),
        ("sqlite:mlruns/mlflow.db", "sqlite:///mlruns/mlflow.db"),
        ("sqlite://mlruns/mlflow.db", "sqlite:///mlruns/mlflow.db"),
        ("postgres://h/d", "sqlite:///mlruns/mlflow.db"),
    ],
)
def test_what_is_no_store_is_refused_with_one_that_is(project, monkeypatch, uri, better):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as error:
        open_experiment("smoke")
    assert str(error.value) == (
        f"MLFLOW_TRACKING_URI: got {uri}, which is neither a database nor a server; expected such as {better} or "
        "http://127.0.0.1:5000"
    )
    assert not list(project.rglob("*.db"))


def test_a_password_is_not_told(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgres://me:secret@h/d")
    with pytest.raises(UserError, match=r"got postgres://h/d, ") as error:
        tracking_uri()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("uri", ["sqlite:///mlruns/mlflow.db", "sqlite:///./mlruns/mlflow.db", "sqlite:///runs.db"])
def test_a_relative_store_is_the_projects_wherever_a_stage_is_started(project, tmp_path, monkeypatch, uri):
    """As in the folder of ``dvc exp run --temp``."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    open_experiment("smoke")
    assert not list((tmp_path / "temporary").iterdir())
    assert (project / uri.removeprefix("sqlite:///")).is_file()


def test_a_deleted_experiment_is_told_how_to_come_back(project):
    number = open_experiment("smoke")
    mlflow.MlflowClient(tracking_uri()).delete_experiment(number)
    with pytest.raises(UserError, match=r"^tracking.experiment: smoke is deleted in sqlite:///.*; expected ") as error:
        open_experiment("smoke")
    command = str(error.value).partition("restore it: ")[2]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, shell=True, env=env, check=True, capture_output=True)
    assert open_experiment("smoke") == number


def test_a_database_of_something_else_stays_as_it_is(project, monkeypatch):
    optuna.create_study(study_name="theirs", storage=open_storage("sqlite:///optuna.db"))
    with sqlite3.connect("other.db") as database:
        database.execute("CREATE TABLE customers (id)")
    (project / "text.db").write_text("no database")
    for name, said in (
        ("optuna", "holds tables of something else"),
        ("other", "customers"),
        ("text", "not a database"),
    ):
        before = (project / f"{name}.db").read_bytes()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{name}.db")
        with pytest.raises(UserError, match=said):
            open_experiment("smoke")
        assert (project / f"{name}.db").read_bytes() == before


def locations(root):
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as database:
        return {
            value
            for table, column in LOCATIONS
            for (value,) in database.execute(f"SELECT {column} FROM {table}")
            if not value.startswith("models:/")
        }


def enter(root, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)


@pytest.fixture
def finished(tmp_path, bucketed_root, monkeypatch):
    """A project with a run, a version and its parameters."""
    root = tmp_path / "first"
    params = enter_project(root, bucketed_root, monkeypatch)
    evaluate(params)
    Registry(params).set_alias("champion", 1)
    monkeypatch.chdir(tmp_path)
    return root, params


@pytest.mark.parametrize("how", ["moved", "copied", "moved twice"])
def test_a_project_that_is_moved_or_copied_keeps_its_runs(tmp_path, finished, monkeypatch, how):
    root, params = finished
    there = tmp_path / "a b" / "second"
    there.parent.mkdir()
    if how == "copied":
        shutil.copytree(root, there, symlinks=True)
    else:
        shutil.move(root, there)
    enter(there, monkeypatch)
    if how == "moved twice":
        open_store()
        monkeypatch.chdir(tmp_path)
        there = there.rename(tmp_path / "third")
        enter(there, monkeypatch)
    before = locations(root) if how == "copied" else None
    registry = Registry(params)
    (version,) = registry.versions()
    assert registry.config(1)["weights"] == str(FOLDER)
    assert registry.artifact(version.evaluations[0].runs["cost"], "evaluate_samples.csv").startswith("id,")
    mlflow.pyfunc.load_model("models:/smoke-decomposer@champion")
    with stage_run("evaluate", params, inputs={}) as run:
        run.artifact(there / "params.yaml")
    assert all(place.startswith(f"{there}/mlruns/") for place in locations(there))
    assert len(list((there / "mlruns").rglob(f"{run.run_id}/artifacts/params.yaml"))) == 1
    if how == "copied":
        assert locations(root) == before, "the project it was copied from is left alone"
    else:
        assert not root.exists()


def test_what_a_copy_does_not_have_stays_where_it_is(tmp_path, finished, monkeypatch):
    root, _ = finished
    shutil.copytree(
        root, tmp_path / "second", symlinks=True, ignore=shutil.ignore_patterns("models", "evaluate_samples.csv")
    )
    run = next(path.parents[2] for path in (root / "mlruns").rglob("evaluate_samples.csv"))
    shutil.rmtree(tmp_path / "second" / run.relative_to(root))
    enter(tmp_path / "second", monkeypatch)
    open_experiment("smoke")
    assert any(place.startswith(str(run)) for place in locations(tmp_path / "second"))


def test_processes_that_follow_a_move_together_do_it_once(tmp_path, finished, monkeypatch):
    root, _ = finished
    there = root.rename(tmp_path / "second")
    enter(there, monkeypatch)
    program = "from tracking.store import open_experiment; open_experiment('smoke')"
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(there)}
    together = [subprocess.Popen([sys.executable, "-c", program], cwd=there, env=env) for _ in range(2)]
    assert [process.wait(120) for process in together] == [0, 0]
    assert all(place.startswith(f"{there}/mlruns/") for place in locations(there))


def test_a_store_that_is_not_the_projects_own_is_left_alone(tmp_path, finished, monkeypatch):
    root, _ = finished
    before = locations(root)
    (tmp_path / "second").mkdir()
    enter(tmp_path / "second", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlruns/mlflow.db")
    open_experiment("smoke")
    assert locations(root) == before


def test_what_waits_to_be_sent_is_found_after_a_move(project, tmp_path, monkeypatch):
    number = open_experiment("smoke")
    run = mlflow.MlflowClient(tracking_uri()).create_run(number).info.run_id
    (project / "a.txt").write_text("a")
    spool = Spool(spool_folder(), run)
    spool.add({"kind": "artifact", "run": run, "path": str(project / "a.txt"), "folder": None})
    spool.close()
    monkeypatch.chdir(tmp_path)
    there = project.rename(tmp_path / "second")
    enter(there, monkeypatch)
    client = mlflow.MlflowClient(open_store())
    Spool(spool_folder(), run).deliver(client)
    assert [entry.path for entry in client.list_artifacts(run)] == ["a.txt"]


def test_a_process_that_is_killed_while_it_makes_the_store_leaves_none(project, monkeypatch):
    """The next start makes it; half of its tables would be refused for ever."""

    def killed(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE experiments (id INTEGER)")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(tracking_store, "_initialize_tables", killed)
        open_store()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (project / "mlruns" / "mlflow.db").exists() and list((project / "mlruns").glob(".mlflow.db.part*"))
    open_store()
    assert open_experiment("runs") and not list((project / "mlruns").glob(".mlflow.db.part*"))


@pytest.mark.parametrize("name", ["file:x.db", "file:mlruns/mlflow.db?uri=true"])
def test_addresses_that_hide_which_file_they_are_are_refused(project, monkeypatch, name):
    with pytest.raises(UserError, match="got an address that begins with file:, expected such as sqlite:///"):
        open_storage(f"sqlite:///{name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{name}")
    with pytest.raises(UserError, match="got an address that begins with file:"):
        open_store()
