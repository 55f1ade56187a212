"""Adjustment layers: which layers' colours they turn, and what they become where they cannot be folded."""

import io

import numpy as np
import pytest
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode, Tag

from layers.sources.psd.stack import Stack
from tests.layers.sources.psd.documents import (
    BACK,
    SIZE,
    adjust,
    canvas,
    curves,
    document,
    inverted,
    make_artboard,
    mask,
    names,
    off_by,
    put,
    read,
    recomposed,
    saved,
    uncovered,
)


@pytest.fixture
def nothing_folds(monkeypatch):
    monkeypatch.setattr("layers.sources.psd.stack.fold", lambda *_: None)


@pytest.mark.usefixtures("nothing_folds")
def test_an_adjustment_that_cannot_be_folded_becomes_its_colours_with_the_alpha_of_its_mask(tmp_path):
    psd = document()
    mask(adjust(psd, "Invert"), 128)
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[1].image, canvas([(inverted(*BACK, 128), 3, 2, 7, 6)]))
    assert sample.notes == ('invert baked into a layer of its own: "Invert"',)


@pytest.mark.usefixtures("nothing_folds")
def test_an_adjustment_not_folded_over_transparency_is_noted_and_leaves_opaque_parts_right(tmp_path):
    psd = document(back=None)
    put(psd, "Solid", (10, 20, 30), size=(5, 16))
    put(psd, "Dark glass", (0, 0, 0, 128), left=5, size=(5, 16))
    put(psd, "Grey glass", (127, 127, 127, 128), left=10, size=(5, 16))
    adjust(psd, "Invert")
    sample = read(tmp_path, psd)
    assert 'approximate over transparency: "Invert"' in sample.notes
    flat = recomposed(sample)
    np.testing.assert_array_equal(flat[:, :5], np.broadcast_to(np.uint8([245, 235, 225, 255]), (16, 5, 4)))
    # A strong change is worth more alpha (1 - 0.5 * 0.5), a weak one is not.
    np.testing.assert_allclose(flat[:, 5:10, 3], 192, atol=1)
    np.testing.assert_array_equal(flat[:, 10:15], np.broadcast_to(np.uint8([127, 127, 127, 128]), (16, 5, 4)))
    assert not flat[:, 15:].any()


def test_an_adjustment_of_the_whole_canvas_is_folded_and_hides_nothing(tmp_path):
    psd = document()
    put(psd, "Left", (10, 20, 30))
    put(psd, "Right", (0, 255, 100), left=8, top=5)
    adjust(psd, "Invert")
    put(psd, "Above", (1, 2, 3), top=10, size=(4, 4))
    sample = read(tmp_path, psd)
    assert names(sample) == uncovered(sample) == ["Back", "Left", "Right", "Above"]
    assert [layer.kind for layer in sample.layers] == ["background", *["image"] * 3]
    expected = [
        (inverted(*BACK), 0, 0, 20, 16),
        (inverted(10, 20, 30), 0, 0, 10, 8),
        (inverted(0, 255, 100), 8, 5, 18, 13),
        ((1, 2, 3, 255), 0, 10, 4, 14),
    ]
    for layer, box in zip(sample.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.image, canvas([box]), err_msg=layer.description)
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == ('invert folded into the layers below "Invert"',)


@pytest.mark.usefixtures("nothing_folds")
def test_without_folding_that_adjustment_would_hide_all_below(tmp_path):
    psd = document()
    put(psd, "Left", (10, 20, 30))
    adjust(psd, "Invert")
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Left", "Invert"] and uncovered(sample) == ["Invert"]


def test_mask_and_opacity_of_an_adjustment_blend_the_colours_it_makes_with_the_own(tmp_path):
    psd = document()
    put(psd, "Card", (10, 20, 30), left=5, size=(10, 16))
    mask(adjust(psd, "Invert"), 128)
    psd[-1].opacity = 102
    sample = read(tmp_path, psd)
    share = 128 / 255 * 102 / 255

    def blended(*colour):
        return tuple(round(value + share * (255 - 2 * value)) for value in colour)

    back = canvas([((*BACK, 255), 0, 0, 20, 16), ((*blended(*BACK), 255), 3, 2, 7, 6)])
    np.testing.assert_array_equal(sample.layers[0].image, back)
    card = canvas([((10, 20, 30, 255), 5, 0, 15, 16), ((*blended(10, 20, 30), 255), 5, 2, 7, 6)])
    np.testing.assert_array_equal(sample.layers[1].image, card)
    assert sample.notes == ('invert folded into the layers below "Invert"',)


