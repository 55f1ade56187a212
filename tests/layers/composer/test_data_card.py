"""docs/data_card.md tells the counts of the report, of the parameters and of the assets."""

import json
import re

import pytest

from config.params import load_params
from layers.composer.assets import FACES, POOLS, objects, photos, textures
from layers.composer.compose import _LAYOUTS, LAYER_COUNTS
from layers.composer.words import THEMES
from tests.support.imports import ROOT

CARD = (ROOT / "docs" / "data_card.md").read_text()
REPORT = json.loads((ROOT / "metrics" / "reports" / "prepare_buckets.json").read_text())
DEFAULT = load_params(ROOT / "params.yaml").prepare_buckets


def row(name):
    """The cells behind the first row that begins with a name, numbers as numbers."""
    cells = re.search(rf"^\| {name} \| (.*) \|$", CARD, re.MULTILINE)[1].split(" | ")
    return [int(cell.replace(",", "")) if cell.replace(",", "").isdigit() else cell for cell in cells]


def layers(split):
    """Designs of a split by how many layers they have."""
    return [
        sum(
            count for name, count in REPORT["buckets"].items() if name.startswith(split) and name.endswith(f"-l{depth}")
        )
        for depth in LAYER_COUNTS
    ]


@pytest.mark.skipif(DEFAULT.source != "composer", reason="the set that is prepared is another one")
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_splits_are_those_of_the_report_and_the_parameters(split):
    said = row(split)
    assert said[0] == REPORT["samples"][split] == getattr(DEFAULT, f"{split}_count")
    assert said[1:6] == layers(split) and sum(said[1:6]) == said[0]
    assert said[6] == (DEFAULT.composer.test_seed if split == "test" else DEFAULT.composer.seed)
    assert not REPORT["dropped"] and REPORT["in_several_splits"] == 0 and DEFAULT.composer.assets == "train"


@pytest.mark.parametrize("pool", POOLS)
def test_pools_are_those_of_the_composer(pool):
    shown = sum(len(objects(theme, pool)) for theme in THEMES)
    faces = {(face.package, face.path) for face in FACES.values() if face.pool == pool}
    assert row(f"`{pool}`")[:4] == [shown, len(photos(pool)), len(textures(pool)), len(faces)]


def test_what_is_kept_apart_is_named():
    assert row("photographs")[:2] == [", ".join(photos("held_out")), ", ".join(photos("test"))]
    assert row("textures")[:2] == [", ".join(textures("held_out")), ", ".join(textures("test"))]


def test_numbers_in_sentences():
    text = " ".join(CARD.split())
    deep = [sum(layers(split)[-2:]) for split in ("train", "test")]
    assert f"{deep[0]} of 1,600 in training, {deep[1]} of 96 in the test split" in text
    assert len(_LAYOUTS) == 12 and len(THEMES) == 15 and "Twelve layouts, fifteen themes" in text
    assert sum(len(photos(pool)) for pool in POOLS) == 11 and sum(len(textures(pool)) for pool in POOLS) == 4
    assert f"of {DEFAULT.composer.size} px a side" in text and f"of {DEFAULT.min_side} to {DEFAULT.max_side} px" in text
