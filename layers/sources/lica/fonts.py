"""Font files for the texts of LICA layouts: from the user's folder, else stand-ins from installed packages.

LICA names fonts as ``Rufina--400`` (family and weight) and ships none. A file matches if its name is the family's,
followed only by words for weight and style: ``LeagueSpartan-Bold.ttf``, ``Cinzel[wght].ttf``,
``arimo-latin-700-italic.ttf``. Stand-ins are Manrope (sans-serif), Caladea (serif) and DejaVu Sans (for glyphs that
the other two lack).
"""

from __future__ import annotations

import importlib.util
import io
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fontTools.ttLib import TTFont
from PIL import ImageFont

from config.errors import SampleError
from layers.sources.location import Location

WEIGHTS = {
    "hairline": 100,
    "thin": 100,
    "extralight": 200,
    "ultralight": 200,
    "light": 300,
    "regular": 400,
    "book": 400,
    "medium": 500,
    "semibold": 600,
    "demibold": 600,
    "extrabold": 800,
    "ultrabold": 800,
    "bold": 700,
    "black": 900,
    "heavy": 900,
}
NEUTRAL = "variablefont|variable|vf|opsz|wdth|latin|ext|normal|[0-9]{1,2}pt"
_WORD = re.compile(f"(wght)|(italic|oblique)|({'|'.join(WEIGHTS)})|([1-9]00)|({NEUTRAL})")
SERIFS = re.compile(
    "serif|slab|roman|times|georgia|garamond|baskerville|bodoni|playfair|lora|merriweather|cinzel|rufina|caladea|"
    "cambria|crimson|libre caslon|caslon|didot|cormorant|bitter|arvo|rokkitt|abril|prata|vidaloka|yeseva|alike|gelasio"
)
MANROPE = {
    200: "ExtraLight",
    300: "Light",
    400: "Regular",
    500: "Medium",
    600: "SemiBold",
    700: "Bold",
    800: "ExtraBold",
}
LARGEST = 4096.0
# Maximum number of font files cached by a process.
KEPT = 32


@dataclass(frozen=True)
class Wanted:
    """A font as requested by a layout.

    Attributes:
        family: such as ``League Spartan``.
        weight: 1 to 1000.
        italic: whether it is italic or oblique.
    """

    family: str
    weight: int
    italic: bool


@dataclass(frozen=True)
class Face:
    """A font file.

    Attributes:
        name: name of the file.
        data: its bytes.
        weight: weight of the rendered letters.
        variable: whether ``weight`` has to be set on the file's weight axis.
    """

    name: str
    data: bytes
    weight: int
    variable: bool = False

    def at(self, size: float) -> ImageFont.FreeTypeFont:
        """The face at a size in pixels, at most :data:`LARGEST`; does not use an optional layout library.

        Raises:
            SampleError: if the file is no font.
        """
        try:
            font = ImageFont.truetype(io.BytesIO(self.data), size, layout_engine=ImageFont.Layout.BASIC)
            if self.variable:
                axes = font.get_variation_axes()
                values = [axis["default"] for axis in axes]
                for position, axis in enumerate(axes):
                    if axis["name"] in (b"Weight", "Weight"):
                        values[position] = min(max(self.weight, axis["minimum"]), axis["maximum"])
                font.set_variation_by_axes(values)
        except (OSError, ValueError, NotImplementedError) as error:
            raise SampleError(f"{self.name}: not a readable font ({error})") from None
        return font


@lru_cache(maxsize=64)
def _characters(name: str, data: bytes) -> frozenset[int]:
    """Code points that a font has glyphs for; none if its table cannot be read."""
    try:
        with TTFont(io.BytesIO(data), lazy=True, fontNumber=0) as font:
            return frozenset(font.getBestCmap() or ())
    except Exception:  # fontTools may raise any exception; Pillow's error message says more
        return frozenset()


def missing(face: Face, text: str) -> list[str]:
    """Characters of a text that a face has no glyph for, each once, in order."""
    known = _characters(face.name, face.data)
    # Joiners and variation selectors are not visible by themselves.
    seen = (c for c in dict.fromkeys(text) if not c.isspace() and unicodedata.category(c) not in ("Cf", "Mn"))
    return [character for character in seen if ord(character) not in known]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def file_style(file_name: str, family: str) -> tuple[int | None, bool] | None:
    """Weight and italics of a font file by its name; ``None`` if it belongs to another family.

    Returns:
        (weight, italic); the weight is ``None`` for a file with a weight axis.
    """
    stem, wanted = _plain(Path(file_name).stem), _plain(family)
    if not wanted or not stem.startswith(wanted):
        return None
    rest = stem[len(wanted) :]
    words = list(_WORD.finditer(rest))
    if "".join(word[0] for word in words) != rest:
        return None
    named = [WEIGHTS[word[3]] for word in words if word[3]] + [int(word[4]) for word in words if word[4]]
    variable = any(word[1] or word[0].startswith("variable") for word in words)
    return (None if variable else (named or [400])[0]), any(word[2] for word in words)


