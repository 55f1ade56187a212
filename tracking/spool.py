"""Spool of run records: delivered to the store once and in order, saved during an outage while training goes on.

    mlruns/spool/<run id>.jsonl one record per line, append-only mlruns/spool/<run id>.sent      how many bytes of it
    the store has mlruns/spool/<run id>/          images and files of records mlruns/spool/<run id>.lock held while the
    run's process lives

    python -m tracking.spool

delivers the records of dead processes; so does every stage when it starts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from tqdm import tqdm

from config.errors import UserError
from config.paths import project_root
from tracking import records
from tracking.store import STORE_ERRORS, answering, is_outage, open_store, reachable, reason, store_name, tracking_uri

RETRY_SECONDS = 10.0
# Detecting a silent server takes seconds: attempts are limited to a twentieth of the time.
RETRY_SHARE = 20.0


def spool_folder() -> Path:
    """Folder of undelivered records."""
    return project_root() / "mlruns" / "spool"


class Spool:
    """Records of one run that the store does not have yet.

    Args:
        folder: folder of all spools.
        run_id: id of the run whose process writes the spool, which also holds records of its parent.

    Raises:
        Timeout: if another process holds its lock.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.path = folder / f"{run_id}.jsonl"
        self.files = folder / run_id
        self._sent = folder / f"{run_id}.sent"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / f"{run_id}.lock")
        self._lock.acquire(timeout=0)
        self._count = max((int(entry.name) for entry in self.files.glob("*")), default=0)
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            # A process was killed in the middle of a line: the next record must start a new line.
            with self.path.open("ab") as file:
                file.write(b"\n")

    def add(self, record: records.Record) -> None:
        """Append a record."""
        self._count += 1
        line = json.dumps(records.portable(record, self.files, self._count))
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")

    def _waiting(self) -> Iterator[tuple[records.Record, int]]:
        sent = int(self._sent.read_text()) if self._sent.is_file() else 0
        with self.path.open("rb") as file:
            file.seek(sent)
            while line := file.readline():
                try:
                    record = json.loads(line)
                    placed = {key: str(self.path.parent / record[key]) for key in ("file", "path") if key in record}
                    yield record | placed, file.tell()
                except ValueError:
                    # Truncated by a kill; the resumed run has repeated and logged that step.
                    continue

    def deliver(self, client: MlflowClient) -> int:
        """Send all records in order, keeping progress if one fails; return the number of requests sent.

        Raises:
            MlflowException, OSError, SQLAlchemyError: from the store; unsent records stay in the spool.
        """
        count = 0
        if self.path.is_file():
            for record, end in records.joined(self._waiting()):
                records.send(client, record)
                self._sent.write_text(str(end))
                count += 1
            self.path.unlink()
        self._sent.unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)
        return count

    def close(self) -> None:
        """Release the spool's lock."""
        self._lock.release()
        if not self.path.is_file():
            Path(self._lock.lock_file).unlink(missing_ok=True)


class Delivery:
    """Sender of a run's records, usable from several threads; no error of the store ends training.

    An outage is reported once. Records that the store refuses, such as metrics of a deleted run, are lost, and reported
    once for each reason.

    Args:
        run_id: id of the run.
    """

    def __init__(self, run_id: str) -> None:
        self.client = MlflowClient(tracking_uri())
        self._run_id = run_id
        self._lock = threading.RLock()
        self._spool: Spool | None = None
        self._next_try = 0.0
        self._said: set[str] = set()

    def send(self, record: records.Record) -> None:
        """Send a record after all earlier ones, or save it."""
        with self._lock:
            if self._spool is not None and not self._caught_up():
                self._spool.add(record)
                return
            began = time.monotonic()
            try:
                records.send(self.client, record)
            except STORE_ERRORS as error:
                if is_outage(error):
                    self._keep(record, error, began)
                else:
                    self._say(f"MLflow store {store_name()} refuses {record['kind']} of this run ({reason(error)})")

    def _keep(self, record: records.Record, error: BaseException, began: float) -> None:
        self._spool = Spool(spool_folder(), self._run_id)
        self._spool.add(record)
        self._failed(began)
        if "outage" not in self._said:
            self._said.add("outage")
            self._say(
                f"MLflow store {store_name()} does not answer ({reason(error)}); the run goes on, metrics are saved "
                f"in {self._spool.path} and sent when it answers, or by the next stage"
            )

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            tqdm.write(f"warning: {sentence}", file=sys.stderr)

    def _failed(self, began: float) -> None:
        spent = time.monotonic() - began
        self._next_try = time.monotonic() + max(RETRY_SECONDS, RETRY_SHARE * spent)

    def _caught_up(self, at_once: bool = False) -> bool:
        """Try to send saved records if the time has come; return True if none are left."""
        began = time.monotonic()
        if self._spool is None:
            return True
        if began < self._next_try and not at_once:
            return False
        try:
            if reachable(tracking_uri()):
                self._spool.deliver(self.client)
                self._spool.close()
                self._spool = None
                return True
        except STORE_ERRORS as error:
            if not is_outage(error):
                # It stays in the file; the next stage reports it with the store's reason.
                self._next_try = float("inf")
                return False
        self._failed(began)
        return False

    def close(self) -> None:
        """Try to send a last time; records that remain are left to a later stage."""
        with self._lock:
            if self._spool is not None and not self._caught_up(at_once=True):
                self._spool.close()
                self._spool = None


def deliver_left_over() -> tuple[int, int]:
    """Send records left by runs of dead processes; records that fail stay, and are reported.

    Returns:
        Numbers of runs delivered and of runs that wait.
    """
    client, delivered, waiting = MlflowClient(tracking_uri()), 0, 0
    for path in sorted(spool_folder().glob("*.jsonl")):
        try:
            spool = Spool(path.parent, path.stem)
        except Timeout:
            continue
        try:
            spool.deliver(client)
            delivered += 1
        except STORE_ERRORS as error:
            waiting += 1
            print(f"{path}: not delivered to {store_name()} ({reason(error)}); delete it if it is not wanted")
        finally:
            spool.close()
    return delivered, waiting


def main(argv: list[str] | None = None) -> int:
    """Deliver all spools; return the exit code, 2 if the store does not answer."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    try:
        with answering():
            MlflowClient(open_store()).search_experiments(max_results=1)
        delivered, waiting = deliver_left_over()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"tracking.spool: {delivered} runs delivered to {store_name()}, {waiting} wait")
    return 0


if __name__ == "__main__":
    sys.exit(main())
