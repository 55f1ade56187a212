"""PatchGAN discriminator of RGBA images: a real-or-fake logit for every patch (Isola et al. 2017, sec. 3.2.2)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from models.precision import MixedPrecision, at_least_float32

GROUPS = 8


class PatchDiscriminator(MixedPrecision):
    """Discriminator of strided 4x4 convolutions; with three a logit sees 70x70 pixels (as AlphaVAE's train/losses.py).

    It has group norm in place of pix2pix's batch norm: real and reconstructed images pass separately, and batch
    statistics alone would tell them apart.

    Args:
        width: channels after the first convolution, a multiple of 8; doubled by each of the next ones, up to 8 times.
        layers: number of strided convolutions.
        channels: channels of the images.
    """

    def __init__(self, width: int = 64, layers: int = 3, channels: int = 4) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if index < layers - 1 else 1
            blocks += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(GROUPS, after),
                nn.LeakyReLU(0.2),
            ]
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 1, h, w)`` of images ``(B, 4, H, W)`` in [-1, 1]; above 0 means real."""
        with self.autocast(images.device):
            logits = self.blocks(images)
        return at_least_float32(logits)
