"""Loss terms of all stages, as pure functions.

Every term is a mean over batch and pixels (or latent elements), so a weight means the same at every batch and image
size. Images are ``(..., 4, H, W)`` in [-1, 1] with straight alpha in channel 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from layers.imaging.tensors import over_background, split_alpha

# First and second moments of ImageNet colours in [-1, 1]: AlphaVAE's model of backgrounds (its train/losses).
BACKGROUND_MEAN = (-0.0357, -0.0811, -0.1797)
BACKGROUND_SQUARE = (0.3163, 0.3060, 0.3634)


def abmse(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """ABMSE: squared error of the composites, expected over backgrounds b (AlphaVAE eq. 8).

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
    black = (over_background(predicted, -1.0) - over_background(target, -1.0)).abs().mean()
    white = (over_background(predicted, 1.0) - over_background(target, 1.0)).abs().mean()
    alpha = (predicted[..., 3, :, :] - target[..., 3, :, :]).abs().mean()
    return (black + white + alpha) / 3.0


def alpha_colour(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Colour error of a stack weighted by true alpha a: sum a |c' - c| / sum a, mean over channels.

    The metric's colour distance with true alpha as its weight, as in the paper (sec. 4.2), over all layers.

    Args:
        predicted: ``(B, L, 4, H, W)``.
        target: the same shape.

    Returns:
        ``(B,)``; 0 for a stack in which nothing is visible.
    """
    rgb, alpha = split_alpha(target)
    difference = (split_alpha(predicted)[0] - rgb).abs().mean(2, keepdim=True)
    return (alpha * difference).flatten(1).sum(1) / alpha.flatten(1).sum(1).clamp(min=1e-6)


def kl_to_unit(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp logvar) || N(0, 1)), mean over latent elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def kl_between(
    mean: torch.Tensor, logvar: torch.Tensor, reference_mean: torch.Tensor, reference_logvar: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, exp logvar) || N(reference)), mean over latent elements (AlphaVAE's reference KL, train/losses.py)."""
    change = logvar - reference_logvar
    distance = (mean - reference_mean).square() * (-reference_logvar).exp()
    return 0.5 * (distance + change.exp() - 1.0 - change).mean()


def perceptual(
    predicted: torch.Tensor,
    target: torch.Tensor,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """LPIPS of the composites over black and over white, mean of both and of the batch (AlphaVAE, train/losses.py).

    Args:
        predicted: ``(B, 4, H, W)``.
        target: the same shape.
        distance: LPIPS of ``(B, 3, H, W)`` in [-1, 1], as :class:`metrics.reconstruction.perceptual.Perceptual`.
    """
    both = [torch.cat([over_background(image, -1.0), over_background(image, 1.0)]) for image in (predicted, target)]
    return distance(*both).mean()


def hinge_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Discriminator's hinge loss from its logits of real and of reconstructed patches (Lim and Ye 2017, eq. 3)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator(fake: torch.Tensor) -> torch.Tensor:
    """Generator's adversarial loss: minus the mean logit of its patches (Lim and Ye 2017, eq. 4)."""
    return -fake.mean()


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Factor that scales the adversarial gradient to the reconstruction's norm (VQGAN, arXiv 2012.09841, eq. 7).

    Args:
        reconstruction: weighted reconstruction loss, a scalar.
        adversarial: the generator's loss, a scalar.
        last: weight of the generator's last layer, at which both gradients are compared.

    Returns:
        A detached scalar in [0, 1e4].
    """
    (pulled,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (pushed,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (pulled.norm() / (pushed.norm() + 1e-4)).clamp(0.0, 1e4).detach()


def slot_errors(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared velocity error of every slot: ``(B, L+1, C, h, w)`` to ``(B, L+1)``."""
    return (predicted - target).square().flatten(2).mean(2)


def weighted_slot_error(errors: torch.Tensor, *, composite: float, layers: float) -> torch.Tensor:
    """Weighted mean of slot errors ``(B, L+1)``; slot 0 is the composite.

    The weights are normalised over slots, so that neither the layer count nor a common factor changes the scale.
    """
    weights = errors.new_full((errors.shape[1],), layers)
    weights[0] = composite
    return (errors * (weights / weights.sum())).sum(1).mean()
