"""One trial: a stage in a process of its own, in a working folder of its own, watched while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.cli import REPORTS, WEIGHTS
from training.params import ParamsError
from training.progress import VALIDATION_LOG
from training.study_runs import trial_environment
from training.tracking import project_root

TRIALS = Path(".tune")
OUTPUTS = {"train_vae": "vae", "train_decompose": "decompose", "refine": "refine"}
CODE = Path(__file__).resolve().parents[1]
GUARD = Path(__file__).with_name("tune_guard.py")
POLL_SECONDS = 0.2
TELLING = re.compile(r"^(\[rank\d+\]:\s*)?(error: |[\w.]*(Error|Exception)\b)")


class TrialFailed(RuntimeError):
    """The process of a trial ended without a report; the message is what its log says last."""


def _search_path() -> str:
    # torchrun and accelerate lie beside the interpreter, wherever the tuner was started from.
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def launch_command(launcher: str, stage: str) -> list[str]:
    """Command line of a stage under the launcher of params.yaml.

    Raises:
        ParamsError: if there is no such launcher.
    """
    words = shlex.split(launcher)
    if words[0] == "python":
        words[0] = sys.executable
    elif (found := shutil.which(words[0], path=_search_path())) is not None:
        words[0] = found
    else:
        raise ParamsError(f"launcher: {words[0]!r} is not found; expected a command, such as python or torchrun")
    return [*words, "-m", f"stages.{stage}"]


def environment_in(folder: Path) -> dict[str, str]:
    """Environment in which a stage takes ``folder`` for the project's root, with the code of this checkout."""
    return {
        # The folder's own models/ and metrics/ hold outputs, not packages.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": str(CODE),
        "DVC_ROOT": str(folder.resolve()),
    }


def trial_folder(study: str, number: int) -> Path:
    """Where a trial works; its number is unique over all workers of a study."""
    return project_root() / TRIALS / study / f"trial_{number:04d}"


def _make_folder(folder: Path, stage: str) -> None:
    """A folder that looks like the project's root to a stage, but whose outputs and resume points are its own."""
    root = project_root()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / WEIGHTS).mkdir(parents=True)
    (folder / REPORTS).mkdir(parents=True)
    for entry in root.iterdir():
        if entry.name not in {"models", "metrics", "params.yaml"} and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    for entry in (root / WEIGHTS).iterdir() if (root / WEIGHTS).is_dir() else ():
        if entry.name != OUTPUTS[stage]:
            (folder / WEIGHTS / entry.name).symlink_to(entry)


@contextlib.contextmanager
def _launched(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """A command under the guard, output in ``log.txt``; on leaving, all of its processes have ended."""
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
    """Each validation of a running stage as it is announced, until the process has ended."""
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
    """Why a process failed, in a line: its exit code and what its log says last."""
    lines = [line.strip() for line in log.splitlines() if re.search(r"\w", line)]
    telling = next((line for line in reversed(lines) if TELLING.match(line)), lines[-1] if lines else "(no output)")
    how = f"ended with code {code}"
    if code > 128:
        with contextlib.suppress(ValueError):
            how = f"was ended by {signal.Signals(code - 128).name}"
    return f"{how}: {telling}"


def launch(
    stage: str, raw: Mapping[str, Any], *, study: str, number: int, study_run: str | None
) -> Iterator[dict[str, Any]]:
    """Run a stage with given parameters and yield what it measures.

    Args:
        stage: its name.
        raw: all parameters, nested.
        study: the study's name.
        number: of the trial.
        study_run: MLflow run that the stage's run is nested under.

    Yields:
        Validations ``{epoch, samples, metrics}`` as they come; last ``{report}``, the stage's report. A caller that
        closes the generator before ends the trial's processes.

    Raises:
        TrialFailed: if the stage does not end well.
    """
    folder = trial_folder(study, number)
    _make_folder(folder, stage)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(raw), sort_keys=False), encoding="utf-8")
    announced = folder / "validations.jsonl"
    environment = {
        **trial_environment(study, number, study_run),
        "PATH": _search_path(),
        **environment_in(folder),
        VALIDATION_LOG: str(announced),
    }
    try:
        with _launched(launch_command(raw["launcher"], stage), folder, environment) as process:
            yield from _validations(process, announced)
        if process.returncode:
            raise TrialFailed(failure(process.returncode, (folder / "log.txt").read_text(errors="replace")))
        try:
            yield {"report": json.loads((folder / REPORTS / f"{stage}.json").read_text())}
        except FileNotFoundError:
            raise TrialFailed(f"ended well without {REPORTS / stage}.json") from None
    finally:
        # Of a cheap stand-in's weights nothing is used again, and those of a large network fill a disk.
        shutil.rmtree(folder / "models", ignore_errors=True)
        shutil.rmtree(folder / ".checkpoints", ignore_errors=True)
