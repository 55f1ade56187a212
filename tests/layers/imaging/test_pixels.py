import numpy as np
import pytest

from layers.imaging.pixels import cleared


def test_invisible_pixels_lose_their_colour_and_no_other_does():
    image = np.random.default_rng(0).integers(0, 3, (50, 40, 4), np.uint8)
    image[0, :3] = [(255, 255, 255, 0), (0, 0, 0, 1), (255, 255, 255, 1)]
    image.flags.writeable = False
    expected = image.copy()
    expected[expected[..., 3] == 0] = 0
    for part in (np.s_[:], np.s_[3:20, 5:9], np.s_[::-2]):
        np.testing.assert_array_equal(cleared(image[part]), expected[part])


@pytest.mark.parametrize("alpha", [0, 1, 255])
def test_what_hides_nothing_is_not_copied(alpha):
    image = np.full((4, 5, 4), alpha, np.uint8)
    assert cleared(image) is image
