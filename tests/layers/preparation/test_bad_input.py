"""A corpus of bad samples of the default form: each is dropped with its reason, the rest of the set is intact."""

import io
import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from layers.dataset.buckets import BucketLimits
from layers.dataset.loaders import StackDataset
from layers.dataset.manifest import MANIFEST
from layers.preparation.dataset import prepare_dataset
from layers.preparation.sample import Preparation
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource
from tests.conftest import write_rendered
from tests.layers.imaging.test_codec import saved, sixteen_bit_png

PREPARATION = Preparation(BucketLimits(min_side=32, max_side=96, max_pixels=6144, max_aspect=2.3), max_layers=6)
GOOD = ("good1", "good2", "with.dots", "with space", "ümlaut", "n" * 120)


def png_of_size(width, height, more=b""):
    """A PNG whose header promises a size that its data does not hold."""
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(2000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + data + chunk(b"IEND", b"")


def text_bomb():
    packed = zlib.compress(bytes(300_000_000), 9)
    data = b"comment\0\0" + packed
    return png_of_size(
        96, 96, struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    )


def component(data):
    return lambda root, name: (root / "rendered" / name / "component_1.png").write_bytes(data)


def layout(text):
    return lambda root, name: (root / "layouts" / f"{name}.json").write_text(text)


def elsewhere(root, name, what):
    outside = root / "outside"
    outside.mkdir(exist_ok=True)
    Image.new("RGBA", (96, 96), (255, 0, 0, 255)).save(outside / "background.png")
    path = root / "rendered" / name
    if what == "folder":
        shutil.rmtree(path)
        path.symlink_to(outside)
    else:
        (path / "component_1.png").unlink()
        (path / "component_1.png").symlink_to(outside / "background.png")


def link_layout(root, name):
    (root / "secret.json").write_text('{"layout_config": {"components": []}}')
    (root / "layouts" / f"{name}.json").unlink()
    (root / "layouts" / f"{name}.json").symlink_to(root / "secret.json")


def many(root, name, count):
    folder = root / "rendered" / name
    for k in range(count):
        if not (folder / f"component_{k}.png").exists():
            os.link(folder / "background.png", folder / f"component_{k}.png")


def crowded(root, name):
    for k in range(9):
        image = np.zeros((96, 96, 4), np.uint8)
        image[k * 4 : k * 4 + 30, 10:60] = (k * 20, 9, 200, 255)
        Image.fromarray(image).save(root / "rendered" / name / f"component_{k}.png")


good_png = saved(Image.new("RGBA", (96, 96), (9, 9, 9, 200)))
flipped = bytearray(saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 4), dtype=np.uint8))))
flipped[200] ^= 255

CORPUS = {
    "truncated": (component(saved(Image.new("RGBA", (96, 96), (1, 2, 3, 4)))[:90]), "component_1.png: not a readable"),
    "zero_bytes": (component(b""), r"component_1.png: not a readable image \(zero bytes\)"),
    "broken_crc": (component(bytes(flipped)), "component_1.png: not a readable"),
    "not_a_image": (component(b"<svg/>"), "component_1.png: not a readable"),
    "too_little_data": (component(png_of_size(96, 96)), "component_1.png: not a readable"),
    "text_bomb": (component(text_bomb()), "component_1.png: not a readable"),
    "wrong_size": (component(saved(Image.new("RGBA", (95, 96), (1, 1, 1, 255)))), "size"),
    "sixteen_bit_grey": (component(saved(Image.fromarray(np.full((96, 96), 5, np.uint16)))), "mode I;16"),
    "sixteen_bit_rgba": (component(sixteen_bit_png()), "RGBA of 16 bits"),
    "palette": (component(saved(Image.new("P", (96, 96)))), "mode P, expected 8-bit RGBA, RGB, LA, L"),
    "cmyk": (component(saved(Image.new("CMYK", (96, 96)), format="JPEG")), "mode CMYK"),
    "float": (component(saved(Image.new("F", (96, 96)), format="TIFF")), "mode F"),
    "bomb": (component(png_of_size(60_000, 60_000)), "component_1.png: .*above 64000000 pixels"),
    "broken_json": (layout('{"layout_config": {'), "broken_json.json: not valid JSON"),
    "nested_json": (layout("[" * 200_000), "nested_json.json: not valid JSON"),
    "not_utf8_json": (
        lambda root, name: (root / "layouts" / f"{name}.json").write_bytes(b'{"a": "\xff\xfe"}'),
        "not_utf8_json.json: not valid JSON",
    ),
    "missing_keys": (layout("{}"), "no list layout_config.components"),
    "wrong_types": (layout('{"layout_config": {"components": "many"}}'), "no list layout_config.components"),
    "nan_geometry": (
        layout('{"layout_config": {"components": [{"style": {"left": NaN, "width": Infinity}}]}}'),
        "nan_geometry.json: not valid JSON .*NaN",
    ),
    "link_out": (lambda root, name: elsewhere(root, name, "file"), "points outside"),
    "linked_folder": (lambda root, name: elsewhere(root, name, "folder"), "points outside"),
    "linked_layout": (link_layout, "points outside"),
    "no_background": (lambda root, name: (root / "rendered" / name / "background.png").unlink(), "no background"),
    "no_layers": (
        lambda root, name: shutil.rmtree(root / "rendered" / name) or (root / "rendered" / name).mkdir(),
        "no back",
    ),
    "folder_for_a_file": (
        lambda root, name: (
            (root / "rendered" / name / "background.png").unlink()
            or (root / "rendered" / name / "background.png").mkdir()
        ),
        "no background|cannot be read",
    ),
    "500_layers": (lambda root, name: many(root, name, 500), "50[01] .*500"),
    "nine_layers": (crowded, "10 layers, more than max_layers 6"),
    "all_clear": (
        lambda root, name: [
            Image.new("RGBA", (96, 96), (255, 0, 0, 0)).save(path) for path in (root / "rendered" / name).glob("*.png")
        ],
        "every layer is empty",
    ),
    "too_small": (lambda root, name: write_over(root, name, (20, 20)), "fits no bucket"),
    "too_long": (lambda root, name: write_over(root, name, (400, 100)), r"aspect 4\.00"),
}


