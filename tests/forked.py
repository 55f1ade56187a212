"""Programs of the project in processes that have imported their libraries: they start in a moment, not in ten seconds.

A server process (multiprocessing's) imports the libraries once and forks for every program, whose environment, folder,
arguments and outputs are its own. What a user starts, an interpreter with nothing in it, is tested where DVC, torchrun
and studies start stages, and in the tests of servers and pages.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

LIBRARIES = [
    "torch",
    "torchvision",
    "torchmetrics.image",
    "lpips",
    "accelerate",
    "diffusers.hooks",
    "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "diffusers.models.transformers.transformer_qwenimage",
    "mlflow",
    "optuna",
]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(LIBRARIES)


def _become(command: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """Be an interpreter that was started with ``-m MODULE ARGUMENT...``."""
    for descriptor, path in enumerate([os.devnull, *outputs]):
        os.dup2(os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def _of_rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in told.items()}}


def run_forked(
    command: list[str], folder: Path, environment: dict[str, str], timeout: float, ranks: int = 0
) -> subprocess.CompletedProcess:
    """Run a module and its arguments, what follows ``python -m`` on a command line.

    Args:
        command: module and arguments.
        folder: to run in.
        environment: all of it.
        timeout: seconds until a process is killed.
        ranks: of so many processes that work together, as under torchrun; 0 for one by itself. If one fails, the
            others are killed.

    Returns:
        What :func:`subprocess.run` returns with its output captured as text; of several the first exit code that is
        not 0.

    Raises:
        subprocess.TimeoutExpired: after so many seconds.
    """
    environments = [environment]
    if ranks:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environments = [environment | _of_rank(rank, ranks, port) for rank in range(ranks)]
    with tempfile.TemporaryDirectory() as out:
        outputs = [Path(out, name) for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()
        own = [(command, str(folder), values, [*map(str, outputs)]) for values in environments]
        processes = [_server.Process(target=_become, args=arguments) for arguments in own]
        for process in processes:
            process.start()
        code, running, deadline = 0, list(processes), time.monotonic() + timeout
        while running and code == 0 and (left := deadline - time.monotonic()) > 0.0:
            wait([process.sentinel for process in running], left)
            ended = [process for process in running if process.exitcode is not None]
            code = next((process.exitcode for process in ended if process.exitcode), 0)
            running = [process for process in running if process not in ended]
        for process in running:
            process.kill()
            process.join()
        if running and code == 0:
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text() for path in outputs]
        return subprocess.CompletedProcess(command, code, *texts)
