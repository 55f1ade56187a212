"""Pixel loss terms: predicted clean latents are decoded by the frozen VAE and compared as images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config.decompose import AlignmentLoss
from layers.imaging.tensors import composite, over_background
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import at_once
from training.decompose.alignment_loss import alignment_loss
from training.losses import abmse, alpha_colour

Distance = Callable[[Tensor, Tensor], Tensor]
NAMES = ("recomposition", "layer_pixels", "alpha_colour", "alignment", "lpips")
# A pixel decoded with gradient takes eight times the memory of one without, even with residual blocks checkpointed.
GRADIENT_SHARE = 8


class PixelTerms(nn.Module):
    """Terms with a weight above 0, each a mean over the batch with samples weighted by (1 - sigma)^trust.

    Near pure noise the one-step estimate is a blur of all possible stacks, and a pixel loss pulls it towards one of
    them. A sampler of many steps should not learn this; one of few steps has to.

    Args:
        vae: the frozen VAE.
        weights: weights of the terms in :data:`NAMES`; others are ignored.
        alignment: parameters of the alignment loss.
        decode_scale: factor by which latents are resized before decoding, whose cost grows with its square.
        trust: exponent of 1 - sigma; 0 weights all sigmas equally.
        distance: LPIPS of images ``(B, 3, H, W)`` in [-1, 1]; needed if its weight is above 0.
    """

    def __init__(
        self,
        vae: RGBAVAE,
        weights: Mapping[str, float],
        alignment: AlignmentLoss,
        *,
        decode_scale: float,
        trust: float,
        distance: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.names = [name for name in NAMES if weights.get(name, 0.0) > 0.0]
        self.alignment, self.decode_scale, self.trust, self.distance = alignment, decode_scale, trust, distance

    def train(self, mode: bool = True) -> PixelTerms:
        """Stay in evaluation mode: nothing in this module is trained."""
        del mode
        return super().train(False)

    def forward(self, estimate: Tensor, clean: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """Loss terms of predicted clean latents.

        Args:
            estimate: ``(B, L + 1, C, h, w)``, slot 0 the composite, which is not used here.
            clean: the true latents, the same shape.
            sigma: ``(B,)`` noise levels of the estimate.

        Returns:
            Scalars by name: ``recomposition``, the mean absolute difference of the flattened layers to the image over
            black; ``layer_pixels``, see :func:`training.losses.abmse`; ``alpha_colour``; ``alignment``, see
            :func:`training.decompose.alignment_loss.alignment_loss`; ``lpips`` of the flattened layers to the image.
        """
        if not self.names:
            return {}
        layers = self.decode(estimate[:, 1:])
        with torch.no_grad():
            truth = self.decode(clean)
        image, truth = over_background(truth[:, 0], -1.0), truth[:, 1:]
        trust = (1.0 - sigma) ** self.trust
        flat = composite(layers)
        errors = {
            "recomposition": lambda: (flat - image).abs().flatten(1).mean(1),
            "layer_pixels": lambda: torch.stack([abmse(p, t) for p, t in zip(layers, truth, strict=True)]),
            "alpha_colour": lambda: alpha_colour(layers, truth),
            "alignment": lambda: alignment_loss(layers, truth, **self.alignment.model_dump()),
            "lpips": lambda: self.distance(flat, image).flatten(),
        }
        return {name: (trust * errors[name]()).mean() for name in self.names}

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents ``(B, S, C, h, w)`` to images ``(B, S, 4, H, W)``, unclamped.

        Decodes a few at a time, so that memory is bounded. With gradients this requires a VAE with gradient
        checkpointing; each part is then decoded a second time in the backward pass.
        """
        flat = latents.flatten(0, 1)
        if self.decode_scale != 1.0:
            # Any whole number of latents can be decoded.
            size = [max(1, round(side * self.decode_scale)) for side in flat.shape[-2:]]
            flat = F.interpolate(flat, size=size, mode="area")
        count = at_once(flat.shape[-2] * flat.shape[-1] * self.vae.spatial_factor**2)
        if not flat.requires_grad:
            pixels = [self._decoded(part) for part in flat.split(count)]
        elif self.vae.gradient_checkpointing:
            parts = flat.split(max(1, count // GRADIENT_SHARE))
            pixels = [checkpoint(self._decoded, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        else:
            pixels = [self._decoded(flat)]
        return torch.cat(pixels).unflatten(0, latents.shape[:2])

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self.vae.denormalise(latents))
