"""A folder to run stages in: parameters, data and outputs of its own, the code from this checkout."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from config.overlays import written_into, yaml_scalar
from config.params import Params, nested, read_params
from tests.support.forked import forking_programs, run_forked
from tests.support.imports import ROOT

TIMEOUT = 500  # seconds
SMOKE = read_params(ROOT / "presets" / "smoke.yaml")
# What the fixtures of tests/conftest.py have.
SMOKE["evaluate"]["split"] = "val"
DVC = [sys.executable, "-m", "dvc"]
# What the pipeline's tests change in params.yaml: how much there is of everything. Networks, weights to start from and
# losses are the default's.
SMALLER = {
    "tracking.system_metrics": False,
    "prepare_buckets.composer.size": 96,
    "prepare_buckets.train_count": 16,
    "prepare_buckets.val_count": 4,
    "prepare_buckets.test_count": 4,
    "prepare_buckets.max_side": 32,
    "prepare_buckets.min_side": 32,
    "prepare_buckets.max_pixels": 1024,
    "prepare_buckets.jobs": 1,
    "train_vae.optimisation.epoch_samples": 8,
    "train_vae.optimisation.warmup_samples": 4,
    "train_vae.optimisation.num_workers": 0,
    "train_vae.optimisation.log_every": 1,
    "train_vae.optimisation.checkpoint_every": 2,
    "train_decompose.validation.samples": 2,
    "train_decompose.optimisation.epochs": 1,
    "train_decompose.optimisation.epoch_samples": 8,
    "train_decompose.optimisation.warmup_samples": 4,
    "train_decompose.optimisation.log_every": 1,
    "train_decompose.optimisation.checkpoint_every": 2,
    "refine.optimisation.epochs": 1,
    "refine.optimisation.epoch_samples": 8,
    "refine.optimisation.batch_size": 4,
    "refine.optimisation.warmup_samples": 4,
    "refine.optimisation.log_every": 1,
    "refine.optimisation.checkpoint_every": 2,
    "evaluate.tries": 2,
    "evaluate.panels": 2,
    "evaluate.jobs": 1,
    "tune.trials": 1,
    "tune.confirm_seeds": 1,
    "tune.budget.train_vae.optimisation.epochs": 1,
    "tune.budget.train_vae.optimisation.epoch_samples": 8,
    "tune.budget.train_decompose.optimisation.epochs": 1,
    "tune.budget.train_decompose.optimisation.epoch_samples": 8,
    "tune.budget.refine.optimisation.epoch_samples": 8,
}


def environment(root: Path, **more: str | None) -> dict[str, str]:
    """Environment in which ``root`` is the project: its mlruns/ and .checkpoints/ are used, nothing of ours.

    A value of ``None`` takes a variable away. Stages that are started by what PATH finds are forked, see
    :mod:`tests.support.forked`.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "QIL_"))}
    path = os.pathsep.join([str(forking_programs()), str(Path(sys.executable).parent), env["PATH"]])
    ours = {"PATH": path, "DVC_ROOT": str(root), "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {key: value for key, value in (env | ours | more).items() if value is not None}


def make_workspace(root: Path, bucketed: Path | None = None, **blocks) -> Path:
    """Make the folder: smoke parameters with blocks merged over them, and a link to bucketed data."""
    raw = copy.deepcopy(SMOKE)

    def merge(into, changes):
        for key, value in changes.items():
            if isinstance(value, dict):
                merge(into.setdefault(key, {}), value)
            else:
                into[key] = value

    merge(raw, blocks)
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    if bucketed is not None:
        (root / "data").mkdir()
        (root / "data" / "rgba_layers").symlink_to(bucketed)
    return root


def smaller(text: str) -> str:
    """The text of params.yaml with the values of :data:`SMALLER`, comments and all else as they are."""
    budget = "tune.budget."
    values = {path: value for path, value in SMALLER.items() if not path.startswith(budget)}
    text = written_into(text, nested(values), Params)
    # The keys of a budget are dotted paths themselves.
    for path, value in SMALLER.items():
        if path.startswith(budget):
            key = re.escape(path.removeprefix(budget))
            text, found = re.subn(rf"^(    {key}:) .*$", rf"\1 {yaml_scalar(value)}", text, flags=re.MULTILINE)
            assert found == 1, f"{path} is not in params.yaml"
    return text


def commit(root: Path, message: str) -> None:
    """Commit all there is in a repository."""
    run(["git", "add", "--all"], root)
    run(["git", "commit", "--quiet", "--message", message], root)


def make_clone(root: Path) -> Path:
    """A git repository with this checkout's files, committed or not, and its params.yaml, smaller; nothing is run."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("metrics/reports/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    (root / "dvc.lock").unlink(missing_ok=True)
    (root / "params.yaml").write_text(smaller((ROOT / "params.yaml").read_text()))
    run(["git", "init", "--quiet"], root)
    # In the repository and not on the command line: DVC's experiments commit too.
    run(["git", "config", "user.name", "test"], root)
    run(["git", "config", "user.email", "test@example.org"], root)
    commit(root, "clone")
    return root


def dvc(root: Path, *arguments: str) -> str:
    """What DVC says, run as in a user's shell: itself sets DVC_ROOT for stages, and the clone's own code runs."""
    return run([*DVC, *arguments], root, PYTHONPATH=None, DVC_ROOT=None).stdout


def run(command: list[str], root: Path, *, check: bool = True, **more: str | None) -> subprocess.CompletedProcess:
    """Run a command in a workspace; the output is in the error if it fails.

    A stage of the checkout, and a program after ``-P -c``, is run by :mod:`.forked`, anything else as it would be by a
    user.
    """
    env, module = environment(root, **more), [part for part in command[1:] if part not in ("-P", "-m")]
    if command[0] == sys.executable and (
        module[0].startswith(("stages.", "tracking.", "training.")) or command[1:3] == ["-P", "-c"]
    ):
        result = run_forked(module, root, env, TIMEOUT)
    else:
        result = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    return _checked(result, command) if check else result


def run_together(
    ranks: int, module: str, *arguments: str, root: Path, check: bool = True
) -> subprocess.CompletedProcess:
    """Run a module of the checkout, or a program after ``-c``, in processes that work together, as under torchrun."""
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
from tracking.run import Run
log = Run.metrics
def metrics(self, values, step=None):
    log(self, values, step)
    if os.environ.get("RANK", "0") == "0" and step == {step} and any(key.startswith("train/") for key in values):
        os.kill(os.getpid(), signal.SIGKILL)
Run.metrics = metrics
from stages.{name} import main
sys.exit(main([]))
"""
