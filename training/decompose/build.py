"""Network and objective of train_decompose, and the captions that they need."""

from __future__ import annotations

import functools
from itertools import chain, islice

import torch
from torch import nn

from config.decompose import TrainDecompose
from config.errors import ParamsError
from config.paths import WEIGHTS
from layers.dataset.batches import BucketBatches
from models.transformer.condition_start import start_at_condition
from models.transformer.lora import add_lora
from models.transformer.vld_mmdit import VLDMMDiT, build_transformer
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import empty_latents
from training.decompose.captions import Captions
from training.decompose.flow_objective import FlowObjective
from training.decompose.latents import LatentStacks
from training.decompose.pixel_terms import PixelTerms

SHAPE = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "axes_dims_rope",
    "patch_size",
    "joint_attention_dim",
)


def build_network(
    settings: TrainDecompose,
    latent_channels: int,
    captions: Captions | None = None,
    compute_dtype: torch.dtype | None = None,
) -> VLDMMDiT:
    """The network to start from: other weights, or the configured size drawn from the stage's seed.

    Args:
        settings: of the stage.
        latent_channels: of the VAE.
        captions: of a network with text.
        compute_dtype: of training, where it is not float32; weights that LoRA freezes are then kept in it.

    Raises:
        ParamsError: if VAE, text encoder and network do not fit each other.
    """
    torch.manual_seed(settings.seed)
    frozen = compute_dtype or torch.float32 if settings.lora.rank else torch.float32
    if settings.checkpoint is not None:
        network = VLDMMDiT.from_pretrained(settings.checkpoint, frozen)
    else:
        transformer = build_transformer(latent_channels=latent_channels, **settings.model_dump(include=set(SHAPE)))
        if settings.init == "condition":
            start_at_condition(transformer)
        network = VLDMMDiT(transformer)
    config = network.transformer.config
    if config.out_channels != latent_channels:
        raise ParamsError(
            f"the transformer of {settings.checkpoint} has {config.out_channels} latent channels; the VAE of "
            f"{WEIGHTS / 'vae'} has {latent_channels}"
        )
    if captions is not None and captions.width != config.joint_attention_dim:
        raise ParamsError(
            f"train_decompose: text.encoder {settings.text.encoder} gives tokens of {captions.width} numbers; expected "
            f"joint_attention_dim {config.joint_attention_dim}"
        )
    if settings.lora.rank:
        network.transformer.to(frozen)
        add_lora(network.transformer, settings.lora.rank, settings.lora.alpha)
    if settings.gradient_checkpointing:
        network.transformer.enable_gradient_checkpointing()
    if settings.compile:
        network.transformer.compile_repeated_blocks()
    network.compute_dtype = compute_dtype
    return network


def build_objective(network: VLDMMDiT, vae: RGBAVAE, settings: TrainDecompose, captions: Captions | None) -> nn.Module:
    """What the network is trained by; images are compared where a term of them has a weight."""
    weights, scale = settings.loss.model_dump(), settings.decode_scale
    pixels = PixelTerms(vae, weights, settings.alignment, decode_scale=scale, trust=settings.trust)
    empty = functools.lru_cache(functools.partial(empty_latents, vae)) if settings.surplus.share else None
    return FlowObjective(network, settings, captions, pixels if pixels.names else None, empty)


def texts_asked_for(
    train: LatentStacks, held_out: LatentStacks, settings: TrainDecompose, world_size: int
) -> list[list[str]]:
    """What has to be encoded: every caption, and of the samples of the first phase what is said of each layer."""
    optimisation = settings.optimisation
    joint = optimisation.batch_size * world_size
    steps = -(-settings.curriculum.text_to_rgba // (joint * optimisation.gradient_accumulation))
    order = BucketBatches(train.keys, joint, seed=settings.seed)
    first = set(chain.from_iterable(islice(order.endless(), steps * optimisation.gradient_accumulation)))
    said = [texts if index in first else texts[:1] for index, texts in enumerate(train.texts)]
    return said + [texts[:1] for texts in held_out.texts]
