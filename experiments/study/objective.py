"""Objective function of a study: maps the values that Optuna suggests to the metrics of a stage."""

from __future__ import annotations

import contextlib

import optuna
from optuna.trial import FrozenTrial, TrialState

from config.errors import ParamsError
from config.params import flatten, parse_params, with_values
from experiments.study.plan import Plan, measured
from experiments.study.space import suggest
from experiments.study.storage import ERROR, KEPT, VALUES, WORKER, signature
from experiments.study.trial import TrialFailed, launch
from tracking.run import Run, report_metrics
from tracking.studies import close_trial, trial_tags

INTERRUPTED = "interrupted"


class Objective:
    """Objective function for Optuna: one trial, from suggested values to its result.

    Args:
        plan: of the study.
        study_run: the study's MLflow run.
    """

    def __init__(self, plan: Plan, study_run: Run) -> None:
        self.plan = plan
        self.study_run = study_run

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """Run a trial; its validations reach the pruner where there is one objective.

        Raises:
            TrialFailed: if the stage fails, or the suggested values do not fit together.
            TrialPruned: if the pruner ended it early.
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
        # After the last validation pruning would save nothing.
        if event["epoch"] < self.plan.epochs and trial.should_prune():
            raise optuna.TrialPruned(f"after epoch {event['epoch']} of {self.plan.epochs}")

    @staticmethod
    def _failed(trial: optuna.Trial, reason: str) -> TrialFailed:
        trial.set_user_attr(ERROR, reason)
        return TrialFailed(reason)

    def close(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tag the MLflow run of a trial that has ended, and print how it ended."""
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
        """Enqueue this process's interrupted trial again, because it did not fail."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            if trial.user_attrs.get(WORKER) == signature() and trial.user_attrs.get(ERROR) == INTERRUPTED:
                self.close(study, trial)
                study.enqueue_trial(trial.params)
