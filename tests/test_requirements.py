"""Plain pip installs requirements.txt, on the Pythons that pyproject.toml names and README and Makefile repeat."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(PROJECT["project"]["requires-python"])]


def pins() -> list[Requirement]:
    """The lines of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]


def test_pips_own_resolver_accepts_the_file(tmp_path):
    """Everything is installed, so that pip has but to see whether it fits together; it asks no index."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", str(ROOT / "requirements.txt")]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    assert "Would install" not in found.stdout, found.stdout[-2000:]


def test_no_override_helps_one_installer_only():
    assert "uv" not in PROJECT["tool"] and "--override" not in (ROOT / "requirements.txt").read_text()


def test_every_package_admits_every_python():
    assert PYTHONS == ["3.11", "3.12", "3.13"]
    for pin in pins():
        try:
            wanted = distribution(pin.name).metadata.get("Requires-Python")
        except PackageNotFoundError:
            assert pin.marker is not None and not pin.marker.evaluate(), f"{pin} is not installed"
            continue
        refused = [python for python in PYTHONS if f"{python}.9" not in SpecifierSet(wanted or "")]
        assert not refused or pin.marker, f"{pin} wants Python {wanted}"


def test_the_readme_names_the_same_pythons():
    said = " or ".join([", ".join(PYTHONS[:-1]), PYTHONS[-1]])
    assert f"Python {said}" in (ROOT / "README.md").read_text()
    others = re.findall(r"Python 3\.\d+[^.]{0,20}newer", (ROOT / "README.md").read_text())
    assert not others


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 11, 0), (3, 13, 5), (3, 14, 0)])
def test_make_says_which_python_it_needs(tmp_path, version):
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    # Stands for an interpreter of that version: it runs the check, and fails where the environment would be made.
    python = tmp_path / "python"
    code = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{code}" "$2"\nexit 1\n')
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", "setup"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    fits = f"3.{version[1]}" in PYTHONS
    assert ("-m venv .venv" in found.stdout) == fits
    assert ("error: Python 3.11 to 3.13 is needed" in found.stderr) != fits, found.stderr
