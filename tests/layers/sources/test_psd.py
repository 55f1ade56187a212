import io
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.psd_image import Resource
from psd_tools.composite import composite_pil
from psd_tools.constants import BlendMode, Compression, Tag
from psd_tools.psd.adjustments import CurvesExtraItem, CurvesExtraMarker
from psd_tools.psd.descriptor import (
    Bool,
    Descriptor,
    DescriptorBlock,
    DescriptorBlock2,
    Double,
    Enumerated,
    Integer,
    String,
    UnitFloat,
)
from psd_tools.psd.image_resources import ImageResource, VersionInfo
from psd_tools.psd.layer_and_mask import MaskParameters
from psd_tools.psd.tagged_blocks import TaggedBlock, TypeToolObjectSetting
from psd_tools.terminology import Unit

from layers.cleaning import Cleaning, clean
from layers.compositing import composite, over_background, to_float, to_uint8
from layers.errors import SampleError, UserError
from layers.patches import trimmed
from layers.sources.location import Location
from layers.sources.psd import PsdSource
from layers.sources.psd_facts import mend_effects
from layers.sources.psd_folding import Piece, fold
from layers.sources.psd_layers import Stack

SIZE = (20, 16)
BACK = (200, 100, 50)
REAL = Path(__file__).parents[4] / "shared" / "psd"


def block(colour, size=(10, 8)):
    return Image.new("RGBA", size, (*colour, 255) if len(colour) == 3 else colour)


def document(back=BACK, mode="RGB", **how):
    psd = PSDImage.new(mode, SIZE, **how)
    if back is not None:
        psd.create_pixel_layer(Image.new("RGBA", SIZE, (*back, 255)), name="Back")
    return psd


def put(group, name, colour, left=0, top=0, size=(10, 8), **marks):
    layer = group.create_pixel_layer(block(colour, size), name=name, left=left, top=top)
    for key, value in marks.items():
        setattr(layer, key, value)
    return layer


def tag(layer, key, data):
    layer.tagged_blocks[key] = TaggedBlock(key=key, data=data)
    layer._psd.mark_updated()


def adjust(group, name, key=Tag.INVERT, /, *args, clipping=False, **data):
    layer = put(group, name, (0, 0, 0), size=SIZE, clipping=clipping)
    layer.tagged_blocks.set_data(key, *args, **data)
    return layer


def curves(group, name, *points, **marks):
    """Curves through points (result, input)."""
    extra = CurvesExtraMarker(items=[CurvesExtraItem(0, points)])
    return adjust(group, name, Tag.CURVES, version=1, count_map=1, data=[points], extra=extra, **marks)


def inverted(*colour):
    return tuple(255 - value for value in colour[:3]) + (colour[3:] or (255,))


def uncovered(sample):
    """Descriptions of the layers that nothing above hides."""
    patches = [replace(trimmed(layer.image), description=layer.description) for layer in sample.layers]
    kept, _, _ = clean(patches, Cleaning(drop_unchanging=False), sample.size)
    return [patch.description for patch in kept]


def descriptor(kind, block_class=Descriptor, **fields):
    made = block_class(classID=kind)
    for key, value in fields.items():
        made[key.encode().replace(b"_", b" ")] = value
    return made


def mask(layer, value, left=3, top=2):
    if layer.has_mask():
        layer.remove_mask()
    layer.create_mask(Image.new("L", (4, 4), value), left=left, top=top)


def colour_of(red, green, blue):
    return descriptor(b"RGBC", Rd__=Double(red), Grn_=Double(green), Bl__=Double(blue))


def read(root, psd):
    psd.save(root / "a.psd")
    return PsdSource(Location(root, "prepare.psd")).read("a")


def names(sample):
    return [layer.description for layer in sample.layers]


def white(image):
    return over_background(to_float(np.asarray(image)), (1.0, 1.0, 1.0)) * 255.0


def recomposed(sample):
    return to_uint8(composite([to_float(layer.image) for layer in sample.layers]))


def drawn_by_psd_tools(path):
    return np.asarray(composite_pil(PSDImage.open(path), 1.0, 0.0, None, None, True).convert("RGBA"))


