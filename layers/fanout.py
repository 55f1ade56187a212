"""Work over many processes: those of this machine, or of a Dask or Ray cluster, through joblib."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import BrokenProcessPool

from layers.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
ATTEMPTS = 3


class ClusterError(UserError):
    """The cluster cannot be used, or workers keep dying; the message names the parameter."""


def _numbered(function: Callable[[Any], Any], number: int, task: Any) -> tuple[int, Any]:
    return number, function(task)


@contextmanager
def _dask(address: str) -> Iterator[None]:
    from distributed import Client

    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cluster: no Dask scheduler answers at {address} ({type(error).__name__})") from None
    with client, client.as_current(), parallel_config("dask"):
        yield


@contextmanager
def _ray(address: str) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise ClusterError(f"cluster: {address} needs the package ray; pip install ray") from None
    ray.init(None if address == "ray" else address)
    register_ray()
    with parallel_config("ray"):
        yield


def _backend(cluster: str) -> AbstractContextManager[None]:
    if cluster == "local":
        return parallel_config("loky", inner_max_num_threads=1)
    if cluster.startswith(("tcp://", "tls://", "ucx://")):
        return _dask(cluster)
    if cluster == "ray" or cluster.startswith("ray://"):
        return _ray(cluster)
    raise ClusterError(f"cluster: got {cluster!r}, expected local, tcp://host:port of a Dask scheduler, ray or ray://…")


def fan_out(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, jobs: int, cluster: str = "local"
) -> Iterator[tuple[Task, Result]]:
    """Run a function over tasks in other processes; results come as they are ready, each exactly once.

    A worker that dies takes its task with it, and the task is given to another: a function must be able to run twice.

    Args:
        function: importable by the workers.
        tasks: what it is called with, one at a time.
        jobs: processes of this machine (-1: one a core); a cluster uses all workers it has. With 1 on this machine
            everything runs in this process.
        cluster: ``local``, ``tcp://host:port`` of a Dask scheduler, ``ray`` or ``ray://host:port``.

    Raises:
        ClusterError: if the cluster cannot be reached, or workers died :data:`ATTEMPTS` times.
    """
    if cluster == "local" and jobs == 1:
        for task in tasks:
            yield task, function(task)
        return
    # Tasks under way only, so that a stream of tasks never lies in memory as a whole.
    under_way: dict[int, Task] = {}
    fresh = iter(enumerate(tasks))

    def next_calls(again: list[tuple[int, Task]]) -> Iterator[Any]:
        for number, task in chain(again, fresh):
            under_way[number] = task
            yield delayed(_numbered)(function, number, task)

    with _backend(cluster):
        for attempt in range(ATTEMPTS):
            work = Parallel(
                n_jobs=jobs if cluster == "local" else -1,
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="3*n_jobs",
            )(next_calls(list(under_way.items())))
            try:
                for number, result in work:
                    yield under_way.pop(number), result
                return
            except BrokenProcessPool:
                if attempt + 1 == ATTEMPTS:
                    raise ClusterError(
                        f"jobs: worker processes were killed {ATTEMPTS} times, most often for want of memory; the same "
                        f"command goes on where it was, lower jobs (now {jobs})"
                    ) from None
