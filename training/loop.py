"""The training loop of all stages: one step counter, from which rate, data order, noise and logging derive.

Everything random in a step is drawn from a seed that is a function of (seed, step, micro-batch, rank), and batches come
from a stream that starts at any step, so a killed run goes on with bit-equal losses.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from layers.errors import UserError
from training.checkpoint import CheckpointStore
from training.param_types import Optimisation
from training.schedule import learning_rate
from training.tracking import Run

BETAS = (0.9, 0.99)


class NonFiniteLossError(UserError, FloatingPointError):
    """The loss or its gradient is no number any more; the message names step and files."""


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
        history: validation results, one mapping an epoch.
        best: the best value of the selected metric so far.
        running: sum of each term since it was last logged, and over how many steps.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    running: dict[str, tuple[float, int]] = field(default_factory=dict)


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Seed of everything random in one micro-batch of one rank."""
    return zlib.crc32(f"{seed}:{step}:{micro}:{rank}".encode())


def update_average(average: list[torch.Tensor], parameters: list[torch.nn.Parameter], decay: float, step: int) -> None:
    """Move the average towards the weights after ``step`` steps; early averages forget the random start faster."""
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(average, [p.detach() for p in parameters], step)


@torch.no_grad()
def load_weights(parameters: list[torch.nn.Parameter], values: list[torch.Tensor]) -> None:
    """Copy tensors into parameters, in order."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@contextlib.contextmanager
def averaged_weights(average: list[torch.Tensor], parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Run a block on the moving average of the weights."""
    kept = [p.detach().clone() for p in parameters]
    load_weights(parameters, average)
    try:
        yield
    finally:
        load_weights(parameters, kept)


def fit(
    module: torch.nn.Module,
    network: torch.nn.Module,
    *,
    batches: Callable[[int], Iterator[Mapping[str, Any]]],
    settings: Optimisation,
    plan: Plan,
    seed: int,
    validate: Callable[[int], dict[str, float]],
    validate_raw: Callable[[], dict[str, float]] | None = None,
    select: str,
    largest: bool,
    accelerator: Accelerator,
    run: Run,
    store: CheckpointStore,
    title: str,
) -> Progress:
    """Train ``network`` and leave in it the averaged weights that validated best.

    Args:
        module: forward(batch) gives a dict of scalar terms with the weighted sum under ``loss``. Everything that needs
            gradients happens inside its forward, so that DDP synchronises them. A term of which the batch holds
            nothing is NaN, and left out of its curve. The batch has a further entry ``seen``: samples before this step.
        network: the part of ``module`` that is trained, averaged and saved. What else of ``module`` asks for gradients
            (a discriminator) is trained beside it, with a clipping of its own, and resumed, but not kept.
        batches: micro-batches of this rank without end, from a given number on; each has an entry ``id``.
        settings: rates, sizes, intervals.
        plan: from :func:`make_plan`.
        seed: of noise; data order has its own.
        validate: called on rank 0 with the epoch, averaged weights in place; returns metrics.
        validate_raw: called on rank 0 with the weights as they are, to show what the average gives; ``None`` for never.
        select: key of the validation metric that decides which weights are kept.
        largest: whether larger is better.
        accelerator: device, precision, processes.
        run: where curves go.
        store: where resume points go.
        title: of the progress bar.

    Raises:
        NonFiniteLossError: naming step and files.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    ours = {id(p) for p in network.parameters()}
    companions = [p for p in module.parameters() if p.requires_grad and id(p) not in ours]
    optimizer = torch.optim.AdamW(
        parameters + companions, lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay
    )
    # Moved first: resumed optimizer state must meet its parameters on their device.
    module.to(accelerator.device)
    progress, best = Progress(), None
    average = [p.detach().clone() for p in parameters]
    state = store.read_state()
    if state is not None:
        progress = Progress(state["step"], state["history"], state["best"], state["running"])
        average, best = store.load(network=network, companions=companions, optimizer=optimizer)
        average = [value.to(accelerator.device) for value in average]
        accelerator.print(f"{title}: going on from step {progress.step} of {plan.steps}")
    wrapped, optimizer = accelerator.prepare(module, optimizer)

    def save() -> None:
        if accelerator.is_main_process:
            store.save(
                network=network,
                companions=companions,
                ema=average,
                best=best,
                optimizer=optimizer.optimizer,
                state={**vars(progress), "run_id": run.run_id},
            )
        accelerator.wait_for_everyone()

    stream = batches(progress.step * settings.gradient_accumulation)
    bar = tqdm(
        total=plan.steps * plan.samples_per_step,
        initial=progress.step * plan.samples_per_step,
        desc=title,
        unit="img",
        unit_scale=True,
        disable=not accelerator.is_main_process,
        mininterval=1.0,
    )
    skipped: set[str] = set()
    stream = _watched(stream, skipped, bar)
    while progress.step < plan.steps:
        before = progress.step * plan.samples_per_step
        rate = learning_rate(
            before,
            base=settings.learning_rate,
            total=plan.steps * plan.samples_per_step,
            warmup=settings.warmup_samples,
            kind=settings.schedule,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms = _step(
            wrapped, optimizer, stream, (parameters, companions), settings, (progress.step, before), seed, accelerator
        )
        progress.step += 1
        update_average(average, parameters, settings.ema_decay, progress.step)
        bar.update(plan.samples_per_step)

        for name, value in terms.items():
            total, count = progress.running.get(name, (0.0, 0))
            progress.running[name] = (total + value, count + 1)
        if progress.step % settings.log_every == 0 or progress.step == plan.steps:
            means = {name: total / count for name, (total, count) in progress.running.items()}
            seen = progress.step * plan.samples_per_step
            run.metrics(
                {f"train/{k}": v for k, v in means.items()} | {"train/learning_rate": rate, "train/samples": seen},
                progress.step,
            )
            if skipped:
                run.metrics({"train/skipped_pictures": len(skipped)}, progress.step)
            bar.set_postfix(loss=f"{means['loss']:.4f}")
            progress.running = {}

        if progress.step % plan.steps_per_epoch == 0:
            epoch = progress.step // plan.steps_per_epoch
            if accelerator.is_main_process:
                with averaged_weights(average, parameters):
                    metrics = _evaluated(module, lambda epoch=epoch: validate(epoch))
                    value = metrics[select]
                    if progress.best is None or (value > progress.best if largest else value < progress.best):
                        progress.best, best = value, [p.detach().cpu().clone() for p in parameters]
                raw = {} if validate_raw is None else _evaluated(module, validate_raw)
                progress.history.append({"epoch": epoch, "samples": progress.step * plan.samples_per_step, **metrics})
                run.metrics(
                    {f"val/{k}": v for k, v in metrics.items()} | {f"val_raw/{k}": v for k, v in raw.items()},
                    progress.step,
                )
                bar.write(f"{title}: epoch {epoch}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
            save()
        elif progress.step % settings.checkpoint_every == 0:
            save()
    bar.close()
    if best is not None:
        load_weights(parameters, best)
    return progress


def _evaluated(module: torch.nn.Module, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What ``measure`` says while ``module`` is in evaluation mode."""
    module.eval()
    try:
        return measure()
    finally:
        module.train()


