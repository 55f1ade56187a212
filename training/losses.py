"""Loss terms as pure functions.

Every term is a mean over batch and pixels (or latent elements), so a weight means the same at every batch and picture
size. Pictures are ``(..., 4, H, W)`` in [-1, 1] with straight alpha in channel 3.
"""

from __future__ import annotations

import torch

from layers.tensors import over_grey, split_alpha

# First and second moments of ImageNet colours in [-1, 1]: AlphaVAE's model of an unknown background (its train/losses).
BACKGROUND_MEAN = (-0.0357, -0.0811, -0.1797)
BACKGROUND_SQUARE = (0.3163, 0.3060, 0.3634)


def abmse(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error of the composites, expected over backgrounds b (AlphaVAE eq. 8).

    With P = a' c' - a c and d = a' - a: E_b (P - b d)^2 = P^2 - 2 E[b] P d + E[b^2] d^2, mean over colours and pixels.
    """
    rgb, alpha = split_alpha(target)
    rgb_p, alpha_p = split_alpha(predicted)
    mean = predicted.new_tensor(BACKGROUND_MEAN).view(3, 1, 1)
    square = predicted.new_tensor(BACKGROUND_SQUARE).view(3, 1, 1)
    colour, cover = rgb_p * alpha_p - rgb * alpha, alpha_p - alpha
    return (colour.square() - 2.0 * mean * colour * cover + square * cover.square()).mean()


def alpha_aware_l1(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of three absolute errors: of the composites over black, over white, and of alpha in [-1, 1]."""
    black = (over_grey(predicted, -1.0) - over_grey(target, -1.0)).abs().mean()
    white = (over_grey(predicted, 1.0) - over_grey(target, 1.0)).abs().mean()
    alpha = (predicted[..., 3, :, :] - target[..., 3, :, :]).abs().mean()
    return (black + white + alpha) / 3.0


def kl_to_unit(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp logvar) || N(0, 1)), mean over latent elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def slot_errors(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared velocity error of every slot: ``(B, L+1, C, h, w)`` to ``(B, L+1)``."""
    return (predicted - target).square().flatten(2).mean(2)


def weighted_slot_error(errors: torch.Tensor, *, composite: float, layers: float) -> torch.Tensor:
    """Weighted mean of slot errors ``(B, L+1)``; slot 0 is the composite.

    The weights are normalised over slots, so that neither the layer count nor a joint factor changes the scale.
    """
    weights = errors.new_full((errors.shape[1],), layers)
    weights[0] = composite
    return (errors * (weights / weights.sum())).sum(1).mean()
