"""Score an RGBA-VAE by reconstruction over nine backgrounds, on any folder of RGBA images (AIM-500 style).

    python -m stages.evaluate_vae --images DIR --vae DIR --out FILE

The protocol is AlphaVAE's (sec. 4, its validation code), which the paper's Table 3 follows. The short side is resized,
the centre cropped, encoded and decoded; image and reconstruction are blended over nine solid colours. PSNR, SSIM and
LPIPS are means over images and colours; the Fréchet distance is computed for each colour and averaged. AlphaVAE
averages over categories (sub-folders), ``mean_over_groups``, with SSIM of the luma, ``ssim_y``. ``mean`` is over all
images, ``ssim`` of RGB. AlphaVAE saves blends as JPEG before it measures, which changes the metrics; ``--blends jpeg``
does so too. Every choice is in the output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config.errors import UserError
from config.paths import check_place, visible_files
from layers.dataset.digest import digest
from layers.imaging.codec import ImageError, read_rgba
from layers.imaging.compositing import resize, to_float, to_uint8
from layers.imaging.tensors import to_tensor
from metrics.reconstruction.backgrounds import Scores, grouped, left_out, mean_over_groups
from metrics.reconstruction.perceptual import Perceptual, alexnet_distance, inception_distance
from metrics.reconstruction.rgba import BACKGROUNDS, PSNR_CEILING
from models.vae.autoencoder import RGBAVAE

SUFFIXES = {".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"}
SIZE = 1024
# Smallest side in pixels that LPIPS can pool.
SMALLEST = 32


def prepare(image: np.ndarray, size: int | None, multiple: int) -> np.ndarray:
    """Resize the short side of ``(H, W, 4)`` uint8 to ``size`` and crop the centre square.

    Args:
        image: straight alpha.
        size: side of the result in pixels; None keeps the resolution and crops to multiples of ``multiple``.
        multiple: pixels per latent.
    """
    height, width = image.shape[:2]
    if size is None:
        target = (height // multiple * multiple, width // multiple * multiple)
    else:
        scale = size / min(height, width)
        height, width = max(size, round(height * scale)), max(size, round(width * scale))
        if (height, width) != image.shape[:2]:
            image = to_uint8(resize(to_float(image), (height, width)))
        target = (size, size)
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    return image[top : top + target[0], left : left + target[1]]


def find_images(folder: Path) -> list[Path]:
    """Find all images below a folder, sorted by their path.

    Raises:
        NotADirectoryError: if it is no folder.
        ValueError: if there is none.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"--images: {folder} is not a folder")
    found = visible_files(folder, SUFFIXES)
    if not found:
        raise ValueError(f"--images: no image below {folder}; expected {', '.join(sorted(SUFFIXES))}")
    return found


def evaluate(
    images: Path, vae_folder: Path, *, size: int | None, blends: str, inception: str | None, device: torch.device
) -> dict:
    """Reconstruct every image and score it.

    Args:
        images: folder of images; those without alpha count as opaque, those in one folder are a group.
        vae_folder: diffusers folder of an RGBA-VAE.
        size: see :func:`prepare`.
        blends: see :func:`metrics.reconstruction.backgrounds.stored`.
        inception: path of Inception weights, ``download``, or None: the Fréchet distance is then over AlexNet.
        device: where everything runs.

    Returns:
        Content of the command's report. Over all images: ``mean``, ``backgrounds``, and their number, ``images``.
        ``groups`` has the ``mean`` and ``images`` of each group, ``mean_over_groups`` their unweighted mean.
        ``left_out`` has a sentence on each group that this mean lacks in part. Also ``protocol``, ``skipped``.

    Raises:
        ValueError: if nothing can be scored, or the VAE has no alpha channel.
    """
    groups = grouped(find_images(images), images)
    vae = RGBAVAE.from_pretrained(vae_folder).to(device).eval()
    if vae.config.input_channels != 4:
        raise ValueError(f"--vae: {vae_folder} has {vae.config.input_channels} channels, expected 4")
    if size is not None and (size < SMALLEST or size % vae.spatial_factor):
        raise ValueError(f"--size: got {size}, expected at least {SMALLEST} and a multiple of {vae.spatial_factor}")
    perceptual = Perceptual().to(device)
    weights = None if inception in (None, "download") else Path(inception)
    frechet = (alexnet_distance(perceptual) if inception is None else inception_distance(weights)).to(device)
    scored = _score(groups, images, vae, (perceptual, frechet, blends), size=size, key=frechet_name(inception))
    protocol = _describe(
        vae_folder, size=size, blends=blends, inception=inception, device=device, multiple=vae.spatial_factor
    )
    return {"protocol": protocol, **scored}


def frechet_name(inception: str | None) -> str:
    """Key of the Fréchet distance: ``rfid`` only if it is over Inception features."""
    return "fid_alexnet" if inception is None else "rfid"


