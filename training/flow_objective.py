"""What VLD-MMDiT is trained to do: flow matching over all slots (paper sec. 3.2), then pixels (refinement)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layers.tensors import composite_stack, over_grey
from models.rgba_vae import RGBAVAE
from models.vld_mmdit import VLDMMDiT
from training.flow import draw_sigmas, interpolate, predict_clean, velocity
from training.losses import abmse, slot_errors, weighted_slot_error
from training.params import DecomposeLoss, RefineLoss, Timestep


class FlowObjective(nn.Module):
    """Velocity error with slot weights.

    Args:
        network: predicts velocities.
        timestep: density of sigma.
        weights: of slot 0 and of the layers.
    """

    def __init__(self, network: VLDMMDiT, timestep: Timestep, weights: DecomposeLoss) -> None:
        super().__init__()
        self.network, self.timestep, self.weights = network, timestep, weights

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch with ``latents`` ``(B, L + 1, C, h, w)``, slot 0 the composite."""
        clean = batch["latents"].to(next(self.network.parameters()).device)
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(len(clean), **self.timestep.model_dump(), device=clean.device)
        predicted = self.network(interpolate(clean, noise, sigma), clean[:, 0], sigma)
        errors = slot_errors(predicted.float(), velocity(clean, noise))
        loss = weighted_slot_error(errors, composite=self.weights.composite, layers=self.weights.layers)
        return {"loss": loss, "velocity_composite": errors[:, 0].mean(), "velocity_layers": errors[:, 1:].mean()}


class RefineObjective(nn.Module):
    """Flow matching goes on, and what the prediction looks like begins to count.

    The clean latents that a velocity implies are decoded by the frozen VAE; layers are compared with the true ones and
    their composite with the input. Both count by 1 - sigma: near pure noise the one-step estimate is a blur
    of all possible stacks, and a pixel loss would ask it to be one of them.

    Args:
        network: predicts velocities.
        vae: frozen.
        timestep: density of sigma.
        weights: of the terms.
    """

    def __init__(self, network: VLDMMDiT, vae: RGBAVAE, timestep: Timestep, weights: RefineLoss) -> None:
        super().__init__()
        self.network, self.timestep, self.weights = network, timestep, weights
        self.vae = vae.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> RefineObjective:
        """Switch the network's mode; the VAE stays in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch with ``latents`` ``(B, L + 1, C, h, w)``, slot 0 the composite."""
        clean = batch["latents"].to(next(self.network.parameters()).device)
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(len(clean), **self.timestep.model_dump(), device=clean.device)
        return self.terms(clean, noise, sigma)

    def terms(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """Loss terms for given noise ``(B, L + 1, C, h, w)`` and sigmas ``(B,)``."""
        noisy = interpolate(clean, noise, sigma)
        predicted = self.network(noisy, clean[:, 0], sigma).float()
        estimate = predict_clean(noisy, predicted, sigma)
        layers, with_truth = self._decode(estimate[:, 1:]), self._decode(clean)
        picture, truth = with_truth[:, 0], with_truth[:, 1:]
        trust = (1.0 - sigma).view(-1, 1, 1, 1)
        terms = {
            "velocity": slot_errors(predicted, velocity(clean, noise)).mean(),
            "recomposition": (trust * (composite_stack(layers) - over_grey(picture, -1.0)).abs()).mean(),
            "layer_pixels": torch.stack(
                [weight * abmse(mine, theirs) for weight, mine, theirs in zip(1.0 - sigma, layers, truth, strict=True)]
            ).mean(),
        }
        weights = self.weights.model_dump()
        return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}

    def _decode(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode(self.vae.denormalise(latents.flatten(0, 1)))
        return pixels.unflatten(0, latents.shape[:2]).float()
