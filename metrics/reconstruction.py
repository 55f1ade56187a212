"""AIM-500-style reconstruction: any folder of RGBA pictures through any RGBA-VAE, over nine backgrounds.

    python -m metrics.reconstruction --images DIR --vae DIR --out FILE

The protocol is AlphaVAE's (sec. 4, its validation code), which the paper's Table 3 follows: short side resized,
centre cropped, encoded to the mode of the posterior, decoded, picture and reconstruction blended over nine solid
colours; PSNR, SSIM and LPIPS are means over pictures and colours, the Fréchet distance is one a colour, averaged.
AlphaVAE saves blends as JPEG before it measures, which moves the numbers: ``--blends jpeg`` does so too. Every choice
is in the output.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from layers.compositing import resize, to_float, to_uint8
from layers.errors import UserError
from layers.images import PictureError, read_rgba
from layers.tensors import to_tensor
from metrics.perceptual import Perceptual, alexnet_distance, inception_distance
from metrics.rgba_scores import BACKGROUNDS, PSNR_CEILING, Distance, blend, psnr, ssim
from models.rgba_vae import RGBAVAE

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

SUFFIXES = {".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"}
SIZE = 1024
SCORES = {"psnr": psnr, "ssim": ssim}


def prepare(picture: np.ndarray, size: int | None, multiple: int) -> np.ndarray:
    """Resize the short side of ``(H, W, 4)`` uint8 to ``size`` and crop the centre square.

    Args:
        picture: straight alpha.
        size: side of the result; None keeps the resolution and crops to multiples of ``multiple``.
        multiple: pixels per latent.
    """
    height, width = picture.shape[:2]
    if size is None:
        target = (height // multiple * multiple, width // multiple * multiple)
    else:
        scale = size / min(height, width)
        height, width = max(size, round(height * scale)), max(size, round(width * scale))
        if (height, width) != picture.shape[:2]:
            picture = to_uint8(resize(to_float(picture), (height, width)))
        target = (size, size)
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    return picture[top : top + target[0], left : left + target[1]]


def stored(images: Tensor, blends: str) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [0, 1] as they read back: unchanged, rounded to 8 bits, or through Pillow's JPEG."""
    if blends == "float":
        return images
    pixels = images.mul(255.0).round().clamp(0, 255)
    if blends == "png":
        return pixels / 255.0
    rows = []
    for image in pixels.to("cpu", torch.uint8).movedim(1, -1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG")
        rows.append(torch.from_numpy(np.array(Image.open(buffer))))
    return torch.stack(rows).movedim(-1, 1).to(images.device).float() / 255.0


class Scores:
    """Gathers every metric over pictures, a column a background.

    Args:
        distance: LPIPS.
        frechet: a Fréchet distance a background.
        blends: see :func:`stored`.
    """

    def __init__(self, distance: Distance, frechet: dict[str, FrechetInceptionDistance], blends: str) -> None:
        self.distance, self.frechet, self.blends = distance, frechet, blends
        self.rows: dict[str, dict[str, list[float]]] = {
            name: {metric: [] for metric in (*SCORES, "lpips")} for name in BACKGROUNDS
        }
        self.alpha: list[float] = []

    @torch.no_grad()
    def add(self, predicted: Tensor, target: Tensor) -> None:
        """Take in reconstructions and pictures ``(B, 4, H, W)`` in [-1, 1]."""
        self.alpha += ((predicted.clamp(-1, 1) - target)[:, 3].abs().flatten(1).mean(1) / 2.0).tolist()
        for name, colour in BACKGROUNDS.items():
            pair = [stored(blend(image, colour), self.blends) for image in (predicted, target)]
            for metric, score in SCORES.items():
                self.rows[name][metric] += score(*pair).tolist()
            self.rows[name]["lpips"] += self.distance(*(image * 2.0 - 1.0 for image in pair)).tolist()
            self.frechet[name].update(pair[0], real=False)
            self.frechet[name].update(pair[1], real=True)

    def result(self, frechet_name: str) -> dict:
        """Means a background, and over them."""
        table = {name: {metric: float(np.mean(values)) for metric, values in row.items()}
                 for name, row in self.rows.items()}  # fmt: skip
        if len(self.alpha) > 1:
            for name, metric in self.frechet.items():
                table[name][frechet_name] = max(float(metric.compute()), 0.0)
        mean = {metric: float(np.mean([row[metric] for row in table.values()])) for metric in table["black"]}
        return {"mean": {**mean, "alpha_l1": float(np.mean(self.alpha))}, "backgrounds": table}


def find_pictures(folder: Path) -> list[Path]:
    """Pictures below a folder, sorted by their path.

    Raises:
        NotADirectoryError: if it is no folder.
        ValueError: if there is none.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"--images: {folder} is not a folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ValueError(f"--images: no picture below {folder}; expected {', '.join(sorted(SUFFIXES))}")
    return found


def evaluate(
    images: Path, vae_folder: Path, *, size: int | None, blends: str, inception: str | None, device: torch.device
) -> dict:
    """Reconstruct every picture and score it.

    Args:
        images: folder of pictures; those without alpha count as opaque.
        vae_folder: diffusers folder of an RGBA-VAE.
        size: see :func:`prepare`.
        blends: see :func:`stored`.
        inception: path of Inception weights, ``download``, or None: the Fréchet distance is then over AlexNet.
        device: where everything runs.

    Returns:
        What the command writes: ``protocol``, ``pictures``, ``skipped``, ``mean``, ``backgrounds``.

    Raises:
        ValueError: if nothing can be scored, or the VAE has no alpha channel.
    """
    paths = find_pictures(images)
    vae = RGBAVAE.from_pretrained(vae_folder).to(device).eval()
    if vae.config.input_channels != 4:
        raise ValueError(f"--vae: {vae_folder} has {vae.config.input_channels} channels, expected 4")
    if size is not None and (size < 32 or size % vae.spatial_factor):
        raise ValueError(f"--size: got {size}, expected at least 32 and a multiple of {vae.spatial_factor}")
    perceptual = Perceptual().to(device)
    weights = None if inception in (None, "download") else Path(inception)
    first = (alexnet_distance(perceptual) if inception is None else inception_distance(weights)).to(device)
    # Statistics a background, one network for all.
    frechet = {name: copy.deepcopy(first, {id(first.inception): first.inception}) for name in BACKGROUNDS}
    scores, skipped = Scores(perceptual, frechet, blends), {}
    for path in tqdm(paths, desc="reconstruct", unit="img", mininterval=1.0):
        name = str(path.relative_to(images))
        try:
            picture = prepare(read_rgba(path), size, vae.spatial_factor)
            if min(picture.shape[:2]) < 32:
                raise PictureError(f"{name}: {picture.shape[1]}x{picture.shape[0]} px, expected at least 32 a side")
        except PictureError as error:
            skipped[name] = str(error)
            continue
        target = to_tensor(picture)[None].to(device)
        with torch.no_grad():
            scores.add(vae(target), target)
    if not scores.alpha:
        raise ValueError(
            f"--images: none of {len(paths)} pictures can be scored; the first: {next(iter(skipped.values()))}"
        )
    return {
        "protocol": _describe(vae_folder, size, blends, inception, device, vae.spatial_factor),
        "pictures": len(scores.alpha),
        "skipped": skipped,
        **scores.result("fid_alexnet" if inception is None else "rfid"),
    }


def _describe(folder: Path, size: int | None, blends: str, inception: str | None, device, multiple: int) -> dict:
    """List every choice behind the numbers."""
    md5 = hashlib.md5(usedforsecurity=False)
    for path in sorted(folder.glob("*.safetensors")):
        md5.update(path.read_bytes())
    return {
        "source": "AlphaVAE validation code, github.com/o0o0o00o0/AlphaVAE at 4415ef7; paper Table 3",
        "resize": f"short side to {size} px, premultiplied Lanczos" if size else "none",
        "crop": f"centre {size}x{size}" if size else f"centre, to multiples of {multiple} px",
        "latent": "mode of the posterior",
        "backgrounds": list(BACKGROUNDS),
        "blends": {"float": "float, not rounded", "png": "8-bit", "jpeg": "JPEG, Pillow's default quality"}[blends],
        "psnr": f"per picture, data range 1, at most {PSNR_CEILING:g} dB; mean over pictures and backgrounds",
        "ssim": "torchmetrics, 11 px Gaussian window of sigma 1.5, data range 1",
        "lpips": "lpips 0.1, AlexNet",
        "frechet": "Inception v3, torch-fidelity weights, pool 2048"
        if inception
        else "AlexNet conv5, mean over positions, 224 px: not comparable with rFID",
        "frechet_mean": "one distance a background over all pictures, averaged",
        "vae": {"folder": folder.name, "safetensors_md5": md5.hexdigest()},
        "device": device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchmetrics", "torch-fidelity", "lpips", "pillow")},
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metrics.reconstruction", description="Score RGBA reconstruction over nine backgrounds."
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of RGBA pictures, searched recursively")
    parser.add_argument("--vae", type=Path, required=True, help="diffusers folder of an RGBA-VAE")
    parser.add_argument("--out", type=Path, required=True, help="JSON report to write")
    parser.add_argument("--size", default=str(SIZE), help="side of the centre crop, or native (default %(default)s)")
    parser.add_argument(
        "--blends", choices=("float", "png", "jpeg"), default="float", help="how blends are kept (default %(default)s)"
    )
    parser.add_argument("--inception", metavar="PATH", help="torch-fidelity's Inception weights for rFID, or download")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if the report was written, 2 and one line on stderr if the user has to act."""
    args = _parser().parse_args(arguments)
    try:
        if args.size != "native" and not args.size.isdigit():
            raise ValueError(f"--size: got {args.size}, expected a number of pixels or native")
        if args.out.is_dir():
            raise IsADirectoryError(f"--out: {args.out} is a folder, expected a file")
        report = evaluate(
            args.images,
            args.vae,
            size=None if args.size == "native" else int(args.size),
            blends=args.blends,
            inception=args.inception,
            device=torch.device(args.device),
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except (OSError, ValueError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    mean = ", ".join(f"{name} {value:.4f}" for name, value in report["mean"].items())
    print(f"{report['pictures']} pictures, {len(report['skipped'])} skipped: {mean} -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
