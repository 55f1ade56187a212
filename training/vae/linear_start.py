"""Initialisation of the RGBA-VAE as a linear code of patches, fitted for some seconds before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from config.vae import TrainVAE
from models.vae.autoencoder import RGBAVAE
from models.vae.linear_code import init_as_linear_code, patch_axes
from models.vae.opaque import as_rgba
from training.engine.loop import step_seed
from training.engine.schedule import learning_rate
from training.engine.state import BETAS
from training.vae.objective import VAEObjective, replay_opaque

WARMUP_SHARE = 0.025


def start_as_linear_code(
    vae: RGBAVAE,
    settings: TrainVAE,
    batches: Callable[[], Iterator[Mapping[str, Any]]],
    device: torch.device,
    progress: bool,
) -> None:
    """Initialise ``vae`` as a linear code of its training images, then fit its linear path alone.

    The fit minimises ABMSE, L1 and KL; the other loss terms would cost more than the linear path. Every process does
    the same on the same images, so all start from equal weights.

    Args:
        vae: the network, see :func:`models.vae.linear_code.init_as_linear_code`.
        settings: the stage's parameters; ``linear_start`` sets the number of items for the axes and for the fit.
        batches: opens a stream from its start, with ``component`` and ``composite`` ``(B, 4, H, W)``.
        device: where the fit runs.
        progress: whether to show a bar.
    """
    start, batch_size = settings.linear_start, settings.optimisation.batch_size
    channels = vae.config.input_channels
    images = (
        torch.cat([replay_opaque(batch["component"], settings.opaque_share), batch["composite"]])[:, :channels]
        for batch in islice(batches(), -(-start.axes_samples // batch_size))
    )
    init_as_linear_code(vae, patch_axes(images, len(vae.config.dim_mult) - 1, vae.config.z_dim, channels))
    cheap = settings.loss.model_copy(update={"lpips": 0.0, "reference_kl": 0.0, "gan": 0.0})
    objective = VAEObjective(as_rgba(vae), settings.model_copy(update={"loss": cheap})).to(device)
    vae.enable_residual_branches(False)
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=start.learning_rate, betas=BETAS, weight_decay=0.0)
    steps = -(-start.fit_samples // batch_size)
    stream = batches()
    for step in tqdm(range(steps), desc="linear start", unit="step", disable=not progress, mininterval=1.0):
        optimizer.param_groups[0]["lr"] = learning_rate(
            step, base=start.learning_rate, total=steps, warmup=round(WARMUP_SHARE * steps), kind="cosine"
        )
        torch.manual_seed(step_seed(settings.seed, step, 0, 0))
        objective({**next(stream), "seen": 0})["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    vae.enable_residual_branches()
