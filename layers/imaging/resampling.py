"""Lanczos resampling as two sparse matrix products: float throughout, equal to Pillow's filter, and faster.

An image's rows and columns are filtered separately, ``rows @ image @ columns.T``. The matrices depend on sizes
alone and are cached; slices of them resample only the part of an image that is not empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array

LOBES = 3.0
PART = 2**22  # maximum number of pixels between the two products: 64 MB


@dataclass(frozen=True)
class Axis:
    """Resampling along one axis.

    Attributes:
        weights: ``(n_out, n_in)`` sparse, each row adds up to 1.
        first, last: ``(n_out,)`` range of input positions that an output position depends on, ``last`` exclusive.
    """

    weights: csr_array
    first: np.ndarray
    last: np.ndarray

    def reached_from(self, start: int, stop: int) -> tuple[int, int]:
        """Range of output positions that depend on any of the input positions ``start`` to ``stop``."""
        return int(np.searchsorted(self.last, start, "right")), int(np.searchsorted(self.first, stop, "left"))


@lru_cache(maxsize=256)
def lanczos(n_in: int, n_out: int, start: float, stop: float) -> Axis:
    """Weights that turn ``n_in`` samples into ``n_out``, which cover ``start`` to ``stop`` of the input.

    The filter is Lanczos with three lobes, widened by the scale when it shrinks, cut at the borders and normalised.
    """
    scale = (stop - start) / n_out
    widened = max(scale, 1.0)
    centres = start + (np.arange(n_out) + 0.5) * scale
    first = np.maximum((centres - LOBES * widened + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + LOBES * widened + 0.5).astype(np.int64), n_in)
    counts = last - first
    offsets = np.concatenate([[0], np.cumsum(counts)])
    columns = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - first, counts)
    distance = (columns + 0.5 - np.repeat(centres, counts)) / widened
    values = np.sinc(distance) * np.sinc(distance / LOBES) * (np.abs(distance) < LOBES)
    values /= np.repeat(np.add.reduceat(values, offsets[:-1]), counts)
    weights = csr_array((values.astype(np.float32), columns, offsets), shape=(n_out, n_in))
    return Axis(weights, first, last)


def axes(
    shape: tuple[int, int], size: tuple[int, int], box: tuple[float, float, float, float] | None
) -> tuple[Axis, Axis]:
    """Weights for the rows and the columns of an image.

    Args:
        shape: (height, width) of the input.
        size: (height, width) of the output.
        box: (left, top, right, bottom) of the resampled part of the input; all of it if ``None``.
    """
    left, top, right, bottom = box if box is not None else (0.0, 0.0, float(shape[1]), float(shape[0]))
    return lanczos(shape[0], size[0], top, bottom), lanczos(shape[1], size[1], left, right)


def filtered(image: np.ndarray, rows: csr_array, columns: csr_array) -> np.ndarray:
    """Apply both matrices to ``(h, w, 4)`` float32; gives contiguous ``(rows, columns, 4)``."""
    height, width, channels = image.shape
    image, step = np.ascontiguousarray(image), max(1, PART // width)
    if rows.shape[0] > step:
        # Else a wide and low image would be enlarged vertically before it is shrunk horizontally.
        parts = (filtered(image, rows[k : k + step], columns) for k in range(0, rows.shape[0], step))
        return np.concatenate(list(parts))
    tall = rows @ image.reshape(height, width * channels)
    wide = columns @ _turned(tall.reshape(-1, width, channels)).reshape(width, -1)
    return _turned(wide.reshape(columns.shape[0], -1, channels))


def _turned(image: np.ndarray) -> np.ndarray:
    """Transpose contiguous ``(h, w, 4)`` float32; each pixel is moved as one number of 16 bytes."""
    pixels = image.view(np.complex128)[..., 0]
    return np.ascontiguousarray(pixels.T).view(np.float32).reshape(*pixels.T.shape, 4)
