"""Alpha compositing, alpha-correct resizing, and grouping of layers into peels.

Arrays here are float32 in [0, 1] with channels last and straight alpha unless a name says otherwise.
Eight-bit values exist only where files are read and written: :func:`to_float` and :func:`to_uint8`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layers.imaging.resampling import axes, filtered

CHECKER_CELL = 8
# Name of the resizing method, part of the key of everything cached from resized images.
RESIZING = "premultiplied lanczos3 1"
WHOLE = slice(None), slice(None)


def to_float(image: np.ndarray) -> np.ndarray:
    """Convert ``(..., 4)`` uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / 255.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round float [0, 1] ``(..., 4)`` to uint8; RGB under alpha 0 becomes 0, as in all files."""
    out = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    out[out[..., 3] == 0] = 0
    return out


def over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Porter-Duff ``over`` of two straight-alpha images ``(..., H, W, 4)``.

    Equals the paper's C_i = a_i RGB_i + (1 - a_i) C_{i-1} (sec. 3.1) where the bottom is opaque;
    where the result is fully transparent its RGB is 0.
    """
    alpha_top, alpha_bottom = top[..., 3:], bottom[..., 3:]
    weight_bottom = alpha_bottom * (1.0 - alpha_top)
    alpha = alpha_top + weight_bottom
    premultiplied = top[..., :3] * alpha_top + bottom[..., :3] * weight_bottom
    rgb = np.divide(premultiplied, alpha, out=np.zeros_like(premultiplied), where=alpha > 0)
    return np.concatenate([rgb, alpha], axis=-1)


def composite(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Flatten layers ``(H, W, 4)``, bottom to top, from a transparent black start.

    Raises:
        ValueError: if there is no layer.
    """
    if len(layers) == 0:
        raise ValueError("cannot composite an empty stack")
    flat = np.zeros_like(layers[0])
    for layer in layers:
        flat = over(layer, flat)
    return flat


def composite_8bit(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Flatten ``(H, W, 4)`` uint8 layers, bottom to top, to ``(H, W, 4)`` uint8.

    Raises:
        ValueError: if there is no layer.
    """
    return to_uint8(composite([to_float(layer) for layer in layers]))


def over_background(image: np.ndarray, rgb: Sequence[float]) -> np.ndarray:
    """Composite ``(..., 4)`` over one opaque colour (three values in [0, 1]); returns ``(..., 3)``."""
    alpha = image[..., 3:]
    return image[..., :3] * alpha + np.asarray(rgb, dtype=image.dtype) * (1.0 - alpha)


def over_checkerboard(image: np.ndarray, cell: int = CHECKER_CELL) -> np.ndarray:
    """Composite ``(H, W, 4)`` over the grey checkerboard that stands for transparency; returns ``(H, W, 3)``."""
    rows, columns = np.indices(image.shape[:2]) // cell
    board = np.where((rows + columns) % 2 == 0, 0.8, 0.6).astype(image.dtype)[..., None]
    return image[..., :3] * image[..., 3:] + board * (1.0 - image[..., 3:])


def resize(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resize straight-alpha ``(H, W, 4)`` floats to ``size`` = (height, width) with Lanczos.

    Colours are premultiplied, filtered in float and unpremultiplied, so RGB under alpha 0 never bleeds into
    an edge. ``box`` (left, top, right, bottom; fractions of a pixel allowed) crops in the same pass.
    """
    return resampled(premultiplied(image), size, box)


def premultiplied(image: np.ndarray) -> np.ndarray:
    """Premultiply straight-alpha ``(..., 4)`` floats: colours times alpha, float32."""
    return np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], axis=-1).astype(np.float32)


def resampled(
    image: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    window: tuple[slice, slice] = WHOLE,
) -> np.ndarray:
    """Second half of :func:`resize`: from :func:`premultiplied` to resized straight alpha.

    Only ``window`` (rows, columns) of the result is computed, bit for bit equal to that part of the whole.
    """
    rows, columns = axes(image.shape[:2], size, box)
    out = filtered(image, rows.weights[window[0]], columns.weights[window[1]])
    # Lanczos rings: below half an 8-bit step alpha is noise, and dividing by it would blow colours up. Alpha above 1
    # is not clipped before the division, since colours overshoot with it.
    visible = out[..., 3:] >= 0.5 / 255.0
    rgb = np.divide(out[..., :3], out[..., 3:], out=np.zeros_like(out[..., :3]), where=visible)
    alpha = np.where(visible, np.minimum(out[..., 3:], 1.0), 0.0)
    return np.concatenate([np.clip(rgb, 0.0, 1.0), alpha], axis=-1)


def group_into_peels(alphas: Sequence[np.ndarray]) -> list[list[int]]:
    """Group layers that do not overlap into peels, as in the evaluation (LayerD protocol, step 1).

    From the front: a peel is the set of all remaining layers that no remaining layer in front of them touches. Layers
    in a peel have no order among themselves, so grouping them makes the target of decomposition unique.

    Args:
        alphas: masks or alphas ``(H, W)``, bottom to top; a pixel counts where it is above 0.

    Returns:
        Groups bottom to top; indices inside a group ascend. Empty layers fall into the front group.
    """
    masks = [np.asarray(alpha) > 0 for alpha in alphas]
    count = len(masks)
    return peels([[j for j in range(i + 1, count) if np.any(masks[i] & masks[j])] for i in range(count)])


def peels(covered_by: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group layers into peels, given for each the layers above that touch it; see :func:`group_into_peels`."""
    remaining = set(range(len(covered_by)))
    groups: list[list[int]] = []
    while remaining:
        front = [i for i in sorted(remaining) if not any(j in remaining for j in covered_by[i])]
        groups.append(front)
        remaining -= set(front)
    return groups[::-1]


def visible_weights(alphas: np.ndarray) -> np.ndarray:
    """Share of each layer in each pixel of the flat image.

    Args:
        alphas: ``(L, H, W)``, bottom to top.

    Returns:
        ``(L, H, W)``: alpha times the transmittance of all layers above; the sum is the flat image's alpha.
    """
    above = np.cumprod(1.0 - alphas[:0:-1], axis=0)[::-1]
    return alphas * np.concatenate([above, np.ones_like(alphas[:1])])
