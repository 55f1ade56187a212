"""Plan (length) and progress of a training run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from config.base import Optimisation

VALIDATION_LOG = "QIL_VALIDATION_LOG"
THE_START = "epoch 0 (the start)"


@dataclass(frozen=True)
class Plan:
    """Length of a run in epochs, steps and samples.

    Attributes:
        epochs: number of validations.
        steps_per_epoch: optimizer steps between validations.
        samples_per_step: samples of one step, over all processes and micro-batches.
    """

    epochs: int
    steps_per_epoch: int
    samples_per_step: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def seen(self, step: int) -> int:
        """Samples that all processes have seen after ``step`` steps."""
        return step * self.samples_per_step


def make_plan(settings: Optimisation, batches_per_pass: int, world_size: int) -> Plan:
    """Convert epochs and samples into steps.

    Args:
        settings: the stage's optimisation block.
        batches_per_pass: batches of one process in one pass over the split.
        world_size: processes.
    """
    per_step = settings.batch_size * settings.gradient_accumulation * world_size
    if settings.epoch_samples is None:
        steps = max(1, batches_per_pass // settings.gradient_accumulation)
    else:
        steps = math.ceil(settings.epoch_samples / per_step)
    return Plan(settings.epochs, steps, per_step)


@dataclass
class Progress:
    """State of the loop other than tensors; saved as JSON and returned to the stage at the end.

    Attributes:
        step: optimizer steps done.
        start: validation metrics before the first step, if requested.
        history: validation metrics, one mapping per epoch.
        best_epoch: epoch with the best validation metric so far; 0: the weights before the first step, if validated.
        running: sum of each term since it was last logged, and the number of steps summed.
    """

    step: int = 0
    start: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    running: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, steps: Iterable[Mapping[str, float]]) -> None:
        """Add the loss terms of steps to the running sums."""
        for terms in steps:
            for name, value in terms.items():
                total, count = self.running.get(name, (0.0, 0))
                self.running[name] = (total + value, count + 1)

    @property
    def best(self) -> dict[str, float]:
        """Validation metrics of the selected weights."""
        entry = self.start if self.best_epoch == 0 else self.history[self.best_epoch - 1]
        return {name: value for name, value in entry.items() if name not in ("epoch", "samples")}

    @property
    def kept(self) -> dict[str, str]:
        """Report entry ``kept``: that the start was kept; empty if an epoch was better."""
        return {"kept": THE_START} if self.best_epoch == 0 else {}


def announce(epoch: int, samples: int, metrics: Mapping[str, float]) -> None:
    """Append a validation as a JSON line to the file named by the environment, which a tuner watches."""
    if path := os.environ.get(VALIDATION_LOG):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "samples": samples, "metrics": metrics}) + "\n")
