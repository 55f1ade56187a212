"""MLflow runs: one per stage, below the run of its pipeline. Usage: docs/tracking.md.

``tracking.store`` locates the store, ``tracking.pipeline`` the parent run. ``tracking.records`` and ``tracking.spool``
deliver records to the store, even after an outage. Outside this package nothing imports mlflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from config.params import Params, flatten
from tracking import pipeline, records
from tracking.spool import Delivery, deliver_left_over, spool_folder
from tracking.store import answering, open_experiment, store_name, tracking_uri
from tracking.system import SystemMetrics

__all__ = ["Run", "open_experiment", "report_metrics", "stage_run", "tracking_uri"]

MAX_NAME_LENGTH = 250


def contract_tags(stage: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Tags of every stage's run: stage, git commit, DVC experiment, md5 of each input."""
    tags = {"stage": stage, **pipeline.code_tags(), "dvc.stage": os.environ.get("DVC_STAGE", "")}
    return {**{key: value for key, value in tags.items() if value}, **{f"input.{k}.md5": v for k, v in inputs.items()}}


def report_metrics(name: str, content: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a report under their MLflow names: ``<report>/<dotted key>``.

    The dotted key is that of ``dvc metrics show`` and of ``tune.metric``. As in DVC, lists are tables and not metrics.
    Characters that MLflow refuses become ``_``.

    Args:
        name: name of the report, such as ``train_vae``.
        content: content of its JSON file.
    """
    return {
        f"{name}/{re.sub(r'[^A-Za-z0-9_. :-]', '_', key)}"[:MAX_NAME_LENGTH]: float(value)
        for key, value in flatten(content).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class Run:
    """MLflow run of a stage, or a silent substitute on ranks other than 0.

    Args:
        run_id: id of the run; ``None`` for the substitute.
        pipeline_id: id of the pipeline's run, which shows the reports of all stages.
    """

    def __init__(self, run_id: str | None, pipeline_id: str | None = None) -> None:
        self.run_id = run_id
        self.pipeline_id = pipeline_id
        self._delivery = Delivery(run_id) if run_id else None

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; non-finite values are left out, since a store must not contain NaN."""
        finite = {key: float(value) for key, value in values.items() if np.isfinite(value)}
        if self._delivery and finite:
            self._delivery.send(records.metrics(self.run_id, finite, step or 0))

    def report(self, path: Path) -> None:
        """Log a report's JSON file, and its numbers by :func:`report_metrics`, in this and in the pipeline's run."""
        self.artifact(path)
        values = report_metrics(path.stem, json.loads(path.read_text(encoding="utf-8")))
        if self._delivery and values:
            for run_id in filter(None, (self.run_id, self.pipeline_id)):
                self._delivery.send(records.metrics(run_id, values, 0))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Log an ``(H, W, 3 or 4)`` uint8 image under a name that the UI can browse by step."""
        if self._delivery:
            self._delivery.send(records.image(self.run_id, name, image, step))

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file, or a folder's files."""
        if self._delivery:
            self._delivery.send(records.artifact(self.run_id, Path(path), folder))

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED, and update the status of the pipeline's run."""
        if self._delivery:
            self._delivery.send(records.ending(self.run_id, status))
            if self.pipeline_id:
                self._delivery.send(records.following(self.pipeline_id))
            self._delivery.close()


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

    It ends as FINISHED, on Ctrl-C as KILLED, on any other exception as FAILED. Its parent is the run named by
    ``QIL_PARENT_RUN_ID`` (a study's), otherwise, for the five stages, the pipeline's.

    Args:
        stage: name of the run and of its params block.
        params: all parameters; the stage's block is logged flattened, under its dotted paths.
        inputs: md5 by path of everything the stage reads.
        resume_run_id: run of the killed process whose work is continued.
        main_process: other ranks get a silent run.

    Raises:
        TrackingError: if the store does not answer now; later outages do not end the stage.
    """
    if not main_process:
        yield Run(None)
        return
    with answering():
        run = _open(stage, params, inputs, resume_run_id)
    system = SystemMetrics(run.run_id, run.metrics) if params.tracking.system_metrics else None
    status = "FAILED"
    if system:
        system.start()
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if system:
            system.finish()
        run.end(status)


def _open(stage: str, params: Params, inputs: Mapping[str, str], resume_run_id: str | None) -> Run:
    experiment_id = open_experiment(params.tracking.experiment)
    if delivered := deliver_left_over()[0]:
        print(f"{stage}: {delivered} earlier runs delivered from {spool_folder()}")
    client = MlflowClient(tracking_uri())
    tags = contract_tags(stage, inputs)
    parent_id = os.environ.get("QIL_PARENT_RUN_ID") or None
    pipeline_id = None
    if parent_id is None and stage in pipeline.STAGES:
        tags[pipeline.KEY] = pipeline.pipeline_key(params)
        parent_id = pipeline_id = pipeline.join_pipeline(client, experiment_id, params, tags[pipeline.KEY])
        pipeline.credit_reused(client, experiment_id, pipeline_id, inputs, params.prepare_buckets.output_root)
    if parent_id:
        tags[MLFLOW_PARENT_RUN_ID] = parent_id
    if resume_run_id:
        before = _found(client, resume_run_id)
        if before is not None:
            _go_on(client, before, tags)
            return Run(resume_run_id, pipeline_id)
        print(f"run {resume_run_id} is not in {store_name()}: continuing in a new run")
    if pipeline_id:
        pipeline.close_abandoned(client, experiment_id, pipeline_id, stage)
    run_id = client.create_run(experiment_id, tags=resolve_tags(tags), run_name=stage).info.run_id
    pipeline.log_params(client, run_id, flatten({stage: getattr(params, stage).model_dump()}))
    if inputs:
        client.log_inputs(run_id, [_dataset(path, md5, stage) for path, md5 in inputs.items()])
    return Run(run_id, pipeline_id)


def _found(client: MlflowClient, run_id: str) -> Any | None:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _go_on(client: MlflowClient, run: Any, tags: Mapping[str, str]) -> None:
    """Reopen a killed run as part of the current pipeline or study."""
    client.update_run(run.info.run_id, status="RUNNING")
    for key, value in tags.items():
        client.set_tag(run.info.run_id, key, value)
    before, after = run.data.tags.get(pipeline.KEY), tags.get(pipeline.KEY)
    if before and before != after:
        pipeline.settle(client, run.data.tags[MLFLOW_PARENT_RUN_ID])


def _dataset(path: str, md5: str, context: str) -> DatasetInput:
    dataset = MetaDataset(LocalArtifactDatasetSource(str(Path(path).resolve())), name=path, digest=md5)
    tags = [InputTag("md5", md5), InputTag(MLFLOW_DATASET_CONTEXT, context)]
    return DatasetInput(dataset=dataset._to_mlflow_entity(), tags=tags)
