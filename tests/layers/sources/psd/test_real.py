"""Real documents against the image that Photoshop stored in them and against what psd-tools draws."""

from pathlib import Path

import numpy as np
import pytest
from psd_tools import PSDImage
from psd_tools.composite import composite_pil

from layers.sources.location import Location
from layers.sources.psd.facts import mend_effects
from layers.sources.psd.reader import PsdSource
from tests.layers.sources.psd.documents import names, recomposed, uncovered, white

REAL = Path(__file__).parents[5] / "shared" / "psd"

# Mean difference over white, of 255, to the image Photoshop stored and to what psd-tools draws; number of layers.
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
def test_real_documents_recompose_to_their_stored_image(name):
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
