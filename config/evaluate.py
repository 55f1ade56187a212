"""Schema of the block ``evaluate`` of params.yaml, and the names of the rows that every report has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from config.base import MOST_LAYERS, Block, Count, InputPath, Natural, Offload, Precision, ProjectPath, Weight
from config.prepare import SOURCES

ROW_NAME = r"^[a-z][a-z0-9_-]{0,63}$"


RowName = Annotated[str, Field(pattern=ROW_NAME)]


# Rows of the stage itself: the model; the composite baseline, which is the image as the only layer; the true layers
# through the VAE, an upper bound. Then the model given captions, and its layers before alpha and colour refinement.
MODEL, NOTHING, CEILING = "model", "composite_only", "true_layers_through_vae"


TOLD, AS_PREDICTED = "model_told_captions", "model_as_predicted"


class Baseline(Block):
    """A baseline model with settings of its own; those not given here are the block's."""

    model: InputPath
    steps: Count | None = None
    tries: Count | None = None
    guidance: Weight | None = None
    precision: Precision | None = None
    offload: Offload | None = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


def _baseline(given: Any, union: ValidatorFunctionWrapHandler) -> str | Baseline:
    del union  # on its own, it reports the faults of both its members
    if isinstance(given, dict):
        return Baseline.model_validate(given)
    if isinstance(given, str | Baseline):
        return given
    raise ValueError("a folder or repository, or a mapping of model and its own settings")


class EvaluationData(Block):
    """Further designs, scored at their own size or at ``long_side`` and reported apart; all of them by default."""

    source: Literal[SOURCES[1:]]
    location: InputPath
    layout_root: InputPath | None = None
    long_side: Count | None = None
    max_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)] | None = None
    count: Count | None = None


class Evaluate(Block):
    """Stage evaluate."""

    model: InputPath
    split: Literal["train", "val", "test"]
    datasets: dict[RowName, EvaluationData]
    steps: Count
    tries: Count
    seed: Natural
    captions: Literal["none", "told", "both"]
    guidance: Weight
    precision: Precision
    offload: Offload
    restore: bool
    batch_size: Count
    max_merges: Natural
    baselines: dict[RowName, Annotated[InputPath | Baseline, WrapValidator(_baseline)]]
    others: dict[RowName, InputPath]
    predictions: ProjectPath | None
    panels: Natural
    jobs: Annotated[int, Field(ge=-1)]

    @field_validator("baselines", "others")
    @classmethod
    def _names(cls, rows: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        taken = {MODEL, NOTHING, CEILING, TOLD, AS_PREDICTED, *info.data.get("baselines", ())}
        if taken := taken & rows.keys():
            raise ValueError(f"names that no other row has, not {sorted(taken)}")
        return rows

    @model_validator(mode="after")
    def _guided(self) -> Evaluate:
        own = {row.guidance for row in self.baselines.values() if isinstance(row, Baseline)} - {None, 1.0}
        if self.captions == "none" and (own or self.guidance != 1.0):
            raise ValueError("captions told or both where guidance, which needs captions, is not 1.0; got none")
        if self.captions == "both" and own:
            raise ValueError("captions told where a baseline has guidance of its own; got both, which gives it none")
        return self

    def of_baseline(self, name: str) -> Evaluate:
        """The block as it applies to a baseline: its path as ``model``, and its own settings."""
        row = self.baselines[name]
        return self.model_copy(update=row.model_dump() if isinstance(row, Baseline) else {"model": row})