def test_an_adjustment_over_transparency_turns_colours_and_keeps_every_alpha(tmp_path):
    psd = document(back=None)
    put(psd, "Solid", (10, 20, 30), size=(5, 16))
    put(psd, "Glass", (0, 0, 0, 128), left=5, size=(5, 16))
    adjust(psd, "Invert")
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[0].image, canvas([(inverted(10, 20, 30), 0, 0, 5, 16)]))
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((255, 255, 255, 128), 5, 0, 10, 16)]))
    assert sample.notes == ('invert folded into the layers below "Invert"',)


def test_an_adjustment_clipped_to_a_layer_turns_that_layer_only(tmp_path):
    psd = document()
    put(psd, "Under", (90, 80, 70), size=(6, 6))
    put(psd, "Base", (10, 20, 30, 128), left=4)
    adjust(psd, "Invert", clipping=True)
    sample = read(tmp_path, psd)
    expected = [
        ((*BACK, 255), 0, 0, 20, 16),
        ((90, 80, 70, 255), 0, 0, 6, 6),
        (inverted(10, 20, 30, 128), 4, 0, 14, 8),
    ]
    for layer, box in zip(sample.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.image, canvas([box]), err_msg=layer.description)
    assert sample.notes == ('invert folded into the layers below "Invert"',)


@pytest.mark.parametrize("mode", [BlendMode.NORMAL, BlendMode.PASS_THROUGH], ids=lambda m: m.name)
def test_an_adjustment_in_a_group_ends_with_it_unless_the_group_passes_it_through(tmp_path, mode):
    psd = document()
    group = psd.create_group(name="Group")
    group.blend_mode = mode
    put(group, "Inside", (10, 20, 30))
    adjust(group, "Invert")
    put(group, "Above", (1, 2, 3), left=12)
    sample = read(tmp_path, psd)
    back = (*BACK, 255) if mode is BlendMode.NORMAL else inverted(*BACK)
    expected = [(back, 0, 0, 20, 16), (inverted(10, 20, 30), 0, 0, 10, 8), ((1, 2, 3, 255), 12, 0, 20, 8)]
    for layer, box in zip(sample.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.image, canvas([box]), err_msg=layer.description)
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == ('invert folded into the layers below "Invert"',)


@pytest.mark.usefixtures("nothing_folds")
def test_an_isolated_group_whose_adjustment_cannot_be_folded_is_baked_as_if_nothing_had_been_tried(tmp_path):
    psd = document()
    group = psd.create_group(name="Group")
    group.blend_mode = BlendMode.NORMAL
    put(group, "Unseen", (9, 9, 9), visible=False)
    put(group, "Inside", (10, 20, 30))
    adjust(group, "Invert")
    put(psd, "Above", (1, 2, 3), left=12)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Group", "Above"]
    np.testing.assert_array_equal(sample.layers[1].image, canvas([(inverted(10, 20, 30), 0, 0, 10, 8)]))
    assert sample.notes == ('group baked for its isolated blending: "Group"',)


def test_adjustments_fold_into_baked_groups_and_blending_sees_folded_ones(tmp_path):
    psd = document()
    baked = psd.create_group(name="Blending")
    put(baked, "Ground", (200, 100, 90), size=(6, 6))
    put(baked, "Shade", (100, 100, 100), size=(3, 6), blend_mode=BlendMode.MULTIPLY)
    refused = psd.create_group(name="Painted")
    put(refused, "Card", (10, 20, 30), left=6, size=(6, 6))
    adjust(refused, "Invert")
    put(refused, "Paint", (1, 2, 3), left=6, size=(2, 2), clipping=True)
    folded = psd.create_group(name="Folded")
    put(folded, "Sheet", (40, 50, 60), left=12, size=(6, 6))
    adjust(folded, "Inner")
    for group in (baked, refused, folded):
        group.blend_mode = BlendMode.NORMAL
    put(psd, "Upper shade", (100, 200, 50), size=(20, 4), blend_mode=BlendMode.MULTIPLY)
    adjust(psd, "Outer")
    sample = read(tmp_path, psd)
    assert names(sample) == uncovered(sample) == ["Back", "Blending", "Painted", "Sheet", "Upper shade"]
    np.testing.assert_array_equal(sample.layers[2].image[5, 11], (10, 20, 30, 255))
    np.testing.assert_array_equal(sample.layers[3].image, canvas([((40, 50, 60, 255), 12, 0, 18, 6)]))
    assert off_by(sample, tmp_path).max() <= 1
    assert [note for note in sample.notes if "group baked" in note] == [
        'group baked for its isolated blending: "Blending"',
        'group baked for its isolated blending: "Painted"',
    ]


def test_an_adjustment_clipped_to_a_group_turns_the_layers_of_the_group(tmp_path):
    psd = document()
    group = psd.create_group(name="Group")
    put(group, "One", (10, 20, 30), size=(6, 6))
    put(group, "Two", (40, 50, 60), left=8, size=(6, 6))
    adjust(psd, "Invert", clipping=True)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "One", "Two"]
    expected = [((*BACK, 255), 0, 0, 20, 16), (inverted(10, 20, 30), 0, 0, 6, 6), (inverted(40, 50, 60), 8, 0, 14, 6)]
    for layer, box in zip(sample.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.image, canvas([box]), err_msg=layer.description)
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == ('invert folded into the layers below "Invert"',)


