"""Run of a study in one worker: trials one after the other, then confirmation and report."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.trial import TrialState

from config.params import Params, parse_params
from config.paths import in_project
from experiments.launch import launch_command
from experiments.study.confirm import confirm
from experiments.study.objective import Objective
from experiments.study.plan import Plan, StudyError, make_plan, open_study, ranked, run_id_of
from experiments.study.storage import ERROR, RUN_ID, StorageError, shown
from experiments.study.summary import summary
from experiments.study.trial import TRIALS, TrialFailed
from tracking.run import Run, stage_run
from tracking.studies import still_running, tag_study


def _one_more(study: optuna.Study, objective: Objective) -> None:
    """Run a trial; if this worker's heartbeat had expired, another worker may have been given the same trial."""
    try:
        study.optimize(objective, n_trials=1, catch=(TrialFailed,), callbacks=[objective.close])
    except ValueError as error:
        if not str(error).startswith("Cannot tell a"):
            raise
        print("tune: this worker was taken for dead: another worker got its trial, and its own result is dropped")


def logged_params(params: Params, stage: str) -> Params:
    """Parameters as logged to MLflow: with the stage that is tuned, and the storage's URL without its password."""
    settings = params.tune.model_copy(update={"stage": stage, "storage": shown(params.tune.storage)})
    return params.model_copy(update={"tune": settings})


def run_study(params: Params, stage: str, trials: int) -> None:
    """Run trials of a new or an existing study, then report it."""
    plan = make_plan(params, stage)
    parse_params(plan.base, "tune.budget")
    launch_command(params.launcher, stage)
    # Optuna would print a traceback for every failed trial; close() prints one line.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(params, plan)
    try:
        with stage_run("tune", logged_params(params, stage), inputs={}, resume_run_id=run_id_of(study)) as parent:
            if parent.run_id != run_id_of(study):
                study.set_user_attr(RUN_ID, parent.run_id)
                tag_study(parent.run_id, {"optuna.study": plan.name, "optuna.storage": shown(params.tune.storage)})
            objective = Objective(plan, parent)
            try:
                for _ in range(trials):
                    _one_more(study, objective)
            except KeyboardInterrupt:
                objective.give_back(study)
                raise
            others = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if others:
                numbers = ", ".join(str(trial.number) for trial in others)
                print(f"tune: other workers still run trials {numbers}: the last one reports, or --report does it now")
            else:
                confirm_and_report(study, plan, parent, params.tune.confirm_seeds)
        if others:
            still_running(run_id_of(study))
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(
            f"tune.storage: {shown(params.tune.storage)} does not answer any more: {str(error).splitlines()[0]}; "
            "the same command goes on"
        ) from None


def confirm_and_report(study: optuna.Study, plan: Plan, parent: Run, seeds: int) -> None:
    """Train the best trial again, then report; an interrupted confirmation is reported too."""
    try:
        if ranked(study):
            confirm(study, plan, parent, seeds)
    finally:
        report(study, parent)


def report(study: optuna.Study, parent: Run) -> None:
    """Draw a study's plots, and print its summary.

    Raises:
        StudyError: if none of its trials has ended well.
    """
    folder = in_project(TRIALS / study.study_name)
    here = Path.cwd()
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    if not ranked(study):
        failed = [trial for trial in study.trials if ERROR in trial.user_attrs]
        last = f"; the last one {failed[-1].user_attrs[ERROR]}" if failed else ""
        raise StudyError(
            f"tune: none of {len(study.trials)} trials of {study.study_name} has ended well{last}; logs are in {folder}"
        )
    # Imported here, because plotting takes seconds to import and only the last worker plots.
    from experiments.study.plots import publish

    publish(study, folder, parent)
    print(summary(study, folder))
