"""Reconstruction metrics of RGBA images: PSNR, SSIM and LPIPS over solid backgrounds, and the error of alpha.

Images are ``(B, 4, H, W)`` in [-1, 1]. RGB under alpha 0 is invisible, so images are compared as people see them: over
backgrounds. AlphaVAE (sec. 4) uses nine of them; during training the project measures over white.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from layers.imaging.tensors import split_alpha

BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.0, 0.0, 0.0),
    "grey": (0.5, 0.5, 0.5),
    "white": (1.0, 1.0, 1.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}

# Pixels of images over backgrounds that are compared at once. SSIM takes 300 bytes for each, so about 1.3 GiB.
PIXELS_AT_ONCE = 2**22

# Upper bound of PSNR in dB, infinite for equal images; one 8-bit step in one of a million values gives 108 dB.
PSNR_CEILING = 100.0

# Maps two batches (B, 3, H, W) in [-1, 1] to distances (B,); see metrics.reconstruction.perceptual.Perceptual.
Distance = Callable[[Tensor, Tensor], Tensor]


def over_background(image: Tensor, background: Sequence[float]) -> Tensor:
    """Composite ``(B, 4, H, W)`` in [-1, 1] over a colour in [0, 1]; returns ``(B, 3, H, W)`` in [0, 1]."""
    rgb, alpha = split_alpha(image.clamp(-1.0, 1.0))
    colour = image.new_tensor(background).view(3, 1, 1)
    return (rgb + 1.0) / 2.0 * alpha + colour * (1.0 - alpha)


def psnr(predicted: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB of each image ``(B, 3, H, W)`` in [0, 1]: ``(B,)``, at most :data:`PSNR_CEILING`."""
    # Imported here and below, because torchmetrics takes 4 s to import and stages 3 and 4 do not need it.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = peak_signal_noise_ratio(predicted, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=PSNR_CEILING)


def ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """SSIM of each image ``(B, 3, H, W)`` in [0, 1]: ``(B,)``; 11 px Gaussian window of sigma 1.5."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(predicted, target, data_range=1.0, reduction="none").reshape(-1)


def reconstruction_metrics(
    predicted: Tensor,
    target: Tensor,
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
    distance: Distance | None = None,
) -> list[dict[str, float]]:
    """Metrics of each image.

    Args:
        predicted: ``(B, 4, H, W)`` in [-1, 1]; values beyond are clipped.
        target: the same shape.
        backgrounds: names from :data:`BACKGROUNDS`; ``psnr``, ``ssim`` and ``lpips`` are means over them.
        distance: LPIPS; without it there is no ``lpips``.

    Returns:
        One mapping per image: ``psnr``, ``ssim``, ``lpips``, ``psnr_white`` and ``alpha_l1`` (mean |error| of alpha in
        [0, 1]).
    """
    flat = _over_backgrounds(predicted, target, backgrounds, distance)
    white = [over_background(image, BACKGROUNDS["white"]) for image in (predicted, target)]
    alphas = [split_alpha(image.clamp(-1.0, 1.0))[1] for image in (predicted, target)]
    mean = {name: values.mean(0) for name, values in flat.items()}
    columns = {"psnr": mean.pop("psnr"), "ssim": mean.pop("ssim"), "psnr_white": psnr(*white)} | mean
    columns["alpha_l1"] = (alphas[0] - alphas[1]).abs().flatten(1).mean(1)
    return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(predicted))]


def _over_backgrounds(
    predicted: Tensor, target: Tensor, backgrounds: Sequence[str], distance: Distance | None
) -> dict[str, Tensor]:
    """Each metric over each background, ``(backgrounds, B)``; at most :data:`PIXELS_AT_ONCE` pixels at once."""
    step = max(1, PIXELS_AT_ONCE // (predicted.shape[0] * predicted.shape[-2] * predicted.shape[-1]))
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, len(backgrounds), step):
        names = backgrounds[first : first + step]
        flat = [
            torch.cat([over_background(image, BACKGROUNDS[name]) for name in names]) for image in (predicted, target)
        ]
        found = {"psnr": psnr(*flat), "ssim": ssim(*flat)}
        if distance is not None:
            found["lpips"] = distance(flat[0] * 2.0 - 1.0, flat[1] * 2.0 - 1.0)
        for name, values in found.items():
            parts.setdefault(name, []).append(values.view(len(names), len(predicted)))
    return {name: torch.cat(values) for name, values in parts.items()}


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Unweighted mean of every metric over images."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
