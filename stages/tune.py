"""Optuna study over the loss weights and rates of one training stage.

    python -m stages.tune [--stage STAGE] [--trials N]          run N more trials; any number of workers at once
    python -m stages.tune [--stage STAGE] --report              draw the study's plots again
    python -m stages.tune [--stage STAGE] --confirm SEEDS       train the best trial again with other seeds
    python -m stages.tune --apply [STUDY] [--trial N]           write the best values into params.yaml
    python -m stages.tune --as-dvc-experiments K                queue the best K trials as DVC experiments

Each trial is a process of its own in a working folder of its own, so a crash fails one trial and the pipeline's outputs
stay as they are. Today's params.yaml is the first trial; at the end it and the best one are trained again with other
seeds (:mod:`stages.tune_confirm`). The objectives are held-out metrics of the stage's validation,
never the reweighted loss. The same command goes on with the same study.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from layers.errors import UserError
from layers.paths import in_project
from stages.cli import stage_command
from stages.tune_apply import apply_trial, choose, queue_experiments
from stages.tune_confirm import CONFIRMING, confirm
from stages.tune_space import suggest, with_values
from stages.tune_storage import ERROR, KEPT, RUN_ID, VALUES, WORKER, StorageError, shown, signature
from stages.tune_study import (
    Plan,
    StudyError,
    check_same,
    load_study,
    make_plan,
    measured,
    open_study,
    ranked,
    run_id_of,
    study_name,
)
from stages.tune_summary import summary
from stages.tune_trial import TRIALS, TrialFailed, launch, launch_command
from training.params import Params, ParamsError, flatten, parse_params
from training.params_tune import TUNED
from training.study_runs import close_trial, still_running, tag_study, trial_tags
from training.tracking import Run, report_metrics, stage_run

INTERRUPTED = "interrupted"


class Objective:
    """What Optuna calls: one trial, from suggestion to result.

    Args:
        plan: what is searched.
        study_run: the study's MLflow run.
    """

    def __init__(self, plan: Plan, study_run: Run) -> None:
        self.plan = plan
        self.study_run = study_run

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """Run a trial; its validations reach the pruner where there is one objective.

        Raises:
            TrialFailed: if the stage does not end well, or the values drawn do not fit together.
            TrialPruned: if it was ended early.
        """
        plan = self.plan
        trial.set_user_attr(WORKER, signature())
        values = suggest(trial, plan.space, flatten(plan.base))
        trial.set_user_attr(VALUES, values)
        raw = with_values(plan.base, values)
        try:
            parse_params(raw, f"trial {trial.number}")
        except ParamsError as error:
            raise self._failed(trial, str(error)) from None
        launched = launch(
            plan.stage,
            raw,
            study=plan.name,
            folder=f"trial_{trial.number:04d}",
            tags=trial_tags(plan.name, trial.number),
            study_run=self.study_run.run_id,
        )
        report: dict = {}
        try:
            with contextlib.closing(launched):
                for event in launched:
                    report = event.get("report", report)
                    if "epoch" in event and len(plan.objectives) == 1:
                        self._report(trial, event)
        except TrialFailed as error:
            raise self._failed(trial, str(error)) from None
        except KeyboardInterrupt:
            trial.set_user_attr(ERROR, INTERRUPTED)
            raise
        figures = measured(report, plan)
        if KEPT in report:
            trial.set_user_attr(KEPT, report[KEPT])
        self.study_run.metrics(
            report_metrics(plan.stage, dict(zip(plan.objectives, figures, strict=True))), trial.number
        )
        return figures

    def _report(self, trial: optuna.Trial, event: dict) -> None:
        (value,) = measured(event["metrics"], self.plan)
        trial.report(value, event["epoch"])
        # After its last validation there is nothing left to save.
        if event["epoch"] < self.plan.epochs and trial.should_prune():
            raise optuna.TrialPruned(f"after epoch {event['epoch']} of {self.plan.epochs}")

    @staticmethod
    def _failed(trial: optuna.Trial, reason: str) -> TrialFailed:
        trial.set_user_attr(ERROR, reason)
        return TrialFailed(reason)

    def close(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tag the MLflow run of a trial that has ended, and say how it ended."""
        error = trial.user_attrs.get(ERROR)
        tags = {"optuna.error": error} if error else {}
        for number in trial.system_attrs.get("retry_history", [])[-1:]:
            tags["optuna.retry_of"] = str(number)
        close_trial(self.study_run.run_id, trial.number, trial.state.name, trial.user_attrs.get(VALUES, {}), tags)
        said = error or ""
        if trial.state == TrialState.COMPLETE:
            said = ", ".join(f"{n} {v:.4f}" for n, v in zip(self.plan.objectives, trial.values, strict=True))
            said += f" ({trial.user_attrs[KEPT]} was kept)" if KEPT in trial.user_attrs else ""
        elif trial.state == TrialState.PRUNED:
            said = f"after epoch {max(trial.intermediate_values)} of {self.plan.epochs}"
        print(f"trial {trial.number}: {trial.state.name.lower()}: {said}", flush=True)

    def give_back(self, study: optuna.Study) -> None:
        """Enqueue the trial again that was interrupted in this process: it did not fail."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            if trial.user_attrs.get(WORKER) == signature() and trial.user_attrs.get(ERROR) == INTERRUPTED:
                self.close(study, trial)
                study.enqueue_trial(trial.params)


def _one_more(study: optuna.Study, objective: Objective) -> None:
    """Run a trial; that of a worker which was silent for too long may have been given to another meanwhile."""
    try:
        study.optimize(objective, n_trials=1, catch=(TrialFailed,), callbacks=[objective.close])
    except ValueError as error:
        if not str(error).startswith("Cannot tell a"):
            raise
        print("tune: this worker was taken for dead: its trial went to another, and what it found is left out")


def _logged(params: Params, stage: str) -> Params:
    """What MLflow is told: the stage that is tuned, the storage without its password."""
    settings = params.tune.model_copy(update={"stage": stage, "storage": shown(params.tune.storage)})
    return params.model_copy(update={"tune": settings})


def run_study(params: Params, stage: str, trials: int) -> None:
    """Run some trials of a new or an old study, then report it."""
    plan = make_plan(params, stage)
    parse_params(plan.base, "tune.budget")
    launch_command(params.launcher, stage)
    # Optuna would print a traceback for every trial that failed; close() says it in a line.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(params, plan)
    try:
        with stage_run("tune", _logged(params, stage), inputs={}, resume_run_id=run_id_of(study)) as parent:
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
                print(f"tune: other workers are at trials {numbers}: the last one reports, or --report")
            else:
                _confirm_and_report(study, plan, parent, params.tune.confirm_seeds)
        if others:
            still_running(run_id_of(study))
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(
            f"tune.storage: {shown(params.tune.storage)} does not answer any more: {str(error).splitlines()[0]}; "
            "the same command goes on"
        ) from None


def _confirm_and_report(study: optuna.Study, plan: Plan, parent: Run, seeds: int) -> None:
    """Train the best trial again, then report, which is also done where that is interrupted."""
    try:
        if ranked(study):
            confirm(study, plan, parent, seeds)
    finally:
        _report(study, parent)


def _report(study: optuna.Study, parent: Run) -> None:
    folder = in_project(TRIALS / study.study_name)
    here = Path.cwd()
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    if not ranked(study):
        failed = [trial for trial in study.trials if ERROR in trial.user_attrs]
        last = f"; the last one {failed[-1].user_attrs[ERROR]}" if failed else ""
        raise StudyError(
            f"tune: none of {len(study.trials)} trials of {study.study_name} has ended well{last}; logs are in {folder}"
        )
    # Drawing takes seconds to import, and workers that are not the last do without.
    from stages.tune_plots import publish

    publish(study, folder, parent)
    print(summary(study, folder))


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Do what the flags say; without one, run trials."""
    stage = arguments.stage or params.tune.stage
    if arguments.trials is not None and arguments.trials < 1:
        raise UserError(f"--trials: got {arguments.trials}, expected 1 or more")
    if arguments.trial is not None and arguments.apply is None:
        raise UserError("--trial: expected --apply beside it; the number of trials to run is --trials")
    if arguments.apply is not None:
        study = load_study(params, arguments.apply or study_name(params, stage))
        apply_trial(arguments.params, study, choose(study, arguments.trial))
    elif arguments.as_dvc_experiments is not None:
        if arguments.as_dvc_experiments < 1:
            raise UserError(f"--as-dvc-experiments: got {arguments.as_dvc_experiments}, expected 1 or more")
        study = load_study(params, study_name(params, stage))
        queue_experiments(study, ranked(study)[: arguments.as_dvc_experiments])
    elif arguments.report or arguments.confirm is not None:
        if arguments.confirm is not None and arguments.confirm < 1:
            raise UserError(f"--confirm: got {arguments.confirm}, expected 1 or more")
        study = load_study(params, study_name(params, stage))
        with stage_run("tune", _logged(params, stage), inputs={}, resume_run_id=run_id_of(study)) as parent:
            if arguments.report:
                _report(study, parent)
            else:
                study.set_user_attr(CONFIRMING, None)
                plan = make_plan(params, stage)
                check_same(study, plan)
                _confirm_and_report(study, plan, parent, arguments.confirm)
    else:
        run_study(params, stage, arguments.trials or params.tune.trials)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=TUNED, help="overrides tune.stage")
    parser.add_argument("--trials", type=int, metavar="N", help="overrides tune.trials")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--report", action="store_true", help="draw the plots of the study again, run nothing")
    action.add_argument(
        "--confirm",
        type=int,
        metavar="SEEDS",
        help="train the best trial again with so many other seeds",
    )
    action.add_argument(
        "--apply", nargs="?", const="", metavar="STUDY", help="write a trial's values into the parameter file"
    )
    action.add_argument(
        "--as-dvc-experiments", type=int, metavar="K", help="queue the best K trials as DVC experiments"
    )
    parser.add_argument("--trial", type=int, metavar="N", help="of --apply: another trial than the best")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return stage_command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
