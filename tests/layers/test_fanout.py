import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from layers.fanout import ClusterError, fan_out
from layers.prepare_dataset import prepare_dataset
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource
from tests.conftest import write_rendered
from tests.layers.test_prepare_dataset import PREPARATION, content


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


@pytest.mark.parametrize("storage", ["files", "shards"])
def test_a_dask_cluster_that_loses_a_worker_writes_the_same_bytes(cluster, tmp_path, storage):
    for index in range(160):
        write_rendered(tmp_path, f"s{index:03d}", components=1 + index % 3, seed=index)
    source = RenderedSource(Location(tmp_path / "rendered", "rendered_root"), None)
    splits = {name: "val" if index % 10 == 0 else "train" for index, name in enumerate(source.sample_ids())}
    options = {"storage": storage, "shard_samples": 8}
    prepare_dataset(source, splits, PREPARATION, tmp_path / "here", **options)

    with Client(cluster) as client:
        before = set(client.run(os.getpid).values())
    killed = []

    def kill_one(done):
        if done and not killed:
            killed.append(min(before))
            os.kill(killed[0], signal.SIGKILL)

    summary = prepare_dataset(
        source, splits, PREPARATION, tmp_path / "there", cluster=cluster, progress=kill_one, **options
    )
    assert killed and summary.samples == Counter(train=144, val=16)
    deadline = time.monotonic() + 30
    with Client(cluster) as client:
        while len(now := set(client.run(os.getpid).values())) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
    assert killed[0] not in now, "the worker is gone, or this test shows nothing"
    assert content(tmp_path / "there") == content(tmp_path / "here"), "nothing lost, nothing doubled"
