"""Alpha of predicted layers, moved to where the image says that they are.

A small network finds what belongs to a layer, within tokens of several pixels: its edges are soft and ragged, and
where a layer is not, a haze of it is left. The image knows better: its edges are sharp, and the layers have to
flatten to it.

Arrays are float in [0, 1], channels last, straight alpha.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from layers.imaging.compositing import WHOLE

RADIUS = 2  # of the window that alpha is explained in, pixels of the small image
EPSILON = 1.0e-4  # variance of colours below which a window is flat, and alpha there a mean
PRIOR = 0.3  # weight of the predicted alpha beside the squared error of the flattened colours
SWEEPS = 3
HAZE = 0.05  # alpha nearer than this to 0 or 1 is 0 or 1
ROUNDED, NOTICED = 0.5 / 255.0, 2.0 / 255.0  # mean errors of a window: up to which it stays, from which it is moved


def guided_alpha(
    alpha: np.ndarray, guide: np.ndarray, large_guide: np.ndarray, radius: int = RADIUS, epsilon: float = EPSILON
) -> np.ndarray:
    """Alpha along the edges of an image, enlarged where that is larger: fast guided filter (arXiv 1505.00996).

    Args:
        alpha: ``(h, w)``.
        guide: ``(h, w, 3)``, the image as small as ``alpha``.
        large_guide: ``(H, W, 3)``, the image.
        radius: of the window, pixels of ``alpha``.
        epsilon: see :data:`EPSILON`.

    Returns:
        ``(H, W)`` in [0, 1].
    """
    return guided(explained(alpha, guide, radius, epsilon), large_guide, large_guide.shape[:2])


def explained(alpha: np.ndarray, guide: np.ndarray, radius: int = RADIUS, epsilon: float = EPSILON) -> np.ndarray:
    """Alpha of each window as an affine function of the colours (He et al. 2013, eq. 14 to 16).

    Args:
        alpha: ``(h, w)``.
        guide: ``(h, w, 3)``.
        radius: of the window.
        epsilon: see :data:`EPSILON`.

    Returns:
        ``(h, w, 4)``: three slopes and an offset, averaged over the windows that a pixel lies in.
    """
    guide, alpha = guide.astype(np.float64), alpha.astype(np.float64)
    centre, level = _window_mean(guide, radius), _window_mean(alpha, radius)
    covariance = _window_mean(guide[..., :, None] * guide[..., None, :], radius)
    covariance -= centre[..., :, None] * centre[..., None, :]
    shared = _window_mean(guide * alpha[..., None], radius) - centre * level[..., None]
    slope = np.linalg.solve(covariance + epsilon * np.eye(3), shared[..., None])[..., 0]
    offset = level - (slope * centre).sum(-1)
    return np.concatenate([_window_mean(slope, radius), _window_mean(offset, radius)[..., None]], axis=-1)


def guided(
    coefficients: np.ndarray, guide: np.ndarray, size: tuple[int, int], window: tuple[slice, slice] = WHOLE
) -> np.ndarray:
    """Alpha of a part of the large image.

    Args:
        coefficients: of :func:`explained`; they are enlarged.
        guide: ``(rows, columns, 3)``, that part.
        size: of the whole.
        window: rows and columns of the part.

    Returns:
        ``(rows, columns)`` in [0, 1].
    """
    large = _enlarged(coefficients, size, window)
    return np.clip((large[..., :3] * guide).sum(-1) + large[..., 3], 0.0, 1.0).astype(np.float32)


def _window_mean(values: np.ndarray, radius: int) -> np.ndarray:
    return uniform_filter(values, (2 * radius + 1,) * 2 + (0,) * (values.ndim - 2), mode="nearest")


def _enlarged(values: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]) -> np.ndarray:
    """Bilinear, ends held: coefficients beyond their range would be edges that the image has not."""
    for axis, length in enumerate(size):
        given = values.shape[axis]
        places = np.clip((np.arange(length)[window[axis]] + 0.5) * given / length - 0.5, 0.0, given - 1.0)
        low = np.minimum(places.astype(int), max(given - 2, 0))
        share = (places - low).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        upper = np.minimum(low + 1, given - 1)
        values = values.take(low, axis) * (1.0 - share) + values.take(upper, axis) * share
    return values


def premultiplied(alpha: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """``(..., 4)``: colours times alpha, and alpha."""
    return np.concatenate([colours * alpha[..., None], alpha[..., None]], axis=-1)


def composite_premultiplied(alphas: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Premultiplied ``(H, W, 4)`` of layers ``(L, H, W)`` and ``(L, H, W, 3)``, bottom to top; of none, nothing."""
    flat = np.zeros((*alphas.shape[1:], 4), colours.dtype)
    for alpha, colour in zip(alphas, colours, strict=True):
        flat = premultiplied(alpha, colour) + (1.0 - alpha[..., None]) * flat
    return flat