def off_by(sample, root):
    """Largest difference of each pixel from what psd-tools draws, which it rounds down."""
    return np.abs(recomposed(sample).astype(int) - drawn_by_psd_tools(root / "a.psd")).max(axis=-1)


def canvas(boxes):
    """Full-canvas pictures of plain rectangles: (colour with alpha, left, top, right, bottom)."""
    image = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    for colour, left, top, right, bottom in boxes:
        image[top:bottom, left:right] = colour
    return image


def test_layers_come_bottom_to_top_at_their_boxes_cropped_to_the_canvas(tmp_path):
    psd = document()
    put(psd, "Upper left", (0, 0, 255), left=-4, top=-3)
    put(psd, "Lower right", (0, 255, 0), left=15, top=12)
    put(psd, "Inside", (1, 2, 3), left=2, top=5)
    put(psd, "Around", (9, 9, 9, 128), left=-5, top=-5, size=(40, 40))
    put(psd, "Outside", (9, 9, 9), left=30, top=2)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Upper left", "Lower right", "Inside", "Around"]
    assert [layer.kind for layer in sample.layers] == ["background", *["image"] * 4]
    expected = [
        ((*BACK, 255), 0, 0, 20, 16),
        ((0, 0, 255, 255), 0, 0, 6, 5),
        ((0, 255, 0, 255), 15, 12, 20, 16),
        ((1, 2, 3, 255), 2, 5, 12, 13),
        ((9, 9, 9, 128), 0, 0, 20, 16),
    ]
    for layer, box in zip(sample.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.image, canvas([box]), err_msg=layer.description)
    assert sample.notes == ('left out, shows nothing on the canvas: "Outside"',)


def test_hidden_layers_and_all_of_a_hidden_group_are_left_out(tmp_path):
    psd = document()
    put(psd, "Unseen", (0, 0, 255), visible=False)
    group = psd.create_group(name="Drafts")
    put(group, "Says visible", (0, 255, 0))
    group.visible = False
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back"]
    assert sample.notes == ('left out, hidden: "Unseen"', 'left out, hidden: "Drafts"')


def test_opacity_fill_opacity_and_mask_go_into_alpha(tmp_path):
    psd = document()
    put(psd, "Half", (0, 0, 255, 200), opacity=128)
    put(psd, "Fill", (0, 0, 255), fill_opacity=51)
    masked = put(psd, "Masked", (0, 0, 255), size=SIZE)
    mask(masked, 64)
    sample = read(tmp_path, psd)
    assert np.unique(sample.layers[1].image[..., 3]).tolist() == [0, round(200 * 128 / 255)]
    assert np.unique(sample.layers[2].image[..., 3]).tolist() == [0, 51]
    np.testing.assert_array_equal(sample.layers[3].image, canvas([((0, 0, 255, 64), 3, 2, 7, 6)]))


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


def test_multiply_keeps_its_alpha_and_takes_the_multiplied_colours(tmp_path):
    psd = document()
    put(psd, "Shade", (100, 200, 50, 128), left=3, blend_mode=BlendMode.MULTIPLY)
    put(psd, "Above", (7, 8, 9), left=3, top=6)
    sample = read(tmp_path, psd)
    multiplied = np.rint(np.float64(BACK) * (100, 200, 50) / 255)
    np.testing.assert_array_equal(sample.layers[1].image[0, 3], (*multiplied, 128))
    np.testing.assert_array_equal(sample.layers[1].image[0, 2], (0, 0, 0, 0))
    np.testing.assert_array_equal(sample.layers[2].image, canvas([((7, 8, 9, 255), 3, 6, 13, 14)]))
    assert sample.notes == ('multiply baked into "Shade"',)


@pytest.mark.parametrize("back", [BACK, None], ids=["opaque", "transparent"])
@pytest.mark.parametrize(
    "mode", [mode for mode in BlendMode if mode is not BlendMode.PASS_THROUGH], ids=lambda m: m.name
)
def test_every_blend_mode_recomposes_to_what_psd_tools_draws(tmp_path, mode, back):
    psd = document(back)
    put(psd, "Below", (30, 220, 90, 160))
    put(psd, "Blended", (180, 60, 120, 170), left=4, top=3, blend_mode=mode)
    put(psd, "Above", (250, 10, 20, 60), left=6, top=1, size=(5, 14))
    sample = read(tmp_path, psd)
    assert len(sample.layers) == (4 if back else 3)
    drawn = drawn_by_psd_tools(tmp_path / "a.psd")
    assert np.abs(white(recomposed(sample)) - white(drawn)).max() <= 2.0
    assert np.abs(recomposed(sample)[..., 3].astype(int) - drawn[..., 3]).max() <= 1


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


