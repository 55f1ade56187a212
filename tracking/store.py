"""Where runs are kept: one MLflow store however a stage was started, and what its not answering looks like.

Verified behaviour this rests on: MLflow 3 refuses file stores, so the default is a SQLite database; two processes that
create it at once break it, so a lock lets one do it; artifact locations are frozen at an experiment's creation, so they
are made absolute, and written anew where the project was moved or copied; inside ``dvc exp run --temp`` DVC_ROOT names
the parent repository, so runs land there and not in the temporary folder. Optuna in MLflow's database, or MLflow in
Optuna's, breaks both, because each keeps the version of its tables in one of the same name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow
import sqlalchemy
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _initialize_tables
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from config.errors import UserError
from config.paths import project_root, sqlite_in_project
from layers.files import whole_file

# It announces every retry; we say once what becomes of it.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

DEFAULT_STORE = "sqlite:///mlruns/mlflow.db"
STORES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "databricks-uc")
TABLES = frozenset({"experiments", "runs"})
# Where the store says where files are: (table, column).
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
# Files of an experiment in a project's own store: ours, and the one that MLflow makes itself.
HOME = re.compile(r"(.*/mlruns)/(?:artifacts/.+|\d+)")
PROBE_SECONDS = 2
# requests' errors are OSErrors; artifacts raise them as they are.
STORE_ERRORS = (MlflowException, OSError, SQLAlchemyError)
_OUTAGES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "IO_ERROR"}


class TrackingError(UserError, ConnectionError):
    """The MLflow store does not answer; the message says which and why."""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI`` if set, else ``mlruns/mlflow.db``; the file of a SQLite store is one of the project.

    Raises:
        TrackingError: if it is a folder or a file, and neither a database nor a server.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    scheme, _, rest = uri.partition(":")
    kind = scheme.split("+")[0]
    if kind not in STORES or (kind == "sqlite" and not re.match("///.", rest)):
        path = (uri if kind not in ("file", "sqlite") else re.sub("^//(?=[^/]|/[^/])", "", rest)).removeprefix("./")
        path = path if path.endswith((".db", ".sqlite", ".sqlite3")) else f"{path.rstrip('/')}/mlflow.db"
        better = DEFAULT_STORE if "://" in path or "@" in path else f"sqlite:///{path}"
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: got {without_password(uri)}, which is neither a database nor a server; "
            f"expected such as {better} or http://127.0.0.1:5000"
        )
    return sqlite_in_project(uri)


def is_server(uri: str) -> bool:
    """Whether an MLflow server is behind it, and not a database or file that we open ourselves."""
    return uri.startswith(("http:", "https:"))


@contextlib.contextmanager
def store_lock() -> Iterator[None]:
    """One process of this machine at a time creates what must be there once."""
    home = project_root() / "mlruns"
    home.mkdir(exist_ok=True)
    with FileLock(home / ".lock"):
        yield


@contextlib.contextmanager
def inspected(url: str) -> Iterator[sqlalchemy.Inspector | None]:
    """Look at the tables of a database; of a SQLite file that is not there, ``None``, and it is not made.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: if it does not answer, or is no database.
    """
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        yield None
        return
    engine = sqlalchemy.create_engine(parsed)
    try:
        yield sqlalchemy.inspect(engine)
    finally:
        engine.dispose()


def open_store() -> str:
    """Select the store, made if it is not there; what it says of files follows a project that was moved or copied.

    Returns:
        Its URI.

    Raises:
        TrackingError: if it is a database of something else.
    """
    uri = tracking_uri()
    if uri.partition(":")[0].split("+")[0] in STORES[:4]:
        with answering(), inspected(uri) as inspector:
            tables = set(inspector.get_table_names()) if inspector else set()
        if tables and (not tables >= TABLES or "studies" in tables):
            raise TrackingError(
                f"MLFLOW_TRACKING_URI: {store_name()} holds tables of something else "
                f"({', '.join(sorted(tables - TABLES)[:4])}); expected MLflow's alone, or a new database"
            )
    mlflow.set_tracking_uri(uri)
    with store_lock():
        if uri.startswith("sqlite:///"):
            _make_whole(Path(sqlalchemy.make_url(uri).database or ""))
        try:
            mlflow.MlflowClient()
        except MlflowException as error:
            if is_outage(error):
                raise
            raise TrackingError(f"MLflow store {store_name()} cannot be opened ({reason(error)})") from None
        if uri == sqlite_in_project(DEFAULT_STORE):
            _follow(project_root() / "mlruns")
    return uri


def _make_whole(path: Path) -> None:
    """Make MLflow's tables in a file that is not there, all or none: half of them would be refused ever after."""
    if path.exists():
        return
    with whole_file(path, alone=True) as part:
        for left in part.parent.glob(f"{part.name}*"):  # by a process that was killed
            left.unlink()
        engine = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(part)))
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()


