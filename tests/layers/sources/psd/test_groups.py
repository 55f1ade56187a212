"""Groups and artboards: which are folders only, and which become one layer."""

import io

import numpy as np
import pytest
from psd_tools import PSDImage
from psd_tools.constants import BlendMode, Tag

from tests.layers.sources.psd.documents import (
    BACK,
    SIZE,
    canvas,
    document,
    drawn_by_psd_tools,
    make_artboard,
    mask,
    names,
    overlay_of,
    put,
    read,
    recomposed,
    saved,
    tag,
    white,
)


def test_groups_that_are_only_folders_are_descended_into(tmp_path):
    psd = document()
    outer = psd.create_group(name="Outer")
    put(outer, "One", (1, 0, 0))
    inner = outer.create_group(name="Inner")
    inner.blend_mode = BlendMode.NORMAL
    put(inner, "Two", (2, 0, 0, 100), left=1)
    put(outer, "Three", (3, 0, 0), left=2)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "One", "Two", "Three"]
    assert sample.notes == ()


@pytest.mark.parametrize("mode", [BlendMode.PASS_THROUGH, BlendMode.NORMAL])
def test_a_group_with_opacity_becomes_one_layer(tmp_path, mode):
    psd = document()
    group = psd.create_group(name="Pair")
    put(group, "Red", (255, 0, 0), left=0, size=(8, 8))
    put(group, "Blue", (0, 0, 255), left=4, size=(8, 8))
    group.opacity, group.blend_mode = 102, mode
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Pair"]
    expected = canvas([((255, 0, 0, 102), 0, 0, 8, 8), ((0, 0, 255, 102), 4, 0, 12, 8)])
    np.testing.assert_array_equal(sample.layers[1].image, expected)
    assert sample.notes == ('group baked for its opacity: "Pair"',)


def test_a_mask_on_a_group_bakes_it(tmp_path):
    psd = document()
    group = psd.create_group(name="Framed")
    put(group, "Red", (255, 0, 0), size=SIZE)
    # psd-tools masks a group only once it has been written.
    psd = PSDImage.open(io.BytesIO(saved(psd)))
    mask(psd[1], 255)
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((255, 0, 0, 255), 3, 2, 7, 6)]))
    assert sample.notes == ('group baked for its mask: "Framed"',)


def test_blending_that_a_group_isolates_bakes_the_group_and_a_folder_lets_it_through(tmp_path):
    psd = document()
    for mode in (BlendMode.NORMAL, BlendMode.PASS_THROUGH):
        group = psd.create_group(name=mode.name)
        group.blend_mode = mode
        put(group, f"{mode.name} base", (0, 200, 255, 128), size=(6, 6))
        put(group, f"{mode.name} shade", (100, 100, 100, 200), left=2, blend_mode=BlendMode.MULTIPLY)
    outer = psd.create_group(name="Outer")
    outer.blend_mode = BlendMode.NORMAL
    put(outer.create_group(name="Inner"), "Deep shade", (100, 100, 100), top=9, blend_mode=BlendMode.MULTIPLY)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "NORMAL", "PASS_THROUGH base", "PASS_THROUGH shade", "Outer"]
    assert sample.notes == (
        'group baked for its isolated blending: "NORMAL"',
        'multiply baked into "PASS_THROUGH shade"',
        'group baked for its isolated blending: "Outer"',
    )
    drawn = drawn_by_psd_tools(tmp_path / "a.psd")
    assert np.abs(white(recomposed(sample)) - white(drawn)).max() <= 2.0


def test_effects_clipped_layers_and_knockouts_of_groups_bake_them(tmp_path):
    psd = document()
    styled = psd.create_group(name="Styled")
    put(styled, "Inside", (1, 2, 3), size=(4, 4))
    tag(styled, Tag.OBJECT_BASED_EFFECTS_LAYER_INFO, overlay_of(10.0, 20.0, 30.0))
    base = psd.create_group(name="Base")
    put(base, "Ground", (255, 0, 0), left=5, size=(4, 4))
    put(psd, "Clipped", (0, 0, 255), left=7, size=(9, 9), clipping=True)
    pierced = psd.create_group(name="Pierced")
    put(pierced, "Covered", (255, 0, 0), top=8, size=(8, 8))
    hole = put(pierced, "Hole", (0, 255, 0), left=4, top=8, size=(8, 8), fill_opacity=0)
    hole.tagged_blocks.set_data(Tag.KNOCKOUT_SETTING, 1)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Styled", "Base", "Pierced"]
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((10, 20, 30, 255), 0, 0, 4, 4)]))
    clipped = [((255, 0, 0, 255), 5, 0, 7, 4), ((0, 0, 255, 255), 7, 0, 9, 4)]
    np.testing.assert_array_equal(sample.layers[2].image, canvas(clipped))
    np.testing.assert_array_equal(recomposed(sample), drawn_by_psd_tools(tmp_path / "a.psd"))
    np.testing.assert_array_equal(recomposed(sample)[10, 5], (*BACK, 255))
    baked = [
        f'group baked for its {why}: "{name}"' for why, name in (("effects", "Styled"), ("clipped layers", "Base"))
    ]
    assert [note for note in sample.notes if "group baked" in note] == [
        *baked,
        'group baked for its knockout: "Pierced"',
    ]


@pytest.mark.parametrize(("kind", "colour"), [(1, (255, 255, 255)), (2, (0, 0, 0)), (3, None), (4, (51, 102, 204))])
def test_an_artboard_has_its_background_and_crops_its_layers(tmp_path, kind, colour):
    psd = document()
    board = psd.create_group(name="Board")
    put(board, "Wide", (7, 8, 9), left=-5, top=4, size=(40, 4))
    make_artboard(board, kind)
    sample = read(tmp_path, psd)
    expected = [((*BACK, 255), 0, 0, 20, 16), ((7, 8, 9, 255), 3, 4, 15, 8)]
    if colour:
        expected.insert(1, ((*colour, 255), 3, 2, 15, 12))
    assert [layer.kind for layer in sample.layers] == ["background", *["shape"] * (len(expected) - 2), "image"]
    for layer, box in zip(sample.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.image, canvas([box]))


def test_layers_of_an_artboard_blend_with_its_background(tmp_path):
    psd = document()
    board = psd.create_group(name="Board")
    board.blend_mode = BlendMode.NORMAL
    put(board, "Shade", (100, 100, 100), size=SIZE, blend_mode=BlendMode.MULTIPLY)
    make_artboard(board, 4)
    sample = read(tmp_path, psd)
    shaded = np.rint(np.float64([51, 102, 204]) * 100 / 255)
    np.testing.assert_array_equal(sample.layers[2].image, canvas([((*shaded, 255), 3, 2, 15, 12)]))
    assert sample.notes == ('multiply baked into "Shade"',)
