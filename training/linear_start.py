"""The RGBA-VAE's start from nothing: a linear code of patches, fitted for some seconds before training begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from models.linear_code import init_as_linear_code, patch_axes
from models.rgba_vae import RGBAVAE
from training.loop import BETAS, step_seed
from training.params_vae import LinearStart
from training.schedule import learning_rate

WARMUP_SHARE = 0.025


def start_as_linear_code(
    vae: RGBAVAE,
    objective: nn.Module,
    batches: Callable[[], Iterator[Mapping[str, Any]]],
    settings: LinearStart,
    batch_size: int,
    seed: int,
    device: torch.device,
    progress: bool,
) -> None:
    """Set ``vae`` to the code of its training pictures, then fit its linear path alone.

    Every process does the same on the same pictures, so all start from equal weights.

    Args:
        vae: the network, see :func:`models.linear_code.init_as_linear_code`.
        objective: loss terms of a batch for ``vae``, as :class:`training.vae_objective.VAEObjective` gives them.
        batches: streams from the start, with ``component`` and ``composite`` ``(B, 4, H, W)``.
        settings: how many items the axes and the fit see, and the rate of the fit.
        batch_size: items a batch.
        seed: of the noise.
        device: where the fit runs.
        progress: whether to show a bar.
    """
    pictures = (
        torch.cat([batch["component"], batch["composite"]])
        for batch in islice(batches(), -(-settings.axes_samples // batch_size))
    )
    init_as_linear_code(vae, patch_axes(pictures, len(vae.config.dim_mult) - 1, vae.config.z_dim))
    objective.to(device)
    vae.enable_residual_branches(False)
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=BETAS, weight_decay=0.0)
    steps = -(-settings.fit_samples // batch_size)
    stream = batches()
    for step in tqdm(range(steps), desc="linear start", unit="step", disable=not progress, mininterval=1.0):
        optimizer.param_groups[0]["lr"] = learning_rate(
            step, base=settings.learning_rate, total=steps, warmup=round(WARMUP_SHARE * steps), kind="cosine"
        )
        torch.manual_seed(step_seed(seed, step, 0, 0))
        objective({**next(stream), "seen": 0})["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    vae.enable_residual_branches()
