"""What becomes of a row: its layers and words, the canvas, LayerD's filters, version 4."""

import numpy as np
import pytest

from config.errors import SampleError
from layers.imaging.compositing import composite, resize, to_float, to_uint8
from tests.layers.sources.crello.designs import (
    GREY,
    TYPES_5,
    design,
    drawn,
    element,
    noise,
    placed,
    plain,
    png,
    read,
    save,
    source,
)

# ---- what a row says


def test_layers_are_bottom_to_top_with_kinds_and_texts_of_their_own(tmp_path):
    sample = read(
        tmp_path,
        element(plain((1, 0, 0), 20, 30), kind="ColoredBackground"),
        element(plain((2, 0, 0)), kind="TextElement", text=" Fish &amp; chips\n"),
        element(plain((3, 0, 0)), kind="SvgElement", text="no text"),
        element(plain((4, 0, 0)), kind="MaskElement"),
        element(plain((5, 0, 0)), kind="TextElement", text="last"),
        element(plain((6, 0, 0)), kind="ImageElement"),
    )
    assert [int(layer.image[0, 0, 0]) for layer in sample.layers] == [1, 2, 3, 4, 5, 6]
    assert [layer.kind for layer in sample.layers] == ["background", "text", "shape", "image", "text", "image"]
    assert [layer.description for layer in sample.layers] == ["", "Fish & chips", "", "", "last", ""]
    assert sample.caption == "A title"
    assert sample.notes == ()


def test_class_labels_are_decoded_by_the_names_of_their_own_file(tmp_path):
    items = [element(GREY, kind="ColoredBackground"), element(noise(2, 2), kind="TextElement")]
    save(tmp_path / "train-0.parquet", design(*items, sample_id="a"))
    save(tmp_path / "train-1.parquet", design(*items, sample_id="b"), types=TYPES_5[::-1])
    reader = source(tmp_path)
    for sample_id in ("a", "b"):
        assert [layer.kind for layer in reader.read(sample_id).layers] == ["background", "text"]


def test_an_unknown_type_is_an_image_and_says_so(tmp_path):
    sample = read(tmp_path, element(GREY, kind="VideoElement"))
    assert [layer.kind for layer in sample.layers] == ["image"]
    assert sample.notes == ('unknown type taken for an image: "element 0 (VideoElement)"',)


def test_preview_is_the_sources_own_image(tmp_path):
    preview = noise(5, 7, seed=3)
    assert np.array_equal(read(tmp_path, element(GREY), preview=png(preview)).preview, preview)
    broken = read(tmp_path, element(GREY), preview=b"no image")
    assert broken.preview is None
    assert broken.notes[0].startswith("preview left out")


# ---- canvas


def test_a_short_side_scales_the_design_and_never_enlarges(tmp_path):
    image = noise(40, 60, alpha=255)
    item = element(image, left=6, top=4, width=12, height=8)
    small = read(tmp_path, item, short_side=10)
    assert small.size == (10, 15)
    expected = placed(to_uint8(resize(to_float(image), (4, 6))), 2, 3, 10, 15)
    assert np.array_equal(small.layers[-1].image, expected)
    assert read(tmp_path, item, short_side=400).size == (20, 30)


@pytest.mark.parametrize(("width", "height", "size"), [(29, 20, (13, 18)), (20, 29, (18, 13))])
def test_a_scaled_canvas_is_rounded_down_so_that_backgrounds_cover_it(tmp_path, width, height, size):
    full = {"width": width, "height": height}
    sample = read(tmp_path, element(GREY, **full), **full, short_side=13)
    assert sample.size == size
    assert len(sample.layers) == 1
    assert (sample.layers[0].image == (90, 90, 90, 255)).all()


def test_white_lies_below_unless_the_bottom_is_opaque_all_over(tmp_path):
    part = element(noise(5, 5, alpha=255), 3, 3)
    sample = read(tmp_path, part)
    assert (sample.layers[0].image == 255).all()
    assert sample.layers[0].kind == "background"
    assert sample.notes == ("white canvas below",)
    assert len(read(tmp_path, element(GREY), part).layers) == 2
    assert len(read(tmp_path, element(GREY, opacity=0.5), part).layers) == 3
    assert len(read(tmp_path, part, element(GREY)).layers) == 3


def test_the_stack_recomposes_to_the_design_over_white(tmp_path):
    images = [noise(6, 9, seed) for seed in range(3)]
    sample = read(tmp_path, *(element(image, 3 * i, 2 * i, opacity=0.8) for i, image in enumerate(images)))
    expected = np.ones((20, 30, 3))
    for i, image in enumerate(images):
        alpha = np.rint(image[..., 3:] * 0.8) / 255
        region = expected[2 * i : 2 * i + 6, 3 * i : 3 * i + 9]
        region[:] = image[..., :3] / 255 * alpha + region * (1 - alpha)
    flat = composite([to_float(layer.image) for layer in sample.layers])
    assert (flat[..., 3] == 1).all()
    assert np.abs(flat[..., :3] - expected).max() < 1e-5


