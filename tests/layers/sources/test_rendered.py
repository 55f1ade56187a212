import json
import os
import pickle

import fsspec
import numpy as np
import pytest
from PIL import Image

from config.errors import SampleError
from layers.imaging.stack import MAX_LAYERS
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource, component_description, component_kind


def save(path, value, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, (value, 0, 0, 255)).save(path)


def reds(sample):
    return [int(layer.image[0, 0, 0]) for layer in sample.layers]


def opened(png, layouts=None):
    return RenderedSource(Location(png, "rendered_root"), layouts and Location(layouts, "layout_root"))


def layout(*components, **rest):
    return json.dumps({"layout_config": {"components": components}, **rest})


@pytest.fixture
def roots(tmp_path):
    (tmp_path / "json").mkdir()
    return tmp_path / "png", tmp_path / "json"


def test_components_are_ordered_by_number_and_matched_by_position(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 1)
    for number in (10, 2, 7):
        save(png / "a" / f"component_{number}.png", number)
    save(png / "a" / "component_3_thumbnail.png", 99)
    entries = [{"type": "TEXT", "text": "two"}, {"type": "IMAGE", "alt": "seven"}, {"type": "IMAGE"}, {"type": "TEXT"}]
    (layouts / "a.json").write_text(json.dumps({"layout_config": {"components": entries}}))
    sample = opened(png, layouts).read("a")
    assert reds(sample) == [1, 2, 7, 10]
    assert [layer.kind for layer in sample.layers] == ["background", "text", "image", "image"]
    assert [layer.description for layer in sample.layers] == ["", "two", "seven", ""]


@pytest.mark.parametrize("prefix", ["", "a_", "other_"])
def test_every_file_name_variant(roots, prefix):
    png, layouts = roots
    save(png / "a" / f"{prefix}background.png", 5)
    save(png / "a" / f"{prefix}component_0.png", 6)
    assert reds(opened(png, layouts).read("a")) == [5, 6]


def test_a_missing_layout_leaves_words_empty(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    save(png / "a" / "component_1.png", 6)
    sample = opened(png, layouts).read("a")
    assert sample.caption == "" and [layer.kind for layer in sample.layers] == ["background", "image"]
    assert sample.notes == ("no layout JSON",)
    assert opened(png).read("a").notes == ()


def test_words_of_the_layout(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    written = {"layout_config": {"components": [], "background_description": "a wall"}}
    written["layout_semantic_description"] = {"description": "a poster"}
    (layouts / "a.json").write_text(json.dumps(written))
    sample = opened(png, layouts).read("a")
    assert (sample.caption, sample.layers[0].description, sample.notes) == ("a poster", "a wall", ())


def test_earlier_patterns_win_and_other_files_are_no_part_of_the_form(roots):
    png, layouts = roots
    for value, name in enumerate(["background", "component_4", "a_component_0", "a_background", "a", "composite"], 1):
        save(png / "a" / f"{name}.png", value)
    save(png / "a" / "a_preview.png", 9)
    (png / "a" / "component_5.txt").write_text("no image")
    (png / "stray.txt").write_text("no sample")
    source = opened(png, layouts)
    sample = source.read("a")
    assert reds(sample) == [1, 2] and sample.preview is None
    assert source.sample_ids() == ["a"]


def test_numbers_that_python_takes_for_digits_but_not_for_integers(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 1)
    for value, name in ((3, "component_2"), (2, "component_\u00b2"), (4, "component_10")):
        save(png / "a" / f"{name}.png", value)
    assert reds(opened(png, layouts).read("a")) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("written", "notes"),
    [
        (layout({}), []),
        (layout({}, {}), ['another number of components: "2, images 1"']),
        (layout({}, layout_metadata={"width": 40, "height": 32}), []),
        (layout({}, layout_metadata={"width": 80, "height": 64}), ['another size: "80x64, images 40x32"']),
        (json.dumps({"layout_config": {"components": [{}], "width": "40px", "height": "30.5px"}}), ['"40x30.5, ']),
        (json.dumps({"layout_config": {"components": [{}], "style": {"width": 1e999, "height": 9}}}), None),
        ('{"layout_config": {"components": [{}], "width": 1e999, "height": [3]}}', []),
    ],
)
def test_what_contradicts_the_images_is_noted(roots, written, notes):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    save(png / "a" / "component_1.png", 6)
    (layouts / "a.json").write_text(written)
    if notes is None:
        with pytest.raises(SampleError, match="Infinity is no JSON number"):
            opened(png, layouts).read("a")
        return
    found = opened(png, layouts).read("a").notes
    assert len(found) == len(notes) and all(part in note for part, note in zip(notes, found, strict=True))


def test_components_of_one_number_are_noted(roots):
    png, _ = roots
    save(png / "a" / "background.png", 5)
    save(png / "a" / "x_component_1.png", 6)
    save(png / "a" / "y_component_1.png", 7)
    sample = opened(png).read("a")
    assert reds(sample) == [5, 6, 7] and sample.notes == ("several components have one number",)


def test_too_many_components_are_refused_before_one_is_read(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    for number in range(MAX_LAYERS):
        (png / "a" / f"component_{number}.png").write_bytes(b"not read")
    with pytest.raises(SampleError, match="501 layers are above 500"):
        opened(png, layouts).read("a")


def test_the_signature_follows_images_and_layout(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    (layouts / "a.json").write_text(layout())
    source = opened(png, layouts)
    seen = {source.signature("a")}
    assert source.signature("a") in seen
    save(png / "a" / "component_1.png", 6)
    seen.add(source.signature("a"))
    os.utime(png / "a" / "component_1.png", (0, 0))
    seen.add(source.signature("a"))
    (layouts / "a.json").write_text(layout({}, {}))
    seen.add(source.signature("a"))
    (layouts / "a.json").unlink()
    seen.add(source.signature("a"))
    assert len(seen) == 5 and all(isinstance(source.signature(name), str) for name in ("nowhere", "../json"))


def test_it_reads_from_another_file_system_and_travels(roots):
    png, layouts = roots
    save(png / "a" / "a_background.png", 5)
    save(png / "a" / "a_component_3.png", 6)
    (layouts / "a.json").write_text(layout({"type": "TEXT", "text": "Hi"}))
    files = fsspec.filesystem("memory")
    files.put(str(png), "/rendered-test/png", recursive=True)
    files.put(str(layouts), "/rendered-test/json", recursive=True)
    source = pickle.loads(pickle.dumps(opened("memory://rendered-test/png", "memory://rendered-test/json")))
    sample = source.read(source.sample_ids()[0])
    files.rm("/rendered-test", recursive=True)
    assert reds(sample) == [5, 6] and sample.layers[1].description == "Hi"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda png, layouts: (png / "a" / "background.png").unlink(), "no background"),
        (lambda png, layouts: (png / "a" / "component_1.png").write_bytes(b""), "component_1.png: not a readable"),
        (lambda png, layouts: save(png / "a" / "component_1.png", 1, (8, 8)), "differ in size"),
        (lambda png, layouts: (layouts / "a.json").write_text("{"), "a.json: not valid JSON"),
        (lambda png, layouts: (layouts / "a.json").write_text("[]"), "no list layout_config.components"),
        (lambda png, layouts: (layouts / "a.json").write_text(layout(float("nan"))), "NaN is no JSON number"),
        (lambda png, layouts: (layouts / "a.json").write_text('{"layout_config": {"components": 3}}'), "no list"),
        (lambda png, layouts: (layouts / "a.json").write_bytes(b"\xff{}"), r"a\.json: not valid JSON"),
        (
            lambda png, layouts: (png / "a" / "component_1.png").write_bytes(
                (png / "a" / "component_1.png").read_bytes()[:60]
            ),
            r"component_1\.png: not a readable",
        ),
    ],
)
def test_a_bad_sample_gives_its_reason(roots, spoil, reason):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    save(png / "a" / "component_1.png", 6)
    spoil(png, layouts)
    with pytest.raises(SampleError, match=reason):
        opened(png, layouts).read("a")


