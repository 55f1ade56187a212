"""Schema of params.yaml: every key, its type and its bounds, checked before anything is allocated.

The schema holds no defaults: params.yaml is the only place for a knob, and a preset that lacks one is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from config.base import (
    MOST_LAYERS,
    Block,
    Count,
    InputPath,
    Natural,
    Offload,
    Positive,
    Precision,
    ProjectPath,
    Weight,
)
from config.decompose import Refine, TrainDecompose
from config.errors import UserError
from config.prepare import SIDE_MULTIPLE, SOURCES, PrepareBuckets
from config.tune import Tune
from config.vae import TrainVAE


class ParamsError(UserError, ValueError):
    """A parameter is missing, unknown or out of bounds; the message names key, value and expectation."""


ROW_NAME = r"^[a-z][a-z0-9_-]{0,63}$"
RowName = Annotated[str, Field(pattern=ROW_NAME)]


class Tracking(Block):
    """Where runs are written."""

    experiment: Annotated[str, Field(min_length=1)]
    system_metrics: bool


# Rows that the stage itself writes: the model's, the picture as the only layer, the true layers through the VAE, the
# model told the captions, and its layers before they are restored.
MODEL, NOTHING, CEILING = "model", "composite_only", "true_layers_through_vae"
TOLD, AS_PREDICTED = "model_told_captions", "model_as_predicted"


class Baseline(Block):
    """Another model of evaluate that is used in its own way; what is not said here is as the block has it."""

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
    del union  # left to itself, it reports the faults of both its members
    if isinstance(given, dict):
        return Baseline.model_validate(given)
    if isinstance(given, str | Baseline):
        return given
    raise ValueError("a folder or repository, or a mapping of model and what is its own")


class EvaluationData(Block):
    """Designs that are scored at their own size, or at ``long_side``, and reported apart; all by default."""

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
            raise ValueError("captions told or both where guidance, which is by the caption, is not 1.0; got none")
        if self.captions == "both" and own:
            raise ValueError("captions told where a baseline has guidance of its own; got both, which tells it none")
        return self

    def of_baseline(self, name: str) -> Evaluate:
        """The block as it holds for another model: its place as ``model``, and what is its own."""
        row = self.baselines[name]
        return self.model_copy(update=row.model_dump() if isinstance(row, Baseline) else {"model": row})


class Params(Block):
    """The whole of params.yaml."""

    launcher: Annotated[str, Field(min_length=1)]
    collective_timeout: Positive
    tracking: Tracking
    prepare_buckets: PrepareBuckets
    train_vae: TrainVAE
    train_decompose: TrainDecompose
    refine: Refine
    evaluate: Evaluate
    tune: Tune

    @model_validator(mode="after")
    def _tokens(self) -> Params:
        vae, patch = self.train_vae, self.train_decompose.patch_size
        pixels = 2 ** (len(vae.dim_mult) - 1) * patch
        if vae.rgb_checkpoint is None and SIDE_MULTIPLE % pixels:
            raise ValueError(
                f"sides in multiples of {SIDE_MULTIPLE} to split into tokens; train_vae.dim_mult {vae.dim_mult} and "
                f"train_decompose.patch_size {patch} make tokens of {pixels} pixels"
            )
        return self


def _sentence(source: str, error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "top level"
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{source}: {key}: unknown key (value {given!r}); expected one of the keys of params.yaml"
    if kind == "missing":
        return f"{source}: {key}: missing; expected a value, there are no hidden defaults"
    expected = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if isinstance(given, dict):
        return f"{source}: {key}: expected {expected}"
    hint = ""
    if isinstance(given, str) and "float" in kind:
        hint = " (write floats with a point, as in 1.0e-4)"
    return f"{source}: {key}: got {given!r}, expected {expected}{hint}"


def parse_params(raw: Any, source: str = "params.yaml") -> Params:
    """Check a parsed params.yaml.

    Args:
        raw: what YAML gave.
        source: the file's name, for messages.

    Raises:
        ParamsError: one line per fault, each naming key, value and expectation.
    """
    if not isinstance(raw, dict):
        raise ParamsError(f"{source}: expected a mapping of stage blocks, got {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError("\n".join(_sentence(source, item) for item in error.errors())) from None


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: if the file is missing, is no YAML, or breaks the schema.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; expected the project's params.yaml or a preset") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); expected a parameter file") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse_params(raw, path.name)


def flatten(block: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested blocks to dotted keys, the names MLflow, Optuna and ``dvc exp run -S`` use."""
    if isinstance(block, BaseModel):
        block = block.model_dump()
    flat: dict[str, Any] = {}
    for key, value in block.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
