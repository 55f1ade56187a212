"""Typesetting of a LICA TEXT as in a browser: wrapping, alignment, line height, letter spacing, case.

Half of the leading of the line height is above each line. Letter spacing follows every letter, including the last of
a line. Lines are broken at spaces where they are wider than the box, never inside words. Scripts that join letters or
run from right to left are not shaped, which is noted.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from config.errors import SampleError
from layers.imaging.codec import MAX_PIXELS
from layers.sources.lica.css import colour, px, quantity, shown, unset
from layers.sources.lica.fonts import LARGEST, Face, Fonts, Wanted

MAX_CHARACTERS = 10_000
ALIGNMENTS = {"left": 0.0, "start": 0.0, "justify": 0.0, "center": 0.5, "right": 1.0, "end": 1.0}
NAMED_WEIGHTS = {"normal": 400, "regular": 400, "bold": 700, "bolder": 700, "lighter": 300}
BLACK = (0.0, 0.0, 0.0, 1.0)
# Boxes have the width of their text in the browser that made them; a rounding error must not break a line.
SLACK = 1.01
SMALLEST = 0.5


@dataclass(frozen=True)
class Style:
    """Style of a text.

    Attributes:
        font: family, weight and slant.
        size: font size in pixels.
        leading: distance of base lines in pixels; ``None`` is the font's own.
        spacing: space added after each letter, in pixels.
        align: 0 left, 0.5 centre, 1 right.
        fill: straight RGBA in [0, 1]; ``None`` is transparent.
    """

    font: Wanted
    size: float
    leading: float | None
    spacing: float
    align: float
    fill: tuple[float, float, float, float] | None


def clean(value: Any) -> str:
    """Text from JSON; empty if it is no string. Removes lone surrogates and control codes, which files cannot hold."""
    if not isinstance(value, str):
        return ""
    value = value.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\t", " ")
    return "".join(c for c in value if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs"))


def in_case(text: str, value: Any, what: str) -> str:
    """A text after CSS ``textTransform``.

    Raises:
        SampleError: if the value is unknown.
    """
    if unset(value):
        return text
    changes = {
        "uppercase": str.upper,
        "lowercase": str.lower,
        "capitalize": lambda words: re.sub(r"(?<![\w'’])\w", lambda first: first[0].upper(), words),
    }
    if not isinstance(value, str) or value not in changes:
        raise SampleError(f"{what}: {shown(value)} is no textTransform")
    return changes[value](text)


def wanted_font(family: Any, weight: Any, slant: Any, what: str) -> Wanted:
    """The font of a text from ``fontFamily`` (``Rufina--400``), ``fontWeight`` and ``fontStyle``.

    Raises:
        SampleError: if the weight is no number.
    """
    name, _, suffix = clean(family).split(",")[0].strip(" '\"").partition("--")
    asked = suffix if unset(weight) and suffix else weight
    if isinstance(asked, str) and asked.strip().lower() in NAMED_WEIGHTS:
        number = NAMED_WEIGHTS[asked.strip().lower()]
    elif unset(asked) or asked is suffix:
        # The suffix may be a style's name; only a number is used.
        number = int(suffix[:4]) if re.fullmatch(r"[1-9][0-9]{1,3}", suffix) else 400
    else:
        number = int(quantity(asked, f"{what}.fontWeight")[0])
    italic = isinstance(slant, str) and slant.strip().lower().startswith(("italic", "oblique"))
    return Wanted(name.strip(), min(max(number, 1), 1000), italic)


def style_of(get: Any, what: str) -> Style:
    """The style of a TEXT.

    Args:
        get: returns the value of a CSS property by its name, ``None`` if it is absent.
        what: name of the component, for messages.

    Raises:
        SampleError: with the invalid property.
    """
    size = px(get("fontSize"), f"{what}.fontSize", 16.0)
    if not 1.0 <= size <= LARGEST:
        raise SampleError(f"{what}.fontSize: {shown(get('fontSize'))} is not within 1 to {LARGEST:.0f} pixels")
    align = get("textAlign")
    if not unset(align) and not (isinstance(align, str) and align in ALIGNMENTS):
        raise SampleError(f"{what}.textAlign: {shown(align)} is no alignment")
    return Style(
        wanted_font(get("fontFamily"), get("fontWeight"), get("fontStyle"), what),
        size,
        _relative(get("lineHeight"), size, f"{what}.lineHeight", largest_share=4.0),
        _relative(get("letterSpacing"), size, f"{what}.letterSpacing") or 0.0,
        ALIGNMENTS["left" if unset(align) else align],
        BLACK if unset(get("color")) else colour(get("color"), f"{what}.color"),
    )


def _relative(value: Any, size: float, what: str, largest_share: float = 0.0) -> float | None:
    """A length in px, em or per cent of the font size; a plain number up to ``largest_share`` is in font sizes."""
    if unset(value):
        return None
    number, unit = quantity(value, what)
    if unit == "" and abs(number) <= largest_share:
        unit = "em"
    factors = {"": 1.0, "px": 1.0, "em": size, "%": size / 100.0}
    if unit not in factors:
        raise SampleError(f"{what}: {shown(value)} is neither px nor em")
    return px(number * factors[unit], what)


def advances(font: ImageFont.FreeTypeFont, line: str, spacing: float) -> list[float]:
    """Start of each letter of a line, and the end of the line: one value more than letters, in pixels."""
    if not spacing:
        return [0.0, font.getlength(line)]
    places = [0.0]
    for position, letter in enumerate(line):
        following = line[position + 1 : position + 2]
        kerned = font.getlength(letter + following) - (font.getlength(following) if following else 0.0)
        places.append(places[-1] + kerned + spacing)
    return places


def wrap(font: ImageFont.FreeTypeFont, text: str, width: float, spacing: float) -> list[str]:
    """Lines of a text, broken at its own line breaks and at spaces where a line would be wider than ``width``."""
    lines = []
    for paragraph in text.split("\n"):
        line, length = "", 0.0
        for word in re.findall(" *[^ ]+", paragraph.rstrip(" ")):
            more = advances(font, word, spacing)[-1]
            if line and length + more - spacing > width:
                lines.append(line)
                line, length = "", 0.0
            if not line:
                word = word.lstrip(" ")
                more = advances(font, word, spacing)[-1]
            line, length = line + word, length + more
        lines.append(line)
    return lines


def set_text(
    text: str, style: Style, box: tuple[float, float | None], fonts: Fonts, what: str
) -> tuple[np.ndarray, tuple[int, int], list[str]] | None:
    """Draw a text with alpha.

    Args:
        text: in its final case.
        style: style of the text.
        box: (width, height) in pixels; a larger text runs over at the bottom and at both ends.
        fonts: source of the faces.
        what: name of the component, for messages.

    Returns:
        ``(h, w, 4)`` float32 straight alpha, its upper left corner (x, y) in the box, and notes; ``None`` if nothing
        is visible.

    Raises:
        SampleError: if the text is too long or too large, or a font cannot be read.
    """
    if len(text) > MAX_CHARACTERS:
        raise SampleError(f"{what}: a text of {len(text)} characters, more than {MAX_CHARACTERS}")
    if not text.strip() or style.fill is None:
        return None
    face, own, without = fonts.choose(style.font, text)
    notes = _font_notes(style.font, face, own, without, text)
    try:
        share, drawn = _fitted(text, style, box, face, own=own, what=what)
    except SampleError:
        raise
    except (OSError, ValueError) as error:
        raise SampleError(f"{what}: the text cannot be drawn in {face.name} ({error})") from None
    if share < 1.0:
        notes.append(f"{what} set at {share:.0%} to fit its box")
    if drawn is None:
        return None
    mask, corner = drawn
    image = np.empty((*mask.shape, 4), np.float32)
    image[...] = style.fill
    image[..., 3] *= mask
    return image, corner, notes


def _fitted(
    text: str, style: Style, box: tuple[float, float | None], face: Face, *, own: bool, what: str
) -> tuple[float, tuple[np.ndarray, tuple[int, int]] | None]:
    """Draw a text at its size or, in a stand-in for its font, at the largest share of it that fits the box."""
    width, height = box
    for share in np.arange(1.0, SMALLEST - 0.01, -0.05):
        font, spacing = face.at(max(style.size * share, 1.0)), style.spacing * share
        ascent, descent = font.getmetrics()
        leading = style.leading if style.leading is not None else float(ascent + descent)
        lines = wrap(font, text, width * SLACK + 1.0, spacing)
        # Letters of a stand-in may be wider, but the text must not need more lines than in its own font.
        room = max(text.count("\n") + 1, round(height / max(leading, 1.0))) if height is not None else len(lines)
        widest = max(advances(font, line, spacing)[-1] - spacing for line in lines)
        if own or (len(lines) <= room and widest <= width * SLACK + 1.0):
            break
    baselines = [row * leading + (leading - ascent - descent) / 2.0 + ascent for row in range(len(lines))]
    return float(share), _draw(font, lines, baselines, (width, style.align, spacing), what)


def _font_notes(wanted: Wanted, face: Face, own: bool, without: list[str], text: str) -> list[str]:
    label = f"font {wanted.family}--{wanted.weight}"
    notes = []
    if not own:
        notes.append(f"{label} replaced")
    elif face.weight != wanted.weight:
        notes.append(f"{label} set in weight {face.weight}")
    if without:
        notes.append(f"no glyph for {''.join(without[:8])!r} in {face.name}")
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in text):
        notes.append("right-to-left text not shaped")
    return notes


def _draw(
    font: ImageFont.FreeTypeFont,
    lines: list[str],
    baselines: list[float],
    setting: tuple[float, float, float],
    what: str,
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Coverage of some lines, ``(h, w)`` float32, cropped to the ink, and its corner (x, y); ``None`` without ink."""
    width, align, spacing = setting
    places = [advances(font, line, spacing) for line in lines]
    starts = [align * (width - place[-1]) for place in places]
    # Letters exceed their advance and their line (swashes, accents), but hardly by more than the font size.
    margin = int(font.size) + 2
    left, top = int(min(starts)) - margin, int(min(baselines)) - 2 * margin
    ends = [start + max(place) for start, place in zip(starts, places, strict=True)]
    size = (int(max(ends)) + margin - left, int(max(baselines)) + 2 * margin - top)
    if size[0] * size[1] > MAX_PIXELS:
        raise SampleError(f"{what}: a text of {size[0]}x{size[1]} pixels is above {MAX_PIXELS}")
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for line, start, place, baseline in zip(lines, starts, places, baselines, strict=True):
        for part, x in zip(line if spacing else [line], place[:-1], strict=True):
            pen.text((start + x - left, baseline - top), part, fill=255, font=font, anchor="ls")
    ink = canvas.getbbox()
    if ink is None:
        return None
    return np.asarray(canvas.crop(ink), np.float32) / 255.0, (left + ink[0], top + ink[1])