def _watched(stream: Iterator[Mapping[str, Any]], skipped: set[str], bar: tqdm) -> Iterator[Mapping[str, Any]]:
    """Pass batches on; pictures that the loader had to skip are gathered, and each is named once."""
    for batch in stream:
        for name in batch.get("skipped", ()):
            if name not in skipped:
                skipped.add(name)
                bar.write(f"skipped {name}")
        yield batch


def _step(
    wrapped: torch.nn.Module,
    optimizer: Any,
    stream: Iterator[Mapping[str, Any]],
    groups: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]],
    settings: Optimisation,
    position: tuple[int, int],
    seed: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimizer step over its micro-batches; returns the means of those terms that any of them had, on this rank.

    ``groups`` are the parameters of the network and of what is trained beside it, ``position`` the step and the
    samples before it.
    """
    step, seen = position
    found: dict[str, list[float]] = defaultdict(list)
    files: list[str] = []
    count = settings.gradient_accumulation
    for micro in range(count):
        batch = next(stream)
        files += batch["id"]
        torch.manual_seed(step_seed(seed, step, micro, accelerator.process_index))
        last = micro == count - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
            with accelerator.autocast():
                terms = wrapped({**batch, "seen": seen})
            accelerator.backward(terms["loss"] / count)
        values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
        for name, value in zip(terms, values, strict=True):
            if name == "loss" and not math.isfinite(value):
                raise NonFiniteLossError(f"the loss is {value} at step {step}; files: {', '.join(files)}")
            if not math.isnan(value):
                found[name].append(value)
    norm = float(accelerator.clip_grad_norm_(groups[0], settings.grad_clip))
    if groups[1]:
        accelerator.clip_grad_norm_(groups[1], settings.grad_clip)
    if not math.isfinite(norm):
        raise NonFiniteLossError(f"the gradient's norm is {norm} at step {step}; files: {', '.join(files)}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: sum(values) / len(values) for name, values in found.items()} | {"grad_norm": norm}
