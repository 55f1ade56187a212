"""Adapter of an RGB VAE to the RGBA-VAE's interface: it encodes the colours and decodes opaque images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.vae.autoencoder import RGBAVAE, DiagonalGaussian
from models.vae.config import VAEConfig


class OpaqueVAE(nn.Module):
    """VAE of three channels with the interface of one of four (paper sec. 3.1 starts from such a network).

    Args:
        vae: the wrapped network, which is not copied.
    """

    def __init__(self, vae: RGBAVAE) -> None:
        super().__init__()
        self.vae = vae

    @property
    def config(self) -> VAEConfig:
        """Shape of the network."""
        return self.vae.config

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of the network's computation, see :mod:`models.precision`."""
        return self.vae.compute_dtype

    @property
    def decoder(self) -> nn.Module:
        """Decoder of the network."""
        return self.vae.decoder

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Posterior of opaque images ``(B, 4, H, W)`` in [-1, 1]; alpha is ignored."""
        return self.vae.encode(x[:, :3])

    def decode(self, z: Tensor, clamp: bool = False) -> Tensor:
        """Decode latents to images ``(B, 4, H, W)`` with alpha 1."""
        colours = self.vae.decode(z, clamp=clamp)
        return torch.cat([colours, torch.ones_like(colours[:, :1])], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct ``(B, 4, H, W)`` from the mode of the posterior."""
        return self.decode(self.encode(x).mode())


def as_rgba(vae: RGBAVAE) -> RGBAVAE | OpaqueVAE:
    """Wrap ``vae``, of three or four channels, to encode and decode images of four channels."""
    return vae if vae.config.input_channels == 4 else OpaqueVAE(vae)
