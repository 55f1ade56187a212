"""Real servers on loopback, for the time of a test: MLflow, and a private PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.workspace import environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# What it runs for language models takes a third of its start.
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Server:
    """``mlflow server`` with a database and a folder of artifacts of its own."""

    def __init__(self, root: Path, database: str | None = None) -> None:
        self.root, self.port = root, free_port()
        self.database = database or f"sqlite:///{root / 'server.db'}"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self.root / "files")]
        with (self.root / "log.txt").open("a") as log:
            # A session of its own: killed, it takes its workers with it.
            self.process = subprocess.Popen(
                command, cwd=self.root, env=environment(self.root, **NO_JOBS), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).read()
                return
            except OSError:
                assert self.process.poll() is None, (self.root / "log.txt").read_text()
                time.sleep(0.5)
        raise AssertionError((self.root / "log.txt").read_text())

    @property
    def group(self) -> int:
        """Of all its processes."""
        return os.getpgid(self.process.pid)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.group, signal.SIGKILL)
        self.process.wait(30)


def postgres_binaries() -> Path | None:
    """Folder of initdb and pg_ctl, which Debian keeps off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").is_file()), None)


class Postgres:
    """A cluster in a temporary folder, listening on 127.0.0.1 alone; it refuses root, who starts it as postgres."""

    def __init__(self) -> None:
        # Not below pytest's folders, which are closed to the user postgres.
        self.root, self.port = Path(tempfile.mkdtemp(prefix="postgres")), free_port()
        self.uri = f"postgresql://mlflow@127.0.0.1:{self.port}/postgres"
        self.as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        if os.geteuid() != 0:
            self.as_user = []
        else:
            shutil.chown(self.root, "postgres", "postgres")

    def _run(self, name: str, *arguments: str) -> None:
        command = [*self.as_user, str(postgres_binaries() / name), *arguments]
        # To a file, because pg_ctl leaves its output open to the server.
        with Path(self.root / "command.txt").open("a") as log:
            code = subprocess.run(command, cwd=self.root, stdout=log, stderr=log, check=False).returncode
        assert code == 0, (self.root / "command.txt").read_text()

    def start(self) -> None:
        self._run("initdb", "-D", str(self.root / "data"), "-U", "mlflow", "--auth", "trust", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.root} -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.root / "data"), "-o", options, "-l", str(self.root / "log.txt"), "-w", "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.root / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.root, ignore_errors=True)


@contextmanager
def serving(arguments: list[str], health: str, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """Run ``mlflow ARGUMENTS`` in a folder; gives the address once ``health`` answers. The log is ``log.txt`` there."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    uri, path = f"http://127.0.0.1:{port}", folder / "log.txt"
    with path.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(480):
            try:
                urllib.request.urlopen(f"{uri}{health}", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None, path.read_text()
                time.sleep(0.25)
        yield uri
    finally:
        process.terminate()
        process.wait(30)
