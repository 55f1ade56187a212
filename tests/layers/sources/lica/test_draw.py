"""Images, groups and clips: where they lie, how they turn, and what of them shows."""

import numpy as np
import pytest
from PIL import Image

from config.errors import SampleError
from layers.sources.lica.element import Element
from tests.layers.sources.lica.components import (
    BLUE,
    RED,
    SIZE,
    SQUARE,
    alpha,
    extent,
    flat,
    group,
    image,
    quarters,
    render,
    text,
)


def test_an_image_lies_in_its_box():
    drawn, _ = render(image(5, 7, 20, 20), quarters())
    expected = np.zeros((*SIZE, 4), np.float32)
    expected[7:27, 5:25] = quarters() / 255.0
    assert np.allclose(drawn, expected, atol=1e-6)


@pytest.mark.parametrize(("left", "top"), [(-7, -5), (50, 30), (-7, 30)])
def test_boxes_beyond_the_canvas_are_cut(left, top):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 4)).astype(np.uint8)
    margin = 40
    whole, _ = render(image(left + margin, top + margin, 20, 20), pixels, (40 + 2 * margin, 60 + 2 * margin))
    drawn, _ = render(image(left, top, 20, 20), pixels)
    assert np.abs(drawn - whole[margin:-margin, margin:-margin]).max() < 1e-4


def test_missing_left_and_top_are_zero():
    component = image(width=8, height=6)
    del component["left"], component["top"]
    assert extent(alpha(component)) == (0, 0, 8, 6)


def test_boxes_that_share_an_edge_stay_flush():
    first, second = alpha(image(3.3, 0, 10.3, 5)), alpha(image(13.6, 0, 10.3, 5))
    assert extent(first) == (3, 0, 14, 5) and extent(second) == (14, 0, 24, 5)


def test_a_hair_line_is_still_seen():
    assert extent(alpha(image(3, 2, 20, 0.2))) == (3, 2, 23, 3)


def test_an_empty_box_or_one_off_the_canvas_shows_nothing():
    for component in (image(0, 0, 0, 5), image(70, 0), image(0, -30), image(opacity=0), image(transform="scale(0)")):
        assert render(component)[0] is None
    assert render(image(70, 0, transform="rotate(10deg)"))[0] is None


def test_opacity_thins_and_keeps_the_colour():
    drawn, _ = render(image(0, 0, 4, 4, opacity=0.4))
    assert np.allclose(drawn[:4, :4], (1, 0, 0, 0.4))


def test_a_quarter_turn_is_clockwise():
    drawn, _ = render(image(10, 10, 20, 20, transform="rotate(90deg)"), quarters())
    assert np.abs(drawn[10:30, 10:30] - np.rot90(quarters() / 255.0, -1)).max() < 1e-4
    assert drawn[..., 3].sum() == pytest.approx(400, abs=0.01)


def test_a_half_turn_is_exact():
    drawn, _ = render(image(10, 10, 20, 20, transform="rotate(180deg)"), quarters())
    assert np.allclose(drawn[10:30, 10:30], quarters()[::-1, ::-1] / 255.0, atol=1e-6)


def test_a_turned_box_turns_about_its_centre_by_its_angle():
    # A bar from the centre to the right, turned by 30 degrees, points down to the right.
    pixels = flat((0, 0, 0, 0), 20, 40)
    pixels[8:12, 20:] = RED
    drawn, _ = render(image(10, 10, 40, 20, transform="rotate(30deg)"), pixels)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    weight = drawn[..., 3]
    centre = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    assert centre == pytest.approx((30 + 10 * np.cos(np.pi / 6), 20 + 10 * np.sin(np.pi / 6)), abs=0.1)
    assert weight.sum() == pytest.approx(80, rel=0.02)


def test_a_turned_opaque_image_has_no_haze_and_one_colour():
    drawn, _ = render(image(10, 10, 30, 20, transform="rotate(17deg)"), flat((200, 100, 50, 255), 300, 400))
    seen = drawn[drawn[..., 3] > 0]
    assert np.abs(seen[:, :3] * 255 - (200, 100, 50)).max() < 0.5
    assert drawn[..., 3].sum() == pytest.approx(600, abs=0.5)
    assert drawn[20, 25, 3] == pytest.approx(1.0, abs=1e-6)


def test_shrinking_while_turning_averages():
    checks = flat((0, 0, 0, 255), 400, 400)
    checks[::2, ::2] = checks[1::2, 1::2] = (255, 255, 255, 255)
    drawn, _ = render(image(15, 5, 30, 30, transform="rotate(20deg)"), checks)
    inner = drawn[15:25, 25:35, :3]
    assert np.abs(inner - 0.5).max() < 0.02


def test_mirroring_and_moving():
    drawn, _ = render(image(10, 10, 20, 20, transform="translate(4px, 3px) scaleX(-1)"), quarters())
    assert np.allclose(drawn[13:33, 14:34], quarters()[:, ::-1] / 255.0, atol=1e-6)


