"""Schema of the blocks of params.yaml that train the decomposition network: train_decompose and refine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.base import Block, Count, InputPath, Natural, Optimisation, Positive, Share, Weight

# Number formats of latents and of token states on disk.
CacheDtype = Literal["float32", "bfloat16"]


class Timestep(Block):
    """Density of the noise level sigma in training."""

    density: Literal["logit_normal", "uniform"]
    mean: float
    std: Positive
    stratified: bool
    shift: Positive


class TextCondition(Block):
    """Text encoder of the captions."""

    encoder: Literal["none", "minilm", "qwen"]
    source: InputPath | None
    max_tokens: Count
    dropout: Share

    @model_validator(mode="after")
    def _has_source(self) -> TextCondition:
        if (self.encoder == "qwen") != (self.source is not None):
            raise ValueError(f"a source (folder or owner/name) with encoder qwen alone, got {self.source!r}")
        return self


class Curriculum(Block):
    """Samples of the first two phases; the rest of the run is image-to-layers."""

    text_to_rgba: Natural
    text_to_layers: Natural


class Surplus(Block):
    """Empty layers on top of some stacks, so that a network run with too many layers leaves the rest empty."""

    share: Share
    max_layers: Count


class SampledValidation(Block):
    """Validation images that are decomposed after each epoch and scored by LayerD's protocol."""

    samples: Natural
    steps: Count


class AlignmentLoss(Block):
    """Parameters of the order-aware alignment loss: alignment and merging."""

    gamma: Positive
    max_merges: Natural
    merge_penalty: Weight
    merge_temperature: Positive


class DecomposeLoss(Block):
    """Slot weights of the flow-matching loss, and weights of the terms on decoded images."""

    composite: Weight
    layers: Positive
    alpha_colour: Weight
    alignment: Weight


class Lora(Block):
    """Low-rank adapters instead of full fine-tuning."""

    rank: Natural
    alpha: Positive


class TrainDecompose(Block):
    """Stage train_decompose."""

    seed: Natural
    num_layers: Count
    num_attention_heads: Count
    attention_head_dim: Count
    axes_dims_rope: Annotated[list[Count], Field(min_length=3, max_length=3)]
    patch_size: Count
    joint_attention_dim: Count
    init: Literal["condition", "random"]
    checkpoint: InputPath | None
    lora: Lora
    text: TextCondition
    curriculum: Curriculum
    surplus: Surplus
    cache_dtype: CacheDtype
    timestep: Timestep
    loss: DecomposeLoss
    alignment: AlignmentLoss
    decode_scale: Annotated[float, Field(gt=0, le=1)]
    trust: Weight
    gradient_checkpointing: bool
    compile: bool
    sampling_shift: Positive | None
    validation: SampledValidation
    select: Literal["velocity_layers", "cost"]
    optimisation: Optimisation

    @model_validator(mode="after")
    def _rotary(self) -> TrainDecompose:
        if sum(self.axes_dims_rope) != self.attention_head_dim or any(d % 2 for d in self.axes_dims_rope):
            raise ValueError(
                f"axes_dims_rope three even numbers that add up to attention_head_dim ({self.attention_head_dim}), "
                f"got {self.axes_dims_rope}"
            )
        return self

    @model_validator(mode="after")
    def _selected(self) -> TrainDecompose:
        if self.select == "cost" and not self.validation.samples:
            raise ValueError("validation.samples above 0 where select is cost, got 0")
        return self

    @model_validator(mode="after")
    def _phases(self) -> TrainDecompose:
        before = self.curriculum.text_to_rgba + self.curriculum.text_to_layers
        if before and self.text.encoder == "none":
            raise ValueError("text.encoder minilm or qwen where curriculum has phases that start from text, got none")
        each = self.optimisation.epoch_samples
        if each is not None and before >= self.optimisation.epochs * each:
            raise ValueError(
                f"curriculum to leave samples to image-to-layers; its first phases take {before} of "
                f"{self.optimisation.epochs * each}"
            )
        return self


class RefineLoss(Block):
    """Weights of the refinement's loss terms."""

    velocity: Weight
    recomposition: Weight
    layer_pixels: Weight
    alpha_colour: Weight
    alignment: Weight
    lpips: Weight
    edit_velocity: Weight
    edit_kept: Weight


class Refine(Block):
    """Stage refine."""

    seed: Natural
    lora: Lora
    gradient_checkpointing: bool
    cache_dtype: CacheDtype
    timestep: Timestep
    loss: RefineLoss
    alignment: AlignmentLoss
    decode_scale: Annotated[float, Field(gt=0, le=1)]
    trust: Weight
    optimisation: Optimisation
