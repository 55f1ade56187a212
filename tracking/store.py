"""MLflow store of all runs: its location, creation, outages and messages.

Verified behaviour: MLflow 3 refuses file stores, so the default is a SQLite database. Two processes that create it at
once break it, so a lock admits one. Artifact locations are fixed when an experiment is created, so they are made
absolute, and rewritten if the project was moved or copied. Inside ``dvc exp run --temp`` DVC_ROOT names the parent
repository, so runs go there and not to the temporary folder. Optuna and MLflow cannot share a database, because both
store the version of their tables in a table of the same name.
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

# It logs every retry; this package reports the outcome once.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

DEFAULT_STORE = "sqlite:///mlruns/mlflow.db"
STORES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "databricks-uc")
TABLES = frozenset({"experiments", "runs"})
# Columns of the store with file locations: (table, column).
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
# Artifact folders of experiments in a project's store: this project's, and MLflow's default.
HOME = re.compile(r"(.*/mlruns)/(?:artifacts/.+|\d+)")
PROBE_SECONDS = 2
# Errors of requests are OSErrors; artifact access raises them unwrapped.
STORE_ERRORS = (MlflowException, OSError, SQLAlchemyError)
_OUTAGES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "IO_ERROR"}


class TrackingError(UserError, ConnectionError):
    """The MLflow store does not answer; the message names it and the reason."""


def tracking_uri() -> str:
    """Tracking URI: ``MLFLOW_TRACKING_URI`` or else ``mlruns/mlflow.db``; a SQLite path is relative to the project.

    Raises:
        TrackingError: if it is neither a database nor a server, such as a folder.
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
    """True if the URI is of an MLflow server, and not of a database or file."""
    return uri.startswith(("http:", "https:"))


@contextlib.contextmanager
def store_lock() -> Iterator[None]:
    """Lock for creating what must exist only once, per machine."""
    home = project_root() / "mlruns"
    home.mkdir(exist_ok=True)
    with FileLock(home / ".lock"):
        yield


@contextlib.contextmanager
def inspected(url: str) -> Iterator[sqlalchemy.Inspector | None]:
    """Inspect the tables of a database; ``None`` for a missing SQLite file, which is not created.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: if it does not answer, or is not a database.
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
    """Select the store, creating it if missing, and update its file locations if the project was moved or copied.

    Returns:
        Its URI.

    Raises:
        TrackingError: if the database has tables of other programs.
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
    """Create MLflow's tables in a new file atomically: a partial set would be refused from then on."""
    if path.exists():
        return
    with whole_file(path, alone=True) as part:
        for left in part.parent.glob(f"{part.name}*"):  # left by a killed process
            left.unlink()
        engine = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(part)))
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()


def _follow(home: Path) -> None:
    """Update file locations in the store if the project was moved.

    Locations whose files exist only at the old place stay: the database may be copied without the files.
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
    """Select the store and create the experiment if missing, safely among processes; return the experiment's id.

    Raises:
        TrackingError: if the experiment is deleted, or the store is invalid.
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
    """True if the same request may succeed later: the store is unreachable or overloaded, but has not refused."""
    if isinstance(error, MlflowException):
        return error.error_code in _OUTAGES
    return isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, FileNotFoundError)


def reason(error: BaseException) -> str:
    """Innermost cause of an error in one line of at most 160 characters."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Convert errors of a store that does not answer into one sentence.

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
    """True if a server answers within two seconds; always for other stores, where trying costs no more."""
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
    """Name of the store for messages, without user and password."""
    return without_password(tracking_uri())


def without_password(uri: str) -> str:
    """Remove user and password from an address."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else uri
