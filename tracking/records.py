"""Records of a run for its MLflow store, which can be sent now or saved to a file and sent later.

A record is a dict: ``kind``, ``run`` (id) and the fields of the kind. Metrics carry their time, so sending a record
twice, because the first answer was lost, changes nothing: MLflow's stores hold (run, name, step, time, value) once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from layers.imaging.codec import ImageError, opened
from tracking.pipeline import MAX_METRICS, settle

Record = dict[str, Any]


def now() -> int:
    """Current time in milliseconds since 1970, as in MLflow."""
    return int(time.time() * 1000)


def metrics(run_id: str, values: Mapping[str, float], step: int) -> Record:
    """Record of metrics at a step."""
    moment = now()
    return {"kind": "metrics", "run": run_id, "metrics": [[key, value, moment, step] for key, value in values.items()]}


def image(run_id: str, name: str, image: np.ndarray, step: int) -> Record:
    """Record of an ``(H, W, 3 or 4)`` uint8 image at a step."""
    return {"kind": "picture", "run": run_id, "name": name, "step": step, "time": now(), "image": image}


def artifact(run_id: str, path: Path, folder: str | None) -> Record:
    """Record of a file, or of a folder's files."""
    return {"kind": "artifact", "run": run_id, "path": str(path), "folder": folder}


def ending(run_id: str, status: str) -> Record:
    """Record of the run's final status: FINISHED, FAILED or KILLED."""
    return {"kind": "ending", "run": run_id, "status": status, "time": now()}


def following(run_id: str) -> Record:
    """Record that updates the status of a pipeline's run from its stages."""
    return {"kind": "following", "run": run_id}


def send(client: MlflowClient, record: Record) -> None:
    """Send a record to the store.

    Raises:
        MlflowException, OSError, SQLAlchemyError: if the store refuses or does not answer.
    """
    kind, run_id = record["kind"], record["run"]
    if kind == "metrics":
        entries = [Metric(*entry) for entry in record["metrics"]]
        for first in range(0, len(entries), MAX_METRICS):
            client.log_batch(run_id, metrics=entries[first : first + MAX_METRICS], synchronous=True)
    elif kind == "picture":
        image = record["image"] if "image" in record else _read(Path(record["file"]))
        client.log_image(
            run_id, image, key=record["name"], step=record["step"], timestamp=record["time"], synchronous=True
        )
    elif kind == "artifact":
        log = client.log_artifacts if Path(record["path"]).is_dir() else client.log_artifact
        log(run_id, record["path"], record["folder"])
    elif kind == "ending":
        client.set_terminated(run_id, record["status"], record["time"])
    else:
        settle(client, run_id)


def _read(path: Path) -> np.ndarray:
    """Read a saved image; raise OSError if it cannot be read."""
    try:
        with opened(path.read_bytes(), path.name) as image:
            return np.asarray(image)
    except ImageError as error:
        raise OSError(str(error)) from None


def portable(record: Record, files: Path, number: int) -> Record:
    """Copy of a record that can be sent later: its files are copied below ``files``.

    Their paths are relative to the parent folder of ``files``, since the project may be moved before sending.
    """
    if record["kind"] not in ("picture", "artifact"):
        return record
    folder = files / f"{number:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if record["kind"] == "picture":
        path = folder / "picture.png"
        Image.fromarray(record["image"]).save(path)
        return {key: value for key, value in record.items() if key != "image"} | {
            "file": str(path.relative_to(files.parent))
        }
    source, path = Path(record["path"]), folder / Path(record["path"]).name
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy2(source, path)
    return record | {"path": str(path.relative_to(files.parent))}


def joined(records: Sequence[tuple[Record, int]]) -> Iterator[tuple[Record, int]]:
    """Join neighbouring metrics of one run into one request; each record comes with the file position of its end."""
    open_record: Record | None = None
    open_mark = 0
    for record, mark in records:
        if open_record is not None:
            same = record["kind"] == "metrics" and record["run"] == open_record["run"]
            if same and len(open_record["metrics"]) + len(record["metrics"]) <= MAX_METRICS:
                open_record = open_record | {"metrics": open_record["metrics"] + record["metrics"]}
                open_mark = mark
                continue
            yield open_record, open_mark
            open_record = None
        if record["kind"] == "metrics":
            open_record, open_mark = record, mark
        else:
            yield record, mark
    if open_record is not None:
        yield open_record, open_mark
