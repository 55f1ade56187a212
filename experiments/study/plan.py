"""Plan of a study that any number of workers share: its name, space, sampler, pruner and fixed inputs."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from config.errors import ParamsError, UserError
from config.params import Params, flatten
from config.tune import Sampler, SearchRange
from experiments.study.space import SWITCH, budgeted, check_kinds, first_trial, fixed_part
from experiments.study.storage import RUN_ID, VALUES, open_storage, shown
from experiments.study.trial import EARLIER
from layers.dataset.digest import digests
from training.engine.session import with_checkpoint

FIXED, TODAY = "fixed", "today"
MD5 = "md5 of "
READY_SECONDS = 30.0
DIFFERENCES_SHOWN = 3


class StudyError(UserError, LookupError):
    """A study is missing, has no completed trial, or was begun under other conditions."""


@dataclass(frozen=True)
class Plan:
    """Plan of a study: the searched space and its objectives.

    Attributes:
        stage: the one that is tuned.
        name: of the study.
        objectives: metric of the stage's validation to ``maximize`` or ``minimize``.
        space: dotted path to its entry.
        base: all parameters under the budget, nested.
        first: today's parameters as values of the sampler, for the first trial.
        fixed: parameters that all trials share, flat, with the md5s of the stage's inputs.
    """

    stage: str
    name: str
    objectives: dict[str, str]
    space: dict[str, SearchRange]
    base: dict[str, Any]
    first: dict[str, Any]
    fixed: dict[str, Any]

    @property
    def epochs(self) -> int:
        """Number of validations of a trial."""
        return self.base[self.stage]["optimisation"]["epochs"]


def inputs_of(stage: str, params: Params) -> dict[str, str]:
    """Inputs of a stage, and the md5 of each."""
    block = getattr(params, stage)
    paths = [params.prepare_buckets.output_root, *map(str, EARLIER[stage])]
    key = "rgb_checkpoint" if stage == "train_vae" else "checkpoint"
    return digests(with_checkpoint(paths, getattr(block, key, None), f"{stage}.{key}"))


def study_name(params: Params, stage: str) -> str:
    """Name of the study that params.yaml describes for a stage."""
    return f"{stage}-{params.tune.study}"


def make_plan(params: Params, stage: str) -> Plan:
    """Make the plan of a study; check everything that can be checked before a trial runs.

    Raises:
        ParamsError: naming the entry of ``tune`` that does not fit the stage.
        FileNotFoundError: if an input of the stage is missing.
    """
    tune = params.tune
    objectives, space = tune.of_stage(tune.objectives, stage), tune.of_stage(tune.space, stage)
    for name, entries in (("objectives", objectives), ("space", space)):
        if not entries:
            raise ParamsError(f"tune.{name}: nothing for {stage}; expected names that begin with {stage}.")
    if len(objectives) > 1 and tune.pruner is not None:
        raise ParamsError(
            f"tune.pruner: got {tune.pruner.kind}, expected null with {len(objectives)} objectives of {stage}: "
            "Optuna prunes by one measure only"
        )
    base = budgeted(params, stage)
    return Plan(
        stage=stage,
        name=study_name(params, stage),
        objectives={path.removeprefix(f"{stage}."): direction for path, direction in objectives.items()},
        space=space,
        base=base,
        first=first_trial(space, flatten(base)),
        fixed={
            **fixed_part(params, stage),
            **{f"{MD5}{path}": md5 for path, md5 in inputs_of(stage, params).items()},
        },
    )


class _DrawsByNumber:
    """Sampler that seeds trial k by the study's seed and k, so neither workers nor a resumed study repeat a draw."""

    study_seed: int

    def _reseed(self, number: int) -> None:
        for purpose, sampler in enumerate((self, getattr(self, "_random_sampler", None))):
            if sampler is not None:
                sampler._rng.rng.seed(zlib.crc32(f"{self.study_seed}:{number}:{purpose}".encode()))


class _TPE(_DrawsByNumber, optuna.samplers.TPESampler):
    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._reseed(trial.number)
        super().before_trial(study, trial)


class _Random(_DrawsByNumber, optuna.samplers.RandomSampler):
    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._reseed(trial.number)
        super().before_trial(study, trial)


def make_sampler(settings: Sampler, space: Mapping[str, SearchRange]) -> optuna.samplers.BaseSampler:
    """Make the sampler of params.yaml; multivariate TPE models parameters that occur together as one group."""
    if settings.kind == "random":
        sampler = _Random()
    else:
        conditional = any(bounds.when or bounds.disabled is not None for bounds in space.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = _TPE(
                multivariate=settings.multivariate,
                group=settings.multivariate and conditional,
                n_startup_trials=settings.startup_trials,
                constant_liar=True,
            )
    sampler.study_seed = settings.seed
    return sampler


def make_pruner(params: Params, epochs: int) -> optuna.pruners.BasePruner:
    """Make the pruner of params.yaml; its steps are epochs."""
    settings = params.tune.pruner
    if settings is None:
        return optuna.pruners.NopPruner()
    if settings.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=settings.min_epochs,
            max_resource=max(epochs, settings.min_epochs),
            reduction_factor=settings.reduction_factor,
        )
    # Steps count from 1, and Optuna prunes from n_warmup_steps on, that one included.
    return optuna.pruners.MedianPruner(
        n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs + 1
    )