def write_over(root, name, size):
    shutil.rmtree(root / "rendered" / name)
    write_rendered(root, name, size=size)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for index, name in enumerate([*GOOD, *CORPUS]):
        write_rendered(root, name, components=1, seed=index)
    for name, (spoil, _) in CORPUS.items():
        spoil(root, name)
    (root / "rendered" / os.fsdecode(b"\xff\xfe")).mkdir()
    (root / "rendered" / "stray.txt").write_text("not a sample")
    return root


@pytest.mark.parametrize(("storage", "jobs"), [("files", 1), ("shards", 2)])
def test_each_is_dropped_with_its_reason_and_the_rest_is_intact(corpus, tmp_path, storage, jobs):
    source = RenderedSource(Location(corpus / "rendered", "rendered_root"), Location(corpus / "layouts", "layout_root"))
    splits = dict.fromkeys(source.sample_ids(), "train")
    samples = 256 if storage == "shards" else None
    summary = prepare_dataset(source, splits, PREPARATION, tmp_path / "set", shard_samples=samples, jobs=jobs)
    manifest = json.loads((tmp_path / "set" / MANIFEST).read_text())
    assert {record["id"] for record in manifest["samples"]} == set(GOOD)
    reasons = {record["id"]: record["reason"] for record in manifest["dropped"]}
    assert reasons.keys() == {*CORPUS, "\\udcff\\udcfe"}
    for name, (_, pattern) in CORPUS.items():
        with pytest.raises(AssertionError, match=pattern):
            raise AssertionError(reasons[name])
        assert "the reader failed" not in reasons[name] and len(reasons[name]) < 300 and "\n" not in reasons[name]
    assert summary.samples["train"] == len(GOOD) and summary.dropped == len(reasons)

    dataset = StackDataset(tmp_path / "set", "train")
    for index in range(len(dataset)):
        item = dataset[index]
        assert item["skipped"] == [] and item["layers"].shape == (2, 4, 64, 64)
        with Image.open(corpus / "rendered" / item["id"] / "background.png") as image:
            mean = np.asarray(image)[..., :3].mean() / 127.5 - 1
        assert abs(float(item["layers"][0, :3].mean()) - mean) < 0.02


def test_names_that_lead_out_are_refused(corpus):
    source = RenderedSource(Location(corpus / "rendered", "rendered_root"), None)
    for name in ("../outside", "/etc", "good1/../../outside", "..", "good1\0"):
        with pytest.raises(ValueError, match=r"points outside|no background"):
            source.read(name)


def test_an_image_is_read_as_pillow_saves_it():
    with Image.open(io.BytesIO(good_png)) as image:
        assert image.getpixel((0, 0)) == (9, 9, 9, 200)
