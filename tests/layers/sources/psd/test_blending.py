"""Blend modes and effects: drawn as psd-tools draws them, or noted."""

import numpy as np
import pytest
from psd_tools.constants import BlendMode, Tag
from psd_tools.psd.descriptor import Bool, DescriptorBlock2
from psd_tools.psd.layer_and_mask import MaskParameters

from tests.layers.sources.psd.documents import (
    BACK,
    adjust,
    canvas,
    descriptor,
    document,
    drawn_by_psd_tools,
    mask,
    names,
    overlay_of,
    put,
    read,
    recomposed,
    tag,
    white,
)


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