def test_clipped_layers_become_one_with_their_base(tmp_path):
    psd = document()
    put(psd, "Base", (255, 0, 0, 128), size=(8, 8))
    put(psd, "Clipped", (0, 0, 255), left=4, size=(10, 4), clipping=True)
    put(psd, "Free", (1, 1, 1), top=12, size=(2, 2))
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Base", "Free"]
    expected = canvas([((255, 0, 0, 128), 0, 0, 8, 8), ((0, 0, 255, 128), 4, 0, 8, 4)])
    np.testing.assert_array_equal(sample.layers[1].image, expected)
    assert sample.notes == ('clipped layers baked into "Base"',)


def test_a_clipped_layer_is_hidden_with_its_base_and_nothing_without_one(tmp_path):
    psd = PSDImage.new("RGB", SIZE)
    put(psd, "Orphan", (0, 0, 255), clipping=True)
    put(psd, "Back", BACK, size=SIZE)
    put(psd, "Base", (255, 0, 0), visible=False)
    put(psd, "Clipped", (0, 0, 255), clipping=True)
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back"]
    assert sample.notes == ('left out, clipped to no layer: "Orphan"', 'left out, hidden: "Base"')


@pytest.fixture
def nothing_folds(monkeypatch):
    monkeypatch.setattr("layers.sources.psd_layers.fold", lambda *_: None)


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


def test_curves_that_translucent_layers_cannot_follow_become_a_layer_of_their_own(tmp_path):
    psd = document((0, 0, 0))
    put(psd, "Glass", (255, 255, 255, 128), size=SIZE)
    curves(psd, "Curves", (0, 0), (250, 128), (255, 255))
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Glass", "Curves"]
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((255, 255, 255, 128), 0, 0, 20, 16)]))
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == ('curves baked into a layer of its own: "Curves"',)


def test_translucent_layers_take_the_colours_that_curves_make_of_their_mixture(tmp_path):
    psd = document((255, 255, 255))
    put(psd, "Shadow", (0, 0, 0, 128))
    curves(psd, "Curves", (0, 0), (150, 128), (255, 255))
    sample = read(tmp_path, psd)
    assert names(sample) == uncovered(sample) == ["Back", "Shadow"]
    assert np.unique(sample.layers[1].image[..., 3]).tolist() == [0, 128]
    assert drawn_by_psd_tools(tmp_path / "a.psd")[0, 0, 0] > 140
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == (
        'curves folded into the layers below "Curves"',
        'translucent colours fitted to what lies below: "Curves"',
    )


def test_outlines_may_differ_a_little_and_that_is_noted(tmp_path):
    psd = document((20, 30, 60))
    put(psd, "Card", (250, 250, 250), left=2, top=2, size=(16, 12))
    put(psd, "Outline", (250, 250, 250, 100), left=1, top=2, size=(1, 4))
    curves(psd, "Curves", (0, 0), (150, 128), (255, 255))
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Card", "Outline"]
    np.testing.assert_array_equal(sample.layers[2].image[..., 3], canvas([((0, 0, 0, 100), 1, 2, 2, 6)])[..., 3])
    difference = off_by(sample, tmp_path)
    assert 5 < difference[3, 1] < 32
    difference[2:6, 1] = 0
    assert difference.max() <= 1
    assert sample.notes[-1] == 'approximate at soft edges: "Curves"'


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


FRAME = (0, 0, 4, 2)


def pieces_of(*layers):
    """Pieces of plain colours, straight alpha in [0, 1], on boxes."""
    return [
        Piece.of(np.full((bottom - top, right - left, 4), colour, np.float32), (left, top, right, bottom))
        for colour, (left, top, right, bottom) in layers
    ]


def squared(image, box):
    assert image.shape == (box[3] - box[1], box[2] - box[0], 4) and (image[..., 3] == 1).all()
    return image[..., :3] ** 2


