import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config.errors import UserError
from layers.files import LockedError, locked, put_folder, whole_file, write_whole

HOLD = (
    # A test run in the background ignores interrupts, and so would its children.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "import sys, time; from pathlib import Path\n"
    "from layers.files import locked\n"
    "with locked(Path(sys.argv[1]), 'x'):\n"
    "    print('held', flush=True); time.sleep(float(sys.argv[2]))\n"
)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def steps(monkeypatch):
    """What is told to the disk, in order."""
    found = []
    paths = {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename")}

    def opened(path, *rest, **more):
        handle = real["open"](path, *rest, **more)
        paths[handle] = Path(path)
        return handle

    def synced(handle):
        found.append(("fsync", paths[handle].suffix or paths[handle].name))
        real["fsync"](handle)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)
    for name in ("replace", "rename"):
        monkeypatch.setattr(
            os, name, lambda *given, name=name: (found.append(("name", Path(given[1]).name)), real[name](*given))
        )
    return found


@pytest.mark.parametrize("alone", [True, False])
def test_a_file_is_on_the_disk_before_it_gets_its_name_and_then_the_name(tmp_path, steps, alone):
    write_whole(tmp_path / "home" / "file.bin", b"words", alone=alone)
    assert steps == [("fsync", ".part"), ("name", "file.bin"), ("fsync", "home")]
    assert (tmp_path / "home" / "file.bin").read_bytes() == b"words" and names(tmp_path / "home") == ["file.bin"]
    assert (tmp_path / "home" / "file.bin").stat().st_mode & 0o777 == 0o644


def test_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, steps):
    (tmp_path / "new.part" / "deep").mkdir(parents=True)
    (tmp_path / "new.part" / "deep" / "a.bin").write_bytes(b"1")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "old.bin").write_bytes(b"0")
    put_folder(tmp_path / "new.part", tmp_path / "new")
    assert [what for what, _ in steps] == ["fsync", "fsync", "fsync", "name", "fsync"]
    assert names(tmp_path) == ["new", "new/deep", "new/deep/a.bin"]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, fault, alone):
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(type(fault)), whole_file(tmp_path / "file", alone=alone) as part:
        part.write_bytes(b"ha")
        raise fault
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"before"


def test_what_a_kill_left_is_taken_by_the_next_write(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from layers.files import whole_file\n"
        "with whole_file(Path(sys.argv[1]), alone=True) as part:\n"
        "    part.write_bytes(b'torn'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert names(tmp_path) == [".file.part"]
    write_whole(tmp_path / "file", b"whole", alone=True)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lock_ends_with_its_process(tmp_path, end):
    path = tmp_path / "deep" / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path), "60"], stdout=subprocess.PIPE, stderr=-3) as process:
        process.stdout.readline()
        match = r"^a run is under way and holds \S+a.lock; wait until it ends, or end it$"
        with pytest.raises(LockedError, match=match), locked(path, "a run"):
            pass
        process.send_signal(end)
        process.wait()
    with locked(path, "a run"):
        pass
    assert not path.exists() and issubclass(LockedError, UserError)


def test_processes_forked_from_a_killed_one_do_not_hold_its_lock(tmp_path):
    """As the workers of a data loader, which outlive it for some seconds."""
    script = (
        "import os, sys, time; from pathlib import Path\n"
        "from layers.files import locked\n"
        "with locked(Path(sys.argv[1]), 'x'):\n"
        "    ready, tell = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0: os.write(tell, b'x'); time.sleep(30); os._exit(0)\n"
        "    os.read(ready, 1)\n"
        "    print(child, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a")], stdout=subprocess.PIPE)
    child = int(done.stdout.readline())
    done.wait()
    try:
        os.kill(child, 0)
        with locked(tmp_path / "a", "a run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_who_waits_goes_on_when_the_other_ends(tmp_path, capsys):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a"), "1"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with locked(tmp_path / "a", "a run", wait=True):
            assert process.wait() == 0
    assert capsys.readouterr().out == "a run is under way: waiting for it\n"


def _count(path, times):
    for _ in range(times):
        with locked(path.with_suffix(".lock"), "x", wait=True):
            value = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(value + 1))


def test_nobody_enters_beside_another_though_lock_files_come_and_go(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(path, 20)) for _ in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert path.read_text() == "80"


def test_a_file_system_that_cannot_lock_is_one_sentence(tmp_path, monkeypatch):
    import fcntl

    def refuse(handle, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    match = r"cannot be locked \(No locks available\); expected a folder that can$"
    with pytest.raises(LockedError, match=match), locked(tmp_path / "a", "a run"):
        pass
