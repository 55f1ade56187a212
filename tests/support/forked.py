"""Programs of the project in processes that have imported their libraries: they start in a moment, not in ten seconds.

A server process (multiprocessing's) imports the libraries once and forks for every program, whose environment, folder,
arguments and outputs are its own. Stages that DVC, a launcher or a study start are forked too, by programs that stand
in PATH for ``python`` and ``accelerate``. What a user starts, an interpreter with nothing in it, is tested by the
documented commands (``make repro``, ``make tune``), under torchrun, and in the tests of servers and pages.
"""

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
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


# What stands in PATH for a program: it sends what it was started with to the test's process, and ends as the fork ends.
STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
arguments = [*{before!r}, *sys.argv[1:]]
modules = [word for word in arguments if word != "-P"]
if modules[:1] != ["-m"] or not modules[1].startswith(("stages.", "accelerate.")):
    os.execv({python!r}, [{python!r}, *arguments])
asked = json.dumps([modules[1:], os.getcwd(), dict(os.environ), "-P" not in arguments]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    code = int(server.recv(16) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
PROGRAMS = {"python": [], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]}


class _Open:
    """A file that is open here, to be open in a process that is started."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self):
        return _detached, (DupFd(self.descriptor),)


def _detached(sent) -> int:
    return sent.detach()


def _become(
    command: list[str], folder: str, environment: dict[str, str], files: list[int | str], here: bool = False
) -> None:
    """Be an interpreter that was started with ``-m MODULE ARGUMENT...`` or ``-c PROGRAM``.

    Args:
        command: module and arguments, or ``-c`` and a program.
        folder: to run in.
        environment: all of it.
        files: standard input, output and error: descriptors, or paths.
        here: whether modules are looked for in the folder first, and in this checkout not at all, as by an interpreter
            that is started there without -P.
    """
    for descriptor, file in enumerate(files):
        if isinstance(file, str):
            file = os.open(file, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
    # Those of the server know what its own were, such as whether one can go back in them.
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    # A process of a fork server starts its own by a fork server; an interpreter that was just started does not.
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if here:
        checkout = str(Path(__file__).resolve().parents[2])
        sys.path[:] = [folder, *(path for path in sys.path if path not in ("", checkout))]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = command
    if command[0].startswith("accelerate."):
        # What it starts is started as it was.
        sys.executable = environment["PATH"].split(os.pathsep)[0] + "/python"
    try:
        if command[0] == "-c":
            exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
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
    """Run a module and its arguments, what follows ``python -m`` on a command line, or a program after ``-c``.

    Args:
        command: module and arguments, or ``-c`` and a program.
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
        own = [(command, str(folder), values, [os.devnull, *map(str, outputs)]) for values in environments]
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


@functools.cache
def forking_programs() -> Path:
    """A folder for the beginning of PATH, whose ``python`` and ``accelerate`` fork stages instead of starting them.

    For stages that another program starts: DVC, a launcher, a study. Of ``python`` all but stages is started as ever.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    server = socket.socket(socket.AF_UNIX)
    address = f"{folder.name}/socket"
    server.bind(address)
    server.listen()
    for name, before in PROGRAMS.items():
        path = Path(folder.name, name)
        path.write_text(STAND_IN.format(python=sys.executable, before=before, address=address))
        path.chmod(0o755)
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    return Path(folder.name)


def _serve(server: socket.socket) -> None:
    """Answer stand-ins, each in a thread."""
    while True:
        client, _ = server.accept()
        threading.Thread(target=_answer, args=(client,), daemon=True).start()


def _answer(client: socket.socket) -> None:
    """Fork what a stand-in was started as, and tell it the exit code; if it is killed, so is the fork."""
    with client:
        size, descriptors, _, _ = socket.recv_fds(client, 4, 3)
        asked = b""
        while len(asked) < int.from_bytes(size, "big"):
            asked += client.recv(1 << 16)
        command, folder, environment, here = json.loads(asked)
        process = _server.Process(
            target=_become, args=(command, folder, environment, [_Open(d) for d in descriptors], here)
        )
        process.start()
        for descriptor in descriptors:
            os.close(descriptor)
        if client in wait([process.sentinel, client]):
            process.kill()
        process.join()
        with contextlib.suppress(OSError):
            client.sendall(str(process.exitcode).encode())
