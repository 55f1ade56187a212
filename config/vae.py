"""Schema of the block ``train_vae`` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.base import Block, Count, InputPath, Natural, Optimisation, Positive, Share, Weight


class VAELoss(Block):
    """Weights of the RGBA-VAE's loss terms."""

    abmse: Weight
    l1: Weight
    lpips: Weight
    kl: Weight
    reference_kl: Weight
    gan: Weight


class Discriminator(Block):
    """The PatchGAN discriminator, used if ``loss.gan`` is above 0."""

    width: Annotated[int, Field(ge=8, multiple_of=8)]
    layers: Count
    start_samples: Natural


class LinearStart(Block):
    """The fit of the linear code, used if ``init`` is ``linear_code``."""

    axes_samples: Count
    fit_samples: Natural
    learning_rate: Positive


class TrainVAE(Block):
    """Stage train_vae."""

    seed: Natural
    channels: Literal[3, 4]
    base_dim: Count
    z_dim: Count
    dim_mult: Annotated[list[Count], Field(min_length=2)]
    num_res_blocks: Count
    init: Literal["linear_code", "random"]
    linear_start: LinearStart
    rgb_checkpoint: InputPath | None
    alpha_bias_init: float
    trained: Literal["all", "decoder"]
    opaque_share: Share
    loss: VAELoss
    lpips_trunk: Literal["alex", "vgg", "squeeze"]
    discriminator: Discriminator
    gradient_checkpointing: bool
    select: Literal["psnr_white", "psnr", "ssim", "lpips"]
    optimisation: Optimisation

    @model_validator(mode="after")
    def _needs_a_checkpoint(self) -> TrainVAE:
        if self.loss.reference_kl > 0 and self.rgb_checkpoint is None:
            raise ValueError(
                f"loss.reference_kl 0 where rgb_checkpoint is null: there is no trained encoder to stay near to, "
                f"got {self.loss.reference_kl}"
            )
        if self.trained == "decoder" and self.rgb_checkpoint is None:
            raise ValueError(
                "trained all where rgb_checkpoint is null: an encoder of random weights has to be trained, got decoder"
            )
        return self

    @model_validator(mode="after")
    def _is_opaque(self) -> TrainVAE:
        if self.channels == 3 and (self.opaque_share != 1.0 or self.rgb_checkpoint is not None):
            raise ValueError(
                f"with channels 3 opaque_share 1.0 and rgb_checkpoint null, a new RGB VAE; got "
                f"{self.opaque_share} and {self.rgb_checkpoint}"
            )
        return self
