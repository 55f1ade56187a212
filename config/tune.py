"""Schema of the block ``tune`` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from config.base import Block, Count, Natural, Positive, ProjectPath

TUNED = ("train_vae", "train_decompose", "refine")
Scalar = bool | int | float | str | None
Direction = Literal["minimize", "maximize"]


class SearchRange(Block):
    """One searched parameter: a range or a list of choices, and the condition under which it is searched."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: Positive | None = None
    integer: bool = False
    choices: Annotated[list[Scalar], Field(min_length=1)] | None = None
    disabled: Scalar = None
    when: dict[str, list[Scalar] | Literal["above 0"]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> SearchRange:
        ranged = self.low is not None and self.high is not None and self.low < self.high
        if ranged == (self.choices is not None):
            raise ValueError("either low < high (and log, step, integer) or choices")
        if self.choices is not None and (self.log or self.step or self.integer):
            raise ValueError("choices without log, step and integer")
        if self.log and not (self.low and self.low > 0):
            raise ValueError("low above 0 where log is true")
        if self.log and self.step:
            raise ValueError("either log or step")
        numbers = [n for n in (self.low, self.high, self.step) if n is not None]
        if self.integer and not all(n.is_integer() for n in numbers):
            raise ValueError("whole low, high and step where integer is true")
        return self


class Sampler(Block):
    """Optuna's sampler, which suggests values."""

    kind: Literal["tpe", "random"]
    multivariate: bool
    startup_trials: Natural
    seed: Natural


class MedianPruner(Block):
    """Median pruner: ends a trial that is worse than the median of earlier ones at the same epoch."""

    kind: Literal["median"]
    startup_trials: Natural
    warmup_epochs: Natural


class HyperbandPruner(Block):
    """Hyperband pruner: brackets of successive halving over epochs."""

    kind: Literal["hyperband"]
    min_epochs: Count
    reduction_factor: Annotated[int, Field(ge=2)]


class Tune(Block):
    """Optuna studies over the parameters of a training stage."""

    stage: Literal["train_vae", "train_decompose", "refine"]
    # The study's name is part of names of folders, DVC experiments and MLflow tags.
    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    storage: Annotated[ProjectPath, Field(min_length=1)]
    trials: Count
    confirm_seeds: Natural
    sampler: Sampler
    pruner: Annotated[MedianPruner | HyperbandPruner, Field(discriminator="kind")] | None
    objectives: dict[str, Direction]
    budget: dict[str, Any]
    space: Annotated[dict[str, SearchRange], Field(min_length=1)]

    @field_validator("objectives", "budget", "space")
    @classmethod
    def _of_a_stage(cls, entries: dict[str, Any]) -> dict[str, Any]:
        for path in entries:
            if path.split(".")[0] not in TUNED or "." not in path:
                raise ValueError(f"names that begin with one of {', '.join(TUNED)} and a point, not {path!r}")
        return entries

    @field_validator("space")
    @classmethod
    def _parents_first(cls, space: dict[str, SearchRange]) -> dict[str, SearchRange]:
        seen: set[str] = set()
        for path, bounds in space.items():
            if late := (bounds.when.keys() & space.keys()) - seen:
                raise ValueError(f"{', '.join(sorted(late))} listed before {path}, which depends on it")
            seen.add(path)
        return space

    def of_stage(self, entries: dict[str, Any], stage: str) -> dict[str, Any]:
        """Select the dotted entries that concern a stage, under their full names."""
        return {path: value for path, value in entries.items() if path.startswith(f"{stage}.")}
