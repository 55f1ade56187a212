"""Work that processes share, and how they wait for each other.

A collective ends the run when a process waits in it for longer than params.yaml's ``collective_timeout``. So nothing
long is done by one process while others wait in a collective: it is shared out in equal parts, and where one alone has
to work (hashing, saving), the others wait at :func:`wait`, which has no such limit.
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
    # On the CPU: a GPU that waits would spin, and its watchdog would end the run.
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def wait(accelerator: Accelerator) -> None:
    """Wait until every process is here, however long one of them works alone."""
    if accelerator.num_processes > 1:
        dist.barrier(_patient_group())


def done_once(work: Callable[[], Result], accelerator: Accelerator) -> Result:
    """What ``work`` gives on rank 0, in every process; for what reads gigabytes, such as a digest."""
    result = work() if accelerator.is_main_process else None
    wait(accelerator)
    return broadcast_object_list([result])[0]


def share(items: Sequence[Item], accelerator: Accelerator) -> Sequence[Item]:
    """This process's part of a list that all processes have."""
    return items[accelerator.process_index :: accelerator.num_processes]


def shared_out(items: Sequence[Item], work: Callable[[Item], Result], accelerator: Accelerator) -> list[Result]:
    """What ``work`` gives for every item, in their order, in every process; each item is worked on by one.

    All processes call ``work`` equally often, because a sharded network computes only when all of them call it; one
    that has no item left repeats the last.

    Args:
        items: the same in every process.
        work: gives what can be pickled, on the CPU.
        accelerator: of the processes.
    """
    world, found = accelerator.num_processes, []
    for first in range(0, len(items), world):
        index = first + accelerator.process_index
        result = work(items[min(index, len(items) - 1)])
        if index < len(items):
            found.append((index, result))
    return [result for _, result in sorted(gather_object(found), key=lambda pair: pair[0])]
