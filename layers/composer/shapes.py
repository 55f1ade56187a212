"""Masks and fills for the composer, antialiased.

Masks are float32 ``(h, w)`` in [0, 1], drawn at twice the size and averaged down. Fills are float32 ``(h, w, 3)`` sRGB.
A crop is a straight-alpha ``(h, w, 4)`` array made of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from layers.composer.palette import Colour

SCALE = 2
Point = tuple[float, float]


def draw_mask(width: int, height: int, draw: Callable[[ImageDraw.ImageDraw, float], None]) -> np.ndarray:
    """Run ``draw(canvas, scale)``, which paints 255 in coordinates times scale, and average down to a mask."""
    image = Image.new("L", (width * SCALE, height * SCALE), 0)
    draw(ImageDraw.Draw(image), float(SCALE))
    return np.asarray(image.reduce(SCALE), dtype=np.float32) / 255.0


def rounded(width: int, height: int, radius: float) -> np.ndarray:
    """A rounded rectangle that fills the mask."""
    radius = min(radius, width / 2, height / 2)
    return draw_mask(
        width,
        height,
        lambda canvas, s: canvas.rounded_rectangle((0, 0, width * s - 1, height * s - 1), radius * s, fill=255),
    )


def ellipse(width: int, height: int) -> np.ndarray:
    """An ellipse that fills the mask."""
    return draw_mask(width, height, lambda canvas, s: canvas.ellipse((0, 0, width * s - 1, height * s - 1), fill=255))


def arch(width: int, height: int) -> np.ndarray:
    """An arch: a rectangle with a round top."""

    def draw(canvas: ImageDraw.ImageDraw, s: float) -> None:
        radius = min(width / 2, height)
        canvas.rectangle((0, radius * s, width * s, height * s), fill=255)
        canvas.ellipse((0, 0, width * s - 1, 2 * radius * s - 1), fill=255)

    return draw_mask(width, height, draw)


def polygon(width: int, height: int, points: Sequence[Point]) -> np.ndarray:
    """A filled polygon; points are in mask pixels."""
    return draw_mask(width, height, lambda canvas, s: canvas.polygon([(x * s, y * s) for x, y in points], fill=255))


def blob(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A smooth closed shape: a circle whose radius varies by its second and third harmonic."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = np.ones_like(angle)
    for harmonic, strength in ((2, 0.12), (3, 0.10), (4, 0.04)):
        radius += strength * rng.uniform(0.4, 1.0) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    x, y = (x - x.min()) / np.ptp(x) * (width - 1), (y - y.min()) / np.ptp(y) * (height - 1)
    return polygon(width, height, list(zip(x.tolist(), y.tolist(), strict=True)))


def starburst(diameter: int, spikes: int, depth: float, turn: float = 0.0) -> np.ndarray:
    """A star with ``spikes`` points; ``depth`` is the depth of a notch as a share of the radius, 0.1 to 0.5."""
    middle = diameter / 2
    points = []
    for i in range(2 * spikes):
        radius = middle * (1 - depth * (i % 2)) - 0.5
        angle = math.pi * i / spikes + turn
        points.append((middle + radius * math.sin(angle), middle - radius * math.cos(angle)))
    return polygon(diameter, diameter, points)


def scallop(diameter: int, bumps: int, depth: float) -> np.ndarray:
    """A seal with a wavy rim."""
    angle = np.linspace(0, 2 * np.pi, 12 * bumps, endpoint=False)
    radius = (diameter / 2 - 0.5) * (1 - depth / 2 + depth / 2 * np.cos(bumps * angle))
    x, y = diameter / 2 + radius * np.cos(angle), diameter / 2 + radius * np.sin(angle)
    return polygon(diameter, diameter, list(zip(x.tolist(), y.tolist(), strict=True)))


def ribbon(width: int, height: int, notch: float) -> np.ndarray:
    """A banner with a V cut of ``notch`` pixels into both ends."""
    outline = ((0, 0), (width, 0), (width - notch, height / 2), (width, height), (0, height), (notch, height / 2))
    return polygon(width, height, outline)


def outline(width: int, height: int, thickness: float, radius: float) -> np.ndarray:
    """The border of a rounded rectangle."""

    def draw(canvas: ImageDraw.ImageDraw, s: float) -> None:
        box = (0, 0, width * s - 1, height * s - 1)
        canvas.rounded_rectangle(box, radius * s, outline=255, width=max(1, round(thickness * s)))

    return draw_mask(width, height, draw)


def ring(diameter: int, thickness: float) -> np.ndarray:
    """The border of a circle."""
    return outline(diameter, diameter, thickness, diameter / 2)


def hills(rng: np.random.Generator, width: int, height: int, waves: float) -> np.ndarray:
    """A band with a wavy upper edge, filled down to the bottom."""
    x = np.linspace(0, width, 64)
    phase, second = rng.uniform(0, 2 * np.pi, 2)
    y = 0.5 + 0.36 * np.sin(2 * np.pi * waves * x / width + phase)
    y += 0.14 * np.sin(4 * np.pi * waves * x / width + second)
    edge = list(zip(x.tolist(), (y * 0.4 * height).tolist(), strict=True))
    return polygon(width, height, [*edge, (width, height), (0, height)])


def dots(width: int, height: int, pitch: float, radius: float) -> np.ndarray:
    """Dots in staggered rows."""

    def draw(canvas: ImageDraw.ImageDraw, s: float) -> None:
        for row in range(int(height / pitch * 1.16) + 2):
            y = row * pitch * 0.866
            for column in range(int(width / pitch) + 2):
                x = (column + 0.5 * (row % 2)) * pitch
                canvas.ellipse(((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s), fill=255)

    return draw_mask(width, height, draw)


def stripes(width: int, height: int, pitch: float, angle: float) -> np.ndarray:
    """Parallel stripes as wide as their gaps; ``angle`` in degrees, 0 is upright."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    distance = np.abs((across / pitch) % 1.0 - 0.5) * pitch
    return np.clip(distance - pitch / 4 + 0.5, 0, 1).astype(np.float32)