@lru_cache(maxsize=32)
def _packaged(package: str, path: str, weight: int) -> Face:
    # find_spec instead of import: importing matplotlib costs each worker process a second.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SampleError(f"package {package} is not installed; a stand-in for a missing font is taken from it")
    try:
        return Face(Path(path).name, (Path(spec.origin).parent / path).read_bytes(), weight)
    except OSError:
        raise SampleError(
            f"package {package} does not hold {path}; a stand-in for a missing font is taken from it"
        ) from None


def stand_ins(wanted: Wanted) -> list[Face]:
    """Stand-in faces for a missing family: the most similar one first, then the one with most glyphs."""
    bold = wanted.weight >= 600
    style = {(False, False): "Regular", (True, False): "Bold", (False, True): "Italic", (True, True): "BoldItalic"}
    dejavu = {"Regular": "DejaVuSans", "Italic": "DejaVuSans-Oblique", "BoldItalic": "DejaVuSans-BoldOblique"}
    name = style[bold, wanted.italic]
    weight = 700 if bold else 400
    widest = _packaged("matplotlib", f"mpl-data/fonts/ttf/{dejavu.get(name, 'DejaVuSans-Bold')}.ttf", weight)
    if SERIFS.search(wanted.family.lower()) and "sans" not in wanted.family.lower():
        return [_packaged("font_caladea", f"files/Caladea-{name}.ttf", weight), widest]
    if wanted.italic:
        return [widest]
    nearest = min(MANROPE, key=lambda known: abs(known - wanted.weight))
    return [_packaged("font_manrope", f"files/Manrope-{MANROPE[nearest]}.ttf", nearest), widest]


class Fonts:
    """The user's font files.

    Args:
        location: a folder of TTF and OTF files, sub-folders included; ``None`` if there is none.
    """

    def __init__(self, location: Location | None) -> None:
        self.location = location
        self._names: list[str] | None = None
        self._data: dict[str, bytes] = {}
        self._signature: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "_names": None, "_data": {}, "_signature": None}

    def signature(self) -> str:
        """A string that changes when a font file does; empty without a folder."""
        if self._signature is None:
            self._signature = self.location.signature(self.names()) if self.location is not None else ""
        return self._signature

    def names(self) -> list[str]:
        """Names of all font files, sorted; the folder is listed once per process."""
        if self._names is None:
            self._names = self.location.find((".ttf", ".otf")) if self.location is not None else []
        return self._names

    def own(self, wanted: Wanted) -> Face | None:
        """The family's file that is nearest in style and weight, if there is one."""
        fits = []
        for name in self.names():
            style = file_style(name, wanted.family)
            if style is not None:
                weight, italic = style
                fits.append(
                    (italic != wanted.italic, 0 if weight is None else abs(weight - wanted.weight), name, weight)
                )
        if not fits:
            return None
        _, _, name, weight = min(fits, key=lambda fit: fit[:3])
        if name not in self._data:
            if len(self._data) >= KEPT:
                self._data.clear()
            self._data[name] = self.location.read(name)
        return Face(name, self._data[name], wanted.weight if weight is None else weight, variable=weight is None)

    def choose(self, wanted: Wanted, text: str) -> tuple[Face, bool, list[str]]:
        """Choose the face for a text.

        Args:
            wanted: the layout's font.
            text: the text; a face that lacks some of its glyphs is replaced by one that has them.

        Returns:
            The face, whether it is of the family, and the characters for which it has no glyph.

        Raises:
            SampleError: if a font file cannot be read.
        """
        own = self.own(wanted)
        if own is not None:
            # Raises for a broken file, which has no glyphs and would be silently replaced by a stand-in.
            own.at(16.0)
        faces = ([own] if own is not None else []) + stand_ins(wanted)
        best = min(faces, key=lambda face: len(missing(face, text)))
        return best, best is own, missing(best, text)
