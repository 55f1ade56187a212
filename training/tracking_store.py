"""Where runs are kept: one MLflow store however a stage was started, and what its not answering looks like.

Verified behaviour this rests on: MLflow 3 refuses file stores, so the default is a SQLite database; two processes that
create it at once break it, so a lock lets one do it; artifact locations are frozen at an experiment's creation, so they
are made absolute; inside ``dvc exp run --temp`` DVC_ROOT names the parent repository, so runs land there and not in the
temporary folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from layers.errors import UserError
from layers.paths import project_root, sqlite_in_project

# It announces every retry; we say once what becomes of it.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

DEFAULT_STORE = "sqlite:///mlruns/mlflow.db"
PROBE_SECONDS = 2
# requests' errors are OSErrors; artifacts raise them as they are.
STORE_ERRORS = (MlflowException, OSError, SQLAlchemyError)
_OUTAGES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "IO_ERROR"}


class TrackingError(UserError, ConnectionError):
    """The MLflow store does not answer; the message says which and why."""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI`` if set, else ``mlruns/mlflow.db``; the file of a SQLite store is one of the project."""
    return sqlite_in_project(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE)


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


def open_experiment(name: str) -> str:
    """Select the store and make sure that it and the experiment exist, whoever else is starting; returns the id."""
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    with store_lock():
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None:
            location = None if is_server(uri) else str(project_root() / "mlruns" / "artifacts" / name)
            mlflow.create_experiment(name, artifact_location=location)
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
    scheme, _, rest = tracking_uri().partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
