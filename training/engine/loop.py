"""Training loop of all stages: one step counter determines rate, data order, noise and logging.

Everything random in a step is drawn from a seed that is a function of (seed, step, micro-batch, rank). Batches come
from a stream that can start at any step. So a resumed run has bit-equal losses.
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
    """Train a task's network; the returned network has the EMA weights with the best validation metric.

    The epoch is logged as ``best_epoch``. If the start was validated, it is epoch 0: it is kept bit for bit unless an
    epoch is better.

    Args:
        task: network, objective, data and validation.
        settings: rates, sizes, intervals.
        plan: from :func:`.progress.make_plan`.
        seed: seed of the noise; data order has its own.
        session: processes, MLflow run and resume points; an existing resume point is continued.

    Returns:
        The progress, and the trained network: the task's, or if that is sharded its copy on the CPU of rank 0.

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
