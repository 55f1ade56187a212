"""The peak is in bytes wherever it is asked for."""

import builtins
import importlib
import sys
from types import SimpleNamespace

import psutil
import pytest

from inference import process_memory
from tests.support.imports import ROOMS


def test_it_is_no_less_than_what_is_there_now():
    assert psutil.Process().memory_info().rss * 0.5 < process_memory.process_peak() < psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("platform", "expected"), [("linux", 2048 * 1024), ("darwin", 2048), ("freebsd14", 2048 * 1024)]
)
def test_each_system_counts_in_a_unit_of_its_own(monkeypatch, platform, expected):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=2048))
    monkeypatch.setattr(process_memory, "resource", usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert process_memory.process_peak() == expected


def test_windows_has_no_module_for_it(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "resource":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=4096))
    monkeypatch.setattr(psutil, "Process", lambda: windows)
    try:
        assert importlib.reload(process_memory).process_peak() == 4096
    finally:
        monkeypatch.undo()
        importlib.reload(process_memory)


def test_nothing_else_asks_for_it(pytestconfig):
    files = [path for room in ("benchmarks", *ROOMS) for path in (pytestconfig.rootpath / room).rglob("*.py")]
    assert [path.name for path in files if "import resource" in path.read_text()] == ["process_memory.py"]
