"""Convert an RGB VAE to an RGBA-VAE with equal results on opaque images (the paper's surgery, sec. 3.1).

    python -m stages.convert_vae --source Qwen/Qwen-Image --subfolder vae --output-dir DIR

``--source`` is a local folder or a Hugging Face repository in the diffusers format, of 3 or 4 channels. The first
encoder and the last decoder convolution are widened to four channels: colour weights are copied, alpha weights are 0,
the alpha bias is ``--alpha-bias-init``. Before anything is written, latents and colours on opaque images are checked
against the source's. ``train_vae.rgb_checkpoint`` takes the folder. Weights that a single frame never reaches are
written as zeros, so the result is for images, not for video.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config.paths import check_place
from models.vae.autoencoder import RGBAVAE, widen_to_rgba

TOLERANCE = 1e-5
PROOF_SIZE = 64


class ConversionError(ValueError):
    """The converted network's results on opaque images differ from the source's."""


@dataclass(frozen=True)
class Proof:
    """Largest differences between source and result, each divided by the source's largest value, at least 1.

    Attributes:
        latents: of the posteriors' moments.
        colours: of the decoded images.
        alpha: between decoded and expected alpha; 0 if the source has an alpha channel of its own.
    """

    latents: float
    colours: float
    alpha: float

    @property
    def worst(self) -> float:
        """The largest of the three."""
        return max(self.latents, self.colours, self.alpha)


def opaque_images(size: int = PROOF_SIZE) -> Tensor:
    """Opaque test images: noise, a ramp, black and white as ``(4, 4, size, size)`` in [-1, 1], alpha 1."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1.0, 1.0, size)
    images = torch.ones(4, 4, size, size)
    images[0, :3] = torch.rand(3, size, size, generator=generator) * 2.0 - 1.0
    images[1, :3] = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), -ramp.expand(size, size)])
    images[2, :3] = -1.0
    return images


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


@torch.no_grad()
def prove(source: RGBAVAE, converted: RGBAVAE, alpha: float) -> Proof:
    """Compare source and converted network on :func:`opaque_images`.

    Args:
        source: network of 3 or 4 channels.
        converted: its widened form.
        alpha: expected in every decoded pixel if the source has three channels.
    """
    images, channels = opaque_images(), source.config.input_channels
    theirs, ours = source.encode(images[:, :channels]), converted.encode(images)
    moments = [torch.cat([posterior.mean, posterior.logvar]) for posterior in (ours, theirs)]
    expected, decoded = source.decode(theirs.mode()), converted.decode(ours.mode())
    transparency = 0.0 if channels == 4 else float((decoded[:, 3] - alpha).abs().max())
    return Proof(_difference(*moments), _difference(decoded[:, :channels], expected), transparency)


def convert(source: str, subfolder: str | None, output_dir: Path, alpha_bias_init: float = 1.0) -> Proof:
    """Widen a VAE to RGBA, compare it with its source, and write it.

    Args:
        source: folder or hub repository in the diffusers format.
        subfolder: folder inside it.
        output_dir: folder to write; an earlier conversion in it is replaced.
        alpha_bias_init: initial alpha of every pixel, in [-1, 1].

    Returns:
        The comparison, made with the network as read back from disk.

    Raises:
        ConversionError: if a difference is above :data:`TOLERANCE`; nothing is written then.
        FileNotFoundError: if there is no such network.
        PlaceError: if ``output_dir`` cannot be written.
        ValueError: if it is another model, or ``alpha_bias_init`` is out of range.
    """
    if not -1.0 <= alpha_bias_init <= 1.0:
        raise ValueError(f"--alpha-bias-init: got {alpha_bias_init}, expected a value in [-1, 1]")
    check_place(output_dir, "--output-dir", folder=True)
    original = RGBAVAE.from_pretrained(source, subfolder)
    converted = widen_to_rgba(original, alpha_bias_init)
    with tempfile.TemporaryDirectory() as folder:
        converted.save_pretrained(folder)
        proof = prove(original, RGBAVAE.from_pretrained(Path(folder)), alpha_bias_init)
    if not proof.worst <= TOLERANCE:
        raise ConversionError(f"the RGBA network is not the source on opaque images: {proof}; nothing was written")
    converted.save_pretrained(output_dir)
    return proof


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.convert_vae", description="Widen an RGB VAE of Qwen-Image to RGBA."
    )
    parser.add_argument("--source", required=True, help="folder or Hugging Face repository, diffusers format")
    parser.add_argument("--subfolder", help="folder inside it, such as vae")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--alpha-bias-init", type=float, default=1.0, help="initial alpha (default %(default)s: opaque)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if the folder was written, else 2 after one line on stderr."""
    args = _parser().parse_args(arguments)
    try:
        proof = convert(args.source, args.subfolder, args.output_dir, args.alpha_bias_init)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.output_dir}: on opaque images latents differ from the source's by {proof.latents:.1e}, colours by "
        f"{proof.colours:.1e}, alpha from {args.alpha_bias_init:g} by {proof.alpha:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