def open_study(params: Params, plan: Plan) -> optuna.Study:
    """Create the study or join it; its first trial has today's parameters.

    Raises:
        StudyError: if it was begun with other objectives, parameters or inputs.
    """
    options = {
        "study_name": plan.name,
        "storage": open_storage(params.tune.storage),
        "sampler": make_sampler(params.tune.sampler, plan.space),
        "pruner": make_pruner(params, plan.epochs),
    }
    try:
        study = optuna.create_study(directions=list(plan.objectives.values()), **options)
        begin = True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(**options)
        begin = not _is_ready(study)
    if begin:
        study.set_user_attr(TODAY, plan.first)
        study.enqueue_trial(plan.first, skip_if_exists=True)
        study.set_user_attr("stage", plan.stage)
        study.set_user_attr("objectives", plan.objectives)
        if FIXED not in study.user_attrs:
            study.set_user_attr(FIXED, plan.fixed)
    check_same(study, plan)
    return study


def _is_ready(study: optuna.Study) -> bool:
    """Return True once the study's MLflow run is open, which never happens if its creator was killed before."""
    deadline = time.monotonic() + READY_SECONDS
    while RUN_ID not in study.user_attrs:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def check_same(study: optuna.Study, plan: Plan) -> None:
    """Refuse to go on with a study under other conditions or with other kinds of values; ranges may change.

    Raises:
        StudyError: naming what differs.
        ParamsError: if a searched parameter changed its kind.
    """
    fixed: Mapping[str, Any] = study.user_attrs[FIXED]
    # Studies of an earlier version lack the md5 of the weights that a stage starts from.
    asked = [key for key in plan.fixed if key in fixed or not key.startswith(MD5)]
    keys = [key for key in {**fixed, **dict.fromkeys(asked)} if fixed.get(key) != plan.fixed.get(key)]
    if keys:
        shown_keys = ", ".join(
            f"{key} {fixed.get(key)} before, {plan.fixed.get(key)} now" for key in keys[:DIFFERENCES_SHOWN]
        )
        more = f" and {len(keys) - DIFFERENCES_SHOWN} more" if len(keys) > DIFFERENCES_SHOWN else ""
        raise StudyError(
            f"tune.study: {plan.name} was begun under other conditions, so its trials would not compare: "
            f"{shown_keys}{more}; expected the same ones, or another tune.study"
        )
    check_kinds(plan.space, study)


def load_study(params: Params, name: str) -> optuna.Study:
    """Load an existing study, read only.

    Raises:
        StudyError: if there is none of this name.
    """
    storage = open_storage(params.tune.storage)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        known = ", ".join(sorted(summary.study_name for summary in optuna.get_all_study_summaries(storage))) or "none"
        raise StudyError(f"tune: {name}: no such study in {shown(params.tune.storage)}; there are: {known}") from None


def figures_of(report: dict) -> dict:
    """Metrics of a report after training; that of refine also holds those before it."""
    return report.get("after", report)


def measured(report: dict, plan: Plan) -> list[float]:
    """Values of the objectives, in order, from a stage's report.

    Raises:
        ParamsError: if the report lacks one.
    """
    figures = figures_of(report)
    for name in plan.objectives:
        if name not in figures:
            raise ParamsError(
                f"tune.objectives: {plan.stage}.{name} is not in the report; it has "
                f"{', '.join(key for key, value in figures.items() if isinstance(value, int | float))}"
            )
    return [figures[name] for name in plan.objectives]


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Completed trials, best first; with several objectives the Pareto front, sorted by the first objective."""
    if len(study.directions) > 1:
        trials = study.best_trials
    else:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    largest = study.directions[0] == StudyDirection.MAXIMIZE
    return sorted(trials, key=lambda trial: (-trial.values[0] if largest else trial.values[0], trial.number))


def is_today(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Return True for the trial of params.yaml's values when the study began: number 0, or its retry."""
    return trial.params == (study.user_attrs.get(TODAY) or study.trials[0].params)


def todays_values(study: optuna.Study, space: Mapping[str, SearchRange]) -> dict[str, Any]:
    """Searched parameters with their values in params.yaml when the study began, by dotted path."""
    params = study.user_attrs.get(TODAY) or study.trials[0].params
    disabled = {path.removesuffix(SWITCH) for path, on in params.items() if path.endswith(SWITCH) and not on}
    return {
        **{path: value for path, value in params.items() if not path.endswith(SWITCH)},
        **{path: space[path].disabled for path in disabled},
    }


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """Values of everything that a trial searched, by dotted path."""
    return trial.user_attrs[VALUES]


def run_id_of(study: optuna.Study) -> str | None:
    """Id of the study's MLflow run."""
    return study.user_attrs.get(RUN_ID)