def picture(*rows):
    return np.float32([rows[0]] * 2 if len(rows) == 1 else rows)


def test_fold_maps_the_colours_of_each_opaque_piece_and_keeps_what_it_does_not_touch():
    pieces = pieces_of(((0.5, 0.5, 0.5, 1), FRAME), ((0.8, 0.2, 0.4, 1), (1, 0, 2, 2)), ((0, 1, 0, 1), (3, 0, 4, 2)))
    before = picture([(0.5, 0.5, 0.5, 1), (0.8, 0.2, 0.4, 1), (0.5, 0.5, 0.5, 1), (0, 1, 0, 1)])
    wanted = np.concatenate([before[..., :3] ** 2, before[..., 3:]], axis=-1)
    folded = fold(pieces, squared, FRAME, before, wanted)
    np.testing.assert_allclose(folded.pieces[0].image()[..., :3], 0.25, atol=1e-4)
    np.testing.assert_allclose(folded.pieces[1].image(), np.broadcast_to((0.64, 0.04, 0.16, 1), (2, 1, 4)), atol=1e-4)
    assert folded.pieces[2] is pieces[2] and folded.error < 0.1 and not folded.fitted


def test_fold_reaches_only_its_box():
    pieces = pieces_of(((0.5, 0.5, 0.5, 1), FRAME))
    half = (0, 0, 2, 2)
    before, wanted = np.float32([[[0.5, 0.5, 0.5, 1]] * 2] * 2), np.float32([[[0.25, 0.25, 0.25, 1]] * 2] * 2)
    image = fold(pieces, squared, half, before, wanted).pieces[0].image()
    np.testing.assert_allclose(image[..., 0], [[0.25, 0.25, 0.5, 0.5]] * 2, atol=1e-4)


def test_fold_fits_translucent_colours_where_they_can_and_refuses_where_they_cannot():
    for own, works in ((0.0, True), (1.0, False)):
        pieces = pieces_of(((1 - own,) * 3 + (1,), FRAME), ((own,) * 3 + (0.5,), (0, 0, 2, 2)))
        mixed, turned = (0.5, 0.5, 0.5, 1), (0.75, 0.75, 0.75, 1)
        rest = (1 - own,) * 3 + (1,)
        before, wanted = picture([mixed, mixed, rest, rest]), picture([turned, turned, rest, rest])
        folded = fold(pieces, lambda image, _: 1 - (1 - image[..., :3]) ** 2, FRAME, before, wanted)
        assert (folded is not None) == works
        if works:
            assert folded.fitted and folded.error < 0.1
            np.testing.assert_allclose(folded.pieces[1].image(), np.full((2, 2, 4), 0.5), atol=1e-4)


def test_pixels_that_nothing_happens_to_excuse_no_fault():
    frame = (0, 0, 100, 100)
    pieces = pieces_of(((0, 0, 0, 1), frame), ((1, 1, 1, 0.5), (0, 0, 2, 2)))
    before = np.full((100, 100, 4), (0, 0, 0, 1), np.float32)
    before[:2, :2, :3] = 0.5

    def folded(levels):
        def brighter(image, box):
            return image[..., :3] * (1 + 2 * levels / 255)

        wanted = before.copy()
        wanted[..., :3] *= 1 + 2 * levels / 255
        return fold(pieces, brighter, frame, before, wanted)

    # White stays white, so four pixels of ten thousand lack these levels.
    assert abs(folded(0.9).error - 0.9) < 0.01
    assert folded(1.1) is None


@pytest.mark.parametrize(("lacking", "works"), [(30, True), (34, False)])
def test_a_few_pixels_may_lack_some_levels_but_not_many(lacking, works):
    frame = (0, 0, 100, 100)
    gain = 1 + 2 * lacking / 255
    # One pixel of five hundred, at a mean of less than a tenth of a level.
    pieces = pieces_of(((0.3, 0.3, 0.3, 1), frame), ((0, 0, 0, 1), (0, 0, 20, 1)), ((1, 1, 1, 0.5), (0, 0, 20, 1)))
    before = np.full((100, 100, 4), (0.3, 0.3, 0.3, 1), np.float32)
    before[0, :20, :3] = 0.5
    wanted = before * np.float32([gain, gain, gain, 1])
    folded = fold(pieces, lambda image, _: image[..., :3] * gain, frame, before, wanted)
    assert (folded is not None) == works


