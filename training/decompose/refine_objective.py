"""Refinement objective of a trained VLD-MMDiT: flow matching, pixel terms, and consistency under edits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config.decompose import Refine
from layers.imaging.tensors import composite
from models.transformer.flow import draw_sigmas, interpolate, predict_clean, velocity
from models.transformer.vld_mmdit import Text, VLDMMDiT
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import decode_layers, encode_images
from training.decompose.captions import Captions, caption_text
from training.decompose.edits import EDITS, Edit, all_but, edit_layers
from training.decompose.latents import LatentStacks
from training.decompose.pixel_terms import PixelTerms
from training.decompose.validation import NOISE_SEED, SIGMAS, averages
from training.losses import slot_errors


class RefineObjective(nn.Module):
    """Flow matching, plus terms of predicted images, plus terms of the stack after an edit of one layer.

    Args:
        network: predicts velocities.
        vae: the frozen VAE.
        settings: the stage's parameters.
        captions: token states by text; ``None`` for a network without text.
        distance: LPIPS; needed if its weight is above 0.
    """

    def __init__(
        self,
        network: VLDMMDiT,
        vae: RGBAVAE,
        settings: Refine,
        captions: Captions | None = None,
        distance: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network, self.settings, self.captions = network, settings, captions
        self.weights = settings.loss.model_dump()
        scale, trust = settings.decode_scale, settings.trust
        self.pixels = PixelTerms(
            vae, self.weights, settings.alignment, decode_scale=scale, trust=trust, distance=distance
        )

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch with ``latents`` ``(B, L + 1, C, h, w)``, slot 0 the composite, and ``texts``."""
        clean = batch["latents"].to(next(self.network.parameters()).device, non_blocking=True)
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(len(clean), **self.settings.timestep.model_dump(), device=clean.device)
        edit = EDITS[int(torch.randint(len(EDITS), ()))]
        # The background is not edited, as it cannot move; a single layer is recoloured (see ``terms``).
        index = torch.randint(1, max(clean.shape[1] - 1, 2), (len(clean),)).clamp(max=clean.shape[1] - 2)
        index = index.to(clean.device)
        return self.terms(clean, noise, sigma, edit=edit, index=index, texts=batch.get("texts"))

    def terms(
        self, clean: Tensor, noise: Tensor, sigma: Tensor, *, edit: Edit, index: Tensor, texts: list | None = None
    ) -> dict[str, Tensor]:
        """Loss terms for given noise, sigma and edit.

        Args:
            clean: ``(B, L + 1, C, h, w)``.
            noise: the same shape.
            sigma: ``(B,)``.
            edit: the edit applied to one layer of each sample.
            index: ``(B,)`` index of that layer, from 0, bottom to top.
            texts: texts of each sample, the caption first.
        """
        text = caption_text(self.captions, {"texts": texts}, clean.device)
        noisy = interpolate(clean, noise, sigma)
        edits = self.weights["edit_velocity"] + self.weights["edit_kept"] > 0.0
        ask: Callable[..., Tensor] = self.network
        if edits and self.settings.gradient_checkpointing and torch.is_grad_enabled():
            # The backward pass visits the edited image first. Until then the first pass stores no activations of its
            # blocks: this takes an eighth more time and half the activations of two passes.
            ask = functools.partial(checkpoint, self.network, use_reentrant=False, preserve_rng_state=False)
        predicted = ask(noisy, clean[:, 0], sigma, text)
        estimate = predict_clean(noisy, predicted, sigma)
        terms = {"velocity": slot_errors(predicted, velocity(clean, noise)).mean()}
        terms |= self.pixels(estimate, clean, sigma)
        if edits:
            # A stack of one cannot lose its layer. Not skipped: sharded ranks have to call the network equally often.
            edit = edit if clean.shape[1] > 2 else "recolour"
            terms |= self._edit_terms(clean, noise, sigma, edit=edit, index=index, estimate=estimate, text=text)
        return {"loss": sum(self.weights[name] * term for name, term in terms.items()), **terms}

    def _edit_terms(
        self,
        clean: Tensor,
        noise: Tensor,
        sigma: Tensor,
        *,
        edit: Edit,
        index: Tensor,
        estimate: Tensor,
        text: Text | None,
    ) -> dict[str, Tensor]:
        """Decompose the image of the edited stack from the same noise.

        ``edit_velocity`` is the velocity error there: the edited layer has to follow. ``edit_kept`` is the mean squared
        difference of the estimates of all other layers before and after, times 1 - sigma: they have to stay. A stack of
        one has no other layers.
        """
        rows, slots = torch.arange(len(clean), device=clean.device), clean.shape[1]
        with torch.no_grad():
            edited = self.edited_latents(clean, edit, index)
        kept = all_but(index, slots - 1) + 1
        if edit == "delete":
            noise = torch.cat([noise[:, :1], noise[rows[:, None], kept]], dim=1)
        noisy = interpolate(edited, noise, sigma)
        predicted = self.network(noisy, edited[:, 0], sigma, text)
        again = predict_clean(noisy, predicted, sigma)
        terms = {"edit_velocity": slot_errors(predicted, velocity(edited, noise)).mean()}
        if slots > 2:
            where = torch.arange(1, slots - 1, device=clean.device).expand_as(kept) if edit == "delete" else kept
            change = (again[rows[:, None], where] - estimate[rows[:, None], kept]).square().flatten(1).mean(1)
            terms["edit_kept"] = ((1.0 - sigma) * change).mean()
        return terms

    def edited_latents(self, clean: Tensor, edit: Edit, index: Tensor) -> Tensor:
        """Latents of the edited stack, composite first: ``(B, L + 1, C, h, w)``, or L slots after ``delete``.

        Only what the edit changes is encoded again, so that all other layers keep bit-equal latents.
        """
        vae, rows = self.pixels.vae, torch.arange(len(clean), device=clean.device)
        latents = clean[:, 1:]
        edited = edit_layers(decode_layers(vae, latents), index, edit)
        flat = composite(edited)
        images = [torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)]
        if edit != "delete":
            images.append(edited[rows, index])
        encoded = encode_images(vae, torch.cat(images)).split(len(clean))
        if edit == "delete":
            kept = latents[rows[:, None], all_but(index, latents.shape[1])]
            return torch.cat([encoded[0][:, None], kept], dim=1)
        latents = latents.clone()
        latents[rows, index] = encoded[1]
        return torch.cat([encoded[0][:, None], latents], dim=1)


def held_out_terms(objective: RefineObjective, data: LatentStacks, accelerator: Accelerator) -> dict[str, float]:
    """Mean of every refinement term over validation samples and :data:`SIGMAS`; each noise level has its own edit.

    Edits draw from torch's global generators, whose states are restored afterwards.
    """
    edits = dict(zip(SIGMAS, ("move", "recolour", "delete"), strict=True))

    def measure(batch: Mapping[str, Any], noise: Tensor, level: float) -> dict[str, Tensor]:
        clean = batch["latents"]
        top = torch.full((len(clean),), clean.shape[1] - 2, device=clean.device)
        torch.manual_seed(NOISE_SEED)
        sigma = torch.full((len(clean),), level, device=clean.device)
        return objective.terms(clean, noise, sigma, edit=edits[level], index=top, texts=batch["texts"])

    with torch.random.fork_rng():
        return averages(data, measure, accelerator)
