"""Parallel map over processes of this machine or of a Dask cluster, through joblib, or of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import BrokenProcessPool

from config.errors import UserError

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


def _call(function: Callable[[Task], Result], task: Task) -> Result:
    return function(task)


@contextmanager
def _ray() -> Iterator[Any]:
    """The module ``ray``, connected to the cluster of RAY_ADDRESS, else to the one that includes this machine."""
    try:
        import ray
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:
        raise ClusterError("cluster: ray needs the package ray; pip install ray") from None
    where = os.environ.get("RAY_ADDRESS") or "on this machine"
    # Ray makes one attempt, of up to 40 seconds, where another program listens.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    try:
        try:
            host, _, port = str(canonicalize_bootstrap_address("auto")).rpartition(":")
            # Checked first, because Ray tries for minutes where nothing listens.
            with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
                pass
            ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = textwrap.shorten(str(error), 240)
            raise ClusterError(f"cluster: no Ray cluster answers {where} ({reason})") from None
        if not ray.cluster_resources().get("CPU"):
            raise ClusterError(f"cluster: the Ray cluster {where} has no CPU to give")
        yield ray
    finally:
        ray.shutdown()


def _over_ray(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
    """Run :func:`fan_out` with Ray's own tasks, since Ray's backend for joblib cannot return a generator."""
    with _ray() as ray:
        # Retries are counted here, because Ray repeats tasks that were killed for lack of memory for ever.
        call = ray.remote(max_retries=0)(_call)
        shared = ray.put(function)
        fresh = iter(tasks)
        under_way: dict[Any, tuple[Task, int]] = {}
        while True:
            wanted = 3 * max(1, int(ray.cluster_resources().get("CPU", 0)))
            for task in islice(fresh, max(0, wanted - len(under_way))):
                under_way[call.remote(shared, task)] = task, 1
            if not under_way:
                return
            (ready,), _ = ray.wait(list(under_way))
            task, attempt = under_way.pop(ready)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise _cause(error, ray.exceptions.RayError) from None
            except ray.exceptions.RayError as error:
                if attempt == ATTEMPTS:
                    raise ClusterError(
                        f"cluster: a task was lost with its worker {ATTEMPTS} times ({type(error).__name__}), most "
                        "often for lack of memory; the same command goes on where it was"
                    ) from None
                under_way[call.remote(shared, task)] = task, attempt + 1
            else:
                yield task, result


def _cause(error: Any, of_ray: type[Exception]) -> Exception:
    """The exception that a Ray task raised; an error of Ray itself means that the worker could not load the task."""
    if isinstance(error.cause, of_ray):
        reason = str(error.cause).partition("\n")[0]
        return ClusterError(f"cluster: a Ray worker cannot load its task ({reason}); is the project on its PYTHONPATH?")
    return error.cause


def _backend(cluster: str) -> AbstractContextManager[None]:
    if cluster == "local":
        return parallel_config("loky", inner_max_num_threads=1)
    if cluster.startswith(("tcp://", "tls://", "ucx://")):
        return _dask(cluster)
    raise ClusterError(f"cluster: got {cluster!r}, expected local, tcp://host:port of a Dask scheduler, or ray")


def fan_out(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, jobs: int, cluster: str = "local"
) -> Iterator[tuple[Task, Result]]:
    """Run a function over tasks in other processes; yields (task, result) as they are ready, each exactly once.

    A task whose worker dies is given to another, so the function must be able to run twice.

    Args:
        function: importable by the workers.
        tasks: its arguments, one per call.
        jobs: processes on this machine (-1: one per core); a cluster uses all of its workers. With 1 on this machine
            everything runs in this process.
        cluster: ``local``, ``tcp://host:port`` of a Dask scheduler, or ``ray``: the cluster that RAY_ADDRESS
            (host:port) names, else the one that includes this machine.

    Raises:
        ClusterError: if the cluster cannot be reached, or workers died :data:`ATTEMPTS` times.
    """
    if cluster == "local" and jobs == 1:
        for task in tasks:
            yield task, function(task)
        return
    if cluster == "ray":
        yield from _over_ray(function, tasks)
        return
    # Only tasks under way, so that a stream of tasks is never in memory as a whole.
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
                        f"jobs: worker processes were killed {ATTEMPTS} times, most often for lack of memory; the same "
                        f"command goes on where it was, lower jobs (now {jobs})"
                    ) from None
