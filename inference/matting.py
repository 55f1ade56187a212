"""Alpha refinement: predicted alpha is moved to the edges and colours of the image.

A small network predicts layers at tokens of several pixels: edges are soft and ragged, and outside a layer a faint haze
of it remains. The image corrects both: its edges are sharp, and the layers have to flatten to it.

Arrays are float in [0, 1], channels last, straight alpha.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from layers.imaging.compositing import WHOLE

RADIUS = 2  # of the window in which alpha is fitted, pixels of the small image
EPSILON = 1.0e-4  # variance of colours below which a window is flat and its alpha is averaged
PRIOR = 0.3  # weight of the predicted alpha relative to the squared error of the flattened colours
SWEEPS = 3
HAZE = 0.05  # alpha nearer than this to 0 or 1 is 0 or 1
ROUNDED, NOTICED = 0.5 / 255.0, 2.0 / 255.0  # mean errors of a window: unchanged below, fully moved above


def guided_alpha(
    alpha: np.ndarray, guide: np.ndarray, large_guide: np.ndarray, radius: int = RADIUS, epsilon: float = EPSILON
) -> np.ndarray:
    """Filter alpha along an image's edges and enlarge it to the image's size: fast guided filter (arXiv 1505.00996).

    Args:
        alpha: ``(h, w)``.
        guide: ``(h, w, 3)``, the image at the size of ``alpha``.
        large_guide: ``(H, W, 3)``, the image at full size.
        radius: radius of the window, in pixels of ``alpha``.
        epsilon: see :data:`EPSILON`.

    Returns:
        ``(H, W)`` in [0, 1].
    """
    return guided(explained(alpha, guide, radius, epsilon), large_guide, large_guide.shape[:2])


def explained(alpha: np.ndarray, guide: np.ndarray, radius: int = RADIUS, epsilon: float = EPSILON) -> np.ndarray:
    """Fit alpha in each window as an affine function of the colours (He et al. 2013, eq. 14 to 16).

    Args:
        alpha: ``(h, w)``.
        guide: ``(h, w, 3)``.
        radius: radius of the window.
        epsilon: see :data:`EPSILON`.

    Returns:
        ``(h, w, 4)``: three slopes and an offset, averaged over the windows that contain a pixel.
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
    """Refined alpha of a part of the large image.

    Args:
        coefficients: coefficients of :func:`explained`, which are enlarged.
        guide: ``(rows, columns, 3)``, the part of the image.
        size: (height, width) of the whole image.
        window: rows and columns of the part.

    Returns:
        ``(rows, columns)`` in [0, 1].
    """
    large = _enlarged(coefficients, size, window)
    return np.clip((large[..., :3] * guide).sum(-1) + large[..., 3], 0.0, 1.0).astype(np.float32)


def _window_mean(values: np.ndarray, radius: int) -> np.ndarray:
    return uniform_filter(values, (2 * radius + 1,) * 2 + (0,) * (values.ndim - 2), mode="nearest")


def _enlarged(values: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]) -> np.ndarray:
    """Enlarge bilinearly with clamped ends: values beyond the range would create edges that the image lacks."""
    for axis, length in enumerate(size):
        given = values.shape[axis]
        places = np.clip((np.arange(length)[window[axis]] + 0.5) * given / length - 0.5, 0.0, given - 1.0)
        low = np.minimum(places.astype(int), max(given - 2, 0))
        share = (places - low).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        upper = np.minimum(low + 1, given - 1)
        values = values.take(low, axis) * (1.0 - share) + values.take(upper, axis) * share
    return values


def premultiplied(alpha: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Premultiplied ``(..., 4)``: colours times alpha, and alpha."""
    return np.concatenate([colours * alpha[..., None], alpha[..., None]], axis=-1)


def composite_premultiplied(alphas: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Premultiplied ``(H, W, 4)`` composite of layers ``(L, H, W)``, ``(L, H, W, 3)``, bottom to top; 0 if L is 0."""
    flat = np.zeros((*alphas.shape[1:], 4), colours.dtype)
    for alpha, colour in zip(alphas, colours, strict=True):
        flat = premultiplied(alpha, colour) + (1.0 - alpha[..., None]) * flat
    return flat


def unmixed(
    alphas: np.ndarray, colours: np.ndarray, image: np.ndarray, prior: float = PRIOR, sweeps: int = SWEEPS
) -> np.ndarray:
    """Unmix alpha: the alpha at which the predicted colours flatten to the image, where colours distinguish layers.

    The flat image is affine in the alpha of one layer. So the alpha of least squared error has a closed form, the
    projection of blue-screen matting (Smith and Blinn 1996), regularised towards the predicted alpha by ``prior``.
    Layers are updated from the top down, ``sweeps`` times; the bottom stays. Where a layer has the colour of what lies
    below it, the predicted alpha is kept.

    Args:
        alphas: ``(L, H, W)``, bottom to top.
        colours: ``(L, H, W, 3)``.
        image: ``(H, W, 4)``.
        prior: see :data:`PRIOR`.
        sweeps: number of coordinate descents over all layers.

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
    """Remove haze: alpha within ``haze`` of 0 or 1 becomes 0 or 1, and the rest is stretched."""
    return np.clip((alphas - haze) / (1.0 - 2.0 * haze), 0.0, 1.0)


def matted(alphas: np.ndarray, colours: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Refine the alpha of all layers above the bottom: unmixed, filtered along the image's edges, without haze.

    Where the stack already flattens to the image alpha stays, so true layers are returned unchanged. From
    :data:`ROUNDED` to :data:`NOTICED` a window is moved further the larger its error is.

    Args:
        alphas: ``(L, H, W)``, bottom to top, as predicted.
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
