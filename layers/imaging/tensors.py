"""Images as tensors: ``(..., 4, H, W)`` float in [-1, 1], straight alpha in channel 3."""

from __future__ import annotations

import numpy as np
import torch


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert ``(H, W, 4)`` uint8 to ``(4, H, W)`` float32 in [-1, 1]."""
    return torch.tensor(image).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def to_image(tensor: torch.Tensor) -> np.ndarray:
    """Convert ``(..., 4, H, W)`` in [-1, 1] to ``(..., H, W, 4)`` uint8; values beyond the range are clipped."""
    scaled = tensor.detach().float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return scaled.movedim(-3, -1).to("cpu", torch.uint8).numpy()


def split_alpha(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split into colour ``(..., 3, H, W)`` in [-1, 1] and alpha ``(..., 1, H, W)`` in [0, 1]."""
    return image[..., :3, :, :], (image[..., 3:, :, :] + 1.0) / 2.0


def over_background(image: torch.Tensor, value: float) -> torch.Tensor:
    """Composite over one grey value in [-1, 1]: -1 black, 1 white; returns ``(..., 3, H, W)`` in [-1, 1]."""
    rgb, alpha = split_alpha(image)
    return rgb * alpha + value * (1.0 - alpha)


def composite(layers: torch.Tensor) -> torch.Tensor:
    """Flatten ``(B, L, 4, H, W)``, bottom to top, over black: paper sec. 3.1, C_0 = 0 in [0, 1].

    Returns:
        Colour ``(B, 3, H, W)`` in [-1, 1]; pixels that no layer covers are -1.
    """
    rgb, alpha = split_alpha(layers)
    flat = torch.full_like(rgb[:, 0], -1.0)
    for colour, cover in zip(rgb.unbind(1), alpha.unbind(1), strict=True):
        flat = cover * colour + (1.0 - cover) * flat
    return flat
