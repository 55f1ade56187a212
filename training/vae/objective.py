"""Training objective of the RGBA-VAE: reconstruction of layers and composites in one latent space (paper sec. 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from config.vae import TrainVAE
from layers.imaging.tensors import split_alpha
from metrics.reconstruction.perceptual import Perceptual
from models.vae.autoencoder import RGBAVAE, DiagonalGaussian
from models.vae.discriminator import PatchDiscriminator
from models.vae.opaque import OpaqueVAE
from training.losses import (
    abmse,
    adaptive_weight,
    alpha_aware_l1,
    hinge_discriminator,
    hinge_generator,
    kl_between,
    kl_to_unit,
    perceptual,
)

# Channel values of the backgrounds of replayed opaque images (AlphaVAE's training code), here in [-1, 1].
REPLAY_LEVELS = (-1.0, 0.0, 1.0)


def over_colours(images: Tensor, colours: Tensor) -> Tensor:
    """Composite ``(B, 4, H, W)`` over colours ``(B, 3)`` in [-1, 1]; alpha becomes 1."""
    rgb, alpha = split_alpha(images)
    flat = rgb * alpha + colours[:, :, None, None] * (1.0 - alpha)
    return torch.cat([flat, torch.ones_like(alpha)], dim=1)


def replay_opaque(images: Tensor, share: float) -> Tensor:
    """Flatten each of ``(B, 4, H, W)`` with probability ``share`` over a random colour, as an opaque image.

    So a network initialised from RGB still sees images without transparency (AlphaVAE; paper sec. 3.1: "trained on both
    RGB and RGBA images").
    """
    levels = images.new_tensor(REPLAY_LEVELS)
    # Drawn on the CPU, so that a run sees the same replay on every device.
    colours = levels[torch.randint(len(levels), (len(images), 3)).to(images.device)]
    chosen = (torch.rand(len(images)) < share).to(images.device)
    return torch.where(chosen[:, None, None, None], over_colours(images, colours), images)


class VAEObjective(nn.Module):
    """Encoding, decoding and all loss terms in one forward pass, so that DDP synchronises the gradients.

    A term of weight 0 is neither computed nor logged, except ABMSE, L1 and KL, which cost nothing. The discriminator
    learns in the same backward pass. It sees detached reconstructions, and the generator's term goes through a frozen
    copy of its weights, so neither gradient reaches the other network.

    Args:
        vae: the network; if ``loss.reference_kl`` is set, a frozen copy of its current encoder is the reference.
        settings: the stage's parameters.
    """

    def __init__(self, vae: RGBAVAE | OpaqueVAE, settings: TrainVAE) -> None:
        super().__init__()
        self.vae, self.settings, self.weights = vae, settings, settings.loss
        self.perceptual = Perceptual(settings.lpips_trunk) if self.weights.lpips else None
        self.reference = copy.deepcopy(vae).requires_grad_(False) if self.weights.reference_kl else None
        shape = settings.discriminator
        self.discriminator = PatchDiscriminator(shape.width, shape.layers) if self.weights.gan else None
        if self.discriminator is not None:
            self.discriminator.compute_dtype = vae.compute_dtype

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            batch: ``component`` and ``composite`` ``(B, 4, H, W)`` in [-1, 1]; ``seen``, items before this step.

        Returns:
            Scalars: every term unweighted, and the weighted sum under ``loss``.
        """
        device = next(self.vae.parameters()).device
        # Layers with alpha and flat opaque images share the latent space, so every batch has both.
        layers = replay_opaque(batch["component"].to(device, non_blocking=True), self.settings.opaque_share)
        images = torch.cat([layers, batch["composite"].to(device, non_blocking=True)])
        posterior = self.vae.encode(images)
        reconstruction = self.vae.decode(posterior.sample())
        terms = {
            "abmse": abmse(reconstruction, images),
            "l1": alpha_aware_l1(reconstruction, images),
            "kl": kl_to_unit(posterior.mean, posterior.logvar),
        }
        if self.perceptual is not None:
            terms["lpips"] = perceptual(reconstruction, images, self.perceptual)
        if self.reference is not None:
            terms["reference_kl"] = self._reference_kl(images)
        weights = self.weights.model_dump()
        loss = sum(weights[name] * term for name, term in terms.items())
        if self.discriminator is not None and batch["seen"] >= self.settings.discriminator.start_samples:
            fidelity = sum(weights[name] * terms[name] for name in ("abmse", "l1", "lpips") if name in terms)
            adversarial, terms_of_game = self._game(reconstruction, images, fidelity)
            loss, terms = loss + adversarial, terms | terms_of_game
        return {"loss": loss, **terms}

    def _reference_kl(self, images: Tensor) -> Tensor:
        """KL to the frozen initial encoder on opaque images, mean of black and white backgrounds (AlphaVAE)."""
        total = images.new_zeros(())
        for grey in (-1.0, 1.0):
            opaque = over_colours(images, images.new_full((len(images), 3), grey))
            ours = self.vae.encode(opaque)
            with torch.no_grad():
                theirs: DiagonalGaussian = self.reference.encode(opaque)
            total = total + 0.5 * kl_between(ours.mean, ours.logvar, theirs.mean, theirs.logvar)
        return total

    def _game(self, fake: Tensor, real: Tensor, fidelity: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Adversarial loss of generator and discriminator together, and its parts."""
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        gan = hinge_generator(functional_call(self.discriminator, frozen, (fake,)))
        factor = torch.ones_like(gan)
        if gan.requires_grad:
            factor = adaptive_weight(fidelity, gan, self.vae.decoder.conv_out.weight)
        logits = self.discriminator(torch.cat([real, fake.detach()]))
        judged = hinge_discriminator(*logits.chunk(2))
        terms = {"gan": gan, "gan_factor": factor, "discriminator": judged}
        return self.weights.gan * factor * gan + judged, terms
