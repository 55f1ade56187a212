"""Flow-matching objective of VLD-MMDiT over all slots, with a curriculum of phases (paper sec. 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from config.decompose import Curriculum, Surplus, TrainDecompose
from models.transformer.flow import draw_sigmas, interpolate, predict_clean, velocity
from models.transformer.vld_mmdit import Text, VLDMMDiT
from training.decompose.captions import Captions
from training.decompose.pixel_terms import PixelTerms
from training.losses import slot_errors, weighted_slot_error

Phase = Literal["text_to_rgba", "text_to_layers", "image_to_layers"]
SIGMA_BINS = 4


def phase_at(curriculum: Curriculum, seen: int) -> Phase:
    """Curriculum phase after ``seen`` samples (the three stages of paper sec. 3.3, here phases of one run)."""
    if seen < curriculum.text_to_rgba:
        return "text_to_rgba"
    return "text_to_layers" if seen < curriculum.text_to_rgba + curriculum.text_to_layers else "image_to_layers"


def with_surplus(clean: Tensor, empty: Tensor, settings: Surplus) -> Tensor:
    """Append empty layers on top of a batch of stacks with probability ``share``.

    Args:
        clean: ``(B, L + 1, C, h, w)``.
        empty: ``(C, h, w)``.
        settings: ``max_layers`` bounds the resulting number of layers; the number of empty ones is drawn uniformly.

    Returns:
        ``(B, L + 1 + k, C, h, w)``; drawn from torch's global generator.
    """
    room = settings.max_layers - (clean.shape[1] - 1)
    if room < 1 or torch.rand(()) >= settings.share:
        return clean
    count = int(torch.randint(1, room + 1, ()))
    return torch.cat([clean, empty.to(clean).expand(len(clean), count, *empty.shape)], dim=1)


def error_curves(errors: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Velocity error split by layer and by the quarter of [0, 1] that sigma lies in.

    Args:
        errors: ``(B, L + 1)`` from :func:`training.losses.slot_errors`, slot 0 the composite.
        sigma: ``(B,)``.

    Returns:
        ``velocity_composite``, ``velocity_layers``, ``velocity_layer_<1..L>`` bottom to top, and
        ``velocity_sigma_<k>_of_4``: the error of all slots of the samples whose sigma is in the k-th quarter; NaN if
        there is none.
    """
    curves = {"velocity_composite": errors[:, 0].mean(), "velocity_layers": errors[:, 1:].mean()}
    curves |= {f"velocity_layer_{layer}": column.mean() for layer, column in enumerate(errors[:, 1:].unbind(1), 1)}
    part = (sigma * SIGMA_BINS).long().clamp(max=SIGMA_BINS - 1)
    for k in range(SIGMA_BINS):
        inside = (part == k).to(errors)
        curves[f"velocity_sigma_{k + 1}_of_{SIGMA_BINS}"] = (errors.mean(1) * inside).sum() / inside.sum()
    return {name: value.detach() for name, value in curves.items()}


class FlowObjective(nn.Module):
    """Slot-weighted velocity error, plus the terms of predicted images whose weight is above 0.

    Args:
        network: predicts velocities.
        settings: the stage's parameters.
        captions: token states by text; ``None`` for a network without text.
        pixels: terms of predicted images; ``None`` for none.
        empty: latents ``(C, h, w)`` of a fully transparent image, by (h, w); needed if ``surplus.share`` is above 0.
    """

    def __init__(
        self,
        network: VLDMMDiT,
        settings: TrainDecompose,
        captions: Captions | None = None,
        pixels: PixelTerms | None = None,
        empty: Callable[[tuple[int, int]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.settings, self.captions, self.pixels = network, settings, captions, pixels
        self.empty = empty

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            batch: ``latents`` ``(B, L + 1, C, h, w)``, slot 0 the composite; ``texts``, per sample the caption and the
                description of each layer; ``seen``, samples before this step.
        """
        clean = batch["latents"].to(next(self.network.parameters()).device, non_blocking=True)
        phase = phase_at(self.settings.curriculum, batch["seen"])
        slots = torch.zeros(len(clean), dtype=torch.long)
        if phase == "text_to_rgba":
            slots = torch.randint(clean.shape[1], (len(clean),))
            clean = clean[torch.arange(len(clean)), slots.to(clean.device)][:, None]
        slot_count = clean.shape[1]
        if phase != "text_to_rgba" and self.empty is not None:
            clean = with_surplus(clean, self.empty(tuple(clean.shape[-2:])), self.settings.surplus)
        condition = clean[:, 0] if phase == "image_to_layers" else None
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(len(clean), **self.settings.timestep.model_dump(), device=clean.device)
        noisy = interpolate(clean, noise, sigma)
        predicted = self.network(noisy, condition, sigma, self._text(batch, slots, clean.device))
        errors = slot_errors(predicted, velocity(clean, noise))
        if phase == "text_to_rgba":
            return {"loss": errors.mean(), "velocity_rgba": errors.detach().mean()}
        weights = self.settings.loss
        loss = weighted_slot_error(errors, composite=weights.composite, layers=weights.layers)
        terms = error_curves(errors, sigma)
        if self.pixels is not None and phase == "image_to_layers":
            # Alignment with an empty layer would cost the same for every prediction.
            estimate = predict_clean(noisy, predicted, sigma)[:, :slot_count]
            shown = self.pixels(estimate, clean[:, :slot_count], sigma)
            loss = loss + sum(getattr(weights, name) * term for name, term in shown.items())
            terms |= shown
        return {"loss": loss, **terms}

    def _text(self, batch: Mapping[str, Any], slots: Tensor, device: torch.device) -> Text | None:
        """Token states of the text of one slot of each sample, with dropout for classifier-free guidance."""
        if self.captions is None:
            return None
        texts = [said[slot] for said, slot in zip(batch["texts"], slots.tolist(), strict=True)]
        kept = self.captions.dropped(texts, self.settings.text.dropout)
        return self.captions(kept, device)
