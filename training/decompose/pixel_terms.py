"""Loss terms that look at images: predicted clean latents, decoded by the frozen VAE (design: refine)."""

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
# With a gradient a decoded pixel takes eight times the memory of one without, its residual blocks checkpointed.
GRADIENT_SHARE = 8


class PixelTerms(nn.Module):
    """The terms whose weight is above 0, each a mean over the batch, a sample counting by (1 - sigma)^trust.

    Near pure noise the one-step estimate is a blur of all possible stacks, and a pixel loss asks it to be one of them:
    what a sampler of many steps should be spared, and what one of few steps has to learn.

    Args:
        vae: frozen.
        weights: by name, of :data:`NAMES`; others are ignored.
        alignment: of the alignment loss.
        decode_scale: latents are resized by it before they are decoded, which costs its square.
        trust: exponent of 1 - sigma; 0 lets every sigma count alike.
        distance: LPIPS of images ``(B, 3, H, W)`` in [-1, 1]; needed where its weight is above 0.
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
        """Stay in evaluation mode: nothing in here is trained."""
        del mode
        return super().train(False)

    def forward(self, estimate: Tensor, clean: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """Terms of predicted clean latents.

        Args:
            estimate: ``(B, L + 1, C, h, w)``, slot 0 the composite, of which nothing is asked here.
            clean: the true latents, the same shape.
            sigma: ``(B,)`` that the estimate was made at.

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

        A few at a time, so that memory is bounded. With a gradient that takes a VAE with gradient checkpointing, of
        which each part is then decoded a second time in the backward pass.
        """
        flat = latents.flatten(0, 1)
        if self.decode_scale != 1.0:
            # The network halves sides a few times; any whole number of latents decodes.
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
