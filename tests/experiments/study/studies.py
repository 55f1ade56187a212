"""Workspaces for studies whose trials are a stub, and a look at what came of them."""

import os
import subprocess
import time
from pathlib import Path

import mlflow
import optuna
import psutil
import yaml

from experiments.study.storage import open_storage
from tests.support.imports import ROOT
from tests.support.workspace import environment, make_workspace, stage

STUB = ROOT / "tests" / "experiments" / "study" / "stub_stage.py"
LAUNCHER = f"python {STUB}"


def stub_workspace(root: Path, **tune) -> Path:
    """A workspace whose training stages are stubs: some tenths of a second each."""
    # Far from the best value of the stub, so that most trials beat today's parameters.
    make_workspace(root, launcher=LAUNCHER, train_vae={"loss": {"kl": 1.0e-5}}, tune=tune)
    (root / "data" / "rgba_layers").mkdir(parents=True)
    (root / "data" / "rgba_layers" / "a.txt").write_text("data\n")
    return root


def params_file(root: Path, name: str, launcher: str = LAUNCHER, **tune) -> Path:
    """A parameter file of its own for one study in a shared workspace."""
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["launcher"] = launcher
    raw["tune"] |= {"study": name, **tune}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def start(root: Path, params: Path, *arguments: str, **more: str) -> subprocess.Popen:
    """Start a worker; its output is in ``<params>.<n>.log``, for when a test fails."""
    log = params.with_suffix(f".{len(list(root.glob(f'{params.stem}.*.log')))}.log")
    return subprocess.Popen(
        stage("tune", "--params", params.name, *arguments),
        cwd=root, env=environment(root, **more), stdout=log.open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def study(root: Path, storage: str, name: str) -> optuna.Study:
    """A study of the workspace."""
    before = Path.cwd()
    os.chdir(root)
    try:
        return optuna.load_study(study_name=f"train_vae-{name}", storage=open_storage(storage))
    finally:
        os.chdir(before)


def wait(condition, seconds: float = 90.0) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: if it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def pids(path: Path) -> list[int]:
    """Process ids that a stub wrote down, its child's included."""
    return [int(word) for word in path.read_text().split()] if path.is_file() else []


def alive(numbers: list[int]) -> list[int]:
    """Which processes still run."""
    found = []
    for number in numbers:
        try:
            if psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                found.append(number)
        except psutil.NoSuchProcess:
            pass
    return found


def runs(root: Path, **tags: str) -> list:
    """MLflow runs of the workspace that have certain tags."""
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlruns' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("smoke").experiment_id], max_results=1000)
    wanted = {key.replace("__", "."): value for key, value in tags.items()}
    return [run for run in found if wanted.items() <= run.data.tags.items()]
