"""Real servers on loopback, for the time of a test."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
