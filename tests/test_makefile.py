"""make in a clone whose folder has a name of any kind; programs of the environment are stubs."""

import os
import shutil
import subprocess

import pytest

from tests.support.imports import ROOT

STUB = '#!/bin/sh\necho "$(basename "$0") $@" >> "{}"\n'


@pytest.mark.parametrize("name", ["a clone", "it's", "a#b", "a (1)"])
def test_targets_run_what_lies_in_the_clone(tmp_path, name):
    root = tmp_path / name
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    for file in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / file, root)
    (root / ".venv" / ".ready").touch()
    for program in ("python", "dvc", "ruff", "lint-imports", "codespell", "mlflow"):
        (programs / program).write_text(STUB.format(tmp_path / "log"))
        (programs / program).chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    subprocess.run(["make", "lint", "repro", "ui", "serve", "app"], cwd=root, env=env, check=True, capture_output=True)
    assert (tmp_path / "log").read_text().splitlines() == [
        "ruff check .",
        "ruff format --check .",
        "lint-imports --no-cache",
        "codespell ",
        "dvc repro",
        "python -m tracking.spool",
        "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --host 127.0.0.1 --port 5000",
        "python -m stages.serve",
        "python -m stages.app",
    ]
