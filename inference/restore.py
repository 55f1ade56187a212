"""Restoration of small predicted layers: alpha and colour refinement at the image's own resolution.

A network sees a few hundred pixels a side. It predicts where layers are; their appearance is in the image. So edges of
alpha are taken from edges of the image (:mod:`inference.matting`). Colours are changed as little as possible until the
layers flatten to it (:func:`fit_colours`): where a layer is opaque and on top, they equal the image's.

Arrays are float in [0, 1], channels last, straight alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from config.errors import UserError
from inference.matting import explained, guided, matted, without_haze
from layers.imaging.compositing import premultiplied, resampled, resize, to_float, visible_weights

TOLERANCE = 1.0 / 255.0
FAINT = 0.5  # share of a pixel below which a layer counts as invisible: predicted empty alpha is not exactly 0
EMPTY = 0.03  # share of the image in which a layer has to be visible
PART = 2**20  # pixels times layers processed at once, at some 100 bytes each
MOST_PIXELS = 120_000_000  # of all layers of a request to a server: 480 MB


class RoomError(UserError):
    """The requested layers would take more memory than the limit."""


def check_room(sizes: Sequence[tuple[int, int]], layers: int) -> None:
    """Refuse requests for more than :data:`MOST_PIXELS`.

    Args:
        sizes: (height, width) of the images of a request.
        layers: layers of each image.

    Raises:
        RoomError: naming the largest possible number of layers.
    """
    pixels = sum(height * width for height, width in sizes)
    if layers * pixels > MOST_PIXELS:
        what = "{1}x{0} pixels".format(*sizes[0]) if len(sizes) == 1 else f"{len(sizes)} images of {pixels} pixels"
        raise RoomError(
            f"{layers} layers of {what}; expected at most {MOST_PIXELS // pixels} of this size"
            if pixels <= MOST_PIXELS
            else f"{what}; expected at most {MOST_PIXELS}"
        )


def without_empty(layers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Drop empty layers above the bottom from a stack of ``(h, w, 4)`` uint8: those visible in almost no pixel."""
    shares = visible_weights(np.stack([to_float(layer)[..., 3] for layer in layers]))
    seen = (shares > FAINT).mean((1, 2))
    return [layers[0], *(layer for layer, share in zip(layers[1:], seen[1:], strict=True) if share >= EMPTY)]


def letting_through(alphas: np.ndarray, through: np.ndarray) -> np.ndarray:
    """Raise the transmittances of layers to a common power, which keeps their order of opacity.

    Args:
        alphas: ``(L, ...)``, alpha of the layers.
        through: ``(...)``, transmittance that all layers together should have.

    Returns:
        ``(L, ...)``; where all alphas are 0 they stay 0.
    """
    logs = np.log(np.clip(1.0 - alphas.astype(np.float64), 1e-9, 1.0))
    power = np.divide(np.log(through), logs.sum(0), out=np.ones_like(logs[0]), where=logs.sum(0) < 0.0)
    return 1.0 - np.exp(logs * power)