def waves(width: int, height: int, pitch: float, amplitude: float, length: float) -> np.ndarray:
    """Parallel sine lines as thick as their gaps."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across = y + amplitude * np.sin(2 * np.pi * x / length)
    distance = np.abs((across / pitch) % 1.0 - 0.5) * pitch
    return np.clip(distance - pitch / 4 + 0.5, 0, 1).astype(np.float32)


def checks(width: int, height: int, cell: float) -> np.ndarray:
    """A checkerboard with cells of ``cell`` pixels."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    soft = [np.clip((np.abs((v / cell / 2) % 1.0 - 0.5) - 0.25) * 2 * cell + 0.5, 0, 1) for v in (x, y)]
    return (soft[0] + soft[1] - 2 * soft[0] * soft[1]).astype(np.float32)


def rays(width: int, height: int, centre: Point, count: int) -> np.ndarray:
    """A sunburst of ``count`` rays from a point to far beyond the canvas."""

    def draw(canvas: ImageDraw.ImageDraw, s: float) -> None:
        reach = 1.5 * math.hypot(width, height)
        for i in range(count):
            ends = [
                (centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle))
                for angle in (2 * math.pi * i / count, 2 * math.pi * (i + 0.5) / count)
            ]
            canvas.polygon([(x * s, y * s) for x, y in (centre, *ends)], fill=255)

    return draw_mask(width, height, draw)


def scatter(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    colours: Sequence[Colour],
    size: float,
    keep_out: Sequence[float],
) -> np.ndarray:
    """Confetti as a crop: discs, bars and triangles on a jittered grid outside the box ``keep_out`` (l, t, r, b)."""
    masks = [Image.new("L", (width * SCALE, height * SCALE), 0) for _ in colours]
    brushes = [ImageDraw.Draw(mask) for mask in masks]
    pitch = size * 3.1
    for row in range(int(height / pitch) + 1):
        for column in range(int(width / pitch) + 1):
            jitter = rng.uniform(0.15, 0.85, 2)
            x, y = (column + jitter[0]) * pitch, (row + jitter[1]) * pitch
            turn, which, form = rng.uniform(0, 2 * np.pi), int(rng.integers(len(colours))), int(rng.integers(3))
            if keep_out[0] < x < keep_out[2] and keep_out[1] < y < keep_out[3]:
                continue
            corners = {0: 24, 1: 4, 2: 3}[form]
            angles = turn + 2 * np.pi * np.arange(corners) / corners
            px, py = size * 0.5 * np.cos(angles), size * 0.5 * np.sin(angles)
            if form == 1:
                px, py = (
                    size
                    * (
                        np.cos(turn) * (u := np.array([-0.6, 0.6, 0.6, -0.6]))
                        - np.sin(turn) * (v := np.array([-0.2, -0.2, 0.2, 0.2]))
                    ),
                    size * (np.sin(turn) * u + np.cos(turn) * v),
                )
            brushes[which].polygon(
                [((x + a) * SCALE, (y + b) * SCALE) for a, b in zip(px.tolist(), py.tolist(), strict=True)], fill=255
            )
    layers = [np.asarray(mask.reduce(SCALE), dtype=np.float32)[..., None] / 255.0 for mask in masks]
    # Pieces hardly ever touch, so a weighted mean of their colours is accurate.
    alpha = sum(layers)
    rgb = sum(layer * np.asarray(colour, np.float32) for layer, colour in zip(layers, colours, strict=True))
    rgb = np.divide(rgb, alpha, out=np.zeros_like(rgb), where=alpha > 0)
    return np.concatenate([rgb, np.clip(alpha, 0, 1)], axis=-1)


def linear(width: int, height: int, first: Colour, second: Colour, angle: float) -> np.ndarray:
    """A linear gradient; ``angle`` in degrees, 0 runs left to right and 90 top to bottom."""
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :] * math.cos(math.radians(angle))
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * math.sin(math.radians(angle))
    reach = abs(math.cos(math.radians(angle))) + abs(math.sin(math.radians(angle)))
    weight = ((x + y) / reach + 0.5)[..., None]
    start, end = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return start + (end - start) * weight


def radial(width: int, height: int, inner: Colour, outer: Colour, centre: Point = (0.5, 0.5)) -> np.ndarray:
    """A radial gradient; ``centre`` in shares of the box, the outer colour is reached at the farthest corner."""
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width - centre[0]
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - centre[1]
    weight = np.sqrt((x * width) ** 2 + (y * height) ** 2)
    weight = (weight / weight.max())[..., None]
    start, end = np.asarray(inner, np.float32), np.asarray(outer, np.float32)
    return start + (end - start) * weight


def crop(mask: np.ndarray, fill: np.ndarray | Colour, opacity: float = 1.0) -> np.ndarray:
    """A crop of a mask and one colour or a fill."""
    out = np.empty((*mask.shape, 4), dtype=np.float32)
    out[..., :3] = np.asarray(fill, dtype=np.float32)
    out[..., 3] = mask * opacity
    return out


def blurred(mask: np.ndarray, radius: float, pad: int) -> np.ndarray:
    """A mask with ``pad`` pixels of room on every side, blurred by a Gaussian."""
    image = Image.fromarray(np.rint(np.pad(mask, pad) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255.0