def test_what_is_transparent_in_a_piece_stays_black():
    image = np.zeros((2, 4, 4), np.float32)
    image[:, ::3] = (0.5, 0.5, 0.5, 1)
    before, wanted = image, image * np.float32([0.5, 0.5, 0.5, 1])
    folded = fold(
        [Piece.of(image, FRAME)], lambda image, _: np.where(image[..., :3] > 0, 0.25, 1), FRAME, before, wanted
    )
    np.testing.assert_allclose(folded.pieces[0].image(), wanted, atol=1e-4)


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


def test_what_psd_tools_cannot_draw_is_noted(tmp_path):
    psd = document()
    adjust(psd, "Vivid", Tag.VIBRANCE)
    shadowed = put(psd, "Card", (1, 2, 3))
    shadow = descriptor(b"DrSh", enab=Bool(True), present=Bool(True))
    effects = descriptor(b"null", DescriptorBlock2, masterFXSwitch=Bool(True), DrSh=shadow)
    tag(shadowed, Tag.OBJECT_BASED_EFFECTS_LAYER_INFO, effects)
    put(psd, "Grain", (1, 2, 3), blend_mode=BlendMode.DISSOLVE)
    soft = put(psd, "Soft", (1, 2, 3))
    mask(soft, 255)
    soft._record.mask_data.flags.parameters_applied = True
    soft._record.mask_data.parameters = MaskParameters(user_mask_feather=4.0)
    ranged = put(psd, "Sky", (1, 2, 3))
    ranged._record.blending_ranges.composite_ranges = [(0, 40), (0, 65535)]
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Card", "Grain", "Soft", "Sky"]
    expected = ['vibrance not drawn: "Vivid"', 'drop shadow not drawn: "Card"', 'dissolve drawn as normal: "Grain"']
    expected += ['mask feather not drawn: "Soft"', 'blend-if not applied: "Sky"']
    assert [note for note in sample.notes if "baked" not in note] == expected


def overlay_of(red, green, blue):
    overlay = descriptor(b"SoFi", enab=Bool(True), present=Bool(True), Clr_=colour_of(red, green, blue))
    overlay[b"Md  "] = Enumerated(typeID=b"BlnM", enum=b"Nrml")
    overlay[b"Opct"] = UnitFloat(unit=Unit.Percent, value=100.0)
    return descriptor(b"null", DescriptorBlock2, masterFXSwitch=Bool(True), SoFi=overlay)


@pytest.mark.parametrize("marked", [True, False], ids=["new", "old"])
def test_effects_are_drawn_also_where_old_documents_lack_the_flag(tmp_path, marked):
    psd = document()
    layer = put(psd, "Painted", (1, 2, 3), left=3)
    effects = overlay_of(10.0, 20.0, 30.0)
    if not marked:
        del effects[b"SoFi"][b"present"]
    tag(layer, Tag.OBJECT_BASED_EFFECTS_LAYER_INFO, effects)
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((10, 20, 30, 255), 3, 0, 13, 8)]))
    assert sample.notes == ('effects baked into "Painted"',)


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


def text_block(words):
    data = DescriptorBlock(classID=b"TxLr")
    data[b"Txt "] = String(value=words)
    return TypeToolObjectSetting(1, (1.0, 0.0, 0.0, 1.0, 0.0, 0.0), 50, data, 1, DescriptorBlock(classID=b"warp"))


def test_texts_are_described_by_their_text_alone_clipped_to_and_grouped(tmp_path):
    psd = document()
    tag(put(psd, "Title", (1, 2, 3)), Tag.TYPE_TOOL_OBJECT_SETTING, text_block("Summer\rsale\x03now \0"))
    put(psd, "Texture", (9, 9, 9), clipping=True)
    group = psd.create_group(name="Words")
    for words in ("One", "Two"):
        tag(put(group, f"name of {words}", (1, 2, 3)), Tag.TYPE_TOOL_OBJECT_SETTING, text_block(words))
    group.opacity = 128
    mixed = psd.create_group(name="Mixed")
    tag(put(mixed, "Word", (1, 2, 3)), Tag.TYPE_TOOL_OBJECT_SETTING, text_block("Word"))
    put(mixed, "Picture", (1, 2, 3), left=9)
    mixed.opacity = 128
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Summer\nsale\nnow", "One\nTwo", "Mixed"]
    assert [layer.kind for layer in sample.layers] == ["background", "text", "text", "group"]


