"""3x3 convolutions in tiles against PyTorch's direct ones."""

import pytest
import torch
import torch.nn.functional as F

from models.vae import winograd

SHAPES = [((1, 3, 4, 4), 2), ((2, 5, 8, 12), 7), ((3, 16, 20, 4), 16)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_interpolation_matrices_convolve_exactly_in_one_dimension():
    data, kernel, output = winograd.interpolation_matrices()
    signal, taps = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    direct = F.conv1d(signal.view(1, 1, -1), taps.view(1, 1, -1)).view(-1)
    torch.testing.assert_close(output @ ((kernel @ taps) * (data @ signal)), direct, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_the_direct_convolution(shape, out, layout):
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(out, shape[1], 3, 3, requires_grad=True)
    bias = torch.randn(out, requires_grad=True)
    expected, found = F.conv2d(x, weight, bias, padding=1), winograd.conv3x3(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    grad = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, weight, bias), grad),
        torch.autograd.grad(expected, (x, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-3)


def test_rounding_is_a_millionth_of_the_signal():
    x, weight = torch.randn(1, 256, 32, 32), torch.randn(256, 256, 3, 3) / 48
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert (winograd.conv3x3(x, weight, torch.zeros(256)) - exact).std() < 2e-6 * exact.std()


def test_fits_wide_float32_pictures_in_whole_tiles_alone():
    wide, x = torch.zeros(192, 192, 3, 3), torch.zeros(1, 192, 32, 32)
    assert winograd.fits(x, wide)
    assert not winograd.fits(torch.zeros(1, 192, 32, 34), wide)
    assert not winograd.fits(torch.zeros(1, 192, 16, 16), wide)
    assert not winograd.fits(x.double(), wide.double())
    assert not winograd.fits(x, torch.zeros(96, 192, 3, 3))
    assert not winograd.fits(x, torch.zeros(192, 192, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.fits(x, wide)


def test_frozen_weights_leave_the_input_its_gradient():
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    winograd.conv3x3(x, torch.randn(4, 4, 3, 3), torch.zeros(4)).sum().backward()
    assert x.grad.abs().sum() > 0
