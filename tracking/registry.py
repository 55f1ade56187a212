"""Model registration in MLflow: a version for each md5 of weights, with its scores from evaluate.

The weights stay with DVC: MLflow stores their path, their md5 and a few lines of code (tracking/served_model.py), never
the weights. tracking/versions.py reads the registry.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.entities import LoggedModel, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from config.params import Params
from config.paths import WORKSPACE, in_workspace, project_root, visible
from layers.dataset.digest import digest
from models.transformer.text_condition import read_text_condition
from tracking.run import Run, contract_tags
from tracking.versions import SOURCE, impatient, logged_model_id, model_name, reason_of, scores_of

CODE = Path(__file__).with_name("served_model.py")
DEFAULT_LAYERS = 4
NOTHING_KNOWN: Mapping[str, str] = MappingProxyType({})


def count_parameters(folder: Path) -> int:
    """Number of parameters of the networks in a model folder; reads only the headers of the safetensors."""
    total = 0
    for path in (found for found in folder.glob("*/*.safetensors") if visible(found.relative_to(folder))):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    return total


@contextlib.contextmanager
def _never_fatal(run: Run) -> Iterator[None]:
    try:
        with impatient():
            yield
    # Any error of the store: the stage has finished hours of work, and registration can be repeated later.
    except Exception as error:
        print(f"warning: run {run.run_id} is not in the model registry: {reason_of(error)}", file=sys.stderr)


def _place(folder: str | Path) -> str | None:
    """Path relative to the project's root; ``None`` for weights that the project does not keep.

    Inside ``dvc exp run --temp`` the working folder counts as the root, since DVC keeps its outputs. A trial of a study
    has its own folder without DVC, and its weights are deleted with it.
    """
    here = Path.cwd()
    if WORKSPACE in os.environ:
        return None
    if here.resolve() != project_root().resolve() and "DVC_STAGE" not in os.environ:
        return None
    path = Path(os.path.normpath(here / folder))
    return path.relative_to(here).as_posix() if path.is_dir() and path.is_relative_to(here) else None


def register_weights(run: Run, params: Params, folder: str | Path) -> None:
    """Register a version of a model folder if there is none; errors of the registry become warnings.

    Args:
        run: open run that wrote the folder.
        params: all parameters.
        folder: model folder with ``vae/`` and ``transformer/``; registered only if it is in the project.
    """
    place = _place(folder)
    if run.run_id and place is not None:
        with _never_fatal(run):
            _find_or_create(run, params, place, digest(folder))


def register_evaluation(
    run: Run, params: Params, report: Mapping[str, Any], known: Mapping[str, str] = NOTHING_KNOWN
) -> None:
    """Log the scores of ``evaluate.model`` to its version, registering it if needed; errors become warnings.

    Args:
        run: open run of the evaluation.
        params: all parameters; ``evaluate.split`` of ``prepare_buckets.output_root`` was evaluated.
        report: content of ``evaluate.json``.
        known: md5s of inputs by path (:func:`layers.dataset.digest.digests`); others are computed.
    """
    settings = params.evaluate
    place = _place(settings.model)
    if run.run_id is None or place is None:
        return
    with _never_fatal(run):
        data = str(in_workspace(params.prepare_buckets.output_root))
        model_md5, data_md5 = (known.get(path) or digest(path) for path in (settings.model, data))
        version = _find_or_create(run, params, place, model_md5)
        client, now = mlflow.MlflowClient(), int(time.time() * 1000)
        of = {
            "model_id": logged_model_id(version),
            "dataset_name": settings.split,
            "dataset_digest": data_md5,
            "run_id": run.run_id,
        }
        client.log_batch(run.run_id, [Metric(key, value, now, 0, **of) for key, value in scores_of(report).items()])
        for key, value in {"evaluated": "true", "data.md5": data_md5, "data.split": settings.split}.items():
            client.set_model_version_tag(version.name, version.version, key, value)


def _find_or_create(run: Run, params: Params, place: str, md5: str) -> ModelVersion:
    client, name = mlflow.MlflowClient(), model_name(params)
    # Two stages that end together would both find no version.
    with FileLock(project_root() / "mlruns" / ".registry.lock"):
        if found := client.search_model_versions(f"name = '{name}' and tags.`weights.md5` = '{md5}'"):
            return found[0]
        tags = {"weights.path": place, "weights.md5": md5, "parameters": str(count_parameters(Path(place)))}
        logged = _log_model(run.run_id, params, place, md5, tags)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description="Flat image in, RGBA layers out: docs/registry.md")
        tags |= {key: value for key, value in contract_tags("", {}).items() if key.startswith(("git.", "dvc.exp"))}
        source = f"{SOURCE}{logged.model_id}"
        tags["evaluated"] = "false"
        return client.create_model_version(name, source, run.run_id, tags, model_id=logged.model_id)


def _log_model(run_id: str, params: Params, place: str, md5: str, tags: Mapping[str, str]) -> LoggedModel:
    settings = params.evaluate
    with warnings.catch_warnings():
        # Silences the warning about a missing input example: the signature is explicit.
        warnings.simplefilter("ignore")
        # As mlflow.pyfunc.log_model, which however uses the process's active run; runs here are not active runs.
        info = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="decomposer",
            run_id=run_id,
            python_model=str(CODE),
            model_config={"weights": place, "md5": md5, "precision": settings.precision, "offload": settings.offload},
            signature=signature(params, place),
            pip_requirements=str(CODE.parents[1] / "requirements.txt"),
            params=dict(tags),
        )
    return mlflow.get_logged_model(info.model_id)


def signature(params: Params, folder: str | Path) -> ModelSignature:
    """Signature (inputs, outputs, parameters) of a served model: docs/registry.md."""
    settings = params.evaluate
    # The default has to be valid: a network without text is not guided.
    reads = read_text_condition(folder).encoder != "none"
    return ModelSignature(
        inputs=Schema([ColSpec("string", "picture")]),
        outputs=Schema([ColSpec("long", "width"), ColSpec("long", "height"), ColSpec(Array("string"), "layers")]),
        params=ParamSchema(
            [
                ParamSpec("layers", "long", min(DEFAULT_LAYERS, params.prepare_buckets.max_layers)),
                ParamSpec("steps", "long", settings.steps),
                ParamSpec("tries", "long", settings.tries),
                ParamSpec("seed", "long", settings.seed),
                ParamSpec("caption", "string", ""),
                ParamSpec("guidance", "double", settings.guidance if reads else 1.0),
            ]
        ),
    )
