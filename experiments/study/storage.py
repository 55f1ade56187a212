"""Storage of studies, and the retry of trials whose worker died.

Optuna's databases have heartbeats, its journal has none. It gets them here as files beside it; the file server sets
their times, so clocks of machines need not agree. Besides, each trial has the signature of its worker. A worker of the
same machine can see that this process has ended, and need not wait for the heartbeat to expire.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState

from config.errors import ParamsError, UserError
from config.paths import in_project, sqlite_in_project
from tracking.store import inspected, tracking_uri
from tracking.studies import close_trial

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120
RETRIES = 1
WORKER = "worker"
VALUES = "values"
ERROR = "error"
KEPT = "kept"
RUN_ID = "mlflow_run_id"
JOURNAL = "journal:"
OPEN_ATTEMPTS = 5


class StorageError(UserError, ConnectionError):
    """The studies' storage does not answer."""


def _machine() -> str:
    """Identity of this boot and its process-id namespace; host names are not unique among containers."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def signature() -> list[Any]:
    """Signature of a worker: machine, process id and start time of the process."""
    return [_machine(), os.getpid(), psutil.Process().create_time()]


def is_gone(worker: list[Any]) -> bool:
    """Return True if a worker's signature is of a process of this machine that has ended."""
    machine, pid, began = worker
    if machine != _machine():
        return False
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - began) > 1.0
    except psutil.NoSuchProcess:
        return True


def _abandoned(storage: BaseStorage, study_id: int) -> set[int]:
    """Running trials of workers that are known to have ended, and old trials without a signature."""
    found = set()
    for trial in storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        unsigned = worker is None and datetime.now() - trial.datetime_start > timedelta(seconds=GRACE_SECONDS)
        if unsigned or (worker is not None and is_gone(worker)):
            found.add(trial._trial_id)
    return found


def retry_once(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue a trial again whose worker died, and close its run in MLflow.

    Only parameters are copied, not attributes, so the new trial does not have the dead worker's signature.
    """
    tags = {"optuna.error": "its worker died"}
    close_trial(study.user_attrs.get(RUN_ID), trial.number, "FAIL", trial.user_attrs.get(VALUES, {}), tags)
    print(f"tune: the worker of trial {trial.number} died")
    trial.user_attrs = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
    retry(study, trial)


class Database(RDBStorage):
    """Storage in a database, by default SQLite, with Optuna's heartbeats."""

    def __init__(self, url: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                url,
                # Hours pass between two uses of a connection, and networks close idle ones.
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=retry_once,
            )

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return sorted({*super()._get_stale_trial_ids(study_id), *_abandoned(self, study_id)})


class _WholeLines(JournalFileBackend):
    """Journal backend that drops a last line torn by a kill or a full disk, before it appends the next one."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with get_lock_file(self._lock), Path(self._file_path).open("r+b") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        super().append_logs(logs)


class Journal(JournalStorage, BaseHeartbeat):
    """Storage in an append-only file, also on NFS, where SQLite is unsafe."""

    def __init__(self, path: Path) -> None:
        super().__init__(_WholeLines(str(path)))
        self._beats = path.with_name(f"{path.name}.heartbeats")
        self._beats.mkdir(exist_ok=True)

    def record_heartbeat(self, trial_id: int) -> None:
        """Touch the trial's file."""
        (self._beats / str(trial_id)).touch()

    def get_heartbeat_interval(self) -> int:
        """Seconds between heartbeats."""
        return HEARTBEAT_SECONDS

    def get_heartbeat_stale_trial_callback(self) -> Any:
        """Callback for trials whose worker died."""
        return retry_once

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        clock = self._beats / f"now-{os.getpid()}-{platform.node()}"
        clock.touch()
        now, stale = clock.stat().st_mtime, _abandoned(self, study_id)
        clock.unlink(missing_ok=True)
        for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            with contextlib.suppress(FileNotFoundError):
                if now - (self._beats / str(trial._trial_id)).stat().st_mtime > GRACE_SECONDS:
                    stale.add(trial._trial_id)
        return sorted(stale)


def shown(url: str) -> str:
    """A storage's URL without its password, for tags and messages."""
    if url.startswith(JOURNAL):
        return url
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return "(no URL)"


def open_storage(url: str) -> BaseStorage:
    """Open or create the storage that ``tune.storage`` names.

    Args:
        url: ``journal:PATH``, or a database's URL as SQLAlchemy writes it; a relative path starts from the project.

    Raises:
        ParamsError: if the URL is invalid, or its driver is not installed.
        StorageError: if the storage does not answer.
    """
    if url.startswith(JOURNAL):
        return _open_journal(in_project(url.removeprefix(JOURNAL)))
    url = sqlite_in_project(url)
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ParamsError(
            "tune.storage: expected sqlite:///FILE, postgresql://USER@HOST/DATABASE or journal:FILE, and this is no URL"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    _refuse_others(url)
    for attempt in range(1, OPEN_ATTEMPTS + 1):
        try:
            return Database(url)
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise ParamsError(f"tune.storage: {shown(url)}: no driver for it is installed ({error})") from None
        except RuntimeError as error:
            # Optuna's own message about tables of another Optuna version.
            raise StorageError(f"tune.storage: {shown(url)}: {' '.join(str(error).split())}") from None
        except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
            # Workers that start together create the same tables, and all but one fail.
            if attempt == OPEN_ATTEMPTS:
                reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
                raise StorageError(f"tune.storage: {shown(url)} does not answer: {reason}") from None
            time.sleep(0.5 * attempt)
    raise AssertionError("unreachable")


def _open_journal(path: Path) -> Journal:
    """Open or create a journal.

    Raises:
        StorageError: if the file is no journal, or cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(path)
    except OSError as error:
        raise StorageError(f"tune.storage: {path} cannot be opened ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        with path.open("rb") as file:
            number = next((number for number, line in enumerate(file, 1) if not _is_record(line)), 0)
        raise StorageError(
            f"tune.storage: {path}: line {number} is no record of a study's journal; expected a journal: if a crash "
            "has torn the line remove it, else name another file"
        ) from None


def _is_record(line: bytes) -> bool:
    try:
        return "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _refuse_others(url: str) -> None:
    """Refuse a database that holds or will hold other data than studies: Optuna would create its tables in it.

    Raises:
        StorageError: naming the other data.
    """
    asked, ours = (sqlalchemy.make_url(each) for each in (url, tracking_uri()))
    if _place(asked) == _place(ours):
        raise StorageError(
            f"tune.storage: {shown(url)} is the database of MLflow's runs, which both would break; expected one of its "
            "own, such as sqlite:///mlruns/optuna.db"
        )
    own = models.BaseModel.metadata.tables
    try:
        with inspected(url) as inspector:
            found = inspector.get_multi_columns() if inspector else {}
    except (ImportError, sqlalchemy.exc.SQLAlchemyError):
        return  # reported where it is opened
    columns = {name: {column["name"] for column in table} for (_, name), table in found.items()}
    columns.pop("alembic_version", None)
    other = [name for name, names in columns.items() if name not in own or names != set(own[name].columns.keys())]
    if other:
        raise StorageError(
            f"tune.storage: {shown(url)} holds tables of something else ({', '.join(sorted(other)[:4])}); expected a "
            "database of Optuna alone or a new one, such as sqlite:///mlruns/optuna.db"
        )


def _place(url: sqlalchemy.URL) -> tuple[Any, ...]:
    """Database that a URL names, without its driver and password."""
    database = os.path.realpath(url.database or "") if url.get_backend_name() == "sqlite" else url.database
    return url.get_backend_name(), url.host, url.port, database
