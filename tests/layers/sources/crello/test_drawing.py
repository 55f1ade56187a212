"""Where an element's pixels come to lie: scaling, turning and opacity, against exact and dense references."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from layers.imaging.compositing import resize, to_float, to_uint8
from layers.sources.crello.draw import Box, draw
from tests.layers.sources.crello.designs import drawn, element, noise, placed, plain


def test_an_image_on_whole_pixels_keeps_its_pixels(tmp_path):
    image = noise(5, 7)
    assert np.array_equal(drawn(tmp_path, element(image, left=4, top=3)), placed(image, 3, 4))


def test_what_reaches_beyond_the_canvas_is_cut(tmp_path):
    image = noise(40, 50)
    expected = image[7:27, 10:40]
    assert np.array_equal(drawn(tmp_path, element(image, left=-10, top=-7)), expected)


def test_shrinking_into_whole_pixels_is_the_projects_resize(tmp_path):
    image = noise(30, 40)
    expected = to_uint8(resize(to_float(image), (6, 10)))
    assert np.array_equal(drawn(tmp_path, element(image, 2, 1, width=10, height=6)), placed(expected, 1, 2))


def test_a_stretched_image_fills_its_box_to_a_sharp_edge(tmp_path):
    image = plain((250, 10, 10), 3, 2)
    image[:, 1] = (10, 10, 250, 255)
    layer = drawn(tmp_path, element(image, 5, 4, width=16, height=9))
    assert np.array_equal(layer[..., 3], placed(plain((0, 0, 0), 9, 16), 4, 5)[..., 3])
    # Beside a step of 240 levels a cubic overshoots by some 4 %.
    assert np.abs(layer[4:13, 5].astype(int) - (250, 10, 10, 255)).max() <= 12
    assert np.abs(layer[4:13, 20].astype(int) - (10, 10, 250, 255)).max() <= 12
    # The colours meet in the middle of the box: mirrored about it, red and blue change places.
    assert np.array_equal(layer[4:13, 5:21], layer[4:13, 5:21][:, ::-1, [2, 1, 0, 3]])


def test_a_fraction_of_a_pixel_becomes_coverage(tmp_path):
    layer = drawn(tmp_path, element(plain((9, 8, 7), 4, 4), left=1.25, top=2.5))
    columns, rows = np.zeros(30), np.zeros(20)
    columns[1:6], rows[2:7] = [0.75, 1, 1, 1, 0.25], [0.5, 1, 1, 1, 0.5]
    assert np.abs(layer[..., 3] - 255 * np.outer(rows, columns)).max() <= 0.5
    assert (layer[layer[..., 3] > 0][:, :3] == (9, 8, 7)).all()


def test_an_element_thinner_than_a_pixel_leaves_its_share_of_alpha(tmp_path):
    layer = drawn(tmp_path, element(plain((9, 8, 7), 8, 8), left=3.25, top=2, width=0.5, height=8))
    assert (layer[2:10, 3] == (9, 8, 7, 128)).all()
    assert np.count_nonzero(layer[..., 3]) == 8


@pytest.mark.parametrize(
    ("angle", "turns", "left", "top"), [(90, -1, 13, 6), (-90, 1, 13, 6), (450, -1, 13, 6), (180, 2, 10, 9)]
)
def test_quarter_turns_are_clockwise_about_the_centre_and_exact(tmp_path, angle, turns, left, top):
    image = noise(4, 10)
    layer = drawn(tmp_path, element(image, left=10, top=9, angle=angle))
    assert np.array_equal(layer, placed(np.rot90(image, turns), top, left))


def test_a_small_clockwise_turn_moves_the_right_end_down(tmp_path):
    layer = drawn(tmp_path, element(plain((1, 1, 1), 2, 20), left=5, top=9, angle=20))
    rows = np.arange(20)[:, None]
    middle = (layer[..., 3] * rows).sum(0) / np.maximum(layer[..., 3].sum(0, dtype=int), 1)
    assert middle[22] > middle[15] + 2 > middle[8] + 4


def test_opacity_multiplies_alpha_and_leaves_colour(tmp_path):
    image = noise(5, 7)
    layer = drawn(tmp_path, element(image, 4, 3, opacity=0.25))[3:8, 4:11]
    assert np.abs(layer[..., 3] - 0.25 * image[..., 3]).max() <= 0.5
    shown = layer[..., 3] > 0
    assert np.array_equal(layer[shown][:, :3], image[shown][:, :3])


def test_what_hides_under_alpha_0_never_bleeds(tmp_path):
    image = plain((0, 200, 0), 8, 8)
    image[:, :4] = (255, 0, 255, 0)
    for more in ({"width": 19.3, "height": 11}, {"width": 3.6, "height": 3}, {"angle": 33}):
        layer = drawn(tmp_path, element(image, 6.4, 5.2, **more))
        shown = layer[layer[..., 3] > 2].astype(int)
        assert len(shown)
        assert shown[:, [0, 2]].max() <= 1
        assert np.abs(shown[:, 1] - 200).max() <= 1


def smooth(height, width, sigma):
    raw = np.random.default_rng(5).random((height, width, 4))
    soft = np.stack([gaussian_filter(raw[..., c], sigma, mode="nearest") for c in range(4)], axis=-1)
    low, high = soft.min((0, 1)), soft.max((0, 1))
    return ((soft - low) / (high - low)).astype(np.float32)


def dense(image, box, size, fine=12):
    """Premultiplied drawing as the mean of ``fine`` x ``fine`` samples of a cubic spline in every pixel."""
    premultiplied = np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], axis=-1)
    y, x = (np.mgrid[0 : size[0] * fine, 0 : size[1] * fine] + 0.5) / fine
    x, y = x - box.left - box.width / 2, y - box.top - box.height / 2
    angle = math.radians(box.angle)
    u = math.cos(angle) * x + math.sin(angle) * y + box.width / 2
    v = math.cos(angle) * y - math.sin(angle) * x + box.height / 2
    inside = (u >= 0) & (u < box.width) & (v >= 0) & (v < box.height)
    where = [v * image.shape[0] / box.height - 0.5, u * image.shape[1] / box.width - 0.5]
    samples = [map_coordinates(premultiplied[..., c], where, order=3, mode="nearest") * inside for c in range(4)]
    return np.stack(samples, axis=-1).reshape(size[0], fine, size[1], fine, 4).mean((1, 3))


@pytest.mark.parametrize(
    ("image", "box"),
    [
        (smooth(30, 40, 6), Box(12.3, 6.7, 60.4, 37.2, 30)),
        (smooth(120, 160, 24), Box(10.3, 15.7, 60.4, 35.2, 50)),
        (smooth(60, 60, 8), Box(-10, 5, 60, 60, -75)),
        (smooth(40, 20, 8), Box(30, 10, 20, 40, 200)),
        (np.ones((5, 5, 4), np.float32), Box(20, 20, 40.3, 0.6, 20)),
        (np.ones((5, 5, 4), np.float32), Box(20, 10, 40, 20, 45)),
    ],
    ids=["enlarged", "shrunk", "cut", "turned over", "a hair", "diamond"],
)
def test_turned_and_scaled_drawings_agree_with_a_dense_reference(image, box):
    ours = to_float(draw(image, box, 1.0, (60, 90)))
    ours[..., :3] *= ours[..., 3:]
    reference = dense(image, box, (60, 90))
    error = 255 * np.abs(ours - reference)
    # In 8-bit levels. The reference's own 12 steps a pixel are 21 levels of an edge, worst along a straight one.
    assert error[reference[..., 3] > 0].mean() < 1.0
    assert error.max() < 8.0


def test_strong_shrinking_does_not_alias():
    stripes = plain((0, 0, 0), 240, 240)
    stripes[:, ::2, :3] = 255
    layer = draw(to_float(stripes), Box(5.3, 5.1, 20, 20, 17), 1.0, (32, 32))
    inside = layer[11:21, 11:21, :3].astype(int)
    assert np.abs(inside - 128).max() <= 3
