from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from inference.matting import composite_premultiplied, guided_alpha, matted, premultiplied, unmixed, without_haze
from inference.restore import restore
from layers.imaging.compositing import composite, to_uint8


def poster():
    """A gradient of 64x80 px, above it a red disc with a sharp edge and a soft white glow; and its layers."""
    y, x = np.mgrid[:64, :80].astype(np.float32)
    ground = np.stack([x / 160, y / 64, 0.3 + 0 * x, 1 + 0 * x], -1)
    disc = np.zeros_like(ground)
    disc[np.hypot(y - 25, x - 32) < 15] = (0.9, 0.1, 0.2, 1.0)
    glow = np.ones_like(ground)
    glow[..., 3] = np.clip(1.2 - np.hypot(y - 45, x - 55) / 15, 0, 0.8)
    layers = [to_uint8(layer) for layer in (ground, disc, glow)]
    return to_uint8(composite([layer / 255.0 for layer in layers])), layers


def parts(layers):
    floats = np.stack(layers) / 255.0
    return floats[..., 3], floats[..., :3]


def test_the_flat_stack_is_what_over_makes():
    rng = np.random.default_rng(0)
    layers = rng.random((4, 5, 6, 4))
    flat = composite(list(layers))
    assert np.allclose(
        composite_premultiplied(layers[..., 3], layers[..., :3]), premultiplied(flat[..., 3], flat[..., :3])
    )


def test_alpha_of_one_layer_has_a_closed_form():
    """Of d = F - B: (d.(P - B) + prior a0) / (d.d + prior)."""
    colours = np.array([[0.2, 0.3, 0.4], [0.9, 0.1, 0.6]]).reshape(2, 1, 1, 3)
    image = np.array([0.6, 0.2, 0.5, 1.0]).reshape(1, 1, 4)
    change, missing = (colours[1] - colours[0]).ravel(), (image[..., :3] - colours[0]).ravel()
    expected = (change @ missing + 0.3 * 0.7) / (change @ change + 0.3)
    found = unmixed(np.array([1.0, 0.7]).reshape(2, 1, 1), colours, image, 0.3, sweeps=1)
    assert found.ravel() == pytest.approx([1.0, expected]), "the bottom stays"


def test_each_sweep_lowers_what_it_minimises():
    rng = np.random.default_rng(1)
    alphas, colours, image = rng.random((4, 8, 8)), rng.random((4, 8, 8, 3)), rng.random((8, 8, 4))
    aim = premultiplied(image[..., 3], image[..., :3])

    def objective(found):
        error = np.square(composite_premultiplied(found, colours) - aim).sum(-1)
        return error + 0.3 * np.square(found[1:] - alphas[1:]).sum(0)

    values = [objective(unmixed(alphas, colours, image, 0.3, sweeps)) for sweeps in range(5)]
    for before, after in pairwise(values):
        assert (after <= before + 1e-9).all()


def test_true_alpha_is_found_from_true_colours_and_equal_colours_leave_the_prediction():
    image, layers = poster()
    alphas, colours = parts(layers)
    wrong = alphas.copy()
    wrong[1:] = uniform_filter(wrong[1:], (0, 9, 9))
    found = unmixed(wrong, colours, image / 255.0, prior=1e-3, sweeps=20)
    told = np.abs(colours[1] - colours[0]).max(-1) > 0.2
    assert np.abs(found[1] - alphas[1])[told].mean() < 0.1 * np.abs(wrong[1] - alphas[1])[told].mean()
    same = np.broadcast_to(colours[:1], colours.shape)
    flat = np.concatenate([same[0], np.ones((64, 80, 1))], -1)
    assert np.allclose(unmixed(wrong, same, flat), wrong)


def test_a_transparent_pixel_takes_alpha_away():
    alphas, colours = np.array([0.0, 0.5]).reshape(2, 1, 1), np.zeros((2, 1, 1, 3))
    assert unmixed(alphas, colours, np.zeros((1, 1, 4)), prior=1e-6)[1, 0, 0] == pytest.approx(0.0, abs=1e-5)


def test_haze_is_cut_off_at_both_ends():
    assert np.allclose(without_haze(np.array([0.0, 0.04, 0.05, 0.5, 0.95, 0.97, 1.0])), [0, 0, 0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("size", [9, 5])
def test_soft_edges_and_haze_become_the_images(size):
    """What a small network makes of a poster: edges blurred over a token, a haze everywhere."""
    image, layers = poster()
    alphas, colours = parts(layers)
    predicted = alphas.copy()
    predicted[1] = 0.02 + 0.96 * uniform_filter(alphas[1], size)
    found = matted(predicted, colours, image / 255.0)
    assert np.abs(found[1] - alphas[1]).mean() < 0.35 * np.abs(predicted[1] - alphas[1]).mean()
    assert np.array_equal(found[0], alphas[0])


def test_what_flattens_to_the_image_stays_to_the_last_bit():
    image, layers = poster()
    alphas, colours = parts(layers)
    assert np.array_equal(matted(alphas, colours, image / 255.0), alphas)
    far = image.copy()
    far[:, 60:, :3] = 255 - far[:, 60:, :3]
    found = matted(alphas, colours, far / 255.0)
    assert np.array_equal(found[:, :, :57], alphas[:, :, :57]) and not np.array_equal(found, alphas)


def test_a_guide_of_the_same_size_makes_a_ragged_edge_straight():
    edge = np.zeros((40, 40))
    edge[:, 20:] = 1.0
    guide = np.stack([0.2 + 0.6 * edge] * 3, -1)
    ragged = np.stack([np.roll(row, shift) for row, shift in zip(edge, np.tile([-2, 1, 2, -1], 10), strict=True)])
    ragged[:, :5], ragged[:, 35:] = 0.0, 1.0
    assert np.abs(guided_alpha(ragged, guide, guide) - edge).max() < 0.5, "no pixel on the wrong side"


def test_colours_under_alpha_0_stay_as_predicted():
    image, layers = poster()
    given = [layer.copy() for layer in layers]
    given[1][given[1][..., 3] == 0, :3] = (9, 200, 30)
    clear = given[1][..., 3] == 0
    assert (restore(given, image)[1][clear] == (9, 200, 30, 0)).all()
