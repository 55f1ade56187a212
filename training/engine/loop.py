"""The training loop of all stages: one step counter, from which rate, data order, noise and logging derive.

Everything random in a step is drawn from a seed that is a function of (seed, step, micro-batch, rank), and batches come
from a stream that starts at any step, so a killed run goes on with bit-equal losses.
"""

from __future__ import annotations

import zlib

import torch
from torch import nn

from config.base import Optimisation
from training.engine.loop_log import LoopLog
from training.engine.progress import Plan, Progress
from training.engine.readings import Readings
from training.engine.schedule import learning_rate
from training.engine.session import Session
from training.engine.state import TrainingState
from training.engine.task import Task


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Seed of everything random in one micro-batch of one rank."""
    return zlib.crc32(f"{seed}:{step}:{micro}:{rank}".encode())


def fit(task: Task, settings: Optimisation, plan: Plan, *, seed: int, session: Session) -> tuple[Progress, nn.Module]:
    """Train a task's network; what comes back has the EMA weights that validated best.

    Which epoch that was goes to the run as ``best_epoch``. A start that was measured is epoch 0: it is kept, to the
    last bit, unless an epoch is better.

    Args:
        task: what is trained, on what, and how it is validated.
        settings: rates, sizes, intervals.
        plan: from :func:`.progress.make_plan`.
        seed: of noise; data order has its own.
        session: processes, MLflow run and resume points; a run goes on from the point that it finds.

    Returns:
        What happened, and the trained network: the task's, or if that is sharded its copy on the CPU of rank 0.

    Raises:
        NonFiniteLossError: naming step and files.
    """
    state, readings = TrainingState(task, settings, session), Readings()
    if state.restore():
        session.accelerator.print(f"{task.title}: going on from step {state.progress.step} of {plan.steps}")
    elif task.measure_start:
        state.progress.start = task.metrics(0)
        state.keep(0)
        session.run.metrics({f"val/{k}": v for k, v in state.progress.start.items()}, 0)
    progress = state.progress
    log = LoopLog(task.title, plan, progress.step, session)
    batches = log.watched(task.batches(progress.step * settings.gradient_accumulation))
    while (step := progress.step) < plan.steps:
        seen, files, terms = plan.seen(step), [], []
        for micro in range(settings.gradient_accumulation):
            batch = next(batches)
            torch.manual_seed(step_seed(seed, step, micro, session.rank))
            terms.append(state.backward({**batch, "seen": seen}, micro))
            files += batch["id"]
        rate = _rate(seen, settings, plan)
        readings.add(step, files, terms, state.update(rate))
        log.advance()

        ends_epoch = progress.step % plan.steps_per_epoch == 0
        saves = ends_epoch or progress.step % settings.checkpoint_every == 0
        if saves or progress.step % settings.log_every == 0:
            progress.add(readings.read())
        if progress.step % settings.log_every == 0 or progress.step == plan.steps:
            log.terms(progress, rate)
        if ends_epoch:
            epoch = progress.step // plan.steps_per_epoch
            with state.ema_weights():
                metrics = task.metrics(epoch)
                progress.history.append({"epoch": epoch, "samples": plan.seen(progress.step), **metrics})
                if progress.best_epoch is None or task.prefers(metrics, progress.best):
                    state.keep(epoch)
            log.epoch(epoch, progress.step, metrics, task.raw_metrics())
        if saves:
            state.save()
    log.close()
    return progress, state.finish()


def _rate(seen: int, settings: Optimisation, plan: Plan) -> float:
    return learning_rate(
        seen,
        base=settings.learning_rate,
        total=plan.seen(plan.steps),
        warmup=settings.warmup_samples,
        kind=settings.schedule,
    )