def _score(
    groups: dict[str, list[Path]], images: Path, vae: RGBAVAE, tools: tuple, *, size: int | None, key: str
) -> dict:
    """Score group by group; ``tools`` are arguments of :class:`Scores`, ``key`` names the Fréchet distance."""
    device = next(vae.parameters()).device
    everything, table, sentences, skipped = None, {}, {}, {}
    bar = tqdm(total=sum(map(len, groups.values())), desc="reconstruct", unit="img", mininterval=1.0)
    for name, paths in groups.items():
        scores = Scores(*tools)
        for path in paths:
            bar.update()
            try:
                target = to_tensor(_read(path, images, size, vae.spatial_factor))[None].to(device)
            except ImageError as error:
                skipped[path.relative_to(images).as_posix()] = str(error)
                continue
            with torch.no_grad():
                scores.add(vae(target), target)
        if scores.alpha:
            table[name] = {"images": len(scores.alpha), **scores.result(key)["mean"]}
            everything = everything.absorb(scores) if everything else scores
        if sentence := left_out(name, len(paths), table.get(name, {}).get("images", 0)):
            sentences[name] = sentence
    bar.close()
    for link in sorted(path for path in images.rglob("*") if path.is_symlink() and path.is_dir()):
        name = link.relative_to(images).as_posix()
        sentences[name] = f"{name}: a link to a folder is not followed, and is no group"
    if everything is None:
        raise ValueError(
            f"--images: none of {len(skipped)} images can be scored; the first: {next(iter(skipped.values()))}"
        )
    return {
        "images": len(everything.alpha),
        "skipped": skipped,
        **everything.result(key),
        "mean_over_groups": mean_over_groups(table),
        "groups": table,
        "left_out": sentences,
    }


def _read(path: Path, images: Path, size: int | None, multiple: int) -> np.ndarray:
    """Read and prepare an image; raises ImageError if it is unreadable or too small to be scored."""
    image = prepare(read_rgba(path), size, multiple)
    if min(image.shape[:2]) < SMALLEST:
        got = f"{image.shape[1]}x{image.shape[0]} px"
        raise ImageError(f"{path.relative_to(images)}: {got}, expected at least {SMALLEST} a side")
    return image


def _describe(
    folder: Path, *, size: int | None, blends: str, inception: str | None, device: torch.device, multiple: int
) -> dict:
    """List every choice of the protocol."""
    weights = visible_files(folder, {".safetensors"}, deep=False)
    return {
        "source": "AlphaVAE validation code, github.com/o0o0o00o0/AlphaVAE at 4415ef7; paper Table 3",
        "resize": f"short side to {size} px, premultiplied Lanczos" if size else "none",
        "crop": f"centre {size}x{size}" if size else f"centre, to multiples of {multiple} px",
        "latent": "mode of the posterior",
        "backgrounds": list(BACKGROUNDS),
        "blends": {"float": "float, not rounded", "png": "8-bit", "jpeg": "JPEG, Pillow's default quality"}[blends],
        "psnr": f"per image, data range 1, at most {PSNR_CEILING:g} dB; mean over images and backgrounds",
        "ssim": "RGB, mean of the channels; torchmetrics, 11 px Gaussian window of sigma 1.5, data range 1",
        "ssim_y": "luma of BT.601, full range, rounded to 8 bits, as in pyiqa; the same window, data range 255",
        "lpips": "lpips 0.1, AlexNet",
        "frechet": "Inception v3, torch-fidelity weights, pool 2048"
        if inception
        else "AlexNet conv5, mean over positions, 224 px: not comparable with rFID",
        "frechet_mean": "one distance a background, averaged",
        "mean": "over all images; a Fréchet distance over all of them together",
        "mean_over_groups": "unweighted, of groups' own figures, AlphaVAE's way; a group is the images of one folder",
        "vae": {
            "folder": folder.name,
            "safetensors_md5": ", ".join(map(digest, weights)),
        },
        "device": device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchmetrics", "torch-fidelity", "lpips", "pillow")},
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate_vae", description="Score RGBA reconstruction over nine backgrounds."
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of RGBA images, searched recursively")
    parser.add_argument("--vae", type=Path, required=True, help="diffusers folder of an RGBA-VAE")
    parser.add_argument("--out", type=Path, required=True, help="JSON report to write")
    parser.add_argument("--size", default=str(SIZE), help="side of the centre crop, or native (default %(default)s)")
    parser.add_argument(
        "--blends", choices=("float", "png", "jpeg"), default="float", help="form of the blends (default %(default)s)"
    )
    parser.add_argument("--inception", metavar="PATH", help="torch-fidelity's Inception weights for rFID, or download")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _listed(mean: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in mean.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if the report was written, else 2 after one line on stderr."""
    args = _parser().parse_args(arguments)
    try:
        if args.size != "native" and not args.size.isdigit():
            raise ValueError(f"--size: got {args.size}, expected a number of pixels or native")
        check_place(args.out, "--out", folder=False)
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
    print(f"{report['images']} images, {len(report['skipped'])} skipped: {_listed(report['mean'])} -> {args.out}")
    if len(report["groups"]) > 1:
        print(f"unweighted mean of {len(report['groups'])} groups: {_listed(report['mean_over_groups'])}")
    for sentence in report["left_out"].values():
        print(sentence)
    for name, reason in report["skipped"].items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
