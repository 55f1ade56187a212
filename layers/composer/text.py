"""Typesetting: line breaks, fitting of the size, the mask and the style of letters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
from PIL import Image, ImageDraw

from layers.composer import shapes
from layers.composer.assets import font
from layers.composer.palette import Colour
from layers.imaging.compositing import over

_REFERENCE = 100


@dataclass(frozen=True)
class Setting:
    """Lines of one face at one size.

    Attributes:
        face: a key of ``assets.FACES``.
        lines: top to bottom.
        size: font size in pixels.
        leading: distance of base lines in font sizes.
    """

    face: str
    lines: tuple[str, ...]
    size: int
    leading: float


@lru_cache(maxsize=4096)
def _length(face: str, text: str) -> float:
    return font(face, _REFERENCE).getlength(text)


@lru_cache(maxsize=64)
def _cap_height(face: str) -> float:
    return -font(face, _REFERENCE).getbbox("H", anchor="ls")[1]


def _breaks(text: str, most: int) -> list[tuple[str, ...]]:
    words = text.split()
    options = []
    for count in range(1, min(most, len(words)) + 1):
        for cut in combinations(range(1, len(words)), count - 1):
            ends = (0, *cut, len(words))
            options.append(tuple(" ".join(words[a:b]) for a, b in pairwise(ends)))
    return options


def fit(text: str, face: str, width: float, height: float, *, max_lines: int = 3, most: float = 1e9) -> Setting:
    """The line breaks that allow the largest letters in a box, at most ``most`` pixels of font size."""
    leading = 1.0 if text.isupper() else 1.08
    cap = _cap_height(face) / _REFERENCE
    best, best_size, best_score = (text,), 0.0, 0.0
    for lines in _breaks(text, max_lines):
        descender = 0.0 if lines[-1].isupper() else 0.22
        tall = cap + leading * (len(lines) - 1) + descender
        widest = max(_length(face, line) for line in lines)
        size = min(_REFERENCE * width / widest, height / tall, most)
        # Of equal sizes the one with fewer lines is preferred, and of equally many lines the more even ones.
        score = size * (1 - 0.04 * len(lines) - 0.03 * widest / _length(face, text))
        if score > best_score:
            best, best_size, best_score = lines, size, score
    return Setting(face, best, max(5, int(best_size)), leading)


def mask(setting: Setting, align: float) -> np.ndarray:
    """Draw the lines, ``align`` 0 left to 1 right; cut to the inked pixels."""
    face = font(setting.face, setting.size)
    lengths = [face.getlength(line) for line in setting.lines]
    pad = setting.size
    step = setting.size * setting.leading
    image = Image.new("L", (int(max(lengths)) + 2 * pad, int(step * len(lengths)) + 2 * pad), 0)
    canvas = ImageDraw.Draw(image)
    for i, (line, length) in enumerate(zip(setting.lines, lengths, strict=True)):
        left = pad + (max(lengths) - length) * align
        canvas.text((round(left), round(pad + step * (i + 0.8))), line, font=face, fill=255, anchor="ls")
    return np.asarray(image.crop(image.getbbox()), dtype=np.float32) / 255.0


def _grown(ink: np.ndarray, by: float, pad: int) -> np.ndarray:
    # A Gaussian and a steep ramp dilate a mask evenly in every direction; a square maximum filter would not.
    soft = shapes.blurred(ink, by * 0.75, pad)
    return np.clip((soft - 0.12) * 6, 0, 1)


def styled(
    ink: np.ndarray, fill: Colour | np.ndarray, style: str, other: Colour, size: float
) -> tuple[np.ndarray, int]:
    """Draw letters in a style, as a crop.

    Args:
        ink: the mask of the letters.
        fill: colour or ``(h, w, 3)`` fill of the letters.
        style: ``plain``, ``outline``, ``block`` (hard shadow), ``soft`` (soft shadow) or ``halo`` (a dim glow that
            separates letters from a textured background).
        other: colour of the outline, shadow or glow.
        size: font size, which scales the effect.

    Returns:
        The crop and how many pixels it is larger than the mask on every side.
    """
    letters = shapes.crop(ink, fill)
    if style == "plain":
        return letters, 0
    reach = {"outline": 0.07, "block": 0.06, "soft": 0.10, "halo": 0.16}[style] * size
    pad = int(reach * (3 if style in ("soft", "halo") else 2)) + 2
    if style == "block":
        back = np.pad(ink, pad)
        shift = max(1, round(reach))
        back = np.maximum.reduce([np.roll(back, (d, d), (0, 1)) for d in range(1, shift + 1)])
        opacity = 1.0
    elif style == "outline":
        back, opacity = _grown(ink, reach, pad), 1.0
    elif style == "soft":
        back, opacity = np.roll(shapes.blurred(ink, reach * 0.6, pad), round(reach * 0.6), 0), 0.5
    else:
        back, opacity = np.clip(shapes.blurred(ink, reach, pad) * 1.6, 0, 1), 0.75
    return over(np.pad(letters, ((pad, pad), (pad, pad), (0, 0))), shapes.crop(back, other, opacity)), pad