@pytest.mark.parametrize("turn", ["none", "rotate(12deg)"])
def test_what_hides_under_alpha_0_never_shows(turn):
    pixels = flat((0, 255, 0, 0), 32, 32)
    pixels[8:24, 8:24] = RED
    drawn, _ = render(image(10, 5, 23, 23, transform=turn), pixels)
    seen = drawn[drawn[..., 3] > 1 / 255]
    assert np.abs(seen[:, :3] - (1, 0, 0)).max() < 0.02


def test_an_image_is_stretched_unless_it_covers():
    wide = np.concatenate([flat(RED, 10, 10), flat(BLUE, 10, 20), flat(RED, 10, 10)], axis=1)
    stretched, _ = render(image(0, 0, 20, 20), wide)
    covered, notes = render(image(0, 0, 20, 20, objectFit="cover"), wide)
    assert stretched[10, 1, 0] > 0.9 and stretched[10, 10, 2] > 0.9
    assert (covered[:20, 1:19, 2] > 0.9).all() and notes == []
    assert render(image(objectFit="contain"))[1] == ["objectFit of c drawn as fill"]


def test_what_cannot_be_drawn_is_noted():
    assert render(image(boxShadow="0 0 4px red", filter="none"))[1] == ["boxShadow of c not drawn"]


def test_the_style_of_benchmark_rows():
    component = {
        "type": "image",
        "element": {"src": "x"},
        "style": {"left": "5px", "top": 6, "width": 7.0, "height": 8},
    }
    component["style"]["opacity"] = 0.5
    mask = alpha(component)
    assert np.allclose(mask[6:14, 5:12], 0.5) and mask.sum() == pytest.approx(28.0)


# Groups


def test_children_lie_relative_to_their_group():
    inner = group(image(2, 1, 4, 4), left=10, top=5, width=20, height=20)
    assert extent(alpha(group(inner, left=20, top=10, width=30, height=30))) == (32, 16, 36, 20)


def test_a_group_turns_its_children_about_its_own_centre():
    # The child lies at the left upper corner of the box (10..30, 10..30); a clockwise quarter turn puts it right.
    turned = group(image(0, 0, 4, 4), left=10, top=10, width=20, height=20, transform="rotate(90deg)")
    assert extent(alpha(turned)) == (26, 10, 30, 14)


def test_turns_of_group_and_child_add_up():
    child = image(8, 8, 20, 20, transform="rotate(90deg)")
    drawn, _ = render(group(child, left=2, top=2, width=36, height=36, transform="rotate(90deg)"), quarters())
    assert np.allclose(drawn[10:30, 10:30], quarters()[::-1, ::-1] / 255.0, atol=1e-3)


def test_opacity_of_a_group_counts_once_where_its_children_overlap():
    pair = group(image(0, 0, 10, 10), image(5, 0, 10, 10), left=0, top=0, width=15, height=10, opacity=0.5)
    assert np.allclose(alpha(pair)[:10, :15], 0.5)


def test_children_are_painted_in_order_over_the_group_s_colour():
    shape = {"type": "GROUP", "left": 4, "top": 4, "width": 4, "height": 4, "backgroundColor": "rgb(0, 0, 255)"}
    drawn, _ = render(group(image(2, 2, 4, 4), shape, left=0, top=0, width=10, height=10, background="#00ff00"))
    assert drawn[1, 1].tolist() == [0, 1, 0, 1]
    assert drawn[3, 3].tolist() == [1, 0, 0, 1]
    assert drawn[5, 5].tolist() == [0, 0, 1, 1]


def test_hidden_overflow_cuts_children_at_the_box():
    parts = [image(-5, -5, 40, 40)]
    assert extent(alpha(group(*parts, left=10, top=10, width=8, height=6, overflow="hidden"))) == (10, 10, 18, 16)
    assert extent(alpha(group(*parts, left=10, top=10, width=8, height=6, overflow="visible"))) == (5, 5, 45, 40)


def test_a_coloured_group_fills_its_clip_stretched_over_its_box():
    component = {"type": "GROUP", "left": 10.5, "top": 4, "width": 30, "height": 20, "background": "rgb(9, 8, 7)"}
    drawn, _ = render(component | {"clipPath": SQUARE})
    assert drawn[..., 3].sum() == pytest.approx(600)
    # A clip keeps fractions of pixels: half of the columns 10 and 40.
    assert drawn[10, [9, 10, 11, 39, 40, 41], 3].tolist() == [0, 0.5, 1, 1, 0.5, 0]
    triangle, _ = render(component | {"clipPath": 'path("M0,0L8,0L0,2Z")'})
    assert triangle[..., 3].sum() == pytest.approx(300, abs=0.1)
    assert triangle[5, 12, 3] > 0.9 and triangle[22, 38, 3] == 0.0


