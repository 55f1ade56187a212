"""SSIM of the luma, as in AlphaVAE (through pyiqa) and the paper's Table 3; the metric ``ssim`` is of RGB."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Y of ITU-R BT.601 over its full range, the Y of YIQ: pyiqa's default. Video's Y has the range 16 to 235.
LUMA = (0.299, 0.587, 0.114)
RADIUS, SIGMA = 5, 1.5
# Stabilising constants of Wang et al. 2004 for a data range of 255.
C1, C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2


def luma(images: Tensor) -> Tensor:
    """Luma of ``(B, 3, H, W)`` in [0, 1]: ``(B, 1, H, W)`` float64, whole numbers in [0, 255]."""
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).mul(255.0).round().double()


def _blur(images: Tensor) -> Tensor:
    """Gaussian filter of ``(B, 1, H, W)`` without padding: both sides lose 2 * :data:`RADIUS`."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-offsets.square() / (2.0 * SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(images, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))


def ssim_y(predicted: Tensor, target: Tensor) -> Tensor:
    """SSIM of the luma of each image ``(B, 3, H, W)`` in [0, 1]: ``(B,)`` float64 in [0, 1].

    As pyiqa's ``ssim``: luma rounded to 8 bits, data range 255, 11 px Gaussian window of sigma 1.5, no padding. No
    further border is cropped, nothing is downsampled, and contrast-structure below 0 counts as 0.

    Raises:
        ValueError: if the shapes differ, or a side is below 11 px.
    """
    if predicted.shape != target.shape or min(target.shape[-2:]) < 2 * RADIUS + 1:
        raise ValueError(
            f"SSIM of luma: got {tuple(predicted.shape)} and {tuple(target.shape)}, expected equal shapes with sides "
            f"of at least {2 * RADIUS + 1}"
        )
    x, y = luma(predicted), luma(target)
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x) - mean_x.square() + _blur(y * y) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    brightness = (2.0 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    structure = (2.0 * covariance + C2) / (variances + C2)
    return (brightness * structure.clamp(min=0.0)).mean((1, 2, 3))
