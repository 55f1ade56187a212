"""Palettes of harmonious colours, chosen in OKLCH, so that equal steps look equal, and named in words.

Colours are sRGB tuples in [0, 1]. OKLab is Björn Ottosson's (https://bottosson.github.io/posts/oklab/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

MODES = ("light", "pastel", "vivid", "dark")
_MODE_WEIGHTS = (0.26, 0.26, 0.28, 0.20)
_SCHEMES = ((180.0, 210.0), (150.0, 210.0), (30.0, -30.0), (120.0, -120.0), (180.0, 40.0), (0.0, 180.0))
_HUES = (
    (8, "pink"),
    (45, "red"),
    (75, "orange"),
    (112, "yellow"),
    (160, "green"),
    (215, "teal"),
    (275, "blue"),
    (320, "purple"),
    (361, "pink"),
)


def to_linear(value: np.ndarray) -> np.ndarray:
    """SRGB in [0, 1] to linear light."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _from_linear(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def _oklch_linear(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """OKLCH (hue in degrees) to sRGB; chroma is lowered until the colour is within sRGB."""
    inside = [-1e-4 <= c <= 1.0001 for c in _oklch_linear(lightness, chroma, hue)]
    if not all(inside):
        low, high = 0.0, chroma
        for _ in range(10):
            middle = (low + high) / 2
            fits = all(-1e-4 <= c <= 1.0001 for c in _oklch_linear(lightness, middle, hue))
            low, high = (middle, high) if fits else (low, middle)
        chroma = low
    red, green, blue = (_from_linear(min(max(c, 0.0), 1.0)) for c in _oklch_linear(lightness, chroma, hue))
    return red, green, blue


def to_oklab(colour: Colour) -> tuple[float, float, float]:
    """SRGB to OKLab (lightness, a, b)."""
    red, green, blue = (float(c) for c in to_linear(np.asarray(colour)))
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    medium = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def to_oklch(colour: Colour) -> tuple[float, float, float]:
    """SRGB to OKLCH (lightness, chroma, hue in [0, 360))."""
    lightness, a, b = to_oklab(colour)
    return lightness, math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360.0


def distance(first: Colour, second: Colour) -> float:
    """Euclidean distance in OKLab; 0.1 is clearly visible, black to white is 1."""
    return math.dist(to_oklab(first), to_oklab(second))


def luminance(rgb: np.ndarray) -> np.ndarray:
    """WCAG relative luminance of sRGB ``(..., 3)`` in [0, 1]."""
    return to_linear(rgb) @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def contrast(first: float, second: float) -> float:
    """WCAG contrast ratio of two luminances, 1 to 21; large text needs 3, small text 4.5."""
    bright, dark = max(first, second), min(first, second)
    return (bright + 0.05) / (dark + 0.05)


def mix(first: Colour, second: Colour, weight: float) -> Colour:
    """Mix two colours: 1 - ``weight`` of ``first``, ``weight`` of ``second``."""
    red, green, blue = (a + (b - a) * weight for a, b in zip(first, second, strict=True))
    return red, green, blue


def name(colour: Colour) -> str:
    """A colour in words, such as "pale pink" or "deep blue"."""
    lightness, chroma, hue = to_oklch(colour)
    if chroma < 0.022:
        return "white" if lightness > 0.94 else "black" if lightness < 0.3 else "grey"
    if 40 <= hue < 110 and lightness > 0.9 and chroma < 0.06:
        return "cream"
    if 30 <= hue < 100 and lightness < 0.58:
        return "dark brown" if lightness < 0.4 else "brown"
    word = next(word for limit, word in _HUES if hue < limit)
    if lightness > 0.94 and chroma < 0.035:
        return f"{word}-tinted white"
    tone = "pale " if lightness > 0.84 and chroma < 0.11 else "dark " if lightness < 0.42 else ""
    return tone + word


@dataclass(frozen=True)
class Palette:
    """The colours of one design.

    Attributes:
        mode: one of :data:`MODES`, lightness and saturation of the background.
        ground: colour of the background; ``ground2`` is its partner in gradients.
        tone: close to the background's colour, for patterns of low contrast.
        surface: colour of panels and tiles, distinct from the background.
        accent: saturated colour for emphasis; ``accent2`` is a second one that fits it.
        ink: nearly black; ``paper`` is nearly white.
    """

    mode: str
    ground: Colour
    ground2: Colour
    tone: Colour
    surface: Colour
    accent: Colour
    accent2: Colour
    ink: Colour
    paper: Colour


def _near_yellow(hue: float) -> float:
    away = abs((hue - 105 + 180) % 360 - 180)
    return max(0.0, math.cos(math.radians(1.6 * away))) if away < 57 else 0.0


def palette(rng: np.random.Generator, hue: float, mode: str | None = None) -> Palette:
    """Choose a scheme around ``hue`` (degrees, of the background) and a mode."""
    mode = mode or str(rng.choice(MODES, p=_MODE_WEIGHTS))
    first, second = _SCHEMES[int(rng.integers(len(_SCHEMES)))]
    turn = float(rng.uniform(15, 50)) * float(rng.choice((-1, 1)))
    if mode == "dark" and 35 < hue % 360 < 135:
        # A dark orange or yellow is brown or olive; a light tint keeps its hue.
        mode = "light"
    # Yellows look clean only when light, blues and purples saturated only when darker.
    lift = 0.22 * _near_yellow(hue)
    if lift > 0.08:
        # From yellow a gradient may go to orange; towards green it passes olive.
        turn = -abs(turn)
    lightness, chroma = {
        "light": (0.955, 0.024),
        "pastel": (0.875 + lift / 5, 0.085),
        "vivid": (0.665 + lift, 0.185),
        "dark": (0.27, 0.07),
    }[mode]
    if mode == "dark" and 35 < (hue + turn) % 360 < 135:
        turn = -turn
    step = -0.06 if mode != "dark" else 0.08
    surface = oklch(0.37, 0.08, hue) if mode == "dark" else oklch(0.985, 0.012, hue)
    accent_hue = hue + (first if mode != "light" or rng.random() < 0.5 else 0.0)
    accent_lightness = {"light": 0.6, "pastel": 0.58, "vivid": 0.42, "dark": 0.7}[mode]
    if mode == "vivid" and rng.random() < 0.4:
        accent_lightness = 0.88
    accent_lightness += (0.88 - accent_lightness) * _near_yellow(accent_hue)
    lightness2 = lightness + step * float(rng.uniform(0.3, 1.6))
    if mode == "vivid":
        lightness2 += 0.22 * _near_yellow(hue + turn) - lift
    return Palette(
        mode=mode,
        ground=oklch(lightness, chroma, hue),
        ground2=oklch(lightness2, chroma * 1.25, hue + turn),
        tone=oklch(lightness + step * 0.95, chroma * 1.3, hue + turn / 4),
        surface=surface,
        accent=oklch(accent_lightness, 0.19, accent_hue),
        accent2=oklch(0.76 + 0.1 * _near_yellow(hue + second), 0.15, hue + second),
        ink=oklch(0.24, 0.045, hue),
        paper=oklch(0.985, 0.012, hue),
    )