def make_artboard(board, kind):
    rect = descriptor(b"classFloatRect", Top_=Double(2.0), Left=Double(3.0), Btom=Double(12.0), Rght=Double(15.0))
    data = descriptor(b"artboard", DescriptorBlock, artboardRect=rect, artboardBackgroundType=Integer(kind))
    data[b"Clr "] = colour_of(51.0, 102.0, 204.0)
    tag(board, Tag.ARTBOARD_DATA1, data)


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


def test_greyscale_and_16_bits_become_8_bit_rgb(tmp_path):
    psd = PSDImage.new("L", SIZE)
    psd.create_pixel_layer(Image.new("LA", (10, 8), (100, 128)), name="Grey", left=3)
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[0].image, canvas([((100, 100, 100, 128), 3, 0, 13, 8)]))
    psd = document(depth=16)
    put(psd, "Deep", (10, 20, 30, 77), left=3)
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((10, 20, 30, 77), 3, 0, 13, 8)]))
    assert sample.notes == ("16 bits reduced to 8",)


def test_the_stored_picture_is_the_preview_if_it_is_real(tmp_path):
    psd = document()
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.preview, np.broadcast_to(np.uint8([*BACK, 255]), (16, 20, 4)))
    version = VersionInfo(1, False, "test", "test", 1)
    psd.image_resources[Resource.VERSION_INFO] = ImageResource(key=Resource.VERSION_INFO.value, data=version.tobytes())
    assert read(tmp_path, psd).preview is None


def test_a_broken_colour_profile_and_a_broken_picture_are_noted(tmp_path):
    psd = document()
    psd.image_resources[Resource.ICC_PROFILE] = ImageResource(key=Resource.ICC_PROFILE.value, data=b"no profile")
    sample = read(tmp_path, psd)
    assert sample.notes[0].startswith("colour profile cannot be used")
    np.testing.assert_array_equal(sample.layers[0].image[0, 0], (*BACK, 255))
    path = tmp_path / "a.psd"
    document().save(path)
    path.write_bytes(path.read_bytes()[:-40])
    sample = PsdSource(Location(tmp_path, "prepare.psd")).read("a")
    assert sample.preview is None and sample.notes[0].startswith("merged picture cannot be read")


def test_a_document_without_layers_is_its_picture(tmp_path):
    sample = read(tmp_path, PSDImage.frompil(Image.new("RGB", SIZE, BACK)))
    assert [layer.kind for layer in sample.layers] == ["background"]
    np.testing.assert_array_equal(sample.layers[0].image, canvas([((*BACK, 255), 0, 0, 20, 16)]))
    assert sample.notes == ("no layers, only the merged picture",)
    picture = Image.new("RGBA", SIZE, (9, 9, 9, 0))
    picture.paste((1, 2, 3, 255), (0, 0, 4, 4))
    sample = read(tmp_path, PSDImage.frompil(picture))
    np.testing.assert_array_equal(sample.layers[0].image, canvas([((1, 2, 3, 255), 0, 0, 4, 4)]))
    assert sample.layers[0].kind == "image"


def saved(psd):
    buffer = io.BytesIO()
    psd.save(buffer)
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    Image.new("RGB", SIZE).save(buffer, "PNG")
    return buffer.getvalue()


def header(width, height, depth=8, mode=3):
    return struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, depth, mode)


def only_hidden():
    psd = PSDImage.new("RGB", SIZE)
    put(psd, "Unseen", (1, 2, 3), visible=False)
    return psd


def with_huge_box():
    psd = document()
    put(psd, "Bomb", (1, 2, 3))._record.right = 100_000_000
    return psd._record.tobytes()


def with_huge_mask():
    psd = document()
    put(psd, "Bomb", (1, 2, 3, 4))._record.mask_data.right = 100_000_000
    return psd._record.tobytes()