def cover(alphas: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Make a stack as opaque as its image.

    The bottom layer adds the opacity that the others lack. Where the others alone are more opaque, the bottom is 0 and
    their transmittances are raised to a common power, which keeps their order of opacity.

    Args:
        alphas: ``(L, H, W)``, bottom to top.
        flat: ``(H, W)``, the image's alpha.

    Returns:
        ``(L, H, W)``.
    """
    through = np.prod(1.0 - alphas[1:], axis=0)
    open_share = np.divide(1.0 - flat, through, out=np.ones_like(through), where=through > 1e-6)
    # Nothing shows through: the image does not determine the bottom there.
    bottom = np.where(through > 1e-6, np.clip(1.0 - open_share, 0.0, 1.0), alphas[0])
    too_much = through < 1.0 - flat
    if not too_much.any():
        return np.concatenate([bottom[None], alphas[1:]])
    upper = np.where(too_much, letting_through(alphas[1:], np.clip(1.0 - flat, 1e-9, 1.0)), alphas[1:])
    return np.concatenate([np.where(too_much, 0.0, bottom)[None], upper]).astype(alphas.dtype)


def opaque_enough(alphas: np.ndarray, colours: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Raise alpha where a layer below would show through in a colour that the image does not have.

    Over a colour B, no colour in [0, 1] gives a pixel P at less alpha than (P - B) / (1 - B) where P is brighter and (B
    - P) / B where it is darker. Letters of alpha 0.8 would leave a ghost in the layers below, since only these can
    still change. From the top down, a layer and those above it are raised to that alpha if they show more than the
    layers below. A common power keeps their order of opacity. Elsewhere the layers below take their texture from the
    image, as do all layers of an image that is not opaque itself.

    Args:
        alphas: ``(L, H, W)``, bottom to top.
        colours: ``(L, H, W, 3)``, as predicted.
        image: ``(H, W, 4)``.

    Returns:
        ``(L, H, W)``.
    """
    alphas = alphas.copy()
    aim, opaque = image[..., :3], image[..., 3] == 1.0
    for first in range(len(alphas) - 1, 0, -1):
        shares = visible_weights(alphas[:first])[..., None]
        below = (shares * colours[:first]).sum(0) / np.maximum(shares.sum(0), 1e-6)
        gap = aim - below
        room = np.where(gap > 0.0, 1.0 - below, below)
        # Rounding errors are not gaps.
        needed = np.clip((np.abs(gap) - 0.5 * TOLERANCE) / np.maximum(room, TOLERANCE), 0.0, 1.0).max(-1)
        through = np.prod(1.0 - alphas[first:], axis=0)
        raised = opaque & (through < FAINT) & (1.0 - needed < through)
        if not raised.any():
            continue
        alphas[first:, raised] = letting_through(alphas[first:, raised], np.clip(1.0 - needed[raised], 1e-4, 1.0))
    return alphas


def fit_colours(colours: np.ndarray, alphas: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Change colours as little as possible until the layers flatten to the image.

    The least-squares change that removes a pixel's error e is w_i e / sum w_k^2 for layer i with share w_i. Colours
    outside [0, 1] are clipped and the remaining error is distributed over the layers that can still change. This ends,
    since the image's own colour in every layer has no error.

    Args:
        colours: ``(L, H, W, 3)``.
        alphas: ``(L, H, W)``.
        image: ``(H, W, 4)``.

    Returns:
        ``(L, H, W, 3)``.
    """
    weights = visible_weights(alphas)[..., None]
    colours = colours.copy()
    aim = image[..., :3] * weights.sum(0)
    # All layers change once; then those that can, where more than a level is left: to remove less, a barely visible
    # layer would take any colour. Each round ends a pixel's error or brings one more layer to the end of its range.
    for least in (0.0, *[TOLERANCE] * len(colours)):
        error = aim - (weights * colours).sum(0)
        error[np.abs(error) <= least] = 0.0
        if not error.any():
            break
        moving = weights * np.where(error > 0.0, colours < 1.0, colours > 0.0) if least else weights
        squares = np.square(moving).sum(0)
        step = np.divide(error, squares, out=np.zeros_like(error), where=squares > 1e-8)
        colours = np.clip(colours + moving * step, 0.0, 1.0)
    return colours


def restore(layers: Sequence[np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """Restore layers to an image's resolution so that they flatten to it.

    Operations on neighbourhoods run at the layers' own size. The others run on one part of the image at a time, so that
    only the returned uint8 layers are held at full size.

    Args:
        layers: ``(h, w, 4)`` uint8, bottom to top, of the whole image at any size.
        image: ``(H, W, 4)`` uint8.

    Returns:
        ``(H, W, 4)`` uint8 each. Under alpha 0 they keep the predicted colours: these appear if a mask is widened, and
        the evaluation compares them where the true layer is.
    """
    size, small_size = image.shape[:2], layers[0].shape[:2]
    small = to_float(image) if size == small_size else resize(to_float(image), small_size)
    floats = np.stack([to_float(layer) for layer in layers])
    alphas = matted(floats[..., 3], floats[..., :3], small)
    if size != small_size:
        guide = small[..., :3] * small[..., 3:]
        coefficients = [explained(alpha, guide) for alpha in alphas]
        floats = np.stack([premultiplied(layer) for layer in floats])
    found = np.empty((len(layers), *size, 4), np.uint8)
    for window in _parts(size, len(layers)):
        target = to_float(image[window])
        if size == small_size:
            part, colours = alphas[:, *window], floats[:, *window, :3]
        else:
            guide = target[..., :3] * target[..., 3:]
            part = without_haze(np.stack([guided(layer, guide, size, window) for layer in coefficients]))
            colours = np.stack([resampled(layer, size, window=window)[..., :3] for layer in floats])
        found[:, *window] = _fitted(part, colours, target)
    return list(found)


def _fitted(alphas: np.ndarray, colours: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Layers ``(L, H, W, 4)`` uint8 that flatten to ``target``; pixels are independent."""
    alphas = opaque_enough(cover(alphas, target[..., 3]), colours, target)
    # Rounded before colours are fitted, so that these compensate for it.
    alphas = np.rint(cover(alphas, target[..., 3]) * 255.0).astype(np.float32) / 255.0
    colours = fit_colours(colours, alphas, target)
    return np.rint(np.concatenate([colours, alphas[..., None]], axis=-1) * 255.0).astype(np.uint8)


def _parts(size: tuple[int, int], layers: int) -> Iterator[tuple[slice, slice]]:
    """Parts of about equal size that cover an image, each of at most :data:`PART` pixels times layers."""
    height, width = size
    columns = -(-width * layers // PART)
    rows = -(-height * -(-width // columns) * layers // PART)
    for top, bottom in pairwise(np.linspace(0, height, min(rows, height) + 1).astype(int)):
        for left, right in pairwise(np.linspace(0, width, columns + 1).astype(int)):
            yield slice(top, bottom), slice(left, right)
