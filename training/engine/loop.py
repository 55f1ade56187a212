"""The training loop of all stages: one step counter, from which rate, data order, noise and logging derive.

Everything random in a step is drawn from a seed that is a function of (seed, step, micro-batch, rank), and batches come
from a stream that starts at any step, so a killed run goes on with bit-equal losses.
"""

from __future__ import annotations

import contextlib
import functools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from config.base import Optimisation
from tracking.run import Run
from training.engine.checkpoint import CheckpointStore
from training.engine.ema import averaged_weights, copied_weights, load_weights, update_average
from training.engine.progress import THE_START, Plan, Progress, announce
from training.engine.readings import Readings
from training.engine.schedule import learning_rate
from training.engine.sharding import gather, is_sharded, prepare_sharded

BETAS = (0.9, 0.99)


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Seed of everything random in one micro-batch of one rank."""
    return zlib.crc32(f"{seed}:{step}:{micro}:{rank}".encode())


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
    measure_start: bool = False,
) -> tuple[Progress, torch.nn.Module]:
    """Train ``network``; what comes back has the averaged weights that validated best.

    Which epoch that was goes to the run as ``best_epoch``. A start that was measured is epoch 0: it is kept, to the
    last bit, unless an epoch is better.

    Args:
        module: forward(batch) gives a dict of scalar terms with the weighted sum under ``loss``. Everything that needs
            gradients happens inside its forward, so that DDP synchronises them. A term of which the batch holds
            nothing is NaN, and left out of its curve. The batch has a further entry ``seen``: samples before this step.
        network: the part of ``module`` that is trained, averaged and saved, and under FSDP sharded. What else of
            ``module`` asks for gradients (a discriminator) is trained beside it, with a clipping of its own, and
            resumed, but not kept; not under FSDP.
        batches: micro-batches of this rank without end, from a given number on; each has an entry ``id``.
        settings: rates, sizes, intervals.
        plan: from :func:`make_plan`.
        seed: of noise; data order has its own.
        validate: called on every rank with the epoch, averaged weights in place; returns the same metrics on each,
            as :func:`training.engine.processes.shared_out` makes it easy to.
        validate_raw: called likewise with the weights as they are, to show what the average gives; ``None`` for never.
        select: key of the validation metric that decides which weights are kept.
        largest: whether larger is better.
        accelerator: device, precision, processes.
        run: where curves go.
        store: where resume points go.
        title: of the progress bar.
        measure_start: whether to validate before the first step, as epoch 0, whose weights are kept if none is better.

    Returns:
        What happened, and the trained network: ``network`` itself, or if that is sharded its copy on the CPU of rank 0.

    Raises:
        NonFiniteLossError: naming step and files.
    """
    sharded, main = is_sharded(accelerator), accelerator.is_main_process
    parameters = [p for p in network.parameters() if p.requires_grad]
    ours = {id(p) for p in network.parameters()}
    companions = [p for p in module.parameters() if p.requires_grad and id(p) not in ours]
    optimizer = torch.optim.AdamW(
        parameters + companions,
        lr=settings.learning_rate,
        betas=BETAS,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if sharded:
        whole, optimizer = prepare_sharded(module, network, optimizer, accelerator)
        called, synchronised = module, network
        parameters = [p for p in network.parameters() if p.requires_grad]
    else:
        module.to(accelerator.device)
        whole = network
        called, optimizer = accelerator.prepare(module, optimizer)
        synchronised = called
    progress, best, average = Progress(), None, copied_weights(parameters)
    state = store.read_state()
    if state is not None:
        with store.reading():
            progress = Progress(**{name: state[name] for name in vars(progress)})
            average, best = store.load(network=network, companions=companions, optimizer=optimizer.optimizer)
        average = [value.to(accelerator.device) for value in average]
        accelerator.print(f"{title}: going on from step {progress.step} of {plan.steps}")

    def save() -> None:
        store.save(
            network=network,
            companions=companions,
            ema=average,
            best=best,
            optimizer=optimizer.optimizer,
            state={**vars(progress), "run_id": run.run_id},
        )

    def evaluated(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        module.eval()
        try:
            return measure()
        finally:
            module.train()

    if measure_start and state is None:
        progress.start = evaluated(lambda: validate(0))
        progress.best_epoch, best = 0, [value.cpu() for value in copied_weights(parameters)]
        run.metrics({f"val/{k}": v for k, v in progress.start.items()}, 0)
    stream = batches(progress.step * settings.gradient_accumulation)
    bar = tqdm(
        total=plan.steps * plan.samples_per_step,
        initial=progress.step * plan.samples_per_step,
        desc=title,
        unit="img",
        unit_scale=True,
        disable=not main,
        mininterval=1.0,
    )
    skipped: set[str] = set()
    readings = Readings()
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
        _step(
            (called, synchronised),
            optimizer,
            stream,
            (parameters, companions),
            settings,
            (progress.step, before),
            seed,
            accelerator,
            readings,
        )
        progress.step += 1
        update_average(average, parameters, settings.ema_decay, progress.step)
        bar.update(plan.samples_per_step)

        ends_epoch = progress.step % plan.steps_per_epoch == 0
        saved = ends_epoch or progress.step % settings.checkpoint_every == 0
        if saved or progress.step % settings.log_every == 0:
            progress.add(readings.read())
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

        if ends_epoch:
            epoch = progress.step // plan.steps_per_epoch
            with averaged_weights(average, parameters):
                metrics = evaluated(functools.partial(validate, epoch))
                progress.history.append({"epoch": epoch, "samples": progress.step * plan.samples_per_step, **metrics})
                if progress.best_epoch is None or _better(metrics[select], progress.best[select], largest):
                    progress.best_epoch = epoch
                    best = [value.cpu() for value in copied_weights(parameters)]
            raw = {} if validate_raw is None else evaluated(validate_raw)
            run.metrics(
                {f"val/{k}": v for k, v in metrics.items()} | {f"val_raw/{k}": v for k, v in raw.items()},
                progress.step,
            )
            if main:
                announce(epoch, progress.step * plan.samples_per_step, metrics)
            bar.write(f"{title}: epoch {epoch}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        if saved:
            save()
    bar.close()
    if best is not None:
        load_weights(parameters, best)
        run.metrics({"best_epoch": progress.best_epoch}, progress.step)
    if progress.best_epoch == 0:
        tried = [entry[select] for entry in progress.history]
        accelerator.print(
            f"{title}: {THE_START} was kept: {select} {progress.start[select]:.4g}, of the epochs at best "
            f"{max(tried) if largest else min(tried):.4g}"
        )
    return progress, gather(network, whole, accelerator) if sharded else network


def _better(value: float, best: float, largest: bool) -> bool:
    # Weights whose score is no finite number are worse than any.
    if not (math.isfinite(value) and math.isfinite(best)):
        return math.isfinite(value)
    return value > best if largest else value < best


def _watched(stream: Iterator[Mapping[str, Any]], skipped: set[str], bar: tqdm) -> Iterator[Mapping[str, Any]]:
    """Pass batches on; pictures that the loader had to skip are gathered, and each is named once."""
    for batch in stream:
        for name in batch.get("skipped", ()):
            if name not in skipped:
                skipped.add(name)
                bar.write(f"skipped {name}")
        yield batch


def _step(
    modules: tuple[torch.nn.Module, torch.nn.Module],
    optimizer: Any,
    stream: Iterator[Mapping[str, Any]],
    groups: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]],
    settings: Optimisation,
    position: tuple[int, int],
    seed: int,
    accelerator: Accelerator,
    readings: Readings,
) -> None:
    """One optimizer step over its micro-batches; what it measures on this rank goes to ``readings``.

    ``modules`` are what is called and what synchronises gradients, ``groups`` the parameters of the network and of what
    is trained beside it, ``position`` the step and the samples before it.
    """
    (called, synchronised), (step, seen) = modules, position
    measured: list[Mapping[str, torch.Tensor]] = []
    files: list[str] = []
    count = settings.gradient_accumulation
    for micro in range(count):
        batch = next(stream)
        files += batch["id"]
        torch.manual_seed(step_seed(seed, step, micro, accelerator.process_index))
        last = micro == count - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(synchronised):
            terms = called({**batch, "seen": seen})
            accelerator.backward(terms["loss"] / count)
        measured.append({name: value.detach() for name, value in terms.items()})
    norm = accelerator.clip_grad_norm_(groups[0], settings.grad_clip)
    if groups[1]:
        accelerator.clip_grad_norm_(groups[1], settings.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    readings.add(step, files, measured, norm.full_tensor() if isinstance(norm, DTensor) else norm)
