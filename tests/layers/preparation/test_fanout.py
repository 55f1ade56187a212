import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from distributed import Client, LocalCluster

from config.errors import UserError
from layers.preparation.dataset import prepare_dataset
from layers.preparation.fanout import ClusterError, fan_out
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource
from tests.conftest import write_rendered
from tests.layers.preparation.test_dataset import PREPARATION, content


def square(number):
    return number * number


def dies_once(task):
    folder, number = task
    mark = Path(folder) / f"{number}"
    if number in (3, 8) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def dies(number):
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(number):
    raise UserError(f"task: {number} is odd")


class NotThere:
    def __reduce__(self):
        return __import__, ("not_there",)

    def __call__(self, number):
        return number


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_gives_its_result_once(jobs):
    assert sorted(fan_out(square, range(30), jobs=jobs)) == [(i, i * i) for i in range(30)]
    assert list(fan_out(square, [], jobs=jobs)) == []


def test_a_stream_of_tasks_is_drawn_as_it_is_needed():
    drawn = []

    def tasks():
        for number in range(400):
            drawn.append(number)
            yield number

    results = fan_out(square, tasks(), jobs=2)
    next(results)
    assert len(drawn) < 100
    assert len(list(results)) == 399


def test_tasks_of_a_killed_process_are_done_by_another(tmp_path):
    tasks = [(str(tmp_path), number) for number in range(20)]
    done = [result for _, result in fan_out(dies_once, tasks, jobs=2)]
    assert sorted(done) == list(range(20))
    assert len(list(tmp_path.iterdir())) == 2, "two processes have died, or this test shows nothing"


def test_processes_that_keep_dying_end_it_with_one_sentence():
    with pytest.raises(ClusterError, match=r"killed 3 times.*lower jobs \(now 2\)"):
        list(fan_out(dies, range(4), jobs=2))


def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(fan_out(square, [1], jobs=1, cluster="tcp://127.0.0.1:9"))
    with pytest.raises(ClusterError, match="got 'slurm', expected local"):
        list(fan_out(square, [1], jobs=2, cluster="slurm"))


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as started:
        yield started.scheduler_address


def compare_bytes(folder, cluster, storage, find):
    """Prepare a dataset in this process, then on a cluster, where the process that is found amid the work is killed."""
    for index in range(160):
        write_rendered(folder, f"s{index:03d}", components=1 + index % 3, seed=index)
    source = RenderedSource(Location(folder / "rendered", "rendered_root"), None)
    splits = {name: "val" if index % 10 == 0 else "train" for index, name in enumerate(source.sample_ids())}
    options = {"shard_samples": 8 if storage == "shards" else None}
    prepare_dataset(source, splits, PREPARATION, folder / "here", **options)
    killed = []

    def kill_one(done):
        if done and not killed and (process := find()):
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    summary = prepare_dataset(
        source, splits, PREPARATION, folder / "there", cluster=cluster, progress=kill_one, **options
    )
    assert killed and summary.samples == Counter(train=144, val=16)
    assert content(folder / "there") == content(folder / "here"), "nothing lost, nothing doubled"
    return killed[0]


@pytest.mark.parametrize("storage", ["files", "shards"])
def test_a_dask_cluster_that_loses_a_worker_writes_the_same_bytes(cluster, tmp_path, storage):
    with Client(cluster) as client:
        before = set(client.run(os.getpid).values())
    killed = compare_bytes(tmp_path, cluster, storage, lambda: min(before))
    deadline = time.monotonic() + 30
    with Client(cluster) as client:
        while len(now := set(client.run(os.getpid).values())) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
    assert killed not in now, "the worker is gone, or this test shows nothing"


# `ray start`, with more than the 30 seconds that it gives itself, and ended with the tests that started it.
RAY_START = """
import ctypes, signal, sys, time
from ray._private import services
from ray.scripts.scripts import main

def patient(*arguments):
    for _ in range(1000):
        try:
            return once(*arguments)
        except RuntimeError:
            time.sleep(0.2)

once, services.get_node = services.get_node, patient
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
main()
"""


