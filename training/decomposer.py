"""A trained model ready to use: flat picture in, layers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.rgba_vae import RGBAVAE
from models.text_encoders import TextEncoder
from models.vld_mmdit import VLDMMDiT
from training.captions import open_text_encoder, read_text_condition
from training.params_decompose import TextCondition
from training.sampling import decompose_pictures


@dataclass(frozen=True)
class Decomposer:
    """Networks of one folder, in evaluation mode on one device.

    Attributes:
        network: VLD-MMDiT.
        vae: RGBA-VAE.
        encoder: of captions; ``None`` for a network without text.
        condition: what text the network was trained with.
        device: of the networks.
    """

    network: VLDMMDiT
    vae: RGBAVAE
    encoder: TextEncoder | None
    condition: TextCondition
    device: torch.device

    @classmethod
    def from_pretrained(cls, source: str, device: torch.device) -> Decomposer:
        """Load what the stages write, or the released layout: ``vae/``, ``transformer/`` and what text they read.

        Args:
            source: folder, or a hub repository ``owner/name``.
            device: where to compute.

        Raises:
            FileNotFoundError: if something is missing.
        """
        vae = RGBAVAE.from_pretrained(source, "vae").to(device).eval()
        network = VLDMMDiT.from_pretrained(source).to(device).eval()
        condition = read_text_condition(source)
        return cls(network, vae, open_text_encoder(condition, device), condition, device)

    @property
    def multiple(self) -> int:
        """Pixels that both sides of a picture are a multiple of."""
        return self.vae.spatial_factor * self.network.patch_size

    @torch.no_grad()
    def decompose(
        self, pictures: Tensor, layer_count: int, ids: Sequence[str], captions: Sequence[str], *, steps: int, seed: int
    ) -> Tensor:
        """Decompose ``(B, 4, H, W)`` pictures in [-1, 1] into ``(B, L, 4, H, W)`` layers, bottom to top, in [-1, 1].

        Args:
            pictures: sides are multiples of :attr:`multiple`.
            layer_count: L.
            ids: names of the pictures: the noise of each depends on its name and the seed alone, not on the batch.
            captions: what the pictures show; not read by a network without text.
            steps: of the Euler sampler.
            seed: of the noise.
        """
        text = None if self.encoder is None else self.encoder.encode(captions)
        return decompose_pictures(
            self.network, self.vae, pictures.to(self.device), layer_count, ids, steps=steps, seed=seed, text=text
        ).cpu()

    @torch.no_grad()
    def reconstruct(self, layers: Tensor) -> Tensor:
        """Layers ``(L, 4, H, W)`` in [-1, 1] through the VAE: posterior mode, decoded, clipped to [-1, 1]."""
        return self.vae.decode(self.vae.encode(layers.to(self.device)).mode(), clamp=True).cpu()
