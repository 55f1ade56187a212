"""What a stage gives the training loop: a network, its objective, its batches, and how its weights are chosen."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained.

    Attributes:
        title: of the progress bar and of what is printed.
        objective: forward(batch) gives a dict of scalar terms with the weighted sum under ``loss``. Everything that
            needs gradients happens inside its forward, so that DDP synchronises them. A term of which the batch holds
            nothing is NaN, and left out of its curve. The batch has a further entry ``seen``: samples before this step.
        network: the part of ``objective`` that is trained, averaged (EMA) and saved, and under FSDP sharded. What else
            of ``objective`` asks for gradients (a discriminator) is trained beside it, with a clipping of its own, and
            resumed, but not kept; not under FSDP.
        batches: micro-batches of this rank without end, from a given number on; each has an entry ``id``.
        validate: called on every rank with the epoch, EMA weights in place; returns the same metrics on each, as
            :func:`training.engine.processes.shared_out` makes it easy to.
        select: key of the validation metric that decides which weights are kept.
        largest: whether larger is better.
        validate_raw: called likewise with the weights as they are, to show what the EMA gives; ``None`` for never.
        measure_start: whether to validate before the first step, as epoch 0, whose weights are kept if none is better.
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
        """Validate the weights that are in place, in evaluation mode."""
        with _evaluating(self.objective):
            return self.validate(epoch)

    def raw_metrics(self) -> dict[str, float]:
        """What ``validate_raw`` gives, in evaluation mode; nothing where there is none."""
        if self.validate_raw is None:
            return {}
        with _evaluating(self.objective):
            return self.validate_raw()

    def prefers(self, metrics: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Whether weights with these metrics are better than those that were best so far."""
        return is_better(metrics[self.select], best[self.select], self.largest)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    module.eval()
    try:
        yield
    finally:
        module.train()


def is_better(value: float, best: float, largest: bool) -> bool:
    """Whether a score beats another; one that is no finite number is worse than any, and an equal one no better."""
    if not (math.isfinite(value) and math.isfinite(best)):
        return math.isfinite(value)
    return value > best if largest else value < best
