"""Shared fixtures: small rendered datasets made of plain shapes; as many threads as there are cores to spare."""

import json
import os
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

SLOW = ("stages", "tests", "training")


def pytest_collection_modifyitems(items):
    """The folders whose files take minutes first: quick files then fill up what is left of each process's time."""
    items.sort(key=lambda item: item.path.parent.name not in SLOW)


@pytest.fixture(autouse=True, scope="session")
def threads():
    # One where test files run side by side (Makefile): threads of processes that share cores wait for each other.
    torch.set_num_threads(min(int(os.environ.get("OMP_NUM_THREADS", "2")), os.cpu_count() or 1))


def write_rendered(root: Path, sample_id: str, size=(96, 96), components: int = 2, seed: int = 0) -> None:
    """Write one sample of the rendered form: a gradient and overlapping soft discs."""
    width, height = size
    rng = np.random.default_rng(seed)
    folder = root / "rendered" / sample_id
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 1, height)[:, None, None] * np.ones((1, width, 1))
    low, high = rng.integers(0, 255, (2, 3))
    background = np.concatenate([low + ramp * (high - low), np.full((height, width, 1), 255)], axis=2).astype(np.uint8)
    Image.fromarray(background).save(folder / "background.png")
    entries = []
    for k in range(components):
        image = Image.new("RGBA", (width, height))
        cx, cy = width * 0.5 + rng.integers(-8, 8), height * 0.5 + rng.integers(-8, 8)
        radius = min(size) * (0.4 - 0.08 * k)
        ImageDraw.Draw(image).ellipse(
            (cx - radius, cy - radius, cx + radius, cy + radius), fill=(*map(int, rng.integers(0, 255, 3)), 255)
        )
        image.save(folder / f"component_{k + 1}.png")
        entries.append({"type": "IMAGE", "style": {}, "element": {"description": f"disc {k}"}})
    layouts = root / "layouts"
    layouts.mkdir(exist_ok=True)
    layout = {
        "layout_config": {"width": width, "height": height, "components": entries},
        "layout_semantic_description": {"description": f"{components} discs"},
    }
    (layouts / f"{sample_id}.json").write_text(json.dumps(layout))


@pytest.fixture(scope="session")
def rendered_root(tmp_path_factory) -> Path:
    """Twelve samples: two sizes, one to three discs."""
    root = tmp_path_factory.mktemp("designs")
    for index in range(12):
        write_rendered(
            root, f"sample{index:02d}", size=((96, 96), (144, 96))[index % 2], components=1 + index % 3, seed=index
        )
    return root


@pytest.fixture(scope="session")
def bucketed_root(rendered_root, tmp_path_factory) -> Path:
    """The same twelve, bucketed: eight for training, four for validation, with a manifest."""
    from layers.dataset.buckets import BucketLimits
    from layers.preparation.dataset import prepare_dataset
    from layers.preparation.sample import Preparation
    from layers.sources.location import Location
    from layers.sources.rendered import RenderedSource

    root = tmp_path_factory.mktemp("prepared") / "rgba_layers"
    source = RenderedSource(
        Location(rendered_root / "rendered", "rendered_root"), Location(rendered_root / "layouts", "layout_root")
    )
    splits = {name: "train" if index < 8 else "val" for index, name in enumerate(source.sample_ids())}
    limits = BucketLimits(min_side=32, max_side=96, max_pixels=6144, max_aspect=2.3)
    prepare_dataset(source, splits, Preparation(limits, max_layers=6), root)
    return root
