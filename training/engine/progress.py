"""How long a run is, and how far it has come."""

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
    """How long a run is.

    Attributes:
        epochs: validations.
        steps_per_epoch: optimizer steps between them.
        samples_per_step: items of all processes and micro-batches of one step.
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
    """Turn epochs and samples into steps.

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
    """What the loop knows beside tensors; it is saved as JSON and given to the stage at the end.

    Attributes:
        step: optimizer steps done.
        start: validation results before the first step, where they were asked for.
        history: validation results, one mapping an epoch.
        best_epoch: whose weights validated best so far; 0: those before the first step, where they were measured.
        running: sum of each term since it was last logged, and over how many steps.
    """

    step: int = 0
    start: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    running: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, steps: Iterable[Mapping[str, float]]) -> None:
        """Take in the terms of steps."""
        for terms in steps:
            for name, value in terms.items():
                total, count = self.running.get(name, (0.0, 0))
                self.running[name] = (total + value, count + 1)

    @property
    def best(self) -> dict[str, float]:
        """What was measured of the weights that are kept."""
        entry = self.start if self.best_epoch == 0 else self.history[self.best_epoch - 1]
        return {name: value for name, value in entry.items() if name not in ("epoch", "samples")}

    @property
    def kept(self) -> dict[str, str]:
        """For a report: that the start was kept, under ``kept``; nothing if an epoch was better."""
        return {"kept": THE_START} if self.best_epoch == 0 else {}


def announce(epoch: int, samples: int, metrics: Mapping[str, float]) -> None:
    """Append a validation to the file that the environment names, one JSON line each: how a tuner watches a trial."""
    if path := os.environ.get(VALIDATION_LOG):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "samples": samples, "metrics": metrics}) + "\n")
