"""What the RGBA-VAE is trained to do: reconstruct layers and their composites in one latent space (paper sec. 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.rgba_vae import RGBAVAE
from training.losses import abmse, alpha_aware_l1, kl_to_unit
from training.params import VAELoss


class VAEObjective(nn.Module):
    """Encode, decode and every loss term in one forward, so that DDP synchronises the gradients.

    Args:
        vae: the network.
        weights: of the terms.
    """

    def __init__(self, vae: RGBAVAE, weights: VAELoss) -> None:
        super().__init__()
        self.vae, self.weights = vae, weights

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch with ``component`` and ``composite`` ``(B, 4, H, W)`` in [-1, 1]."""
        device = next(self.vae.parameters()).device
        # Layers with alpha and flat opaque pictures share the latent space, so both are in every batch.
        images = torch.cat([batch["component"], batch["composite"]]).to(device)
        posterior = self.vae.encode(images)
        reconstruction = self.vae.decode(posterior.sample()).float()
        terms = {
            "abmse": abmse(reconstruction, images),
            "l1": alpha_aware_l1(reconstruction, images),
            "kl": kl_to_unit(posterior.mean.float(), posterior.logvar.float()),
        }
        weights = self.weights.model_dump()
        return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}
