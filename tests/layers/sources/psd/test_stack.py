"""Layers of a document: their order, boxes and alpha, what is clipped to them, and the words of texts."""

import numpy as np
from psd_tools import PSDImage
from psd_tools.constants import Tag
from psd_tools.psd.descriptor import DescriptorBlock, String
from psd_tools.psd.tagged_blocks import TypeToolObjectSetting

from tests.layers.sources.psd.documents import BACK, SIZE, canvas, document, mask, names, put, read, tag


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
    put(mixed, "Image", (1, 2, 3), left=9)
    mixed.opacity = 128
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Summer\nsale\nnow", "One\nTwo", "Mixed"]
    assert [layer.kind for layer in sample.layers] == ["background", "text", "text", "group"]
