"""README and docs are true: every command in them is run, on few samples, or it is said why not.

The clone has this checkout's files and the default parameters but for sizes (``SMALLER``); the first command,
``make repro``, fills it, and the others go on from there in the order of :mod:`tests.support.documented`.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from models.transformer.trained_for import TrainedFor, save_trained_for
from tests.layers.sources.crello.designs import design, element, noise, plain, save
from tests.support.documented import (
    NOT_RUN,
    PYTHON,
    RUN,
    SERVE,
    documented,
    python_blocks,
    typed_lines,
    within_sentences,
)
from tests.support.forked import run_forked
from tests.support.imports import ROOT
from tests.support.networks import tiny_transformer, tiny_vae
from tests.support.released import WIDTH, write_text_encoder
from tests.support.servers import free_port
from tests.support.workspace import TIMEOUT, environment, make_clone

BLOCKS = python_blocks(ROOT)
# The one shell command that asks a server.
REQUEST = next((line for line in documented(ROOT) if line.startswith("python - <<")), "")
ASKED = ("make serve", "mlflow models serve")
ADDRESS = "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000"


def unlisted(found: set[str], *tables: dict) -> tuple[set[str], set[str]]:
    """Commands that are in no table, and entries of tables that no document has."""
    listed = {line for table in tables for line in table}
    return found - listed, listed - found


def test_commands_are_found_where_a_reader_sees_them():
    text = "\n".join([
        "Say `make it` or `python -m stages.one\n--flag`; `refine` and `dvc repro` are names.",
        "```bash", "# a comment", "dvc repro  # what has changed", "one \\", "  two # three", "echo 'a#b'",
        "python - <<'END'", "x = 1  # kept", "END", "last; command", "```",
        "```python", "make = 1", "```",
        "```console", "$ dvc exp show", "| a table |", "```",
        "```", "bare", "```",
        "```text", "stages/  what runs", "```",
    ])  # fmt: skip
    fenced = ["dvc repro", "one two", "echo 'a#b'", "python - <<'END'\nx = 1  # kept\nEND", "last; command"]
    assert typed_lines(text) == [*fenced, "dvc exp show", "bare"]
    assert within_sentences(text) == ["make it", "python -m stages.one --flag"]


def test_a_command_or_an_entry_that_is_alone_is_noticed(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("```bash\nmake new\n```\n`python -m a` is a name of `python -m a --flag`.\n")
    (tmp_path / "docs" / "a.md").write_text("```sh\nmake old\n```\n")
    (tmp_path / "docs" / "log.md").write_text("`make history`\n```bash\nmake day\n```\n")
    found = documented(tmp_path)
    assert found == {"make new", "make old", "make day", "python -m a --flag"}
    tables = {"make old": "", "make day": ""}, {"python -m a --flag": "", "make gone": ""}
    assert unlisted(found, *tables) == ({"make new"}, {"make gone"})


def test_every_documented_command_is_run_or_has_a_reason():
    missing, gone = unlisted(documented(ROOT), RUN, SERVE, NOT_RUN, {REQUEST: "", ADDRESS: ""})
    assert not missing, "say in tests/support/documented.py how it is run, or why not"
    assert not gone, "in tests/support/documented.py, but in no document"
    assert len(RUN) + len(SERVE) + len(NOT_RUN) == len(RUN | SERVE | NOT_RUN), "in one table only"
    assert set(BLOCKS) == set(PYTHON)
    assert all(NOT_RUN.values())


def _poster(path: Path) -> None:
    image = Image.new("RGB", (120, 80), (240, 220, 180))
    ImageDraw.Draw(image).ellipse((10, 15, 55, 60), fill=(200, 40, 60))
    image.save(path)


def _released(root: Path) -> None:
    """A model of some thousand weights in the layout of the released one."""
    write_text_encoder(root)
    tiny_transformer(joint_attention_dim=WIDTH).save_pretrained(root / "transformer")
    tiny_vae().save_pretrained(root / "vae")
    shutil.copytree(ROOT / "models/pretrained/model/scheduler", root / "scheduler")
    # What the released one does not say of itself: its images are of 640 pixels.
    save_trained_for(TrainedFor(min_side=32, max_side=96, max_pixels=6144, surplus_layers=3), root)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone in which nothing has run, with what a reader brings along, and the ports of its Makefile to choose."""
    root = make_clone(tmp_path_factory.mktemp("documented") / "clone")
    makefile = (root / "Makefile").read_text()
    for command in ("-m stages.serve", "-m stages.app"):
        assert makefile.count(f"{command}\n") == 1
        makefile = makefile.replace(command, f"{command} --port $(PORT)")
    assert makefile.count("--port 5000") == 1
    (root / "Makefile").write_text(makefile.replace("--port 5000", "--port $(PORT)"))
    brought = ("poster.png", "poster.jpg", "released", "theirs", "crello")
    with (root / ".git" / "info" / "exclude").open("a") as file:
        file.write("\n".join(["/.venv", *(f"/{name}" for name in brought)]) + "\n")
    (root / ".venv").symlink_to(sys.prefix)
    for name in brought[:2]:
        _poster(root / name)
    _released(root / "released")
    layers = [element(plain((200, 180, 90), 60, 90)), element(noise(20, 30, alpha=255), left=10.0, top=10.0)]
    designs = [design(*layers, width=90, height=60, sample_id=name) for name in "ab"]
    save(root / "crello" / "data" / "test-00000-of-00001.parquet", *designs)
    return root


