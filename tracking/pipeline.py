"""Pipeline run in MLflow: the parent of its stages' runs, which every stage of the pipeline finds by a key.

The key is a hash of parameters, code and DVC experiment. All stages of one ``dvc repro`` or ``dvc exp run`` have the
same key, and so have stages resumed after a kill or started by hand. Other parameters or code are another pipeline. As
for DVC, the code's content counts and not the commit: committing results or text, even while a stage runs, does not
change the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from config.params import Params, flatten
from layers.dataset.digest import text_digest
from tracking.store import store_lock

STAGES = ("prepare_buckets", "train_vae", "train_decompose", "refine", "evaluate")
# Packages that the five stages use.
PACKAGES = ("config", "evaluation", "inference", "layers", "metrics", "models", "stages", "tracking", "training")
# Outputs that later stages read, beside the bucketed dataset, whose path is a parameter.
MAKERS = {
    "models/weights/vae": "train_vae",
    "models/weights/decompose": "train_decompose",
    "models/weights/refine": "refine",
}
PIPELINE = "pipeline"
KEY = "pipeline.key"
MAX_PARAM_LENGTH = 6000
MAX_PARAMS, MAX_METRICS = 100, 1000  # per request; MLflow refuses more


def git(*arguments: str) -> str:
    """Output of a git command in the working folder; empty outside a repository."""
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def code_tags() -> dict[str, str]:
    """Tags of the git commit, uncommitted changes and DVC experiment, as far as they exist."""
    tags = {
        "git.commit": git("rev-parse", "HEAD"),
        "git.dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
    }
    return {key: value for key, value in tags.items() if value}


def code_digest() -> str:
    """Hash of the modules that stages are made of, committed or not."""
    root, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        found.update(f"{path.relative_to(root)}:{path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()


def covered(params: Params) -> dict[str, Any]:
    """Parameters that identify a pipeline: the stages' blocks and the launcher, with dotted names."""
    return flatten(params.model_dump(include={"launcher", *STAGES}))


def pipeline_key(params: Params) -> str:
    """Hash of parameters, code and DVC experiment; 16 hex digits."""
    described = json.dumps([covered(params), code_digest(), os.environ.get("DVC_EXP_NAME", "")], sort_keys=True)
    return text_digest(described, 16)


def log_params(client: MlflowClient, run_id: str, values: dict[str, Any]) -> None:
    """Log parameters under their dotted names; values too long for MLflow are truncated."""
    entries = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in values.items()]
    for first in range(0, len(entries), MAX_PARAMS):
        client.log_batch(run_id, params=entries[first : first + MAX_PARAMS], synchronous=True)


def join_pipeline(client: MlflowClient, experiment_id: str, params: Params, key: str) -> str:
    """Find or create the pipeline's run and set it running; return its id."""
    with store_lock():
        found = client.search_runs(
            [experiment_id], f"tags.`{KEY}` = '{key}' and tags.stage = '{PIPELINE}'", max_results=1
        )
        run = found[0] if found else _create(client, experiment_id, key)
        # Missing after a kill between creating the run and logging.
        if not run.data.params:
            log_params(client, run.info.run_id, covered(params))
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    return run.info.run_id


def _create(client: MlflowClient, experiment_id: str, key: str) -> Run:
    tags = {"stage": PIPELINE, KEY: key, **code_tags()}
    name = tags.get("dvc.exp_name") or f"{PIPELINE}-{key[:6]}"
    return client.create_run(experiment_id, tags=resolve_tags(tags), run_name=name)


def children(client: MlflowClient, experiment_id: str, parent_id: str) -> list[Run]:
    """Runs below a parent, the latest first."""
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_id}'"
    return client.search_runs([experiment_id], condition, order_by=["attributes.start_time DESC"])


def credit_reused(
    client: MlflowClient, experiment_id: str, parent_id: str, inputs: Mapping[str, str], buckets: str
) -> None:
    """Record, for stages that DVC did not need to run, the runs whose results are reused.

    The pipeline's run gets ``reused.<stage>``, the id of the run that made the inputs, and that run's report, so that
    pipelines can be compared as a whole. Runs are found by the md5s of inputs: the first run that read the same input
    is in the pipeline that made it. Files without runs are skipped.

    Args:
        client: client of the store.
        experiment_id: id of the experiment to search.
        parent_id: id of the pipeline's run.
        inputs: md5 by path of the inputs of one of its stages.
        buckets: path of the bucketed dataset.
    """
    here = {run.data.tags.get("stage") for run in children(client, experiment_id, parent_id)}
    here |= {key.removeprefix("reused.") for key in client.get_run(parent_id).data.tags if key.startswith("reused.")}
    for path, md5 in inputs.items():
        maker = STAGES[0] if path == buckets else MAKERS.get(path)
        if maker is None or maker in here:
            continue
        condition = f"tags.`input.{path}.md5` = '{md5}' and tags.`{KEY}` LIKE '%'"
        first = client.search_runs([experiment_id], condition, max_results=1, order_by=["attributes.start_time ASC"])
        for origin in first:
            made = _made_in(client, experiment_id, origin.data.tags[MLFLOW_PARENT_RUN_ID])
            for stage in STAGES[: STAGES.index(maker) + 1]:
                if stage in made and stage not in here:
                    _credit(client, parent_id, stage, made[stage])
                    here.add(stage)


def _made_in(client: MlflowClient, experiment_id: str, parent_id: str) -> dict[str, str]:
    """Id by stage of the runs whose results a pipeline has."""
    tags = client.get_run(parent_id).data.tags
    reused = {key.removeprefix("reused."): run_id for key, run_id in tags.items() if key.startswith("reused.")}
    for run in reversed(children(client, experiment_id, parent_id)):
        if run.info.status == "FINISHED":
            reused[run.data.tags.get("stage", "")] = run.info.run_id
    return reused


def _credit(client: MlflowClient, parent_id: str, stage: str, run_id: str) -> None:
    known, moment = client.get_run(run_id).data.metrics, int(time.time() * 1000)
    report = [Metric(key, value, moment, 0) for key, value in known.items() if key.startswith(f"{stage}/")]
    for first in range(0, len(report), MAX_METRICS):
        client.log_batch(parent_id, metrics=report[first : first + MAX_METRICS], synchronous=True)
    client.set_tag(parent_id, f"reused.{stage}", run_id)


def close_abandoned(client: MlflowClient, experiment_id: str, parent_id: str, stage: str) -> None:
    """Mark a stage's runs of this pipeline that are still open as killed, when the stage starts again."""
    for run in children(client, experiment_id, parent_id):
        if run.data.tags.get("stage") == stage and run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def settle(client: MlflowClient, parent_id: str) -> None:
    """Set the pipeline run's status from the latest run of each stage: if one failed, the pipeline failed."""
    parent = client.get_run(parent_id)
    latest: dict[str, str] = {}
    for run in children(client, parent.info.experiment_id, parent_id):
        latest.setdefault(run.data.tags.get("stage", ""), run.info.status)
    states = set(latest.values())
    status = next((state for state in ("RUNNING", "FAILED", "KILLED") if state in states), "FINISHED")
    if status == "RUNNING":
        client.update_run(parent_id, status=status)
    else:
        client.set_terminated(parent_id, status)
