"""Loss terms of training steps, left on the device until they are read, since every read makes the host wait."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config.errors import UserError


class NonFiniteLossError(UserError, FloatingPointError):
    """The loss or its gradient is not finite; the message names step and files."""


@dataclass(frozen=True)
class _Step:
    number: int
    files: Sequence[str]
    names: Sequence[str]
    values: Sequence[Tensor]


class Readings:
    """Loss terms of several steps, read together.

    Between two reads a step causes no synchronisation with the device. So a loss that is not finite is noticed some
    steps late; nothing is saved or validated without reading first.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def add(self, step: int, files: Sequence[str], micro: Sequence[Mapping[str, Tensor]], norm: Tensor) -> None:
        """Add a step: the files of its batches, the terms of each micro-batch, and the gradient's norm."""
        names = [name for terms in micro for name in terms]
        values = [value.detach().float() for terms in micro for value in terms.values()]
        self._steps.append(_Step(step, files, [*names, "grad_norm"], [*values, norm.detach().float()]))

    def read(self) -> list[dict[str, float]]:
        """Means over micro-batches of each step since the last read; terms that are NaN are left out.

        Raises:
            NonFiniteLossError: naming the first step whose loss or gradient is not finite, and its files.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        numbers = iter(torch.stack([value for step in steps for value in step.values]).tolist())
        return [_means(step, [next(numbers) for _ in step.values]) for step in steps]


def _means(step: _Step, numbers: Sequence[float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for name, value in zip(step.names, numbers, strict=True):
        if name in ("loss", "grad_norm") and not math.isfinite(value):
            what = "the loss is" if name == "loss" else "the gradient's norm is"
            raise NonFiniteLossError(f"{what} {value} at step {step.number}; files: {', '.join(step.files)}")
        if not math.isnan(value):
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
