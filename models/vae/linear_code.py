"""Linear-code initialisation: an RGBA-VAE that reconstructs patches by principal components before training.

From random weights, most of a short training is spent on learning what principal components give at once: 16 numbers
for 4x4 pixels of RGBA reconstruct composed designs at 27 dB (docs/log.md). So the convolutions start as that code, and
training only has to improve on it:

* residual blocks start as their shortcuts (last convolution 0) and attention adds nothing (projection 0);
* the strided convolutions of the encoder gather 2x2 pixels into channels, and the last one projects them on the space
  of the patch's principal components; the upsampling convolutions of the decoder spread them out again;
* RMSNorm and SiLU before the last convolution of either half act linearly. As SiLU(v) - SiLU(-v) = v, every number is
  passed as the pair (v, -v). Large constants in the spare channels keep the norm nearly equal for every pixel.

Nearest doubling followed by a convolution cannot distinguish even and odd pixels, so the decoder's spreading is not
exact: it lacks the highest frequency. ``training.vae.linear_start`` therefore fits the linear path. This takes seconds,
because a step without residual branches is seven times shorter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor, nn

from models.vae.autoencoder import RGBAVAE
from models.vae.blocks import AttentionBlock, Resample, ResidualBlock, UpsampleConv

# Pairs are scaled to half the deviation of a latent, so that they stay small relative to the constants in the norm.
PAIR_SCALE = 0.5
# Log-variance of the posterior, small relative to the weakest components, whose deviation is a tenth of a latent's.
LOGVAR = -8.0
CONSTANT = 4.0
# Taps of a convolution after nearest doubling, for the even pixel of each pair; the odd one has them mirrored. They
# reproduce constants, and otherwise err by a quarter of the differences of neighbours.
EVEN = (-0.25, 0.5, 0.25)


def lack_of_room(base_dim: int, z_dim: int, dim_mult: Sequence[int], channels: int = 4) -> str | None:
    """Reason why a network of these widths, for 3 or 4 image channels, cannot hold the code; None if it can."""
    dims = [base_dim * factor for factor in dim_mult]
    # Pairs and at least one constant channel before the norms at both ends.
    needs = [("level 0", 2 * channels + 1, dims[0]), ("the last level", 2 * z_dim + 1, dims[-1])]
    needs.append(("the last strided convolution", 2 * z_dim, dims[-2]))
    for level in range(1, len(dims) - 1):
        needs.append((f"level {level}", channels * 4**level, min(dims[level], dims[level + 1] // 2)))
    needs.append(("a patch", z_dim, channels * 4 ** (len(dims) - 1)))
    for where, need, have in needs:
        if have < need:
            return f"{where} has {have} channels, the code needs {need}"
    return None


def patch_axes(batches: Iterable[Tensor], levels: int, count: int, channels: int = 4) -> Tensor:
    """Axes of the space of a patch's strongest principal components, of equal length and mixed.

    Mixed, because the latents are normalised per channel for diffusion. One channel per component would scale the
    finest detail up to shape and colour, and waste the transformer's capacity on it (docs/log.md). An orthonormal
    cosine transform gives every channel the same share of the strongest component.

    Args:
        batches: images ``(B, channels, H, W)`` in [-1, 1].
        levels: halvings of the encoder; patches have ``2^levels`` pixels a side.
        count: number of axes.
        channels: channels of the images.

    Returns:
        ``(channels 4^levels, count)``, orthogonal, scaled so that the code's mean square is 1. The code of a patch p is
        ``pinv(axes) @ p``, the patch of a code z is ``axes @ z``. Moments are about 0, so the code includes the mean.
    """
    size = channels * 4**levels
    moment, number = torch.zeros(size, size, dtype=torch.float64), 0
    for images in batches:
        patches = images.double()
        for _ in range(levels):
            patches = F.pixel_unshuffle(patches, 2)
        rows = patches.movedim(1, -1).reshape(-1, size)
        moment, number = moment + rows.T @ rows, number + len(rows)
    values, vectors = torch.linalg.eigh(moment / max(number, 1))
    strongest, mixing = vectors[:, -count:].flip(1), torch.from_numpy(dct(np.eye(count), axis=0, norm="ortho"))
    return (strongest @ mixing * values[-count:].mean().clamp(min=1e-8).sqrt()).float()


@torch.no_grad()
def init_as_linear_code(vae: RGBAVAE, axes: Tensor) -> RGBAVAE:
    """Set the weights of a VAE to the code of ``axes``; return the VAE.

    Args:
        vae: a network for which :func:`lack_of_room` is None. The first halves of residual blocks and attention keep
            their random weights; they take effect once training changes the second halves.
        axes: from :func:`patch_axes`, ``(channels 4^levels, z_dim)``.
    """
    levels, z_dim, channels = len(vae.config.dim_mult) - 1, vae.config.z_dim, vae.config.input_channels
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            _zero(module.conv2)
            if isinstance(module.conv_shortcut, nn.Conv2d):
                _identity(module.conv_shortcut)
        elif isinstance(module, AttentionBlock):
            _zero(module.proj)
    for conv in (vae.encoder.conv_in, vae.quant_conv, vae.post_quant_conv, vae.decoder.conv_in):
        _identity(conv)
    vae.quant_conv.bias[z_dim:] = LOGVAR

    downs = [block for block in vae.encoder.down_blocks if isinstance(block, Resample)]
    analysis = torch.linalg.pinv(axes.double()).float() * PAIR_SCALE
    for level, down in enumerate(downs):
        width = channels * 4**level
        _gather(down.resample[1], torch.cat([analysis, -analysis]) if level == levels - 1 else torch.eye(4 * width))
    # Constants in the spare channels of the strided convolution and of the block after it.
    narrow = downs[-1].resample[1].bias
    narrow[2 * z_dim :] = CONSTANT
    widening = vae.encoder.down_blocks[list(vae.encoder.down_blocks).index(downs[-1]) + 1].conv_shortcut
    if isinstance(widening, nn.Conv2d):
        widening.bias[len(narrow) :] = CONSTANT
    _read_pairs(vae.encoder.conv_out, z_dim, 1.0 / PAIR_SCALE)

    ups = [module for module in vae.decoder.modules() if isinstance(module, UpsampleConv)]
    for level, up in zip(reversed(range(levels)), ups, strict=True):
        width = channels * 4**level
        _spread(up, axes if level == levels - 1 else torch.eye(4 * width), width, pairs=level == 0)
    ups[-1].bias[2 * channels :] = CONSTANT
    _read_pairs(vae.decoder.conv_out, channels, 1.0)
    return vae


def _zero(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


def _identity(conv: nn.Conv2d) -> None:
    """Set a convolution to the identity on common channels; further outputs are 0."""
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)


def _gather(conv: nn.Conv2d, rows: Tensor) -> None:
    """Map 2x2 pixels of ``rows.shape[1] / 4`` channels, ordered as in ``pixel_unshuffle``, to ``rows @ pixels``."""
    _zero(conv)
    count, width = len(rows), rows.shape[1] // 4
    # Padding is at the right and bottom, so the kernel's first two rows and columns cover the 2x2 pixels.
    conv.weight[:count, :width, :2, :2] = rows.view(count, width, 2, 2)


def _spread(conv: nn.Conv2d, synthesis: Tensor, width: int, pairs: bool) -> None:
    """Map channels to ``synthesis @ channels``, as 2x2 pixels of ``width`` channels; with ``pairs`` as (v, -v)."""
    _zero(conv)
    even = torch.tensor(EVEN)
    phases = torch.stack([even, even.flip(0)])
    taps = torch.einsum("ya,xb->yxab", phases, phases)
    kernel = torch.einsum("oyxc,yxab->ocab", synthesis.view(width, 2, 2, -1), taps)
    inputs = kernel.shape[1]
    conv.weight[:width, :inputs] = kernel
    if pairs:
        conv.weight[width : 2 * width, :inputs] = -kernel


def _read_pairs(conv: nn.Conv2d, count: int, scale: float) -> None:
    """Read ``count`` numbers from their normalised pairs; the norm has divided by the constants' root mean square."""
    _zero(conv)
    channels = conv.in_channels
    gain = scale * CONSTANT * math.sqrt((channels - 2 * count) / channels)
    conv.weight[:count, :count, 1, 1] = torch.eye(count) * gain
    conv.weight[:count, count : 2 * count, 1, 1] = -torch.eye(count) * gain
