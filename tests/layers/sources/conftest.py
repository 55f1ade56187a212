"""Fixtures of the sources' tests: data folders that several files read."""

import pytest

from tests.layers.sources.crello.designs import many, save
from tests.layers.sources.lica.folders import LAYOUT, image, write


@pytest.fixture
def dataset(tmp_path):
    """Seventeen Crello designs in four files of three splits, and a leftover in a cache."""
    save(tmp_path / "data" / "train-00000-of-00002.parquet", *many(7), group_rows=3)
    save(tmp_path / "data" / "train-00001-of-00002.parquet", *many(5, 7), group_rows=2)
    save(tmp_path / "data" / "validation-00000-of-00001.parquet", *many(2, 12))
    save(tmp_path / "data" / "test-00000-of-00001.parquet", *many(3, 14))
    save(tmp_path / ".cache" / "train-00000-of-00002.parquet", *many(1, 99))
    return tmp_path


@pytest.fixture
def root(tmp_path):
    """A LICA folder: two layouts of two templates, one annotated, and the image of both."""
    folder = tmp_path / "lica-data"
    write(
        folder / "metadata.csv", b"layout_id,category,template_id,width,height\nL1,Flyers,T1,60,40\nL0,Cards,T2,60,40\n"
    )
    write(folder / "layouts/T1/L1.json", LAYOUT)
    write(folder / "layouts/T2/L0.json", LAYOUT)
    write(folder / "annotations/T1/L1.json", {"description": "a cat on a hill", "user_intent": "to amuse"})
    write(folder / "assets/cat.png", image((255, 0, 0, 255)))
    return folder