def with_broken_channel():
    psd = document()
    layer = psd.create_pixel_layer(block((1, 2, 3)), name="Torn", compression=Compression.ZIP)
    layer._channels[1].data = b"\xff" * len(layer._channels[1].data)
    return psd._record.tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: b"", "zero bytes"),
        (png, "not a Photoshop document"),
        (lambda: saved(document())[:20], "not a Photoshop document"),
        (lambda: saved(document())[:26], "not a readable document"),
        (lambda: saved(document())[:400], "not a readable document"),
        (lambda: header(8001, 8000), "8001x8000 is above 64000000 pixels"),
        (lambda: header(0, 5), "0x5 has no pixels"),
        (lambda: header(5, 5, 8, 4), "mode CMYK of 8 bits"),
        (lambda: header(5, 5, 16, 9), "mode LAB of 16 bits"),
        (lambda: header(5, 5, 32), "mode RGB of 32 bits"),
        (lambda: header(5, 5, 8, 77), "mode 77 of 8 bits"),
        (lambda: saved(only_hidden()), "no visible layer"),
        (with_huge_box, 'layer "Bomb" of 100000000x8 is above 64000000 pixels'),
        (with_huge_mask, 'layer "Bomb" of 100000000x8 is above 64000000 pixels'),
        (with_broken_channel, 'layer "Torn" cannot be drawn'),
    ],
)
def test_a_bad_document_gives_its_reason(tmp_path, data, reason):
    (tmp_path / "bad.psd").write_bytes(data())
    with pytest.raises(SampleError, match=rf"bad\.psd: .*{reason}"):
        PsdSource(Location(tmp_path, "prepare.psd")).read("bad")


def test_no_cut_document_raises_anything_else(tmp_path):
    psd = document()
    put(psd, "Base", (255, 0, 0, 128), size=(8, 8))
    put(psd.create_group(name="Group"), "Child", (1, 2, 3))
    data = saved(psd)
    source = None
    for length in range(0, len(data), 97):
        (tmp_path / "cut.psd").write_bytes(data[:length])
        source = source or PsdSource(Location(tmp_path, "prepare.psd"))
        try:
            assert len(source.read("cut").layers) == 3
        except SampleError as error:
            assert str(error).startswith("cut.psd: ")


def test_too_many_layers_are_refused_and_hidden_ones_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("layers.sources.psd_facts.MAX_LAYERS", 3)
    psd = document()
    put(psd, "Unseen", (1, 2, 3), visible=False)
    put(psd, "Two", (1, 2, 3))
    put(psd, "Three", (1, 2, 3))
    assert len(read(tmp_path, psd).layers) == 3
    put(psd, "Four", (1, 2, 3))
    with pytest.raises(SampleError, match="more than 3 visible layers"):
        read(tmp_path, psd)


def test_ids_are_unique_and_lead_to_their_own_document(tmp_path):
    reds = {"a.psd": 1, "a.psb": 2, "b.PSD": 3, "in/b.psd": 4, "in__c.psd": 5, "in/c.psd": 6, "in/deep/d.e.psd": 7}
    for name, red in reds.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        document((red, 0, 0)).save(path)
    (tmp_path / "notes.txt").write_text("no document")
    source = pickle.loads(pickle.dumps(PsdSource(Location(tmp_path, "prepare.psd"))))
    ids = source.sample_ids()
    found = {name: int(source.read(name).layers[0].image[0, 0, 0]) for name in ids}
    assert len(ids) == len(set(ids)) == len(reds) and not any("/" in name for name in ids)
    assert sorted(found.values()) == sorted(reds.values())
    assert found["a.psd"] == 1 and found["a.psb"] == 2 and found["b"] == 3 and found["in__b"] == 4
    assert found["in__deep__d.e"] == 7
    assert ids == PsdSource(Location(tmp_path, "prepare.psd")).sample_ids()


def test_signature_follows_the_file_and_unknown_ids_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"prepare\.psd: no \.psd or \.psb file below"):
        PsdSource(Location(tmp_path, "prepare.psd"))
    document().save(tmp_path / "a.psd")
    source = PsdSource(Location(tmp_path, "prepare.psd"))
    before = source.signature("a")
    assert before == source.signature("a")
    psd = document()
    put(psd, "More", (1, 2, 3))
    psd.save(tmp_path / "a.psd")
    assert source.signature("a") != before
    for use in (source.read, source.signature):
        with pytest.raises(SampleError, match="no document 'b'"):
            use("b")


