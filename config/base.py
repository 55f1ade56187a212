"""What the schema of params.yaml is made of: bounds, the strictness of every block, and the block stages share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_LAYERS = 20  # the released model was trained with no more, so no network is asked for more
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
# What the relative paths of each kind start from is said in config/paths.py; a test holds that every text of the schema
# is of one of these kinds or no path at all.
InputPath = Annotated[str, "find_input"]
PipelinePath = Annotated[str, "in_workspace"]
ProjectPath = Annotated[str, "in_project"]
# These change what is printed and when, not what is computed.
COSMETIC = {"log_every", "checkpoint_every", "num_workers"}
MixedPrecision = Literal["auto", "no", "bf16"]
# Of networks that are only used: what their weights are kept in, and where they wait (inference/offloading.py).
Precision = Literal["auto", "fp32", "bf16"]
Offload = Literal["none", "models", "blocks"]


class Block(BaseModel):
    """Base of all blocks: unknown keys are errors, types are not coerced, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Optimisation(Block):
    """Everything the training loop needs; shared by the three training stages."""

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
