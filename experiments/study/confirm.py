"""Confirmation of a study: its best trial and today's parameters, both trained again with other seeds.

The best of many noisy measurements looks better than it is (the winner's curse), even if trials differ only by chance.
So both are measured once more with seeds that had no part in the choice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from config.params import with_values
from experiments.study.plan import Plan, figures_of, is_today, measured, ranked, todays_values, values_of
from experiments.study.storage import is_gone, signature
from experiments.study.trial import TrialFailed, launch
from tracking.run import Run
from tracking.studies import close_confirmation, confirmation_tags

CONFIRMED, CONFIRMING = "confirmed", "confirming"


@dataclass(frozen=True)
class Confirmation:
    """Metrics of the best trial and of today's parameters with other seeds.

    Attributes:
        trial: number of the best trial.
        seeds: with which both were trained.
        best: the stage's metrics under the trial's values, one mapping a seed.
        today: those under today's parameters, one mapping a seed.
    """

    trial: int
    seeds: list[int]
    best: list[dict[str, float]]
    today: list[dict[str, float]]

    def gains(self, objective: str, largest: bool) -> list[float]:
        """Gain of the trial with each seed; ``largest``: whether larger values are better."""
        sign = 1 if largest else -1
        return [sign * (a[objective] - b[objective]) for a, b in zip(self.best, self.today, strict=True)]

    def changes(self) -> dict[str, float]:
        """Mean difference, trial minus today, of every metric that all of the trainings have.

        The loss is left out, because its weights differ.
        """
        rows = [*self.best, *self.today]
        names = [name for name in rows[0] if name != "loss" and all(name in row for row in rows)]
        pairs = list(zip(self.best, self.today, strict=True))
        return {name: sum(a[name] - b[name] for a, b in pairs) / len(pairs) for name in names}


def read_confirmation(study: optuna.Study) -> Confirmation | None:
    """Read the confirmation of the currently best trial; ``None`` if there is none."""
    kept, trials = study.user_attrs.get(CONFIRMED), ranked(study)
    if not kept or not trials or len(study.directions) > 1 or kept["trial"] != trials[0].number:
        return None
    return Confirmation(**kept)


def confirm(study: optuna.Study, plan: Plan, study_run: Run, seeds: int) -> None:
    """Train the best trial and today's parameters again, and save their metrics in the study.

    Only missing seeds are trained. Nothing is done if today's parameters are the best, if there are several objectives
    and so no single best trial, or if another worker does it. A failed training is reported and leaves the study
    unchanged.

    Args:
        study: one with a completed trial.
        plan: of the study.
        study_run: its MLflow run.
        seeds: number of seeds beside that of the study.
    """
    best, before = ranked(study)[0], read_confirmation(study)
    if len(plan.objectives) > 1 or is_today(study, best) or seeds <= len(before.seeds if before else ()):
        return
    claim = study.user_attrs.get(CONFIRMING)
    if claim and claim["trial"] == best.number and claim["worker"] != signature() and not is_gone(claim["worker"]):
        print(f"tune: another worker trains trial {best.number} again; --confirm does it here")
        return
    study.set_user_attr(CONFIRMING, {"trial": best.number, "worker": signature()})
    kept = before or Confirmation(best.number, [], [], [])
    first = plan.base[plan.stage]["seed"]
    compared = {"best": values_of(best), "today": todays_values(study, plan.space)}
    try:
        for seed in range(first + 1 + len(kept.seeds), first + 1 + seeds):
            rows = {name: _trained(plan, values, study_run, name, seed) for name, values in compared.items()}
            kept.seeds.append(seed)
            kept.best.append(rows["best"])
            kept.today.append(rows["today"])
            study.set_user_attr(CONFIRMED, asdict(kept))
    except TrialFailed as error:
        print(f"tune: with other seeds: {error}")
    finally:
        study.set_user_attr(CONFIRMING, None)


def _trained(plan: Plan, values: Mapping[str, Any], study_run: Run, name: str, seed: int) -> dict[str, float]:
    """Metrics of the stage after a training with other values and another seed."""
    tags = confirmation_tags(plan.name, name, seed)
    launched = launch(
        plan.stage,
        with_values(plan.base, {**values, f"{plan.stage}.seed": seed}),
        study=plan.name,
        # The process id is in the name, because another worker may train the same.
        folder=f"{name}_seed_{seed}_{os.getpid()}",
        tags=tags,
        study_run=study_run.run_id,
    )
    report: dict = {}
    try:
        with contextlib.closing(launched):
            for event in launched:
                report = event.get("report", report)
    finally:
        close_confirmation(study_run.run_id, tags)
    (value,), (objective,) = measured(report, plan), plan.objectives
    print(f"{name} again, seed {seed}: {objective} {value:.4f}", flush=True)
    return {name: value for name, value in figures_of(report).items() if isinstance(value, float)}


def verdict(gains: Sequence[float]) -> str:
    """Verdict in words on whether the gain holds with other seeds."""
    better, mean = sum(gain > 0 for gain in gains), sum(gains) / len(gains)
    how = "holds" if better == len(gains) else "does not hold" if mean <= 0 else "is not sure"
    return f"better with {better} of {len(gains)} other seeds, {mean:+.4f} on average: the gain {how}"
