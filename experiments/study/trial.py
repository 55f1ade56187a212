"""Trial of a study: a stage in its own process and folder, whose validations are read while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from config.paths import CACHE, REPORTS, WEIGHTS, in_workspace, project_root
from experiments.launch import CODE, _search_path, environment_in, launch_command
from tracking.studies import run_environment
from training.engine.progress import VALIDATION_LOG

TRIALS = Path(".tune")
# Outputs of earlier stages that a stage reads, beside the data.
EARLIER = {"train_vae": (), "train_decompose": (WEIGHTS / "vae",), "refine": (WEIGHTS / "decompose",)}
GUARD = CODE / "experiments" / "guard.py"
POLL_SECONDS = 0.2
TELLING = re.compile(r"^(\[rank\d+\]:\s*)?(error: |[\w.]*(Error|Exception)\b)")


class TrialFailed(RuntimeError):
    """The process of a trial ended without a report; the message is the last error in its log."""


def _make_folder(folder: Path, stage: str, output_root: str) -> None:
    """Make a trial's folder, with links to the stage's inputs; outputs and resume points are the trial's own.

    All other paths in parameters are found in the project (:mod:`config.paths`).
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / REPORTS).mkdir(parents=True)
    (folder / WEIGHTS).mkdir(parents=True)
    for read in (Path(output_root), CACHE, *EARLIER[stage]):
        place = folder / read
        # One input may lie within another, and so exist already.
        if not read.is_absolute() and in_workspace(read) == read and not place.exists():
            if read == CACHE:
                read.mkdir(parents=True, exist_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(read.absolute())


@contextlib.contextmanager
def _launched(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """Run a command under the guard with output in ``log.txt``; on exit all of its processes have ended."""
    lifeline, held = os.pipe()
    try:
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", str(GUARD), str(lifeline), *command],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lifeline,),
                start_new_session=True,
            )
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(lifeline)
    try:
        yield process
    finally:
        os.close(held)
        process.wait()


def _validations(process: subprocess.Popen, path: Path) -> Iterator[dict[str, Any]]:
    """Yield each validation of a running stage as it is written, until the process has ended."""
    position = 0
    while True:
        ended = process.poll() is not None
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            position += len(whole)
            yield from map(json.loads, whole.splitlines())
        if ended:
            return
        time.sleep(POLL_SECONDS)


def failure(code: int, log: str) -> str:
    """Reason of a failed process in one line: its exit code and the last error in its log."""
    lines = [line.strip() for line in log.splitlines() if re.search(r"\w", line)]
    telling = next((line for line in reversed(lines) if TELLING.match(line)), lines[-1] if lines else "(no output)")
    how = f"ended with code {code}"
    if code > 128:
        with contextlib.suppress(ValueError):
            how = f"was ended by {signal.Signals(code - 128).name}"
    return f"{how}: {telling}"


def launch(
    stage: str, raw: Mapping[str, Any], *, study: str, folder: str, tags: Mapping[str, str], study_run: str | None
) -> Iterator[dict[str, Any]]:
    """Run a stage with given parameters and yield its validations and its report.

    Args:
        stage: its name.
        raw: all parameters, nested.
        study: the study's name.
        folder: name of the folder it works in, unique over all workers of the study.
        tags: of its MLflow run.
        study_run: MLflow run that the stage's run is nested under.

    Yields:
        Validations ``{epoch, samples, metrics}`` as they come, and last the stage's report, ``{report}``. Closing the
        generator early ends the trial's processes.

    Raises:
        TrialFailed: if the stage fails.
    """
    home = project_root() / TRIALS / study / folder
    _make_folder(home, stage, raw["prepare_buckets"]["output_root"])
    (home / "params.yaml").write_text(yaml.safe_dump(dict(raw), sort_keys=False), encoding="utf-8")
    announced = home / "validations.jsonl"
    environment = {
        **run_environment(tags, study_run),
        "PATH": _search_path(),
        **environment_in(home),
        VALIDATION_LOG: str(announced),
    }
    try:
        with _launched(launch_command(raw["launcher"], stage), home, environment) as process:
            yield from _validations(process, announced)
        if process.returncode:
            raise TrialFailed(failure(process.returncode, (home / "log.txt").read_text(errors="replace")))
        try:
            yield {"report": json.loads((home / REPORTS / f"{stage}.json").read_text())}
        except FileNotFoundError:
            raise TrialFailed(f"ended well without {REPORTS / stage}.json") from None
    finally:
        # Weights of a short trial are never used again, and those of a large network fill a disk.
        shutil.rmtree(home / "models", ignore_errors=True)
        shutil.rmtree(home / ".checkpoints", ignore_errors=True)
