"""Training session of a stage: processes, precision, resume point, MLflow run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from config.params import Params
from config.paths import resume_root
from layers.dataset.digest import digests
from layers.files import LockedError, locked, sync_folder
from models.diffusers_folder import local_folder
from models.precision import has_bf16
from tracking.run import Run, stage_run
from training.engine.checkpoint import CheckpointStore, fingerprint
from training.engine.processes import done_once, wait


@dataclass(frozen=True)
class Session:
    """An open training stage.

    Attributes:
        accelerator: device and processes.
        compute_dtype: dtype of computation; ``None`` for that of the weights, see :mod:`models.precision`.
        run: the MLflow run.
        store: resume points.
        inputs: md5 by path of what the stage reads.
    """

    accelerator: Accelerator
    compute_dtype: torch.dtype | None
    run: Run
    store: CheckpointStore
    inputs: dict[str, str]

    @property
    def rank(self) -> int:
        """Index of this process."""
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes


def precision(choice: str) -> str:
    """Resolve ``auto``: bf16 on a GPU that has it, else fp32."""
    if choice != "auto":
        return choice
    return "bf16" if has_bf16() else "no"


def with_checkpoint(paths: Sequence[str], checkpoint: str | None, key: str) -> list[str]:
    """Input paths of a stage, including its checkpoint if that is a local folder.

    A checkpoint on the hub has no local content to hash; its name is in the parameters.

    Args:
        paths: the other inputs.
        checkpoint: folder or hub repository, or ``None``.
        key: name of the parameter that holds it.

    Raises:
        FileNotFoundError: if it is neither; names the parameter, before anything is encoded or loaded.
    """
    if checkpoint is None:
        return [*paths]
    try:
        here = local_folder(checkpoint) is not None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: got {checkpoint!r}: {error}") from None
    return [*paths, *([checkpoint] if here else [])]


@contextlib.contextmanager
def _alone(stage: str, store: CheckpointStore, output: Path) -> Iterator[None]:
    """Hold the locks of a resume point and of an output on rank 0; every rank raises if another run has one."""
    with contextlib.ExitStack() as held:

        def take() -> LockedError | None:
            try:
                held.enter_context(locked(store.lock, f"{stage}: another run with the same parameters and inputs"))
                held.enter_context(locked(output.with_name(f".{output.name}.lock"), f"{stage}: a run into {output}"))
            except LockedError as error:
                return error
            return None

        if refused := done_once(take, store.accelerator):
            raise refused
        yield


@contextlib.contextmanager
def training_session(
    stage: str, params: Params, input_paths: Sequence[str], output: Path, *, shard: bool = True
) -> Iterator[Session]:
    """Open a training stage; its resume point is removed on success, and found by the same call after a kill.

    Runs with the same parameters and inputs, or with the same output, cannot be open at the same time.

    Args:
        stage: name of the params block.
        params: all parameters.
        input_paths: what the stage reads; its md5s become tags, dataset inputs and part of the fingerprint.
        output: folder of the weights that the stage writes.
        shard: whether FSDP is used if accelerate was started with it; else every process has the whole network (DDP).

    Raises:
        LockedError: if another run is under way.
        ResumePointError: if the resume point is damaged.
    """
    if not shard:
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    block = getattr(params, stage)
    # The last block's text branch has no consumer: its parameters never get a gradient, which plain DDP refuses.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        # accelerate would open autocast around losses too; networks open it themselves.
        mixed_precision="no",
        # Explicit: without it, ranks that torchrun starts on a machine without GPU do not find each other.
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[unused, InitProcessGroupKwargs(timeout=timedelta(seconds=params.collective_timeout))],
    )
    inputs = done_once(lambda: digests(input_paths), accelerator)
    key = fingerprint(block.model_dump(), inputs, accelerator.num_processes)
    store = CheckpointStore(resume_root() / ".checkpoints", stage, key, accelerator)
    with _alone(stage, store, output):
        store.recover()
        state = store.read_state()
        if state is None and store.others():
            accelerator.print(
                f"{stage}: {store.home} has resume points of other parameters or inputs: starting afresh; delete those "
                "that no run will resume"
            )
        with stage_run(
            stage,
            params,
            inputs=inputs,
            resume_run_id=state and state.get("run_id"),
            main_process=accelerator.is_main_process,
        ) as run:
            half = precision(block.optimisation.mixed_precision) == "bf16"
            yield Session(accelerator, torch.bfloat16 if half else None, run, store, inputs)
        # Rank 0 has written the weights, and hashed them for the registry.
        wait(accelerator)
        if accelerator.is_main_process:
            sync_folder(output)
            store.clear()
    accelerator.end_training()
