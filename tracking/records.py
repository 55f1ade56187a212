"""What a run has to tell its store, as records that can be sent now or kept in a file and sent later.

A record is a dict: ``kind``, ``run`` (id) and what the kind needs. Metrics carry their time, so that a record which was
stored though its answer got lost, and is sent again, changes nothing: MLflow's stores hold (run, name, step, time,
value) once.
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
    """Milliseconds, as MLflow counts them."""
    return int(time.time() * 1000)


def metrics(run_id: str, values: Mapping[str, float], step: int) -> Record:
    """Numbers at a step."""
    moment = now()
    return {"kind": "metrics", "run": run_id, "metrics": [[key, value, moment, step] for key, value in values.items()]}


def image(run_id: str, name: str, image: np.ndarray, step: int) -> Record:
    """An ``(H, W, 3 or 4)`` uint8 image at a step."""
    return {"kind": "picture", "run": run_id, "name": name, "step": step, "time": now(), "image": image}


def artifact(run_id: str, path: Path, folder: str | None) -> Record:
    """A file, or a folder's files."""
    return {"kind": "artifact", "run": run_id, "path": str(path), "folder": folder}


def ending(run_id: str, status: str) -> Record:
    """The run's last word: FINISHED, FAILED or KILLED."""
    return {"kind": "ending", "run": run_id, "status": status, "time": now()}


def following(run_id: str) -> Record:
    """A pipeline's run takes the state of its stages."""
    return {"kind": "following", "run": run_id}


def send(client: MlflowClient, record: Record) -> None:
    """Tell the store.

    Raises:
        MlflowException, OSError, SQLAlchemyError: what the store says, or that it does not.
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
    """An image that was kept; raises OSError if it cannot be read."""
    try:
        with opened(path.read_bytes(), path.name) as image:
            return np.asarray(image)
    except ImageError as error:
        raise OSError(str(error)) from None


def portable(record: Record, files: Path, number: int) -> Record:
    """The record without what may change or go before it is sent: files are copied below ``files``.

    Their paths are relative to the folder that holds ``files``, since the project may be moved before.
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
    """Put neighbouring metrics of one run into one request; each record comes with a mark that its end has."""
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