def test_a_clip_turns_with_its_group():
    component = {"type": "GROUP", "left": 20, "top": 10, "width": 20, "height": 20, "background": "#fff"}
    mask = alpha(component | {"clipPath": 'path("M0,0L10,0L10,5L0,5L0,10L0,5Z")', "transform": "rotate(90deg)"})
    assert extent(mask) == (30, 10, 40, 30)  # the upper half came to lie right


def test_groups_nested_too_deeply():
    component = image()
    for _ in range(30):
        component = group(component)
    with pytest.raises(SampleError, match="nested more than 24 deep"):
        Element(component, "c").count()


@pytest.mark.parametrize(
    ("component", "kind"),
    [
        (text("a"), "text"),
        (image(), "image"),
        (group(text("a"), group(text("b"))), "text"),
        (group(text("a"), image()), "group"),
        (group(text("a"), background="#fff"), "group"),
        ({"type": "GROUP", "background": "rgb(1, 2, 3)", "clipPath": SQUARE}, "shape"),
        (group({"type": "GROUP", "background": "rgb(1, 2, 3)"}, background="red"), "shape"),
        (group(image(), image()), "image"),
    ],
)
def test_kinds(component, kind):
    assert Element(component, "c").layer_kind() == kind


def test_words():
    assert Element(text("two\nlines "), "c").words() == "two lines"
    assert Element(image(alt=" a cat ", description="x"), "c").words() == "a cat"
    assert Element(image(element={"description": "a dog"}), "c").words() == "a dog"
    assert Element(group(text("one"), image(), text("two")), "c").words() == "one, two"
    assert Element(group(text("one"), description="a button"), "c").words() == "a button"


# Clips of photographs


def frame_clip(width, height):
    return f'path("M0,0L{width},0L{width},{height}L0,{height}Z")'


def noise(height, width):
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    return pixels


def test_a_photograph_s_clip_is_found_on_the_flat_render():
    photograph, page = noise(30, 44), np.zeros((*SIZE, 4), np.uint8) + 255
    page[5 + 11 : 5 + 11 + 12, 3 + 25 : 3 + 25 + 10] = photograph[11:23, 25:35]
    drawn, notes = render(image(3, 5, 44, 30, clipPath=frame_clip(10, 12)), photograph, preview=page)
    assert notes == ["clip of c placed by the flat render"]
    assert extent(drawn[..., 3]) == (28, 16, 38, 28)
    assert drawn[..., 3].sum() == 120.0


def test_a_photograph_s_clip_is_found_where_its_box_goes_beyond_the_canvas():
    photograph, page = noise(60, 80), np.zeros((*SIZE, 4), np.uint8) + 255
    page[2:14, 4:14] = photograph[32:44, 24:34]
    drawn, _ = render(image(-20, -30, 80, 60, clipPath=frame_clip(10, 12)), photograph, preview=page)
    assert extent(drawn[..., 3]) == (4, 2, 14, 14)


def test_an_uneven_clip_is_found_on_a_smaller_render():
    photograph = np.asarray(Image.fromarray(noise(6, 8)).resize((44, 30), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:16, :16]
    triangle = (x < 16 - y)[..., None]
    page = np.full((*SIZE, 4), 255, np.uint8)
    page[17:33, 23:39] = np.where(triangle, photograph[12:28, 20:36], 255)
    small = np.asarray(Image.fromarray(page).resize((30, 20), Image.Resampling.BOX))
    component = image(3, 5, 44, 30, clipPath='path("M0,0L16,0L0,16Z")')
    drawn, notes = render(component, photograph, preview=small)
    assert notes == ["clip of c placed by the flat render"]
    assert np.abs(np.subtract(extent(drawn[..., 3])[:2], (23, 17))).max() <= 1


def test_a_clip_that_shows_the_whole_photograph_is_stretched():
    photograph, page = noise(30, 44), np.zeros((*SIZE, 4), np.uint8) + 255
    page[5:35, 3:47] = photograph
    drawn, notes = render(image(3, 5, 44, 30, clipPath=frame_clip(10, 12)), photograph, preview=page)
    assert extent(drawn[..., 3]) == (3, 5, 47, 35) and notes == []


@pytest.mark.parametrize("preview", [None, np.full((*SIZE, 4), 128, np.uint8)])
def test_a_clip_that_is_not_to_be_found_is_centred_and_noted(preview):
    black_and_white = np.where(noise(30, 44) > 127, 255, 0).astype(np.uint8)
    drawn, notes = render(image(3, 5, 44, 30, clipPath=frame_clip(10, 12)), black_and_white, preview=preview)
    assert notes == ["clip of c centred: the layout does not say where it lies"]
    assert extent(drawn[..., 3]) == (20, 14, 30, 26)


def test_a_clip_of_the_box_s_size_or_proportions_needs_no_search():
    for size in ((44, 30), (22, 15)):
        drawn, notes = render(image(3, 5, 44, 30, clipPath=frame_clip(*size)))
        assert extent(drawn[..., 3]) == (3, 5, 47, 35) and notes == []
