"""Guard process of a trial: no process of the trial outlives the tuner, however the tuner ends.

    python guard.py LIFELINE COMMAND...

LIFELINE is the read end of a pipe whose other end only the tuner holds. It closes when the trial is to end or the tuner
was killed. Then every descendant process gets SIGTERM and, ``GRACE_SECONDS`` later, SIGKILL. A process group is not
enough, because torchrun starts each of its workers in a session of its own.
"""

from __future__ import annotations

import ctypes
import select
import signal
import subprocess
import sys
import time

import psutil

GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
ENDED = 128 + signal.SIGTERM
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _prctl(option: int, value: int) -> None:
    if LIBC is not None:
        LIBC.prctl(option, value, 0, 0, 0)


def _alive() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def end_descendants() -> None:
    """End every descendant process: SIGTERM, then SIGKILL after ``GRACE_SECONDS``; returns when none is left."""
    deadline, told = time.monotonic() + GRACE_SECONDS, set()
    while alive := _alive():
        late = time.monotonic() > deadline
        for process in alive:
            try:
                if late:
                    process.kill()
                elif process.pid not in told:
                    told.add(process.pid)
                    process.terminate()
            except psutil.NoSuchProcess:
                pass
        time.sleep(POLL_SECONDS)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code, 128 + n if signal n ended it."""
    lifeline, command = int(argv[0]), argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ENDED))
    # Orphans are adopted by this process instead of init, so workers of a killed launcher are still found.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = subprocess.Popen(command, preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        while child.poll() is None:
            if select.select([lifeline], [], [], POLL_SECONDS)[0]:
                return ENDED
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    finally:
        end_descendants()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
