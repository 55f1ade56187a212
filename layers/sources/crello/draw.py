"""Drawing of an image into a rotated box on a canvas, as in Crello's renderer, but filtered.

An image is first shrunk to the box's size, to avoid aliasing. Then one bicubic affine rotates it, places it to a
fraction of a pixel and enlarges it. Its border pixels are repeated outwards; the box's coverage of each pixel alone
decides where the image ends. So edges are as sharp as the canvas allows, whatever the enlargement. A box on whole
pixels that needs no scaling gives back the image's own pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layers.imaging.compositing import premultiplied, resize, to_uint8
from layers.sources.affine import sampled


@dataclass(frozen=True)
class Box:
    """Box of an element in pixels, rotated clockwise about its centre by ``angle`` degrees."""

    left: float
    top: float
    width: float
    height: float
    angle: float = 0.0

    def scaled(self, scale: float) -> Box:
        """The box on a canvas ``scale`` times the size."""
        return Box(self.left * scale, self.top * scale, self.width * scale, self.height * scale, self.angle)


def draw(image: np.ndarray, box: Box, opacity: float, size: tuple[int, int]) -> np.ndarray:
    """Draw an image, stretched to a box, on a transparent canvas.

    Args:
        image: ``(h, w, 4)`` float in [0, 1], straight alpha.
        box: finite numbers, width and height not negative; may reach beyond the canvas.
        opacity: in [0, 1], multiplies alpha.
        size: (height, width) of the canvas in pixels.

    Returns:
        ``(H, W, 4)`` uint8, straight alpha.
    """
    canvas = np.zeros((*size, 4), np.uint8)
    cosine, sine = _turn(box.angle)
    centre = box.left + box.width / 2, box.top + box.height / 2
    reach_x = (abs(cosine) * box.width + abs(sine) * box.height) / 2
    reach_y = (abs(sine) * box.width + abs(cosine) * box.height) / 2
    x0, x1 = max(0, math.floor(centre[0] - reach_x)), min(size[1], math.ceil(centre[0] + reach_x))
    y0, y1 = max(0, math.floor(centre[1] - reach_y)), min(size[0], math.ceil(centre[1] + reach_y))
    if x0 >= x1 or y0 >= y1:
        return canvas
    # Pixel centres in the box's own axes, relative to its centre; one row and one column if the box is upright.
    x, y = np.arange(x0, x1)[None, :] + 0.5 - centre[0], np.arange(y0, y1)[:, None] + 0.5 - centre[1]
    u = cosine * x + (sine * y if sine else 0.0)
    v = cosine * y - (sine * x if sine else 0.0)
    covered = _coverage(u, box.width, cosine, sine) * _coverage(v, box.height, cosine, sine)

    shrunk = _shrunk(image, box)
    height, width = shrunk.shape[:2]
    # A box below one pixel is sampled as if one pixel wide; its coverage accounts for the true size.
    along, down = width / max(box.width, 1.0), height / max(box.height, 1.0)
    bordered = np.pad(shrunk, ((1, 1), (1, 1), (0, 0)), mode="edge")
    start_x, start_y = x0 - centre[0], y0 - centre[1]
    matrix = (
        *(along * cosine, along * sine, width / 2 + 1 + along * (cosine * start_x + sine * start_y)),
        *(-down * sine, down * cosine, height / 2 + 1 + down * (cosine * start_y - sine * start_x)),
    )
    placed = sampled(bordered, matrix, (y1 - y0, x1 - x0))
    placed[..., 3] *= covered * opacity
    canvas[y0:y1, x0:x1] = to_uint8(placed)
    return canvas


def _turn(angle: float) -> tuple[float, float]:
    """Cosine and sine of degrees, exact for quarter turns."""
    quarters, rest = divmod(angle, 90.0)
    if rest == 0.0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarters) % 4]
    return math.cos(math.radians(angle)), math.sin(math.radians(angle))


def _coverage(distance: np.ndarray, extent: float, cosine: float, sine: float) -> np.ndarray:
    """Share of each pixel that lies in a strip ``extent`` wide; ``distance`` is from the middle of the strip.

    Exact for the strip's edges. Where two strips cross at a corner, the product of their shares is a close estimate.
    """
    return _share(extent / 2 - distance, cosine, sine) - _share(-extent / 2 - distance, cosine, sine)


def _share(distance: np.ndarray, cosine: float, sine: float) -> np.ndarray:
    """Share of a pixel on the inner side of an edge, its centre ``distance`` inside.

    The profile of a pixel across the edge is a trapezoid, the convolution of two boxes with the widths of its sides.
    """
    narrow, wide = sorted((abs(cosine), abs(sine)))
    if narrow < 1e-6:
        return np.clip(distance + 0.5, 0.0, 1.0)
    distance = np.clip(distance, -1.0, 1.0)
    outer, inner = (wide + narrow) / 2, (wide - narrow) / 2
    corners = ((outer, 1.0), (inner, -1.0), (-inner, -1.0), (-outer, 1.0))
    return sum(sign * np.maximum(distance + shift, 0.0) ** 2 for shift, sign in corners) / (2 * narrow * wide)


def _shrunk(image: np.ndarray, box: Box) -> np.ndarray:
    """Premultiply an image and shrink it to at most the size of its box."""
    height, width = image.shape[:2]
    wanted = min(height, max(1, round(box.height))), min(width, max(1, round(box.width)))
    if wanted != (height, width):
        image = resize(image, wanted)
    return premultiplied(image)
