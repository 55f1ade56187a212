import numpy as np
import pytest

from layers.imaging.compositing import premultiplied
from layers.sources.affine import sampled
from layers.sources.lica.css import rotation, shift
from layers.sources.lica.place import place


def test_the_identity_gives_the_image_back():
    image = np.random.default_rng(0).uniform(0.1, 0.9, (9, 7, 4)).astype(np.float32)
    assert np.allclose(sampled(premultiplied(image), (1, 0, 0, 0, 1, 0), (9, 7)), image, atol=1e-5)


@pytest.mark.parametrize("offset", [0.3, 0.5])
def test_colours_beside_a_transparent_edge_stay_as_they_are(offset):
    image = np.zeros((24, 24, 4), np.float32)
    image[6:18, 6:18] = (0.0, 200 / 255, 0.0, 1.0)
    out = sampled(premultiplied(image), (1, 0, offset, 0, 1, offset), (24, 24))
    assert np.abs(out[out[..., 3] > 0.02][:, 1] - 200 / 255).max() < 1e-3, "where alpha rings, colour rings with it"


def test_a_turned_image_of_lica_keeps_the_colour_of_its_soft_edges():
    image = np.zeros((24, 24, 4), np.float32)
    image[6:18, 6:18] = (0.0, 200 / 255, 0.0, 1.0)
    turned = place(image, (24, 24), shift(20, 20) @ rotation(33), (60, 60))
    assert np.abs(turned[turned[..., 3] > 0.02][:, 1] - 200 / 255).max() < 1e-3
