import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.matting import guided_alpha, matted, without_haze
from inference.restore import RoomError, check_room, cover, fit_colours, opaque_enough, restore, without_empty
from layers.imaging.compositing import composite, resize, to_float, to_uint8, visible_weights


def psnr(one, other):
    return 10 * np.log10(255.0**2 / max(np.square(one.astype(float) - other).mean(), 1e-12))


def poster(height=256, width=320):
    """A gradient, above it a red disc with a sharp edge and a soft white glow; and its layers."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ground = np.stack([x / width * 0.5, y / height, 0.3 + 0 * x, 1 + 0 * x], -1)
    disc = np.zeros_like(ground)
    disc[np.hypot(y - 100, x - 130) < 60] = (0.9, 0.1, 0.2, 1.0)
    glow = np.zeros_like(ground)
    alpha = np.clip(1.2 - np.hypot(y - 180, x - 220) / 60, 0, 0.8)
    glow[..., :3], glow[..., 3] = 1.0, alpha
    layers = [ground, disc, glow]
    return to_uint8(composite(layers)), [to_uint8(layer) for layer in layers]


def test_alpha_that_is_affine_in_the_colours_comes_back_exactly():
    rng = np.random.default_rng(0)
    large = rng.random((40, 60, 3)).repeat(4, 0).repeat(4, 1)
    slope = np.array([0.5, -0.3, 0.2])
    small = large[::4, ::4]
    found = guided_alpha(small @ slope + 0.3, small, large, epsilon=1e-12)
    assert np.abs(found - np.clip(large @ slope + 0.3, 0, 1)).max() < 1e-5


def test_edges_are_the_images_and_not_the_small_ones():
    image, layers = poster()
    small = [to_uint8(resize(to_float(layer), (32, 40))) for layer in layers]
    truth = to_float(layers[1])[..., 3]
    plain = resize(to_float(small[1]), (256, 320))[..., 3]
    guided = to_float(restore(small, image)[1])[..., 3]
    assert np.abs(guided - truth).mean() < 0.5 * np.abs(plain - truth).mean()


def test_a_flat_guide_gives_the_enlarged_alpha():
    alpha = np.tile(np.linspace(0, 1, 12), (10, 1))
    found = guided_alpha(alpha, np.full((10, 12, 3), 0.4), np.full((40, 48, 3), 0.4))
    assert np.abs(found[:, 8:-8] - np.tile(np.linspace(-0.034, 1.034, 48), (40, 1))[:, 8:-8]).max() < 0.05


def test_dark_letters_leave_no_ghost_below():
    """What a network makes of them: alpha of 0.8 where they are black, and a ground without them."""
    ground = np.full((32, 48, 4), 230, np.uint8)
    ground[..., 3] = 255
    letters = np.zeros_like(ground)
    letters[8:24, 8:40:4, 3] = letters[8:24, 9:40:4, 3] = 255
    image = to_uint8(composite([to_float(ground), to_float(letters)]))
    predicted = letters.copy()
    predicted[..., 3] = letters[..., 3] * 0.8
    below, above = restore([ground, predicted], image)
    assert np.abs(below.astype(int) - ground).max() <= 3
    assert np.abs(above[letters[..., 3] > 0].astype(int) - (0, 0, 0, 255)).max() <= 4


def test_alpha_rises_no_further_than_colours_need():
    colours = np.array([[[[0.5, 0.5, 0.5]]], [[[0.0, 0.0, 0.0]]]])
    alphas = np.array([[[1.0]], [[0.6]]])
    for grey, expected in ((0.1, 0.8), (0.25, 0.6), (0.5, 0.6), (1.0, 1.0)):
        found = opaque_enough(alphas, colours, np.array([[[grey, grey, grey, 1.0]]]))
        assert found[1, 0, 0] == pytest.approx(expected, abs=0.01) and found[0, 0, 0] == 1.0
    assert opaque_enough(alphas, colours, np.zeros((1, 1, 4)))[1, 0, 0] == 0.6, "not of a transparent image"


def test_a_ground_below_a_nearly_opaque_layer_is_not_driven_to_its_end():
    """Alpha that is too low by a level would have the ground make up for it, at a fiftieth of a share."""
    levels = np.arange(150, 255)[None, :, None] / 255.0
    colours = np.stack([np.full((1, 105, 3), 0.1), np.ones((1, 105, 3))])
    image = np.concatenate([levels.repeat(3, 2), np.ones_like(levels)], -1)
    alphas = opaque_enough(np.stack([np.ones((1, 105)), np.full((1, 105), 0.6)]), colours, image)
    found = fit_colours(colours, np.rint(alphas * 255.0) / 255.0, image)
    assert np.abs(found[0] - 0.1).max() < 0.1


@st.composite
def stacks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, height, width = draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    layers = rng.choice(np.array([0, 1, 40, 128, 254, 255], np.uint8), (count, height, width, 4))
    image = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    image[..., 3] = rng.choice(np.array([0, 3, 255, 255], np.uint8), (height, width))
    return list(layers), image


@given(stacks())
def test_weights_are_what_over_does(drawn):
    layers, _ = drawn
    floats = [to_float(layer).astype(np.float64) for layer in layers]
    weights = visible_weights(np.stack([layer[..., 3] for layer in floats]))
    flat = composite(floats)
    assert np.allclose(weights.sum(0), flat[..., 3], atol=1e-9)
    premultiplied = (weights[..., None] * np.stack(floats)[..., :3]).sum(0)
    assert np.allclose(premultiplied, flat[..., :3] * flat[..., 3:], atol=1e-9)


@settings(deadline=None)
@given(stacks())
def test_any_stack_flattens_to_an_opaque_image_within_a_level_or_two(drawn):
    layers, image = drawn
    image[..., 3] = 255
    found = restore(layers, image)
    flat = composite([to_float(layer) for layer in found])
    assert np.abs(flat - to_float(image)).max() <= 2.01 / 255


@given(stacks())
def test_the_stack_is_as_opaque_as_the_image(drawn):
    layers, image = drawn
    alphas = np.stack([to_float(layer)[..., 3] for layer in layers])
    flat = to_float(image)[..., 3]
    found = cover(alphas, flat)
    assert np.allclose(visible_weights(found).sum(0), flat, atol=1e-4)
    less = 1 - np.prod(1 - alphas[1:], axis=0) <= flat
    assert np.array_equal(found[1:, less], alphas[1:, less]), "only the bottom fills what is open"


@settings(deadline=None)
@given(stacks())
def test_any_stack_flattens_to_any_image(drawn):
    layers, image = drawn
    flat = composite([to_float(layer) for layer in restore(layers, image)])
    target = to_float(image)
    assert np.abs(flat[..., 3] - target[..., 3]).max() <= 2.51 / 255
    seen = flat[..., :3] * flat[..., 3:] - target[..., :3] * target[..., 3:]
    assert np.abs(seen).max() <= 4.01 / 255


def test_a_stack_that_flattens_to_the_image_already_stays_as_it_is():
    image, layers = poster()
    for found, layer in zip(restore(layers, image), layers, strict=True):
        visible = layer[..., 3] > 0
        assert np.abs(found[visible].astype(int) - layer[visible]).max() <= 2, "the image is rounded"


@pytest.mark.parametrize(("share", "offset", "still_opaque"), [(0.9, 0, 0.9), (0.0, 40, 0.4)])
def test_where_a_layer_is_opaque_and_on_top_its_colour_is_the_images(share, offset, still_opaque):
    """Of a little darker disc nearly all stays opaque; of a grey one the glow above it takes a part."""
    image, layers = poster()
    wrong = [layer.copy() for layer in layers]
    wrong[1][..., :3] = wrong[1][..., :3] * share + offset
    found = restore(wrong, image)
    alone = (found[1][..., 3] == 255) & (found[2][..., 3] == 0)
    assert alone.sum() > still_opaque * ((layers[1][..., 3] == 255) & (layers[2][..., 3] == 0)).sum()
    assert np.array_equal(found[1][alone], image[alone])


def test_colours_take_the_smallest_change():
    """Closed form: two half-transparent layers share an error in proportion to their weights."""
    alphas = np.array([1.0, 0.25]).reshape(2, 1, 1)
    colours = np.full((2, 1, 1, 3), 0.5)
    image = np.array([0.6, 0.5, 0.4, 1.0]).reshape(1, 1, 4)
    weights = np.array([0.75, 0.25])
    expected = 0.5 + weights[:, None] / np.square(weights).sum() * np.array([0.1, 0.0, -0.1])
    assert np.allclose(fit_colours(colours, alphas, image)[:, 0, 0], expected, atol=1e-6)


def test_what_a_layer_at_the_end_of_its_range_cannot_take_the_others_do():
    """Closed form: of 0.475 to 0.2, half and half, the darker layer gives its 0.05, the other 0.5."""
    alphas = np.array([1.0, 0.5]).reshape(2, 1, 1)
    colours = np.array([0.05, 0.9]).repeat(3).reshape(2, 1, 1, 3)
    image = np.array([0.2, 0.2, 0.2, 1.0]).reshape(1, 1, 4)
    assert np.allclose(fit_colours(colours, alphas, image)[:, 0, 0, 0], [0.0, 0.4], atol=1e-6)


def test_any_stack_flattens_to_any_image_and_what_hardly_shows_hardly_moves():
    rng = np.random.default_rng(0)
    alphas, colours = rng.random((5, 40, 40)), rng.random((5, 40, 40, 3))
    alphas[0], alphas[1] = 1.0, 0.99
    image = np.concatenate([rng.random((40, 40, 3)), np.ones((40, 40, 1))], -1)
    found, weights = fit_colours(colours, alphas, image), visible_weights(alphas)[..., None]
    assert np.abs((weights * found).sum(0) - image[..., :3]).max() < 1 / 255
    assert np.abs(found[0] - colours[0]).mean() < 0.1 * np.abs(found[4] - colours[4]).mean()


@pytest.mark.parametrize("size", [(32, 40), (16, 20), (100, 60)])
def test_layers_of_any_size_flatten_to_the_image(size):
    image, layers = poster()
    small = [to_uint8(resize(to_float(layer), size)) for layer in layers]
    found = restore(small, image)
    assert all(layer.shape == image.shape for layer in found)
    assert psnr(to_uint8(composite([to_float(layer) for layer in found])), image) > 48.0


def test_layers_that_show_nowhere_are_left_out():
    bottom, disc = np.zeros((2, 40, 40, 4), np.uint8)
    bottom[...], disc[10:20, 10:20] = 255, (200, 0, 0, 255)
    dust = np.zeros_like(bottom)
    dust[3, 3:6] = 255
    hidden, haze = disc // 2, np.full_like(bottom, 40)
    kept = without_empty([bottom, hidden, disc, dust, haze, np.zeros_like(bottom)])
    assert [layer is given for layer, given in zip(kept, (bottom, disc), strict=True)] == [True, True]
    assert without_empty([np.zeros_like(bottom)])[0].max() == 0, "the bottom stays"


def whole(layers, image):
    """What :func:`restore` does, of the whole image at once."""
    size, target, floats = image.shape[:2], to_float(image), np.stack([to_float(layer) for layer in layers])
    small = target if size == layers[0].shape[:2] else resize(target, layers[0].shape[:2])
    alphas, colours = matted(floats[..., 3], floats[..., :3], small), floats[..., :3]
    if size != layers[0].shape[:2]:
        guides = small[..., :3] * small[..., 3:], target[..., :3] * target[..., 3:]
        alphas = without_haze(np.stack([guided_alpha(alpha, *guides) for alpha in alphas]))
        colours = np.stack([resize(layer, size)[..., :3] for layer in floats])
    alphas = opaque_enough(cover(alphas, target[..., 3]), colours, target)
    alphas = np.rint(cover(alphas, target[..., 3]) * 255.0).astype(np.float32) / 255.0
    colours = fit_colours(colours, alphas, target)
    return np.rint(np.concatenate([colours, alphas[..., None]], axis=-1) * 255.0).astype(np.uint8)


@pytest.mark.parametrize("small", [None, (20, 16), (80, 90)])
@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("size", [(37, 53), (64, 64), (129, 7), (1, 300), (300, 1)])
def test_an_image_in_parts_is_the_whole_bit_for_bit(monkeypatch, size, count, small):
    monkeypatch.setattr("inference.restore.PART", 700)
    rng = np.random.default_rng(0)
    layers = rng.choice(np.array([0, 1, 40, 128, 254, 255], np.uint8), (count, *(small or size), 4))
    image = rng.integers(0, 256, (*size, 4), dtype=np.uint8)
    image[..., 3] = rng.choice(np.array([0, 3, 255, 255], np.uint8), size)
    assert np.array_equal(restore(list(layers), image), whole(layers, image))


@pytest.mark.parametrize("size", [(513, 511), (8, 32768), (32768, 8)])
def test_memory_is_a_few_times_what_comes_back(monkeypatch, size):
    monkeypatch.setattr("inference.restore.PART", 2**14)
    monkeypatch.setattr("layers.imaging.resampling.PART", 2**16)
    image, layers = np.full((*size, 4), 200, np.uint8), [np.full((64, 64, 4), 90, np.uint8)] * 8
    tracemalloc.start()
    restore(layers, image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / (size[0] * size[1] * len(layers)) < 16, "bytes a pixel and layer, 4 of them the result"


def test_layers_that_would_fill_the_memory_are_refused():
    check_room([(3000, 4000)], 10)
    check_room([(3000, 4000), (3000, 4000)], 5)
    with pytest.raises(RoomError, match=r"^11 layers of 4000x3000 pixels; expected at most 10 of this size$"):
        check_room([(3000, 4000)], 11)
    with pytest.raises(RoomError, match=r"^6 layers of 2 images of 24000000 pixels; expected at most 5 of this"):
        check_room([(3000, 4000), (4000, 3000)], 6)
    with pytest.raises(RoomError, match=r"^8 images of 134217728 pixels; expected at most 120000000$"):
        check_room([(4096, 4096)] * 8, 1)
