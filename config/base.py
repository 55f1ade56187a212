"""Building blocks of the schema of params.yaml: bounds, the strict base of every block, the optimiser's block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_LAYERS = 20  # the released model was trained with no more, so no network is run with more
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
# config/paths.py says where the relative paths of each kind start. A test checks that every string of the schema is of
# one of these kinds or no path.
InputPath = Annotated[str, "find_input"]
PipelinePath = Annotated[str, "in_workspace"]
ProjectPath = Annotated[str, "in_project"]
# Parameters that change what is printed and when, not what is computed.
COSMETIC = {"log_every", "checkpoint_every", "num_workers"}
MixedPrecision = Literal["auto", "no", "bf16"]
# Of networks in inference: the number format of their weights, and where idle ones wait (inference/offloading.py).
Precision = Literal["auto", "fp32", "bf16"]
Offload = Literal["none", "models", "blocks"]


class Block(BaseModel):
    """Base of all blocks: unknown keys are errors, types are not coerced, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Optimisation(Block):
    """Parameters of the training loop, shared by the three training stages."""

    epochs: Count
    epoch_samples: Count | None
    batch_size: Count
    gradient_accumulation: Count
    learning_rate: Positive
    schedule: Literal["cosine", "constant"]
    warmup_samples: Natural
    weight_decay: Weight
    grad_clip: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    mixed_precision: MixedPrecision
    num_workers: Natural
    log_every: Count
    checkpoint_every: Count