def test_a_background_without_a_image_is_its_colour(tmp_path):
    full = {"width": 30, "height": 20, "kind": "ColoredBackground"}
    layer = read(tmp_path, element(None, color=["rgba(52, 103, 151, 1)"], **full)).layers[0]
    assert (layer.image == (52, 103, 151, 255)).all()
    assert layer.kind == "background"
    half = drawn(tmp_path, element(None, color=["rgba(52, 103, 151, 0.5)", "rgba(1, 1, 1, 1)"], **full))
    assert (half == (52, 103, 151, 128)).all()
    assert (drawn(tmp_path, element(None, color=[52.0, 103.0, 151.0], **full), version=4)[..., 1] == 103).all()


def test_what_cannot_be_drawn_is_left_out_with_a_note(tmp_path):
    sample = read(
        tmp_path,
        element(GREY),
        element(None, kind="TextElement", color=["rgba(1, 2, 3, 1)"], width=5, height=5),
        element(noise(3, 3), left=50),
        element(noise(3, 3), width=0, height=3),
        element(noise(3, 3), opacity=0.0),
    )
    assert len(sample.layers) == 1
    assert sample.notes == (
        'left out, has no image: "element 1 (TextElement)"',
        *(f'left out, shows nothing on the canvas: "element {i} (ImageElement)"' for i in (2, 3, 4)),
    )


# ---- LayerD's filters


def test_layerd_filters_leave_out_what_an_opaque_layer_hides(tmp_path):
    part, other = element(plain((1, 0, 0), 5, 5)), element(plain((3, 0, 0), 5, 5))
    items = [part, element(GREY), part, element(plain((2, 0, 0), 20, 30)), other]
    assert len(read(tmp_path, *items).layers) == 6
    sample = read(tmp_path, *items, layerd_filters=True)
    assert [int(layer.image[0, 0, 0]) for layer in sample.layers] == [2, 3]
    assert sample.notes == ('left out, hidden by an opaque layer: "3 layers"',)


def test_layerd_filters_leave_out_images_that_are_nowhere_opaque(tmp_path):
    ghost, thin = element(plain((9, 9, 9), 5, 5, alpha=254)), element(plain((8, 8, 8), 5, 5), 9, 9, opacity=0.5)
    sample = read(tmp_path, element(GREY), ghost, thin, layerd_filters=True)
    assert [int(layer.image[9, 9, 0]) for layer in sample.layers] == [90, 8]
    assert sample.notes == ('left out, nowhere opaque: "element 1 (ImageElement)"',)


def test_layerd_filters_add_white_and_want_two_layers(tmp_path):
    parts = [element(plain((i, 0, 0), 5, 5), 2 * i, 0) for i in (1, 2)]
    assert [layer.image[4, 4, 0] for layer in read(tmp_path, *parts, layerd_filters=True).layers] == [255, 1, 2]
    with pytest.raises(SampleError, match="fewer than 2 layers"):
        read(tmp_path, parts[0], layerd_filters=True)
    with pytest.raises(SampleError, match="fewer than 2 layers"):
        read(tmp_path, *parts, element(GREY), layerd_filters=True)


# ---- version 4


def test_version_4_gives_the_same_pixels(tmp_path):
    items = [
        element(GREY, kind="ColoredBackground"),
        element(noise(8, 9), 3, 2.25, kind="SvgElement", opacity=0.6),
        element(noise(8, 9), -2.5, 6, width=14, height=5, kind="TextElement", text="words"),
        element(noise(4, 10), 10, 9, angle=90.0, kind="MaskElement"),
        element(noise(9, 9), 12, 3, angle=-37.0, kind="ImageElement"),
    ]
    new = read(tmp_path / "5", *items)
    old = read(tmp_path / "4", *[item | {"color": [1.0, 2.0, 3.0]} for item in items], version=4)
    assert old.size == new.size == (20, 30)
    assert [(a.kind, a.description) for a in old.layers] == [(b.kind, b.description) for b in new.layers]
    assert np.array_equal(old.layers[3].image, placed(np.rot90(noise(4, 10), -1), 6, 13))
    for a, b in zip(old.layers, new.layers, strict=True):
        # Fractions are stored with 24 bits: a value may round the other way.
        assert np.abs(a.image.astype(int) - b.image).max() <= 1
