"""Placement of an image on a canvas: stretched over a box that is moved, mirrored, scaled or rotated."""

from __future__ import annotations

import math

import numpy as np

from layers.imaging.compositing import premultiplied, resize
from layers.sources.affine import sampled
from layers.sources.lica.clip import coverage, rectangle
from layers.sources.lica.css import shift, stretch

EPSILON = 1e-9


def area_scale(matrix: np.ndarray) -> float:
    """Factor by which a 3x3 matrix enlarges areas, mirrored or not."""
    (a, c), (b, d) = matrix[:2, :2].tolist()
    return abs(a * d - b * c)


def is_upright(matrix: np.ndarray) -> bool:
    """Whether a 3x3 matrix only moves, scales and mirrors."""
    return abs(matrix[0, 1]) < EPSILON and abs(matrix[1, 0]) < EPSILON


def upright_box(box: tuple[float, float], matrix: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box in whole pixels, at least one wide and high; for an upright matrix."""
    edges = []
    for axis in range(2):
        ends = sorted((matrix[axis, 2], matrix[axis, 2] + matrix[axis, axis] * box[axis]))
        # Not Python's round, which rounds halves to even: the distance of two boxes at halves would depend on parity.
        low, high = (math.floor(end + 0.5) for end in ends)
        edges.append((low, max(high, low + 1)))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def covering(image: np.ndarray, box: tuple[float, float]) -> np.ndarray:
    """The largest central part of ``(h, w, c)`` with a box's proportions."""
    height, width = image.shape[:2]
    scale = min(width / box[0], height / box[1])
    wide, high = (max(1, round(side * scale)) for side in box)
    left, top = (width - wide) // 2, (height - high) // 2
    return image[top : top + high, left : left + wide]


def place(image: np.ndarray, box: tuple[float, float], matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Stretch an image over a box on an empty canvas.

    Args:
        image: ``(h, w, 4)`` float32, straight alpha.
        box: (width, height) of the box, its corner at the origin.
        matrix: 3x3, from the box's coordinates to the canvas.
        size: (height, width) of the canvas; parts beyond are cut off and never computed.

    Returns:
        ``(H, W, 4)`` float32 straight alpha, or ``None`` if the box does not touch the canvas.
    """
    if is_upright(matrix):
        return _place_upright(image, box, matrix, size)
    corners = matrix[:2] @ np.array([[0, box[0], box[0], 0], [0, 0, box[1], box[1]], [1, 1, 1, 1]])
    (low_x, low_y), (high_x, high_y) = corners.min(axis=1), corners.max(axis=1)
    if high_x <= 0 or high_y <= 0 or low_x >= size[1] or low_y >= size[0]:
        return None
    return _place_turned(image, box, matrix, size)


def _place_upright(
    image: np.ndarray, box: tuple[float, float], matrix: np.ndarray, size: tuple[int, int]
) -> np.ndarray | None:
    left, top, right, bottom = upright_box(box, matrix)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, size[1]), min(bottom, size[0])
    if x0 >= x1 or y0 >= y1:
        return None
    image = image[:: -1 if matrix[1, 1] < 0 else 1, :: -1 if matrix[0, 0] < 0 else 1]
    height, width = image.shape[:2]
    across, down = width / (right - left), height / (bottom - top)
    seen = ((x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down)
    out = np.zeros((*size, 4), np.float32)
    if (bottom - top, right - left) == (height, width):
        out[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
    else:
        out[y0:y1, x0:x1] = resize(image, (y1 - y0, x1 - x0), seen)
    return out


def _place_turned(image: np.ndarray, box: tuple[float, float], matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Place by one affine of premultiplied floats; edges are the exact coverage of the box, not the filter's."""
    # Resize first if the affine shrinks, since it samples 4x4 pixels of the image, whatever its step.
    height, width = (
        min(side, max(1, math.ceil(extent * math.hypot(*matrix[:2, axis]))))
        for side, extent, axis in ((image.shape[0], box[1], 1), (image.shape[1], box[0], 0))
    )
    if (height, width) != image.shape[:2]:
        image = resize(image, (height, width))
    border = 3
    bordered = np.pad(premultiplied(image), ((border, border), (border, border), (0, 0)), mode="edge")
    inverse = shift(border, border) @ np.linalg.inv(matrix @ stretch(box[0] / width, box[1] / height))
    out = sampled(bordered, inverse[:2].ravel(), size)
    out[..., 3] *= coverage(rectangle(*box), matrix, size)
    return out
