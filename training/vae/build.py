"""Network that train_vae starts from: from nothing, or from an RGB or RGBA VAE."""

from __future__ import annotations

import torch

from config.errors import ParamsError
from config.params import TrainVAE
from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import RgbaComponentDataset, endless_batches
from models.vae.autoencoder import RGBAVAE, widen_to_rgba
from models.vae.config import VAEConfig
from models.vae.linear_code import lack_of_room
from training.engine.session import Session
from training.vae.linear_start import start_as_linear_code


def build_vae(settings: TrainVAE) -> RGBAVAE:
    """The start of training: random weights, or an RGB or RGBA checkpoint widened to four channels.

    Where only the decoder is to be trained, the encoder is frozen, and with it the latent space.

    Raises:
        ParamsError: if the network is to start as a linear code and has no room for it.
    """
    if settings.rgb_checkpoint is not None:
        vae = widen_to_rgba(RGBAVAE.from_pretrained(settings.rgb_checkpoint), settings.alpha_bias_init)
        if settings.trained == "decoder":
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        return vae
    if settings.init == "linear_code" and (
        reason := lack_of_room(settings.base_dim, settings.z_dim, settings.dim_mult, settings.channels)
    ):
        raise ParamsError(f"train_vae.init: linear_code needs a wider network, or init random: {reason}")
    torch.manual_seed(settings.seed)
    config = VAEConfig(
        base_dim=settings.base_dim,
        z_dim=settings.z_dim,
        dim_mult=tuple(settings.dim_mult),
        num_res_blocks=settings.num_res_blocks,
        temperal_downsample=(False,) * (len(settings.dim_mult) - 1),
        input_channels=settings.channels,
        latents_mean=(0.0,) * settings.z_dim,
        latents_std=(1.0,) * settings.z_dim,
    )
    return RGBAVAE(config).init_from_scratch()


def start(vae: RGBAVAE, dataset: RgbaComponentDataset, settings: TrainVAE, session: Session) -> None:
    """Make a network from nothing the linear code of its data; leaves a checkpoint, or a run that goes on, alone."""
    if settings.rgb_checkpoint is not None or settings.init == "random" or session.store.read_state() is not None:
        return
    optimisation = settings.optimisation
    order = BucketBatches(dataset.keys, optimisation.batch_size, seed=settings.seed)
    start_as_linear_code(
        vae,
        settings,
        lambda: endless_batches(dataset, order, 0, optimisation.num_workers),
        session.accelerator.device,
        session.accelerator.is_main_process,
    )