# Mean difference over white, of 255, to the picture Photoshop stored and to what psd-tools draws; number of layers.
# Where the first is above 1, psd-tools does not draw what Photoshop does (shadows, glows, bevels, patterns), which the
# notes say; artboards have a background that psd-tools leaves out of a whole document.
REAL_DOCUMENTS = {
    "2layers": (0.1, 0.1, 2),
    "adjustments_adjustment_nested_composition_4": (0.2, 0.1, 7),
    "artboard-bgcolor": (0.01, 67.0, 4),
    "blend-modes_multiply": (0.2, 0.15, 3),
    "clipping-mask": (0.01, 0.01, 4),
    "effects_effects-enabled": (None, 0.7, 4),
    "effects_shape-fx": (0.01, 0.01, 2),
    "effects_stroke-effects": (3.9, 0.1, 17),
    "group": (0.01, 0.02, 2),
    "hidden-groups": (0.01, 0.01, 2),
    "hidden-layer": (0.01, 0.02, 2),
    "layer_comps": (7.4, 0.2, 8),
    "layer_params": (6.2, 0.1, 3),
    "layers-minimal_type-layer": (None, 0.01, 1),
    "layers_smartobject-layer": (0.01, 0.01, 1),
    "mask": (0.01, 0.01, 3),
    "passthrough_blendmodes1": (0.05, 0.5, 5),
    "semi-transparent-layers": (0.01, 0.25, 3),
    "text": (0.01, 0.01, 2),
    "transparency_fill-opacity": (1.4, 0.05, 1),
    "transparency_transparency-group": (0.02, 0.25, 17),
}
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real documents: {REAL} is not there")


@needs_real
@pytest.mark.parametrize("name", REAL_DOCUMENTS)
def test_real_documents_recompose_to_their_stored_picture(name):
    to_preview, to_psd_tools, count = REAL_DOCUMENTS[name]
    sample = PsdSource(Location(REAL, "prepare.psd")).read(name)
    assert len(sample.layers) == count
    flat = white(recomposed(sample))
    assert (sample.preview is None) == (to_preview is None)
    if to_preview is not None:
        assert np.abs(flat - white(sample.preview)).mean() <= to_preview
    psd = PSDImage.open(REAL / f"{name}.psd")
    mend_effects(psd)
    # Stored pixels are Photoshop's own drawing; forced, psd-tools draws shapes anew and with other edges.
    drawn = composite_pil(psd, 1.0, 0.0, None, None, False).convert("RGBA")
    assert np.abs(flat - white(drawn)).mean() <= to_psd_tools
    explained = any("not drawn" in note or "effects baked" in note for note in sample.notes)
    assert explained or to_preview is None or to_preview < 1.0


@needs_real
def test_a_real_exposure_of_the_whole_canvas_no_longer_hides_what_lies_below():
    sample = PsdSource(Location(REAL, "prepare.psd")).read("adjustments_adjustment_nested_composition_4")
    assert 'exposure folded into the layers below "Exposure 1"' in sample.notes
    # Those curves turn soft gradients into steps, which no colours of their alphas can show.
    assert 'curves baked into a layer of its own: "Curves 2"' in sample.notes
    assert uncovered(sample) == ["Curves 2", "Layer 1 copy"]


@needs_real
def test_real_documents_have_the_right_words_and_kinds():
    source = PsdSource(Location(REAL, "prepare.psd"))
    text = source.read("text").layers[1]
    assert text.kind == "text" and text.description.split() == ["Line", "1", "Line", "2", "Line", "3", "and", "text"]
    hidden = source.read("hidden-groups")
    assert names(hidden) == ["Background", "Shape 2"] and hidden.notes == ('left out, hidden: "Group 1"',)
    assert [layer.kind for layer in source.read("clipping-mask").layers] == ["background", "image", "shape", "shape"]
    params = source.read("layer_params")
    assert 'colours turned into sRGB from "Adobe RGB (1998)"' in params.notes
    assert 'outer glow not drawn: "Фигура 1"' in params.notes
