"""EMA (exponential moving average) of the weights: update, and swap with the weights; of shards, part by part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.engine.sharding import local_part


@torch.no_grad()
def copied_weights(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Copies of this process's part of the parameters."""
    return [local_part(p).clone() for p in parameters]


@torch.no_grad()
def load_weights(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    """Copy tensors of :func:`copied_weights` into parameters, in order."""
    for parameter, value in zip(parameters, values, strict=True):
        local_part(parameter).copy_(value)


@torch.no_grad()
def update_ema(ema: list[Tensor], parameters: list[nn.Parameter], decay: float, step: int) -> None:
    """Update the EMA after ``step`` steps; the decay starts smaller, so that the initial weights are forgotten."""
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(ema, [local_part(p) for p in parameters], step)


@contextlib.contextmanager
def ema_weights(ema: list[Tensor], parameters: list[nn.Parameter]) -> Iterator[None]:
    """Run a block with the EMA in place of the weights."""
    kept = copied_weights(parameters)
    load_weights(parameters, ema)
    try:
        yield
    finally:
        load_weights(parameters, kept)
