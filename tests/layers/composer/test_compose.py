"""The composer: deterministic, well-formed layers, and the dataset form it writes."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layers.composer import assets, text
from layers.composer.compose import compose, sample_id
from layers.composer.palette import MODES, contrast, luminance, oklch, palette, to_oklch
from layers.composer.words import THEMES
from layers.composer.writer import write_dataset
from layers.imaging.compositing import composite, to_float
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource

SIZE = 192
ROOT = Path(__file__).parents[3]


def digest(sample) -> str:
    return hashlib.sha256(b"".join(layer.image.tobytes() for layer in sample.layers)).hexdigest()


@pytest.fixture(scope="module")
def samples():
    return [compose(index, seed=5, size=SIZE) for index in range(200)]


def test_same_index_is_same_image_in_any_order(samples):
    for index in (37, 3, 120):
        again = compose(index, seed=5, size=SIZE)
        assert digest(again) == digest(samples[index])
        assert again.caption == samples[index].caption
        assert again.sample_id == samples[index].sample_id


def test_same_image_in_another_process(samples):
    code = (
        "import hashlib\n"
        "from layers.composer.compose import compose\n"
        f"sample = compose(41, seed=5, size={SIZE})\n"
        "print(hashlib.sha256(b''.join(layer.image.tobytes() for layer in sample.layers)).hexdigest())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == digest(samples[41])


def test_seed_size_and_pool_matter(samples):
    one = samples[0]
    others = [
        compose(0, seed=6, size=SIZE),
        compose(0, seed=5, size=SIZE + 6),
        compose(0, seed=5, size=SIZE, pool="held_out"),
    ]
    assert len({digest(sample) for sample in (one, *others)}) == 4
    assert len({sample.sample_id for sample in (one, *others)}) == 4
    assert len({digest(sample) for sample in samples}) == len(samples)


def test_sample_id_is_twenty_letters_and_digits(samples):
    for sample in samples:
        assert len(sample.sample_id) == 20
        assert sample.sample_id.isascii() and sample.sample_id.isalnum()


def test_layer_counts_two_to_six_all_occur(samples):
    counts = Counter(len(sample.layers) for sample in samples)
    assert set(counts) == {2, 3, 4, 5, 6}
    assert min(counts.values()) >= 8


def test_kinds_and_canvases_all_occur(samples):
    kinds = Counter(layer.kind for sample in samples for layer in sample.layers)
    assert set(kinds) == {"background", "image", "shape", "text", "shadow", "group"}
    assert {sample.size for sample in samples} == {(SIZE, SIZE), (SIZE * 2 // 3, SIZE), (SIZE, SIZE * 2 // 3)}


def test_alpha_rules(samples):
    for sample in samples:
        assert sample.layers[0].kind == "background"
        assert (sample.layers[0].image[..., 3] == 255).all()
        for layer in sample.layers[1:]:
            assert layer.kind != "background"
            assert not layer.image[layer.image[..., 3] == 0].any()


def test_every_layer_changes_the_image(samples):
    for sample in samples[:60]:
        stack = [to_float(layer.image) for layer in sample.layers]
        whole = composite(stack)[..., :3]
        for index in range(1, len(stack)):
            without = composite(stack[:index] + stack[index + 1 :])[..., :3]
            changed = np.abs(whole - without).max(-1) > 0.04
            assert changed.mean() > 0.002, f"{sample.sample_id}: {sample.layers[index].description}"


def test_soft_alpha_occurs(samples):
    soft = [((layer.image[..., 3] > 0) & (layer.image[..., 3] < 255)).any() for s in samples for layer in s.layers[1:]]
    assert np.mean(soft) > 0.9


def test_words(samples):
    for sample in samples:
        assert all(layer.description for layer in sample.layers)
        for layer in sample.layers:
            assert layer.kind == "shadow" or layer.description in sample.caption
            if layer.kind == "text":
                assert layer.description.count("'") >= 2


@pytest.mark.parametrize("arguments", [{"size": 100}, {"size": 42}, {"pool": "tests"}, {"seed": -1}])
def test_bad_arguments_are_named(arguments):
    name = "seed" if "seed" in arguments else next(iter(arguments))
    with pytest.raises(ValueError, match=name):
        compose(0, **{"seed": 0, "size": SIZE, **arguments})


def test_pools_share_nothing():
    objects = {pool: {name for theme in THEMES for name in assets.objects(theme, pool)} for pool in assets.POOLS}
    assert all(assets.objects(theme, pool) for theme in THEMES for pool in assets.POOLS)
    assert 0.07 < len(objects["held_out"]) / len(objects["train"] | objects["held_out"]) < 0.15
    assert set().union(*objects.values()) == {path.stem for path in assets.OBJECT_DIR.glob("*.webp")}
    kinds = [
        objects,
        {pool: set(assets.photos(pool)) for pool in assets.POOLS},
        {pool: set(assets.textures(pool)) for pool in assets.POOLS},
        {pool: {face.path for face in assets.FACES.values() if face.pool == pool} for pool in assets.POOLS},
    ]
    for of_pool in kinds:
        assert all(of_pool.values())
        for one, other in itertools.combinations(assets.POOLS, 2):
            assert not of_pool[one] & of_pool[other]


def test_designs_use_only_their_pool(monkeypatch):
    used = {}

    def spy(module, function, pool):
        real = getattr(module, function)

        def seen(name, *rest):
            used.setdefault(pool, set()).add((function, name))
            return real(name, *rest)

        monkeypatch.setattr(module, function, seen)

    for pool in assets.POOLS:
        for module, function in ((assets, "load_object"), (assets, "load_photo"), (text, "font")):
            spy(module, function, pool)
        for index in range(60):
            compose(index, seed=9, size=96, pool=pool)
        monkeypatch.undo()
    assert len(used["train"]) > len(used["held_out"]) > 10
    for one, other in itertools.combinations(assets.POOLS, 2):
        assert not used[one] & used[other]


def test_vendored_objects_are_small_and_licensed():
    files = list(assets.OBJECT_DIR.iterdir())
    assert sum(file.stat().st_size for file in files) < 1_500_000
    assert "Microsoft Corporation" in (assets.OBJECT_DIR / "LICENSE").read_text()
    assert "sha512-" in (assets.OBJECT_DIR / "README.md").read_text()
    with Image.open(assets.OBJECT_DIR / "red_apple.webp") as image:
        assert image.size == (256, 256) and image.mode == "RGBA"


def test_write_dataset_has_the_dataset_form(tmp_path):
    assert write_dataset(tmp_path, range(2, 7), seed=5, size=SIZE, jobs=2) == 5
    for index in range(2, 7):
        sample = compose(index, seed=5, size=SIZE)
        name = sample_id(index, seed=5, size=SIZE)
        folder = tmp_path / "rendered" / name
        layout = json.loads((tmp_path / "layouts" / f"{name}.json").read_text())
        expected = {"background.png", *(f"component_{k}.png" for k in range(len(sample.layers) - 1))}
        assert {path.name for path in folder.iterdir()} == expected
        assert layout["component_renders"][0] == f"rendered/{name}/background.png"
        components = layout["layout_config"]["components"]
        assert len(layout["component_renders"]) == len(components) + 1 == len(sample.layers)
        assert layout["layout_semantic_description"]["description"] == sample.caption
        assert (layout["layout_metadata"]["height"], layout["layout_metadata"]["width"]) == sample.size
        assert np.array_equal(np.asarray(Image.open(folder / "background.png")), sample.layers[0].image)
        for k, (component, layer) in enumerate(zip(components, sample.layers[1:], strict=True)):
            assert np.array_equal(np.asarray(Image.open(folder / f"component_{k}.png")), layer.image)
            assert component["element"]["description"] == layer.description
            assert component["type"] == {"text": "TEXT", "group": "GROUP"}.get(layer.kind, "IMAGE")
            left, top, width, height = (
                int(component["style"][key].removesuffix("px")) for key in ("left", "top", "width", "height")
            )
            alpha = layer.image[..., 3].copy()
            assert alpha[top : top + height, left : left + width].any()
            alpha[top : top + height, left : left + width] = 0
            assert not alpha.any()
    assert not (tmp_path / ".partial").exists()


def test_kinds_and_words_survive_the_round_trip(tmp_path):
    write_dataset(tmp_path, range(12), seed=5, size=96, jobs=1)
    source = RenderedSource(Location(tmp_path / "rendered", "a"), Location(tmp_path / "layouts", "b"))
    assert len(source.sample_ids()) == 12
    for index in range(12):
        sample = compose(index, seed=5, size=96)
        read = source.read(sample.sample_id)
        assert read.caption == sample.caption
        for ours, theirs in zip(sample.layers, read.layers, strict=True):
            assert (ours.kind, ours.description) == (theirs.kind, theirs.description)
            assert np.array_equal(ours.image, theirs.image)


def test_rerun_writes_only_what_is_missing(tmp_path):
    write_dataset(tmp_path, range(4), seed=1, size=96, jobs=1)
    layouts = sorted((tmp_path / "layouts").iterdir())
    before = {path: path.stat().st_mtime_ns for path in layouts}
    # As a killed run leaves it: images, one of them broken, and no JSON.
    layouts[0].unlink()
    (tmp_path / "rendered" / layouts[0].stem / "background.png").write_bytes(b"")
    assert write_dataset(tmp_path, range(6), seed=1, size=96, jobs=1) == 3
    assert len(list((tmp_path / "layouts").iterdir())) == 6
    assert all(path.stat().st_mtime_ns == before[path] for path in layouts[1:])
    Image.open(tmp_path / "rendered" / layouts[0].stem / "background.png").load()
    assert write_dataset(tmp_path, range(6), seed=1, size=96, jobs=1) == 0


def test_colours_are_on_screen_and_legible():
    assert contrast(1.0, 0.0) == pytest.approx(21.0)
    assert to_oklch(oklch(0.7, 0.1, 200))[2] == pytest.approx(200, abs=1)
    rng = np.random.default_rng(0)
    for mode in MODES:
        for hue in range(0, 360, 30):
            chosen = palette(rng, hue, mode)
            fields = [value for value in vars(chosen).values() if isinstance(value, tuple)]
            assert all(0 <= channel <= 1 for colour in fields for channel in colour)
            ink, paper = (float(luminance(np.asarray(c, np.float32))) for c in (chosen.ink, chosen.paper))
            assert contrast(ink, paper) > 10