def unmixed(
    alphas: np.ndarray, colours: np.ndarray, image: np.ndarray, prior: float = PRIOR, sweeps: int = SWEEPS
) -> np.ndarray:
    """Alpha that flattens the predicted colours to the image, as far as they can tell layers apart.

    The flat image is affine in the alpha of one layer, so that of least squared error has a closed form, the
    projection of blue-screen matting (Smith and Blinn 1996), drawn to the predicted alpha by ``prior``. From the top
    down layer after layer, ``sweeps`` times; the bottom stays. Where a layer has the colour of what lies below it, the
    prediction decides alone.

    Args:
        alphas: ``(L, H, W)``, bottom to top.
        colours: ``(L, H, W, 3)``.
        image: ``(H, W, 4)``.
        prior: see :data:`PRIOR`.
        sweeps: coordinate descents.

    Returns:
        ``(L, H, W)``.
    """
    found, aim = alphas.copy(), premultiplied(image[..., 3], image[..., :3])
    for _ in range(sweeps):
        for layer in range(len(found) - 1, 0, -1):
            above = composite_premultiplied(found[layer + 1 :], colours[layer + 1 :])
            below = composite_premultiplied(found[:layer], colours[:layer])
            through = 1.0 - above[..., 3:]
            change = through * (premultiplied(np.ones_like(found[layer]), colours[layer]) - below)
            missing = aim - above - through * below
            aligned = (change * missing).sum(-1) + prior * alphas[layer]
            found[layer] = np.clip(aligned / (np.square(change).sum(-1) + prior), 0.0, 1.0)
    return found


def without_haze(alphas: np.ndarray, haze: float = HAZE) -> np.ndarray:
    """Alpha with the ``haze`` at both ends cut off and the rest stretched."""
    return np.clip((alphas - haze) / (1.0 - 2.0 * haze), 0.0, 1.0)


def matted(alphas: np.ndarray, colours: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Alpha of all layers above the bottom, moved to the image: unmixed, along its edges, without haze.

    Where the stack flattens to the image already it stays, so true layers come back as they are; from
    :data:`ROUNDED` to :data:`NOTICED` a window is moved the further the larger its error.

    Args:
        alphas: ``(L, H, W)``, bottom to top, as they were predicted.
        colours: ``(L, H, W, 3)``.
        image: ``(H, W, 4)``, of the same size.

    Returns:
        ``(L, H, W)``.
    """
    flat = premultiplied(image[..., 3], image[..., :3])
    error = _window_mean(np.abs(composite_premultiplied(alphas, colours) - flat).mean(-1), RADIUS)
    share = np.clip((error - ROUNDED) / (NOTICED - ROUNDED), 0.0, 1.0)
    guide, found = flat[..., :3], alphas.copy()
    for layer, alpha in enumerate(unmixed(alphas, colours, image)[1:], 1):
        found[layer] += share * (without_haze(guided_alpha(alpha, guide, guide)) - alphas[layer])
    return found
