"""Processes of a run: sharing work, and waiting without a time limit.

A collective ends the run when a process waits in it for longer than params.yaml's ``collective_timeout``. So no process
works for long while others wait in a collective: work is split into equal parts. Where one process has to work alone
(hashing, saving), the others wait at :func:`wait`, which has no such limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = timedelta(days=30)


@lru_cache(maxsize=1)
def _patient_group() -> dist.ProcessGroup:
    # On the CPU: a waiting GPU would spin, and its watchdog would end the run.
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def wait(accelerator: Accelerator) -> None:
    """Wait until every process arrives, without a time limit."""
    if accelerator.num_processes > 1:
        dist.barrier(_patient_group())


def done_once(work: Callable[[], Result], accelerator: Accelerator) -> Result:
    """Run ``work`` on rank 0 and return its result in every process; for reading gigabytes, such as a digest."""
    result = work() if accelerator.is_main_process else None
    wait(accelerator)
    return broadcast_object_list([result])[0]


def share(items: Sequence[Item], accelerator: Accelerator) -> Sequence[Item]:
    """This process's part of a list that is the same in all processes."""
    return items[accelerator.process_index :: accelerator.num_processes]


def shared_out(items: Sequence[Item], work: Callable[[Item], Result], accelerator: Accelerator) -> list[Result]:
    """Results of ``work`` for all items, in order, in every process; each item is computed by one process.

    All processes call ``work`` equally often, because a sharded network computes only when all of them call it. A
    process with no item left repeats its last.

    Args:
        items: list that is the same in every process.
        work: returns a picklable result on the CPU.
        accelerator: the processes.
    """
    world, found = accelerator.num_processes, []
    for first in range(0, len(items), world):
        index = first + accelerator.process_index
        result = work(items[min(index, len(items) - 1)])
        if index < len(items):
            found.append((index, result))
    return [result for _, result in sorted(gather_object(found), key=lambda pair: pair[0])]
