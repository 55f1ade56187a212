"""A folder to run stages in: parameters, data and outputs of its own, the code from this checkout."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.forked import run_forked
from tests.stages.imports import ROOT

TIMEOUT = 500  # seconds
SMOKE = yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text())


def environment(root: Path, **more: str | None) -> dict[str, str]:
    """Environment in which ``root`` is the project: its mlruns/ and .checkpoints/ are used, nothing of ours.

    A value of ``None`` takes a variable away.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "QIL_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    ours = {"PATH": path, "DVC_ROOT": str(root), "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {key: value for key, value in (env | ours | more).items() if value is not None}


def make_workspace(root: Path, bucketed: Path | None = None, **blocks) -> Path:
    """Make the folder: smoke parameters with blocks merged over them, and a link to bucketed data."""
    raw = copy.deepcopy(SMOKE)

    def merge(into, changes):
        for key, value in changes.items():
            if isinstance(value, dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(raw, blocks)
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    if bucketed is not None:
        (root / "data").mkdir()
        (root / "data" / "rgba_layers").symlink_to(bucketed)
    return root


def run(command: list[str], root: Path, *, check: bool = True, **more: str | None) -> subprocess.CompletedProcess:
    """Run a command in a workspace; the output is in the error if it fails.

    A stage of the checkout is run by :mod:`tests.forked`, anything else as it would be by a user.
    """
    env, module = environment(root, **more), [part for part in command[1:] if part not in ("-P", "-m")]
    if command[0] == sys.executable and module[0].startswith("stages."):
        result = run_forked(module, root, env, TIMEOUT)
    else:
        result = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    return _checked(result, command) if check else result


def run_together(
    ranks: int, module: str, *arguments: str, root: Path, check: bool = True
) -> subprocess.CompletedProcess:
    """Run a module of the checkout in processes that work together, as torchrun would start them."""
    env = environment(root, OMP_NUM_THREADS="1")
    result = run_forked([module, *arguments], root, env, TIMEOUT, ranks)
    return _checked(result, [module, *arguments]) if check else result


def _checked(result: subprocess.CompletedProcess, command: list[str]) -> subprocess.CompletedProcess:
    if result.returncode != 0:
        raise AssertionError(
            f"{' '.join(command[:6])} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
        )
    return result


def stage(name: str, *arguments: str) -> list[str]:
    """Command line of a stage."""
    return [sys.executable, "-P", "-m", f"stages.{name}", *arguments]


def killed_at(step: int, name: str) -> str:
    """A program that runs a stage and is killed (SIGKILL) once it has logged a step: rank 0, where there are ranks."""
    return f"""
import os, signal, sys
from training.tracking import Run
log = Run.metrics
def metrics(self, values, step=None):
    log(self, values, step)
    if step == {step} and any(key.startswith("train/") for key in values):
        os.kill(os.getpid(), signal.SIGKILL)
Run.metrics = metrics
from stages.{name} import main
sys.exit(main([]))
"""
