import json

import numpy as np
import pytest
from PIL import Image

from layers.errors import SampleError
from layers.sources.rendered import RenderedSource, component_description, component_kind


def save(path, value, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, (value, 0, 0, 255)).save(path)


def reds(sample):
    return [int(layer.image[0, 0, 0]) for layer in sample.layers]


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
    sample = RenderedSource(png, layouts).read("a")
    assert reds(sample) == [1, 2, 7, 10]
    assert [layer.kind for layer in sample.layers] == ["background", "text", "image", "image"]
    assert [layer.description for layer in sample.layers] == ["", "two", "seven", ""]


@pytest.mark.parametrize("prefix", ["", "a_", "other_"])
def test_every_file_name_variant(roots, prefix):
    png, layouts = roots
    save(png / "a" / f"{prefix}background.png", 5)
    save(png / "a" / f"{prefix}component_0.png", 6)
    assert reds(RenderedSource(png, layouts).read("a")) == [5, 6]


def test_a_missing_layout_leaves_words_empty(roots):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    assert RenderedSource(png, layouts).read("a").caption == ""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda png, layouts: (png / "a" / "background.png").unlink(), "no background"),
        (lambda png, layouts: (png / "a" / "component_1.png").write_bytes(b""), "component_1.png: not a readable"),
        (lambda png, layouts: save(png / "a" / "component_1.png", 1, (8, 8)), "differ in size"),
        (lambda png, layouts: (layouts / "a.json").write_text("{"), "a.json: not valid JSON"),
        (lambda png, layouts: (layouts / "a.json").write_text("[]"), "no list layout_config.components"),
    ],
)
def test_a_bad_sample_gives_its_reason(roots, spoil, reason):
    png, layouts = roots
    save(png / "a" / "background.png", 5)
    save(png / "a" / "component_1.png", 6)
    spoil(png, layouts)
    with pytest.raises(SampleError, match=reason):
        RenderedSource(png, layouts).read("a")


def test_links_out_of_the_root_are_not_followed(roots, tmp_path):
    png, layouts = roots
    save(tmp_path / "secret.png", 9)
    save(png / "a" / "background.png", 5)
    (png / "a" / "component_1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SampleError, match=r"component_1\.png points outside"):
        RenderedSource(png, layouts).read("a")
    with pytest.raises(SampleError, match="points outside"):
        RenderedSource(png, layouts).read("../json")


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


def test_a_missing_root_is_one_clear_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prepare_buckets\.rendered_root: .*nowhere is no folder"):
        RenderedSource(tmp_path / "nowhere", tmp_path)


def test_opaque_modes_become_opaque_rgba(roots):
    png, layouts = roots
    (png / "a").mkdir(parents=True)
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(png / "a" / "background.png")
    assert (RenderedSource(png, layouts).read("a").layers[0].image[..., 3] == 255).all()
