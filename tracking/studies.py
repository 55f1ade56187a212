"""MLflow runs of a study: the study's run, and below it one run per trial, which the stage itself opens.

The stage's run is found by tags that MLflow takes from ``MLFLOW_RUN_CONTEXT``, so that a tuner can close the run of a
process that it ended.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import mlflow
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException

from tracking.pipeline import log_params
from tracking.run import contract_tags, tracking_uri

STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
OPEN = ("RUNNING", "SCHEDULED")


def trial_tags(study: str, number: int) -> dict[str, str]:
    """Tags of the run of a trial."""
    return {"optuna.study": study, "optuna.trial": str(number)}


def confirmation_tags(study: str, what: str, seed: int) -> dict[str, str]:
    """Tags of a run that trains the best trial, or the current parameters, again with another seed."""
    return {"optuna.study": study, "optuna.confirms": what, "optuna.seed": str(seed)}


def run_environment(tags: Mapping[str, str], study_run: str | None) -> dict[str, str]:
    """Environment variables that give a stage's run tags and the study's run as parent."""
    return {
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "MLFLOW_RUN_CONTEXT": json.dumps(dict(tags)),
        "QIL_PARENT_RUN_ID": study_run or "",
    }


def _never_fatal(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator that reports tracking errors without ending a study, whose tracking server may be unreachable."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> None:
        try:
            function(*arguments, **named)
        except MlflowException as error:
            print(f"tune: MLflow does not answer: {str(error).splitlines()[0]}")

    return wrapped


def _client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri())


def find_trial_run(study_run: str, number: int) -> StoredRun | None:
    """Find the run that a trial's stage opened below the study's run; ``None`` if it opened none."""
    client = _client()
    experiment = client.get_run(study_run).info.experiment_id
    found = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{study_run}' and tags.`optuna.trial` = '{number}'"
    )
    return found[0] if found else None


@_never_fatal
def close_trial(
    study_run: str | None, number: int, state: str, values: Mapping[str, Any], tags: Mapping[str, str]
) -> None:
    """Tag a trial's run with its state, and end it if its process did not.

    A trial that failed before its stage opened a run gets one here, so that the study's list is complete.

    Args:
        study_run: id of the study's run; without one nothing is done.
        number: number of the trial.
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        values: searched parameters under their dotted paths.
        tags: further tags, such as the reason of a failure.
    """
    if study_run is None:
        return
    client, run = _client(), find_trial_run(study_run, number)
    if run is None:
        stage = next(iter(values), "trial").split(".")[0]
        run = client.create_run(
            client.get_run(study_run).info.experiment_id,
            run_name=stage,
            tags={
                **contract_tags(stage, {}),
                "mlflow.parentRunId": study_run,
                "optuna.trial": str(number),
            },
        )
        log_params(client, run.info.run_id, dict(values))
    for key, value in {"optuna.state": state, **tags}.items():
        client.set_tag(run.info.run_id, key, value)
    if run.info.status in OPEN:
        client.set_terminated(run.info.run_id, STATUS[state])


@_never_fatal
def close_confirmation(study_run: str | None, tags: Mapping[str, str]) -> None:
    """End the confirmation run with these tags if its process did not; no effect without a study's run."""
    if study_run is None:
        return
    client = _client()
    wanted = " and ".join(
        f"tags.`{key}` = '{value}'" for key, value in {"mlflow.parentRunId": study_run, **tags}.items()
    )
    for run in client.search_runs([client.get_run(study_run).info.experiment_id], wanted):
        if run.info.status in OPEN:
            client.set_terminated(run.info.run_id, "FAILED")


@_never_fatal
def tag_study(study_run: str | None, tags: Mapping[str, str]) -> None:
    """Tag the study's run."""
    for key, value in tags.items() if study_run else ():
        _client().set_tag(study_run, key, value)


@_never_fatal
def still_running(study_run: str | None) -> None:
    """Set the study's run to running: this worker is done, others are not."""
    if study_run:
        _client().update_run(study_run, status="RUNNING")