def surroundings(clone: Path) -> dict[str, str]:
    """Environment of a reader's shell in the clone; one worker a server."""
    env = environment(clone, PYTHONPATH=None, DVC_ROOT=None, MLFLOW_WORKERS="1", OMP_NUM_THREADS="1")
    return env | {"PATH": f"{clone / '.venv' / 'bin'}{os.pathsep}{env['PATH']}"}


def typed(clone: Path, line: str) -> str:
    """Run a line in the clone and give what it says; a module in a process that has its libraries already."""
    # The packages are there: make has nothing to install.
    line = re.sub(r"^make ", "make -o .venv/.ready ", line)
    env = surroundings(clone)
    # Benchmarks start processes of their own, which a forked one waits for in vain.
    if re.match(r"python -m (?!benchmarks)[^;&|]+$", line):
        result = run_forked(shlex.split(line)[2:], clone, env | {"PYTHONPATH": str(clone)}, TIMEOUT)
    else:
        result = subprocess.run(
            ["bash", "-c", line], cwd=clone, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    said = f"{result.stdout}\n{result.stderr}"
    assert result.returncode == 0, f"{line} ended with {result.returncode}:\n{said}"
    return said


def replaced(line: str, values: dict[str, str]) -> str:
    """A command with values in the place of placeholders; each must be there."""
    for name, value in values.items():
        assert name in line, f"{name} is not in {line}"
        line = line.replace(name, value)
    return line


def _true_layers(clone: Path) -> None:
    """What evaluate takes of others, ``theirs/<id>/<k>.png``: the true layers of the images."""
    manifest = json.loads((clone / "data/rgba_layers/metadata/manifest.json").read_text())
    for sample in (sample for sample in manifest["samples"] if sample["split"] == "val"):
        folder = clone / "theirs" / sample["id"]
        folder.mkdir(parents=True)
        for path in (clone / "data/rgba_layers/val" / sample["bucket"]).glob(f"{sample['id']}_comp???.png"):
            shutil.copy(path, folder / f"{path.stem[-3:]}.png")


@pytest.mark.pipeline
@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_does_what_is_said(clone, line):
    how = RUN[line]
    before = {path: path.stat().st_mtime_ns for path in clone.glob(how.leaves)} if how.leaves else {}
    said = typed(clone, replaced(line, how.replace))
    assert how.says in said
    if how.leaves:
        after = {path: path.stat().st_mtime_ns for path in clone.glob(how.leaves)}
        assert after and after != before, f"{how.leaves} is not written"
    if line == "make repro":
        _true_layers(clone)
    if how.after:
        typed(clone, how.after)


@pytest.mark.pipeline
@pytest.mark.parametrize("name", PYTHON)
def test_a_documented_program_runs_as_it_stands(clone, name):
    values, check = PYTHON[name]
    program = BLOCKS[name]
    if program.startswith(">>> "):
        # A session: what is typed, without what it answered then.
        program = "\n".join(line[4:] for line in program.splitlines() if line.startswith((">>> ", "... ")))
    module = f"documented_{name.replace('.md ', '_')}"
    # Loaders start processes that import the program.
    guarded = textwrap.indent(f"{replaced(program, values)}\n{check}\n", "    ")
    (clone / f"{module}.py").write_text(f"if __name__ == '__main__':\n{guarded}")
    typed(clone, f"python -m {module}")


@pytest.fixture(scope="module")
def servers(clone):
    """All documented servers, started together; the port of each."""
    ports, processes = {line: free_port() for line in SERVE}, []
    try:
        for number, line in enumerate(SERVE):
            port = str(ports[line])
            values = {name: re.sub("PORT$", port, value) for name, value in SERVE[line].replace.items()}
            command = re.sub(r"^make ", "make -o .venv/.ready ", replaced(line, values))
            with (clone.parent / f"server_{number}.txt").open("w") as log:
                processes.append(subprocess.Popen(
                    ["bash", "-c", command], cwd=clone, env=surroundings(clone), stdout=log, stderr=log,
                    start_new_session=True,
                ))  # fmt: skip
        yield {line: (ports[line], process) for line, process in zip(SERVE, processes, strict=True)}
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


@pytest.mark.pipeline
@pytest.mark.parametrize("line", SERVE)
def test_a_documented_server_answers(clone, servers, line):
    port, process = servers[line]
    log = clone.parent / f"server_{list(SERVE).index(line)}.txt"
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            answer = urllib.request.urlopen(f"http://127.0.0.1:{port}{SERVE[line].path}", timeout=20).read().decode()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.25)
    assert SERVE[line].says in answer


@pytest.mark.pipeline
@pytest.mark.parametrize("server", ASKED)
def test_the_documented_request_gets_layers(clone, servers, server):
    (port,) = (port for line, (port, _) in servers.items() if line.startswith(server))
    for path in clone.glob("layer_?.png"):
        path.unlink()
    typed(clone, replaced(REQUEST, {":5001/": f":{port}/"}))
    layers = [Image.open(path) for path in sorted(clone.glob("layer_?.png"))]
    assert [layer.size for layer in layers] == [(120, 80)] * 4 and {layer.mode for layer in layers} == {"RGBA"}


@pytest.mark.pipeline
def test_the_documented_address_reaches_a_server(clone, servers):
    (port,) = (port for command, (port, _) in servers.items() if command.startswith("mlflow server"))
    assert "Default" in typed(clone, f"{replaced(ADDRESS, {'5000': str(port)})} && mlflow experiments search")
