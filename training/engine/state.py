"""Training state: weights, optimizer, EMA, best weights, progress; saved and restored together."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from config.base import Optimisation
from training.engine.ema import copied_weights, ema_weights, load_weights, update_ema
from training.engine.progress import THE_START, Progress
from training.engine.session import Session
from training.engine.sharding import gather, is_sharded, prepare_sharded
from training.engine.task import Task

BETAS = (0.9, 0.99)


class TrainingState:
    """State of a run on this process's device, under DDP or FSDP as accelerate was started.

    Args:
        task: its objective is moved to the device, its network sharded in place.
        settings: parameters of optimizer and EMA.
        session: processes, MLflow run and resume points.

    Attributes:
        objective: the task's objective, wrapped so that gradients are synchronised.
        parameters: trained parameters of the network; under FSDP this process's shards.
        auxiliary: parameters that the objective trains beside the network, such as a discriminator's.
        optimizer: AdamW over both.
        ema: EMA of ``parameters``, in their order and shapes.
        best: CPU copy of the EMA with the best validation metric so far; ``None`` before the first validation.
        progress: steps done and validation metrics.
    """

    def __init__(self, task: Task, settings: Optimisation, session: Session) -> None:
        self._task, self._settings, self._session = task, settings, session
        accelerator, network = session.accelerator, task.network
        own = {id(p) for p in network.parameters()}
        self.parameters = _trained(network)
        self.auxiliary = [p for p in _trained(task.objective) if id(p) not in own]
        optimizer = torch.optim.AdamW(
            self.parameters + self.auxiliary,
            lr=settings.learning_rate,
            betas=BETAS,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._sharded = is_sharded(accelerator)
        if self._sharded:
            self._empty, self.optimizer = prepare_sharded(task.objective, network, optimizer, accelerator)
            self.objective, self._synchronised = task.objective, network
            self.parameters = _trained(network)
        else:
            task.objective.to(accelerator.device)
            self.objective, self.optimizer = accelerator.prepare(task.objective, optimizer)
            self._synchronised = self.objective
        self.ema = copied_weights(self.parameters)
        self.best: list[Tensor] | None = None
        self.progress = Progress()

    def restore(self) -> bool:
        """Restore the stage's resume point; return whether there was one.

        Raises:
            ResumePointError: if it has unexpected content, such as one of other code.
        """
        store, accelerator = self._session.store, self._session.accelerator
        saved = store.read_state()
        if saved is None:
            return False
        with store.reading():
            self.progress = Progress(**{name: saved[name] for name in vars(self.progress)})
            ema, self.best = store.load(
                network=self._task.network, auxiliary=self.auxiliary, optimizer=self.optimizer.optimizer
            )
        self.ema = [value.to(accelerator.device) for value in ema]
        return True

    def save(self) -> None:
        """Write a resume point; every rank calls it."""
        self._session.store.save(
            network=self._task.network,
            auxiliary=self.auxiliary,
            ema=self.ema,
            best=self.best,
            optimizer=self.optimizer.optimizer,
            state={**vars(self.progress), "run_id": self._session.run.run_id},
        )

    def backward(self, batch: Mapping[str, Any], micro: int) -> dict[str, Tensor]:
        """Accumulate the gradients of a micro-batch; processes exchange gradients only after the last one of a step.

        Args:
            batch: micro-batch of this process.
            micro: its number within the step, from 0.

        Returns:
            The objective's terms: scalars on the device, without gradients.
        """
        accelerator, count = self._session.accelerator, self._settings.gradient_accumulation
        last = micro == count - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(self._synchronised):
            terms = self.objective(batch)
            accelerator.backward(terms["loss"] / count)
        return {name: value.detach() for name, value in terms.items()}

    def update(self, rate: float) -> Tensor:
        """End a step: clip the gradients, update weights and EMA, count the step.

        Args:
            rate: learning rate of the step.

        Returns:
            The norm of the network's gradient before clipping, a scalar on the device.
        """
        accelerator, clip = self._session.accelerator, self._settings.grad_clip
        norm = accelerator.clip_grad_norm_(self.parameters, clip)
        if self.auxiliary:
            accelerator.clip_grad_norm_(self.auxiliary, clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        update_ema(self.ema, self.parameters, self._settings.ema_decay, self.progress.step)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def ema_weights(self) -> contextlib.AbstractContextManager[None]:
        """Run a block with the EMA in place of the weights."""
        return ema_weights(self.ema, self.parameters)

    def keep(self, epoch: int) -> None:
        """Save the current weights as the best so far, from ``epoch``."""
        self.progress.best_epoch = epoch
        self.best = [value.cpu() for value in copied_weights(self.parameters)]

    def finish(self) -> nn.Module:
        """Load the best weights into the network, and log their epoch as MLflow's ``best_epoch``.

        Returns:
            The task's network, or if sharded its CPU copy, with weights on rank 0 only; every rank has to call it.
        """
        task, accelerator, progress = self._task, self._session.accelerator, self.progress
        if self.best is not None:
            load_weights(self.parameters, self.best)
            self._session.run.metrics({"best_epoch": progress.best_epoch}, progress.step)
        if progress.best_epoch == 0:
            tried = [entry[task.select] for entry in progress.history]
            accelerator.print(
                f"{task.title}: {THE_START} was kept: {task.select} {progress.start[task.select]:.4g}, best of the "
                f"epochs {max(tried) if task.largest else min(tried):.4g}"
            )
        return gather(task.network, self._empty, accelerator) if self._sharded else task.network


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
