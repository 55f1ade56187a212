"""MLflow runs: one a stage, in one store however the stage was started (design contract 7).

The only importer of mlflow. Verified behaviour this rests on: MLflow 3 refuses file stores, so the default is a SQLite
database; two processes that create it at once break it, so a lock lets one do it; artifact locations are frozen
at an experiment's creation, so they are made absolute; inside ``dvc exp run --temp`` DVC_ROOT names the parent
repository, so runs land there and not in the temporary folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource

from layers.manifest import MANIFEST
from training.params import Params, flatten

MAX_PARAM_LENGTH = 6000


def project_root() -> Path:
    """The repository that owns mlruns/ and the checkpoints: DVC's root where DVC runs us, else this checkout."""
    root = os.environ.get("DVC_ROOT")
    return Path(root) if root else Path(__file__).resolve().parents[1]


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI`` if set, else the SQLite store ``mlruns/mlflow.db`` of the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlruns' / 'mlflow.db'}"


def open_experiment(name: str) -> str:
    """Select the store and make sure that it and the experiment exist, whoever else is starting; returns the id."""
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    local = uri.startswith("sqlite:")
    home = project_root() / "mlruns"
    home.mkdir(exist_ok=True)
    with FileLock(home / ".lock"):
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None:
            location = str(home / "artifacts" / name) if local else None
            mlflow.create_experiment(name, artifact_location=location)
        return mlflow.set_experiment(name).experiment_id


def digest(path: str | Path) -> str:
    """md5 of a file, or of a folder's content.

    A bucketed dataset is stood for by its manifest, which lists the md5 of every sample's pixels.

    Raises:
        FileNotFoundError: if there is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected what an earlier stage writes (dvc repro)")
    md5 = hashlib.md5(usedforsecurity=False)
    if (path / MANIFEST).is_file():
        path = path / MANIFEST
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                md5.update(chunk)
        return md5.hexdigest()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        md5.update(f"{file_path.relative_to(path)}:{digest(file_path)}\n".encode())
    return md5.hexdigest()


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def contract_tags(stage: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Tags every run carries: stage, git commit, DVC experiment, md5 of each input."""
    tags = {
        "stage": stage,
        "git.commit": _git("rev-parse", "HEAD"),
        "git.dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
    }
    return {**{key: value for key, value in tags.items() if value}, **{f"input.{k}.md5": v for k, v in inputs.items()}}


class Run:
    """A stage's MLflow run, or a silent stand-in on ranks other than 0."""

    def __init__(self, run_id: str | None) -> None:
        self.run_id = run_id

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; what is not finite is left out, a store must never hold NaN."""
        finite = {key: float(value) for key, value in values.items() if np.isfinite(value)}
        if self.run_id and finite:
            mlflow.log_metrics(finite, step=step, run_id=self.run_id)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Log an ``(H, W, 3 or 4)`` uint8 picture under a name that the UI can scrub through by step."""
        if self.run_id:
            mlflow.log_image(image, key=name, step=step)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file, or a folder's files."""
        if self.run_id and Path(path).is_dir():
            mlflow.log_artifacts(str(path), artifact_path=folder)
        elif self.run_id:
            mlflow.log_artifact(str(path), artifact_path=folder)


@contextlib.contextmanager
def stage_run(
    stage: str,
    params: Params,
    *,
    inputs: Mapping[str, str],
    resume_run_id: str | None = None,
    main_process: bool = True,
) -> Iterator[Run]:
    """Open the MLflow run of a stage.

    Args:
        stage: name of the run and of its params block.
        params: all parameters; the stage's block is logged flattened, under its dotted paths.
        inputs: path to md5 of everything the stage reads.
        resume_run_id: run of the killed process whose work is continued.
        main_process: other ranks get a silent run.
    """
    if not main_process:
        yield Run(None)
        return
    experiment_id = open_experiment(params.tracking.experiment)
    if resume_run_id and not _run_exists(resume_run_id):
        print(f"run {resume_run_id} is not in {tracking_uri()}: going on in a new one")
        resume_run_id = None
    with mlflow.start_run(
        run_id=resume_run_id,
        experiment_id=None if resume_run_id else experiment_id,
        run_name=None if resume_run_id else stage,
        parent_run_id=None if resume_run_id else os.environ.get("QIL_PARENT_RUN_ID") or None,
        tags=contract_tags(stage, inputs),
        log_system_metrics=params.tracking.system_metrics,
    ) as active:
        if resume_run_id is None:
            block = flatten({stage: getattr(params, stage).model_dump()})
            mlflow.log_params({key: str(value)[:MAX_PARAM_LENGTH] for key, value in block.items()})
            for path, md5 in inputs.items():
                source = LocalArtifactDatasetSource(str(Path(path).resolve()))
                mlflow.log_input(MetaDataset(source, name=path, digest=md5), context=stage, tags={"md5": md5})
        yield Run(active.info.run_id)


def _run_exists(run_id: str) -> bool:
    with contextlib.suppress(mlflow.exceptions.MlflowException):
        return mlflow.get_run(run_id).info.lifecycle_stage == "active"
    return False