def _follow(home: Path) -> None:
    """Write down where files are now, if the project is not where it was.

    What is still there alone stays as it is said: a copy may be of the database and not of the files.
    """
    database = sqlite3.connect(home / "mlflow.db", timeout=20, isolation_level=None)
    with contextlib.closing(database), database:
        found = {
            HOME.fullmatch(location or "")
            for (location,) in database.execute("SELECT artifact_location FROM experiments")
        }
        before = {Path(match[1]) for match in found if match}
        moved = [old for old in before if old != home and not (old.exists() and old.samefile(home))]
        if not moved:
            return
        database.execute("BEGIN IMMEDIATE")
        for old in moved:
            for table, column in LOCATIONS:
                rows = f"SELECT rowid, {column} FROM {table} WHERE substr({column}, 1, ?) = ?"
                for row, location in database.execute(rows, (len(f"{old}/"), f"{old}/")).fetchall():
                    now = home / Path(location).relative_to(old)
                    if table == "experiments" or now.exists() or not Path(location).exists():
                        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (str(now), row))


def open_experiment(name: str) -> str:
    """Select the store and make sure that it and the experiment exist, whoever else is starting; returns the id.

    Raises:
        TrackingError: if the experiment is deleted, or the store is none.
    """
    uri = open_store()
    with store_lock():
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None:
            location = None if is_server(uri) else str(project_root() / "mlruns" / "artifacts" / name)
            mlflow.create_experiment(name, artifact_location=location)
        elif experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"tracking.experiment: {name} is deleted in {store_name()}; expected another name, or restore it: "
                f"MLFLOW_TRACKING_URI='{store_name()}' mlflow experiments restore --experiment-id "
                f"{experiment.experiment_id}"
            )
        return mlflow.set_experiment(name).experiment_id


def is_outage(error: BaseException) -> bool:
    """Whether the same request may go through later: the store is away or overtaxed, it has not said no."""
    if isinstance(error, MlflowException):
        return error.error_code in _OUTAGES
    return isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, FileNotFoundError)


def reason(error: BaseException) -> str:
    """The innermost cause of an error in one line of at most 160 characters."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn a store that does not answer into one sentence.

    Raises:
        TrackingError: naming the store.
    """
    try:
        yield
    except STORE_ERRORS as error:
        if isinstance(error, UserError) or not is_outage(error):
            raise
        raise TrackingError(
            f"MLflow store {store_name()} does not answer ({reason(error)}); expected it up at the "
            f"start of a stage: start it, or set MLFLOW_TRACKING_URI to another (unset: mlruns/mlflow.db)"
        ) from error


def reachable(uri: str) -> bool:
    """Whether a server answers within two seconds; of other stores ``True``, trying them costs no more."""
    if not is_server(uri):
        return True
    try:
        response = http_request(
            get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False
        )
    except STORE_ERRORS:
        return False
    return response.status_code < 500


def store_name() -> str:
    """The store for messages, without user and password."""
    return without_password(tracking_uri())


def without_password(uri: str) -> str:
    """An address without user and password."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else uri
