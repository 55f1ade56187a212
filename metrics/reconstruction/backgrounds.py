"""Scores of reconstructions over nine backgrounds: of a group of images, of all of them, and the mean over groups.

AlphaVAE's validation code measures each category of a data set, a sub-folder, by itself and takes the unweighted mean
of the categories. Of a Fréchet distance this is another number than that of all images together.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layers.imaging.codec import opened
from metrics.reconstruction.luma_ssim import ssim_y
from metrics.reconstruction.rgba import BACKGROUNDS, Distance, over_background, psnr, ssim

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

SCORES = {"psnr": psnr, "ssim": ssim, "ssim_y": ssim_y}
# A covariance takes two images.
FRECHET_IMAGES = 2


def stored(images: Tensor, blends: str) -> Tensor:
    """Images ``(B, 3, H, W)`` in [0, 1] as they read back: unchanged, rounded to 8 bits, or through Pillow's JPEG."""
    if blends == "float":
        return images
    pixels = images.mul(255.0).round().clamp(0, 255)
    if blends == "png":
        return pixels / 255.0
    rows = []
    for image in pixels.to("cpu", torch.uint8).movedim(1, -1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG")
        with opened(buffer.getvalue(), "a blend", formats=("JPEG",)) as jpeg:
            rows.append(torch.from_numpy(np.array(jpeg)))
    return torch.stack(rows).movedim(-1, 1).to(images.device).float() / 255.0


class Scores:
    """Gathers every metric over images, a column a background.

    Args:
        distance: LPIPS.
        frechet: a Fréchet distance without images; each background gets statistics of its own, one network for all.
        blends: see :func:`stored`.
    """

    def __init__(self, distance: Distance, frechet: FrechetInceptionDistance, blends: str) -> None:
        self.distance, self.blends = distance, blends
        network = frechet.inception
        self.frechet = {name: copy.deepcopy(frechet, {id(network): network}) for name in BACKGROUNDS}
        for metric in self.frechet.values():
            # Else a distance that was asked for stays what it was when more images are absorbed.
            metric.compute_with_cache = False
        self.rows: dict[str, dict[str, list[float]]] = {
            name: {metric: [] for metric in (*SCORES, "lpips")} for name in BACKGROUNDS
        }
        self.alpha: list[float] = []

    @torch.no_grad()
    def add(self, predicted: Tensor, target: Tensor) -> None:
        """Take in reconstructions and images ``(B, 4, H, W)`` in [-1, 1]."""
        self.alpha += ((predicted.clamp(-1, 1) - target)[:, 3].abs().flatten(1).mean(1) / 2.0).tolist()
        for name, colour in BACKGROUNDS.items():
            pair = [stored(over_background(image, colour), self.blends) for image in (predicted, target)]
            for metric, score in SCORES.items():
                self.rows[name][metric] += score(*pair).tolist()
            self.rows[name]["lpips"] += self.distance(*(image * 2.0 - 1.0 for image in pair)).tolist()
            self.frechet[name].update(pair[0], real=False)
            self.frechet[name].update(pair[1], real=True)

    def absorb(self, other: Scores) -> Scores:
        """Take in the images of another one, as if they had been added here; returns itself.

        Both have to hold images: torchmetrics does not merge into statistics that nothing was added to.
        """
        self.alpha += other.alpha
        for name, row in other.rows.items():
            for metric, values in row.items():
                self.rows[name][metric] += values
            self.frechet[name].merge_state(other.frechet[name])
        return self

    def result(self, frechet_name: str) -> dict:
        """Means a background, and over them; a Fréchet distance of :data:`FRECHET_IMAGES` images or more."""
        table = {name: {metric: float(np.mean(values)) for metric, values in row.items()}
                 for name, row in self.rows.items()}  # fmt: skip
        if len(self.alpha) >= FRECHET_IMAGES:
            for name, metric in self.frechet.items():
                table[name][frechet_name] = max(float(metric.compute()), 0.0)
        mean = {metric: float(np.mean([row[metric] for row in table.values()])) for metric in table["black"]}
        return {"mean": {**mean, "alpha_l1": float(np.mean(self.alpha))}, "backgrounds": table}


def grouped(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Images by the folder they lie in, named relative to ``folder``, which itself is ``.``; sorted by name."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        groups.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
    return dict(sorted(groups.items()))


def mean_over_groups(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Unweighted mean of every figure over the groups that have it; ``images`` is a count and left out."""
    names = dict.fromkeys(name for row in groups.values() for name in row if name != "images")
    return {name: float(np.mean([row[name] for row in groups.values() if name in row])) for name in names}


def left_out(name: str, found: int, scored: int) -> str | None:
    """Say in a sentence what the mean over groups lacks of a group.

    Args:
        name: of the group.
        found: its images.
        scored: those of them that were scored.

    Returns:
        The sentence, None if nothing is lacking.
    """
    if not scored:
        return f"group {name}: none of its {found} images can be scored, so no mean over groups holds it"
    if scored < FRECHET_IMAGES:
        return (
            f"group {name}: a Fréchet distance takes {FRECHET_IMAGES} images and it has {scored}, so the mean of "
            "that over groups is without it"
        )
    return None
