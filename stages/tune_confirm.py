"""Whether the best trial of a study is better than today's parameters: both are trained again with other seeds.

The best of many noisy measurements looks better than it is (the winner's curse): a study of eight trials that differ in
nothing but chance has a best one too. With other seeds the two are measured once more, neither chosen by it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from stages.tune_space import with_values
from stages.tune_study import Plan, is_today, measured, ranked, values_of
from stages.tune_trial import TrialFailed, launch
from training.study_runs import confirmation_tags
from training.tracking import Run

CONFIRMED = "confirmed"


@dataclass(frozen=True)
class Confirmation:
    """The objective with other seeds.

    Attributes:
        trial: number of the best trial.
        seeds: that both were trained with.
        best: the objective under the trial's values, by seed.
        today: under today's parameters, by seed.
    """

    trial: int
    seeds: list[int]
    best: list[float]
    today: list[float]

    def gains(self, largest: bool) -> list[float]:
        """How much better the trial is with each seed; ``largest``: whether more is better."""
        sign = 1 if largest else -1
        return [sign * (best - today) for best, today in zip(self.best, self.today, strict=True)]


def read_confirmation(study: optuna.Study) -> Confirmation | None:
    """What was measured of the trial that is the best one now, if it was."""
    kept = study.user_attrs.get(CONFIRMED)
    trials = ranked(study)
    if not kept or not trials or len(study.directions) > 1 or kept["trial"] != trials[0].number:
        return None
    return Confirmation(**kept)


def confirm(study: optuna.Study, plan: Plan, study_run: Run, seeds: int) -> None:
    """Train the best trial and today's parameters again, and keep what they score with the study.

    Nothing is done where it was done before, where today's parameters are the best, or where there is no single best
    trial (several objectives). A training that fails is said, and leaves the study without a confirmation.

    Args:
        study: that has ended.
        plan: what it searched.
        study_run: its MLflow run.
        seeds: how many others than that of the study.
    """
    best = ranked(study)[0]
    if not seeds or len(plan.objectives) > 1 or is_today(study, best) or read_confirmation(study):
        return
    first = plan.base[plan.stage]["seed"]
    numbers = list(range(first + 1, first + 1 + seeds))
    kept = {"trial": best.number, "seeds": numbers}
    try:
        for name, values in (("best", values_of(best)), ("today", {})):
            kept[name] = [_trained(plan, values, study_run, name, seed) for seed in numbers]
    except TrialFailed as error:
        print(f"tune: with other seeds: {error}")
        return
    study.set_user_attr(CONFIRMED, kept)


def _trained(plan: Plan, values: dict, study_run: Run, name: str, seed: int) -> float:
    raw = with_values(plan.base, {**values, f"{plan.stage}.seed": seed})
    launched = launch(
        plan.stage,
        raw,
        study=plan.name,
        folder=f"{name}_seed_{seed}",
        tags=confirmation_tags(plan.name, name, seed),
        study_run=study_run.run_id,
    )
    report: dict = {}
    with contextlib.closing(launched):
        for event in launched:
            report = event.get("report", report)
    (value,) = measured(report, plan)
    print(f"{name} again, seed {seed}: {next(iter(plan.objectives))} {value:.4f}", flush=True)
    return value


def verdict(gains: Sequence[float]) -> str:
    """Whether a gain holds, in words."""
    better, mean = sum(gain > 0 for gain in gains), sum(gains) / len(gains)
    how = "holds" if better == len(gains) else "does not hold" if mean <= 0 else "is not sure"
    return f"better with {better} of {len(gains)} other seeds, {mean:+.4f} on average: the gain {how}"