@pytest.fixture(scope="module")
def ray_cluster():
    """The process under which a Ray cluster of two workers runs; it is at RAY_ADDRESS."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed: 240 MB that nothing else needs")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        patch.delenv("RAY_ADDRESS", raising=False)
        # In /tmp, because the paths of sockets are short.
        patch.setenv("RAY_TMPDIR", folder)
        # Off is loopback alone, on Linux too. Read when ray is imported, so no test does that before this fixture.
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        # Else workers come after everything that this machine does.
        patch.setenv("RAY_worker_niceness", "0")
        address, log = Path(folder, "ray", "ray_current_cluster"), Path(folder, "log")
        command = [sys.executable, "-c", RAY_START, "start", "--head", "--block", "--port=0", "--num-cpus=2"]
        options = ["--object-store-memory=100000000", "--include-dashboard=false", "--disable-usage-stats"]
        with log.open("w") as output:
            started = subprocess.Popen([*command, *options], stdout=output, stderr=output, start_new_session=True)
        family = psutil.Process(started.pid)
        try:
            while not address.is_file() and started.poll() is None:
                time.sleep(0.1)
            assert address.is_file(), log.read_text()
            patch.setenv("RAY_ADDRESS", address.read_text())
            from ray import cloudpickle

            # Else workers import this module, and torch with it, for seconds.
            cloudpickle.register_pickle_by_value(sys.modules[__name__])
            yield family
        finally:
            processes = family.children(recursive=True) if started.poll() is None else []
            started.terminate()
            started.wait(60)
            for process in psutil.wait_procs(processes, timeout=20)[1]:
                process.kill()


def working(ray_cluster):
    """A process that is doing a task."""
    for process in ray_cluster.children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::_call"]:
                return process.pid
    return None


@pytest.mark.parametrize("storage", ["files", "shards"])
def test_a_ray_cluster_that_loses_a_worker_writes_the_same_bytes(ray_cluster, tmp_path, storage):
    killed = compare_bytes(tmp_path, "ray", storage, lambda: working(ray_cluster))
    assert not psutil.pid_exists(killed), "the worker is gone, or this test shows nothing"


def test_tasks_of_a_killed_ray_worker_are_done_by_another(ray_cluster, tmp_path):
    drawn = []

    def tasks():
        for number in range(40):
            drawn.append(number)
            yield str(tmp_path), number

    results = fan_out(dies_once, tasks(), jobs=1, cluster="ray")
    done = [next(results)[1]]
    assert len(drawn) < 20, "a stream of tasks is drawn as it is needed"
    done += [result for _, result in results]
    assert sorted(done) == list(range(40))
    assert len(list(tmp_path.iterdir())) == 2, "two processes have died, or this test shows nothing"


def test_what_a_task_on_ray_raises_is_raised_here(ray_cluster):
    with pytest.raises(UserError, match=r"^task: 3 is odd$"):
        list(fan_out(refuses, [3], jobs=1, cluster="ray"))
    with pytest.raises(ClusterError, match=r"cannot load its task .*No module named 'not_there'"):
        list(fan_out(NotThere(), [3], jobs=1, cluster="ray"))
    assert not sys.modules["ray"].is_initialized()


def test_ray_workers_that_keep_dying_end_it_with_one_sentence(ray_cluster):
    with pytest.raises(ClusterError, match=r"lost with its worker 3 times \(WorkerCrashedError\)"):
        list(fan_out(dies, [1], jobs=1, cluster="ray"))


def test_a_ray_cluster_that_is_not_there_is_named(ray_cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"no Ray cluster answers 127\.0\.0\.1:9 \(.*refused\)"):
        list(fan_out(square, [1], jobs=1, cluster="ray"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match="needs the package ray"):
        list(fan_out(square, [1], jobs=1, cluster="ray"))


def test_nothing_of_this_ray_cluster_listens_beyond_loopback(ray_cluster):
    listening = set()
    for process in [ray_cluster, *ray_cluster.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            sockets = [used for used in process.net_connections("tcp") if used.status == psutil.CONN_LISTEN]
            listening |= {used.laddr.ip.removeprefix("::ffff:") for used in sockets}
    assert listening == {"127.0.0.1"}
