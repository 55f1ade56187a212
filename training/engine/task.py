"""Training task of a stage: network, objective, batches, validation, and the metric that selects weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Task:
    """Training task: a network with its objective, data and validation.

    Attributes:
        title: name in the progress bar and in printed lines.
        objective: forward(batch) returns a dict of scalar terms, with the weighted sum under ``loss``. Everything that
            needs gradients happens inside its forward, so that DDP synchronises them. A term that does not apply to a
            batch is NaN and left out of its curve. The batch has a further entry ``seen``: samples before this step.
        network: the part of ``objective`` that is trained, averaged (EMA) and saved, and under FSDP sharded. Other
            trainable parts of ``objective`` (auxiliary parameters, such as a discriminator's) have their own gradient
            clipping. They are resumed but not written at the end; not supported under FSDP.
        batches: endless micro-batches of this rank from a given number on; each has an entry ``id``.
        validate: called on every rank with the epoch, EMA weights in place; returns the same metrics on every rank (see
            :func:`training.engine.processes.shared_out`).
        select: key of the validation metric that selects the weights to save.
        largest: whether larger is better.
        validate_raw: called likewise with the raw weights, to show the effect of the EMA; ``None`` for never.
        measure_start: whether to validate before the first step, as epoch 0; it is kept if no epoch is better.
    """

    title: str
    objective: nn.Module
    network: nn.Module
    batches: Callable[[int], Iterator[Mapping[str, Any]]]
    validate: Callable[[int], dict[str, float]]
    select: str
    largest: bool = False
    validate_raw: Callable[[], dict[str, float]] | None = None
    measure_start: bool = False

    def metrics(self, epoch: int) -> dict[str, float]:
        """Validate the current weights in evaluation mode."""
        with _evaluating(self.objective):
            return self.validate(epoch)

    def raw_metrics(self) -> dict[str, float]:
        """Metrics of ``validate_raw`` in evaluation mode; empty without one."""
        if self.validate_raw is None:
            return {}
        with _evaluating(self.objective):
            return self.validate_raw()

    def prefers(self, metrics: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """True if weights with these metrics are better than the best so far."""
        return is_better(metrics[self.select], best[self.select], self.largest)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    module.eval()
    try:
        yield
    finally:
        module.train()


def is_better(value: float, best: float, largest: bool) -> bool:
    """True if a score beats another; a non-finite score is worse than any, an equal one is not better."""
    if not (math.isfinite(value) and math.isfinite(best)):
        return math.isfinite(value)
    return value > best if largest else value < best
