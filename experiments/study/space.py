"""Parameter space of a study: from the entries of ``tune.space`` to the values of one trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)

from config.base import COSMETIC
from config.errors import ParamsError
from config.params import Params, flatten, with_values
from config.tune import SearchRange

SWITCH = ".enabled"


def budgeted(params: Params, stage: str) -> dict[str, Any]:
    """All parameters, nested, with the overrides of ``tune.budget`` from which the trials of a stage start.

    Raises:
        ParamsError: if the budget names what does not exist.
    """
    return with_values(params.model_dump(), params.tune.of_stage(params.tune.budget, stage))


def is_searched(bounds: SearchRange, values: Mapping[str, Any]) -> bool:
    """Return True if the other parameters, given flat, meet the conditions of an entry."""
    for path, wanted in bounds.when.items():
        value = values[path]
        if wanted == "above 0":
            if not (isinstance(value, int | float) and value > 0):
                return False
        elif value not in wanted:
            return False
    return True


def searchable(space: Mapping[str, SearchRange], base: Mapping[str, Any]) -> set[str]:
    """Entries that a trial may search: today's parameters or values of other entries can meet their conditions."""
    found: set[str] = set()
    for path, bounds in space.items():
        open_conditions = {name: wanted for name, wanted in bounds.when.items() if name not in found}
        if is_searched(bounds.model_copy(update={"when": open_conditions}), base):
            found.add(path)
    return found


def _draw(trial: optuna.Trial, path: str, bounds: SearchRange) -> Any:
    asked = _distribution(bounds)
    if isinstance(asked, CategoricalDistribution):
        return trial.suggest_categorical(path, asked.choices)
    draw = trial.suggest_int if isinstance(asked, IntDistribution) else trial.suggest_float
    return draw(path, asked.low, asked.high, step=asked.step, log=asked.log)


def suggest(trial: optuna.Trial, space: Mapping[str, SearchRange], base: Mapping[str, Any]) -> dict[str, Any]:
    """Suggest one value for every parameter that this trial searches.

    A conditional parameter is drawn only if earlier draws and ``base`` meet its conditions, so the sampler never
    learns from values that had no effect.

    Args:
        trial: Optuna's trial, which asks the sampler.
        space: dotted path to its entry; parameters that others depend on come first.
        base: all parameters, flat.

    Returns:
        Dotted path to value, for those that were drawn or disabled.
    """
    values: dict[str, Any] = {}
    for path, bounds in space.items():
        if not is_searched(bounds, {**base, **values}):
            continue
        if bounds.disabled is not None and not trial.suggest_categorical(path + SWITCH, [True, False]):
            values[path] = bounds.disabled
        else:
            values[path] = _draw(trial, path, bounds)
    return values


def _contains(bounds: SearchRange, value: Any) -> bool:
    if bounds.choices is not None:
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in bounds.choices)
    if isinstance(value, bool) or not isinstance(value, int | float) or not bounds.low <= value <= bounds.high:
        return False
    if step := bounds.step or (1 if bounds.integer and not bounds.log else None):
        steps = (value - bounds.low) / step
        return math.isclose(steps, round(steps), abs_tol=1e-8)
    return not bounds.integer or float(value).is_integer()


def first_trial(space: Mapping[str, SearchRange], base: Mapping[str, Any]) -> dict[str, Any]:
    """Today's parameters as values of the sampler, switches included, to be enqueued as the first trial.

    Raises:
        ParamsError: if the space excludes them, or names or depends on a parameter that does not exist.
    """
    fixed: dict[str, Any] = {}
    for path, bounds in space.items():
        for name in (path, *bounds.when):
            if name not in base:
                raise ParamsError(f"tune.space: {name}: no such parameter in params.yaml")
        if not is_searched(bounds, base):
            continue
        value = base[path]
        if bounds.disabled is not None:
            fixed[path + SWITCH] = value != bounds.disabled
            if value == bounds.disabled:
                continue
        if not _contains(bounds, value):
            where = f"among {bounds.choices}" if bounds.choices is not None else f"in {bounds.low} to {bounds.high}"
            stepped = " and on its steps" if bounds.step or bounds.integer else ""
            raise ParamsError(
                f"tune.space: {path}: today's value {value!r} is the first trial; expected it {where}{stepped}"
            )
        fixed[path] = value
    return fixed


def fixed_part(params: Params, stage: str) -> dict[str, Any]:
    """Parameters that all trials of a study share, flat; trials that differ in them cannot be compared.

    They are the stage's parameters under the budget without the searched ones, and the objectives.
    """
    base = flatten(budgeted(params, stage))
    space = searchable(params.tune.of_stage(params.tune.space, stage), base)
    block = {path: value for path, value in base.items() if path.startswith(f"{stage}.")}
    objectives = params.tune.of_stage(params.tune.objectives, stage)
    return {
        **{path: value for path, value in block.items() if path not in space and path.split(".")[-1] not in COSMETIC},
        **{f"tune.objectives.{path}": direction for path, direction in objectives.items()},
    }


def check_kinds(space: Mapping[str, SearchRange], study: optuna.Study) -> None:
    """Refuse entries of another kind than when a study was begun; bounds may change.

    Raises:
        ParamsError: naming the entry, its former kind and its kind now.
    """
    for trial in study.get_trials(deepcopy=False):
        for path in trial.distributions.keys() & space.keys():
            before, now = trial.distributions[path], _distribution(space[path])
            try:
                check_distribution_compatibility(before, now)
            except ValueError:
                raise ParamsError(
                    f"tune.space: {path}: {_kind(before)} when {study.study_name} was begun, {_kind(now)} now, which "
                    "one study cannot mix; expected it as it was, or another tune.study"
                ) from None


def _distribution(bounds: SearchRange) -> BaseDistribution:
    """Optuna's distribution of an entry."""
    if bounds.choices is not None:
        return CategoricalDistribution(bounds.choices)
    if bounds.integer:
        return IntDistribution(int(bounds.low), int(bounds.high), log=bounds.log, step=int(bounds.step or 1))
    return FloatDistribution(bounds.low, bounds.high, log=bounds.log, step=bounds.step)


def _kind(found: BaseDistribution) -> str:
    """Properties of an entry that may not change within a study."""
    if isinstance(found, CategoricalDistribution):
        return f"choices {list(found.choices)}"
    return f"{'integers' if isinstance(found, IntDistribution) else 'numbers'} with log {str(found.log).lower()}"
