"""Storages of studies that are something else, or were torn: told in a sentence, or made whole."""

import json
import sqlite3

import mlflow
import optuna
import pytest

from config.errors import UserError
from experiments.study.storage import open_storage
from tracking.store import open_experiment


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    "url",
    ["sqlite:///mlruns/mlflow.db", "sqlite:///./mlruns/../mlruns/mlflow.db", "sqlite+pysqlite:///mlruns/mlflow.db"],
)
def test_mlflows_database_is_refused_before_it_is_touched(project, monkeypatch, url, there):
    if there:
        open_experiment("smoke")
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=r"^tune.storage: sqlite.* is the database of MLflow's runs.*optuna.db$"):
        open_storage(url)
    if not there:
        assert not (project / "mlruns" / "mlflow.db").exists()
    open_experiment("smoke")
    with pytest.raises(UserError, match="holds tables of something else"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        open_storage(url)
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("tables", ["customers (id)", "studies (id, title)", "version_info (x)"])
def test_a_database_of_another_schema_is_refused_before_it_is_touched(project, tables):
    with sqlite3.connect("other.db") as database:
        database.execute(f"CREATE TABLE {tables}")
    before = (project / "other.db").read_bytes()
    with pytest.raises(UserError, match=rf"holds tables of something else \({tables.split()[0]}\); expected"):
        open_storage("sqlite:///other.db")
    assert (project / "other.db").read_bytes() == before


def test_tables_of_another_optuna_are_told(project):
    open_storage("sqlite:///optuna.db")
    open_storage("sqlite:///optuna.db")
    with sqlite3.connect("optuna.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v1.3.0.a'")
    with pytest.raises(UserError, match=r"^tune.storage: sqlite:.*optuna storage upgrade"):
        open_storage("sqlite:///optuna.db")


TORN = (
    b'{"op_code": 5, "wor',
    b"{",
    b"\0" * 4096,
    b'{"op_code":0,"worker_id":"a","study_name":"other","directions":[1]}',
)


@pytest.mark.parametrize("end", TORN)
def test_a_torn_end_of_a_journal_is_dropped(project, end):
    """Also while another worker has it open."""
    living = open_storage("journal:j.log")
    study = optuna.create_study(study_name="s", storage=living)
    study.enqueue_trial({"x": 1.0})
    with (project / "j.log").open("ab") as file:
        file.write(end)
    for storage in (living, open_storage("journal:j.log")):
        found = optuna.load_study(study_name="s", storage=storage)
        trial = found.ask()
        found.tell(trial, trial.suggest_float("x", 0, 2))
    assert [trial.state.name for trial in open_storage("journal:j.log").get_all_trials(0)] == ["COMPLETE"] * 2
    assert all(isinstance(json.loads(line), dict) for line in (project / "j.log").read_bytes().splitlines())


@pytest.mark.parametrize(
    "content", [b'{"op_code": 5, "wor{"op_code":0}\n{}\n', b"launcher: python\nx: 1\n", b"[]\n{}\n"]
)
def test_what_is_no_journal_stays_as_it_is_and_is_told(project, content):
    (project / "j.log").write_bytes(content)
    with pytest.raises(UserError, match=r"^tune.storage: .*j.log: line 1 is no record of a study's journal; expected"):
        open_storage("journal:j.log")
    assert (project / "j.log").read_bytes() == content
    with pytest.raises(UserError, match=r"^tune.storage: .* cannot be opened \(Is a directory\)"):
        open_storage("journal:.")