def test_groups_in_groups_read_or_are_refused_however_deep(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    save(png / "a" / "component_1.png", 6)
    outcomes = set()
    for depth in (100, *range(300, 520, 20), 5000):
        nested = '{"type": "GROUP", "components": [' * depth + '{"type": "TEXT"}' + "]}" * depth
        (layouts / "a.json").write_text('{"layout_config": {"components": [' + nested + "]}}")
        try:
            outcomes.add(opened(png, layouts).read("a").layers[1].kind)
        except SampleError as error:
            assert "nested too deeply" in str(error)
            outcomes.add("refused")
    assert outcomes == {"text", "refused"}


def test_links_out_of_the_root_are_not_followed(roots, tmp_path):
    png, layouts = roots
    save(tmp_path / "secret.png", 9)
    save(png / "a" / "background.png", 5)
    (png / "a" / "component_1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SampleError, match=r"component_1\.png' points outside"):
        opened(png, layouts).read("a")
    with pytest.raises(SampleError, match="points outside"):
        opened(png, layouts).read("../json")


def test_groups_of_text_are_text():
    text = {"type": "TEXT", "text": "Hello"}
    assert component_kind({"type": "GROUP", "components": [text, {}, text]}) == "text"
    assert component_kind({"type": "GROUP", "components": [text, {"type": "IMAGE"}]}) == "group"
    assert component_kind({"type": "IMAGE", "data0_element_type": "graph_svg"}) == "shape"
    assert component_kind({}) == "image"
    group = {"type": "GROUP", "components": [{"type": "TEXT", "text": str(i)} for i in range(5)]}
    assert component_description(group) == "0, 1, 2"
    assert component_description({"type": "TEXT", "element": {"text": "inner"}}) == "inner"
    assert component_description({"type": "IMAGE", "element": {"description": "a cat"}}) == "a cat"


def test_opaque_modes_become_opaque_rgba(roots):
    png, layouts = roots
    (png / "a").mkdir(parents=True)
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(png / "a" / "background.png")
    assert (opened(png, layouts).read("a").layers[0].image[..., 3] == 255).all()
