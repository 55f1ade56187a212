"""Reconstruction scores over nine backgrounds: of a group of images, of all images, and the mean over groups.

AlphaVAE's validation code measures each category (sub-folder) of a data set by itself and takes the unweighted mean
over categories. For a Fréchet distance this differs from the distance over all images together.
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
# A covariance needs two images.
FRECHET_IMAGES = 2


def stored(images: Tensor, blends: str) -> Tensor:
    """Images ``(B, 3, H, W)`` in [0, 1] as stored in ``float`` (unchanged), ``png`` (8 bits) or Pillow's JPEG."""
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
    """Accumulator of every metric over images, with one column per background.

    Args:
        distance: LPIPS.
        frechet: a Fréchet distance without images; backgrounds have their own statistics and share one network.
        blends: see :func:`stored`.
    """

    def __init__(self, distance: Distance, frechet: FrechetInceptionDistance, blends: str) -> None:
        self.distance, self.blends = distance, blends
        network = frechet.inception
        self.frechet = {name: copy.deepcopy(frechet, {id(network): network}) for name in BACKGROUNDS}
        for metric in self.frechet.values():
            # With the cache, a distance computed once would not change when more images are absorbed.
            metric.compute_with_cache = False
        self.rows: dict[str, dict[str, list[float]]] = {
            name: {metric: [] for metric in (*SCORES, "lpips")} for name in BACKGROUNDS
        }
        self.alpha: list[float] = []

    @torch.no_grad()
    def add(self, predicted: Tensor, target: Tensor) -> None:
        """Add reconstructions and originals ``(B, 4, H, W)`` in [-1, 1]."""
        self.alpha += ((predicted.clamp(-1, 1) - target)[:, 3].abs().flatten(1).mean(1) / 2.0).tolist()
        for name, colour in BACKGROUNDS.items():
            pair = [stored(over_background(image, colour), self.blends) for image in (predicted, target)]
            for metric, score in SCORES.items():
                self.rows[name][metric] += score(*pair).tolist()
            self.rows[name]["lpips"] += self.distance(*(image * 2.0 - 1.0 for image in pair)).tolist()
            self.frechet[name].update(pair[0], real=False)
            self.frechet[name].update(pair[1], real=True)

    def absorb(self, other: Scores) -> Scores:
        """Add the images of another accumulator, as if they had been added here; returns itself.

        Both have to hold images: torchmetrics does not merge into empty statistics.
        """
        self.alpha += other.alpha
        for name, row in other.rows.items():
            for metric, values in row.items():
                self.rows[name][metric] += values
            self.frechet[name].merge_state(other.frechet[name])
        return self

    def result(self, frechet_name: str) -> dict:
        """Means per background and over all; a Fréchet distance from :data:`FRECHET_IMAGES` images on."""
        table = {name: {metric: float(np.mean(values)) for metric, values in row.items()}
                 for name, row in self.rows.items()}  # fmt: skip
        if len(self.alpha) >= FRECHET_IMAGES:
            for name, metric in self.frechet.items():
                table[name][frechet_name] = max(float(metric.compute()), 0.0)
        mean = {metric: float(np.mean([row[metric] for row in table.values()])) for metric in table["black"]}
        return {"mean": {**mean, "alpha_l1": float(np.mean(self.alpha))}, "backgrounds": table}


def grouped(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Group images by their folder, named relative to ``folder``, which itself is ``.``; sorted by name."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        groups.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
    return dict(sorted(groups.items()))


def mean_over_groups(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Unweighted mean of every metric over the groups that have it; ``images`` is a count and left out."""
    names = dict.fromkeys(name for row in groups.values() for name in row if name != "images")
    return {name: float(np.mean([row[name] for row in groups.values() if name in row])) for name in names}


def left_out(name: str, found: int, scored: int) -> str | None:
    """One sentence on the part of a group that is missing from the mean over groups.

    Args:
        name: name of the group.
        found: number of its images.
        scored: number of scored ones.

    Returns:
        The sentence; None if nothing is missing.
    """
    if not scored:
        return f"group {name}: none of its {found} images can be scored, so no mean over groups holds it"
    if scored < FRECHET_IMAGES:
        return (
            f"group {name}: a Fréchet distance takes {FRECHET_IMAGES} images and it has {scored}, so the mean of "
            "that over groups is without it"
        )
    return None
