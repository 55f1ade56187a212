"""Processes share what is long, so none waits for another beyond the timeout of collectives."""

import json
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.support.workspace import run_together
from tests.training.engine.slow_ranks import found
from training.engine import processes
from training.engine.processes import share, shared_out


def test_two_processes_give_what_one_gives_however_long_it_takes(bucketed_root, tmp_path, monkeypatch):
    """Encoding and validation take three times the timeout in all, and rank 0 works alone for longer than it."""
    folder = tmp_path / "two"
    folder.mkdir()
    run_together(2, "tests.training.engine.slow_ranks", str(bucketed_root), str(folder), root=tmp_path)
    monkeypatch.setattr("models.vae.latents.PIXELS_AT_ONCE", 1)
    torch.set_num_threads(1)
    alone = found(str(bucketed_root), tmp_path, Accelerator(cpu=True)) | {"alone": "rank 0"}
    for rank in range(2):
        assert json.loads((folder / f"found_{rank}.json").read_text()) == json.loads(json.dumps(alone))


@pytest.mark.parametrize(("items", "world"), [(5, 2), (4, 2), (1, 3), (7, 3), (0, 2)])
def test_every_item_is_worked_on_once_and_all_processes_work_equally_often(items, world, monkeypatch):
    parts, calls = [], []
    monkeypatch.setattr(processes, "gather_object", lambda part: parts.append(part) or part)
    for rank in range(world):
        done = []
        process = SimpleNamespace(process_index=rank, num_processes=world)
        shared_out(range(items), lambda item, done=done: done.append(item) or item * item, process)
        calls.append(len(done))
    assert len(set(calls)) == 1, "a sharded network computes only when all call it"
    assert sorted(pair for part in parts for pair in part) == [(item, item * item) for item in range(items)]


def test_shares_are_the_list():
    worlds = [SimpleNamespace(process_index=rank, num_processes=3) for rank in range(3)]
    assert sorted(chain.from_iterable(share([1, 2, 3, 4, 5], process) for process in worlds)) == [1, 2, 3, 4, 5]