def test_an_adjustment_in_an_artboard_leaves_what_lies_below_its_background(tmp_path):
    psd = document()
    board = psd.create_group(name="Board")
    put(board, "Card", (7, 8, 9), left=4, top=4, size=(4, 4))
    adjust(board, "Invert")
    make_artboard(board, 4)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Board", "Card"]
    expected = [((*BACK, 255), 0, 0, 20, 16), (inverted(51, 102, 204), 3, 2, 15, 12), (inverted(7, 8, 9), 4, 4, 8, 8)]
    for layer, box in zip(sample.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.image, canvas([box]), err_msg=layer.description)


def test_blending_below_and_above_an_adjustment_sees_the_right_colours(tmp_path):
    psd = document()
    put(psd, "Shade", (100, 200, 50), size=(8, 16), blend_mode=BlendMode.MULTIPLY)
    adjust(psd, "Invert")
    put(psd, "Upper shade", (100, 200, 50), size=(20, 8), blend_mode=BlendMode.MULTIPLY)
    curves(psd, "Curves", (0, 0), (150, 128), (255, 255))
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Shade", "Upper shade"]
    assert off_by(sample, tmp_path).max() <= 1
    assert [note for note in sample.notes if "folded" in note] == [
        'invert folded into the layers below "Invert"',
        'curves folded into the layers below "Curves"',
    ]


def test_a_layer_clipped_to_an_adjustment_keeps_it_a_layer_of_its_own(tmp_path):
    psd = document()
    adjust(psd, "Invert")
    put(psd, "Paint", (1, 2, 3), clipping=True)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Invert"]
    np.testing.assert_array_equal(sample.layers[0].image, canvas([((*BACK, 255), 0, 0, 20, 16)]))
    assert off_by(sample, tmp_path).max() <= 1
    assert 'invert baked into a layer of its own: "Invert"' in sample.notes


def test_colours_are_turned_before_they_are_converted(tmp_path):
    psd = document()
    put(psd, "Card", (10, 20, 30, 77), left=5)
    adjust(psd, "Invert")

    def recolour(image):
        return np.concatenate([image[..., :3] // 2, image[..., 3:]], axis=-1)

    layers = Stack(PSDImage.open(io.BytesIO(saved(psd))), recolour).layers
    halves = tuple(value // 2 for value in inverted(*BACK)[:3])
    np.testing.assert_array_equal(layers[0].image, canvas([((*halves, 255), 0, 0, 20, 16)]))
    np.testing.assert_array_equal(layers[1].image, canvas([((122, 117, 112, 77), 5, 0, 15, 8)]))


def test_greyscale_and_16_bit_documents_fold_too(tmp_path):
    psd = PSDImage.new("L", SIZE)
    psd.create_pixel_layer(Image.new("LA", SIZE, (100, 255)), name="Grey")
    adjust(psd, "Invert")
    np.testing.assert_array_equal(read(tmp_path, psd).layers[0].image, canvas([((155, 155, 155, 255), 0, 0, 20, 16)]))
    psd = document(depth=16)
    put(psd, "Deep", (10, 20, 30, 77), left=3)
    adjust(psd, "Invert")
    np.testing.assert_array_equal(
        read(tmp_path, psd).layers[1].image, canvas([(inverted(10, 20, 30, 77), 3, 0, 13, 8)])
    )


def test_an_adjustment_that_changes_nothing_is_left_out(tmp_path):
    psd = document()
    mask(adjust(psd, "Invert"), 0)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back"] and sample.notes == ('left out, changes nothing: "Invert"',)


def test_an_adjustment_in_a_translucent_folder_covers_what_it_changes(tmp_path):
    psd = document()
    group = psd.create_group(name="Look")
    adjust(group, "Invert")
    group.opacity = 128
    sample = read(tmp_path, psd)
    mixed = np.rint(np.float64(BACK) + 128 / 255 * (255 - 2 * np.float64(BACK)))
    np.testing.assert_allclose(recomposed(sample)[0, 0, :3], mixed, atol=1)


def test_a_translucent_folder_of_adjustments_is_folded(tmp_path):
    psd = document()
    put(psd, "Card", (10, 20, 30))
    group = psd.create_group(name="Look")
    adjust(group, "Invert")
    adjust(group, "Poster", Tag.VIBRANCE).visible = False
    group.opacity = 128
    sample = read(tmp_path, psd)
    assert names(sample) == uncovered(sample) == ["Back", "Card"]
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == ('group folded into the layers below "Look"',)
