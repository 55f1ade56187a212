"""SSIM of the luma against scikit-image on Pillow's luma, against closed forms, and against what it is not."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch.nn.functional import interpolate

from metrics.reconstruction.luma_ssim import luma, ssim_y
from metrics.reconstruction.rgba import ssim

# Of SSIM. Luma that ends in exactly .5 may round to either side: one grey level in one of a thousand pixels.
TOLERANCE = 1e-4


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).movedim(-1, 0)[None] / 255.0


def pair(noise: float, height: int = 60, width: int = 75) -> tuple[np.ndarray, np.ndarray]:
    """Two smooth coloured images ``(H, W, 3)`` uint8, the second with noise."""
    torch.manual_seed(0)
    smooth = interpolate(torch.rand(1, 3, 7, 9), (height, width), mode="bicubic").clamp(0, 1)[0].movedim(0, -1)
    noisy = (smooth + noise * torch.randn_like(smooth)).clamp(0, 1)
    return tuple((image * 255).round().to(torch.uint8).numpy() for image in (smooth, noisy))


def reference(first: np.ndarray, second: np.ndarray) -> float:
    """scikit-image's SSIM of Pillow's 8-bit luma (ITU-R 601-2), where the window lies within; below 0 taken for 0."""
    grey = [np.asarray(Image.fromarray(pixels).convert("L")) for pixels in (first, second)]
    _, values = structural_similarity(
        *grey, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return float(np.maximum(values, 0.0)[5:-5, 5:-5].mean())


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.5])
def test_it_is_that_of_scikit_image_on_the_luma_of_pillow(noise):
    first, second = pair(noise)
    assert float(ssim_y(tensor(first), tensor(second))) == pytest.approx(reference(first, second), abs=TOLERANCE)


def test_a_negative_structure_counts_as_none():
    first, _ = pair(0.0)
    expected = reference(first, 255 - first)
    assert 0.0 <= expected < 0.5
    assert float(ssim_y(tensor(first), tensor(255 - first))) == pytest.approx(expected, abs=TOLERANCE)


def test_every_image_of_a_batch_has_its_own():
    first, second = pair(0.1)
    both = ssim_y(torch.cat([tensor(first)] * 2), torch.cat([tensor(second), tensor(first)]))
    assert both.shape == (2,) and float(both[1]) == pytest.approx(1.0, abs=1e-12)
    assert float(both[0]) == pytest.approx(float(ssim_y(tensor(first), tensor(second))), abs=1e-12)


def test_flat_colours_in_closed_form_say_how_luma_is_rounded():
    """Red is 76.245 and blue 29.07; video levels would be 81 and 41."""
    red, blue = (torch.zeros(1, 3, 16, 16).index_fill_(1, torch.tensor([channel]), 1.0) for channel in (0, 2))
    assert luma(red).unique().tolist() == [76.0] and luma(blue).unique().tolist() == [29.0]
    constant = (0.01 * 255) ** 2
    expected = (2 * 76 * 29 + constant) / (76**2 + 29**2 + constant)
    assert float(ssim_y(red, blue)) == pytest.approx(expected, abs=1e-9)
    assert luma(torch.ones(1, 3, 11, 11)).unique().tolist() == [255.0]


def test_colour_of_equal_luma_is_not_seen_where_ssim_of_rgb_sees_it():
    torch.manual_seed(0)
    grey = torch.randint(60, 180, (1, 1, 32, 32)).expand(1, 3, 32, 32)
    # 30 times 0.114 is nearly 6 times 0.587.
    shifted = grey + torch.tensor([0, -6, 30]).view(1, 3, 1, 1)
    seen, unseen = (score(shifted / 255.0, grey / 255.0) for score in (ssim, ssim_y))
    assert float(unseen) > 0.999 > 0.995 > float(seen)


def test_shapes_that_cannot_be_compared():
    for first, second in [((1, 3, 10, 40), (1, 3, 10, 40)), ((1, 3, 16, 16), (1, 3, 16, 18))]:
        with pytest.raises(ValueError, match="expected equal shapes with sides of at least 11"):
            ssim_y(torch.zeros(first), torch.zeros(second))
