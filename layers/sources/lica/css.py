"""CSS values in LICA's layouts: lengths, colours and transforms as text.

All functions are pure and take a value and ``what``, its name at the start of error messages (``components[3].left``).
Values come from untrusted files: a number may be a string, a list, NaN or 10**400.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from PIL import ImageColor

from config.errors import SampleError

# Larger than the side of any canvas of MAX_PIXELS and than the distance of any part of a design from it.
MAX_PX = 100_000.0
# Maximum characters of a number or a transform; a longer text is invalid, and slow to parse.
LONGEST = 1000
UNSET = (None, "", "auto", "none", "normal", "initial", "inherit", "unset")
DEGREES = {"deg": 1.0, "rad": 180.0 / math.pi, "grad": 0.9, "turn": 360.0}

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*([a-z%]*)\s*", re.IGNORECASE)
_CALL = re.compile(r"\s*([a-z0-9]+)\(([^()]*)\)\s*,?", re.IGNORECASE)


def shown(value: Any) -> str:
    """A value as quoted in messages: short, on one line."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unset(value: Any) -> bool:
    """Whether a property is absent or has a value such as ``none``."""
    return value is None or (isinstance(value, str) and value.strip().lower() in UNSET)


def quantity(value: Any, what: str) -> tuple[float, str]:
    """A number and its unit in lower case: ``"48.0px"`` is (48.0, "px"), ``1.5`` is (1.5, "").

    Raises:
        SampleError: if it is no number, or not finite.
    """
    number, unit = math.nan, ""
    if isinstance(value, str) and len(value) <= LONGEST and (match := _QUANTITY.fullmatch(value)):
        number, unit = float(match[1]), match[2].lower()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # An integer in JSON may exceed the range of floats.
        number = float(value) if abs(value) < 1e300 else math.inf
    if not math.isfinite(number):
        raise SampleError(f"{what}: {shown(value)} is no finite number")
    return number, unit


def px(value: Any, what: str, default: float | None = None) -> float:
    """A length in pixels from ``"12.3px"``, ``"12.3"`` or a number.

    Args:
        value: the value in the file.
        what: name of the property, for messages.
        default: for an absent or automatic length; ``None`` makes that an error.

    Raises:
        SampleError: if it is missing without a default, no length in pixels, or beyond :data:`MAX_PX`.
    """
    if unset(value):
        if default is None:
            raise SampleError(f"{what} is missing")
        return default
    number, unit = quantity(value, what)
    if unit not in ("", "px"):
        raise SampleError(f"{what}: {shown(value)} is no length in pixels")
    if abs(number) > MAX_PX:
        raise SampleError(f"{what}: {shown(value)} is beyond {MAX_PX:.0f} pixels")
    return number


def opacity(value: Any, what: str) -> float:
    """An opacity in [0, 1] from a number or a percentage, clipped to that range as in CSS; 1 if absent.

    Raises:
        SampleError: if it is no finite number.
    """
    if unset(value):
        return 1.0
    number, unit = quantity(value, what)
    if unit not in ("", "%"):
        raise SampleError(f"{what}: {shown(value)} is no opacity")
    return min(max(number / 100.0 if unit else number, 0.0), 1.0)


def colour(value: Any, what: str) -> tuple[float, float, float, float] | None:
    """Straight RGBA in [0, 1] from ``rgb()``, ``rgba()``, ``#hex`` or a name; ``None`` if absent or transparent.

    Raises:
        SampleError: if it is no plain colour, such as a gradient or an image.
    """
    if unset(value) or value == "transparent":
        return None
    if not isinstance(value, str):
        raise SampleError(f"{what}: {shown(value)} is no colour")
    call = re.fullmatch(r"rgba?\(([^()]*)\)", value.strip(), re.IGNORECASE)
    if call:
        parts = [part for part in re.split(r"[,/\s]+", call[1]) if part]
        if len(parts) not in (3, 4):
            raise SampleError(f"{what}: {shown(value)} is no colour")
        pairs = [quantity(part, what) for part in parts]
        if any(unit not in ("", "%") for _, unit in pairs):
            raise SampleError(f"{what}: {shown(value)} is no colour")
        levels = [number / 100.0 if unit else number / 255.0 for number, unit in pairs[:3]]
        alphas = [number / 100.0 if unit else number for number, unit in pairs[3:]] or [1.0]
    else:
        try:
            bytes_ = ImageColor.getrgb(value.strip())
        except ValueError:
            raise SampleError(f"{what}: {shown(value)} is no plain colour") from None
        levels, alphas = [byte / 255.0 for byte in bytes_[:3]], [byte / 255.0 for byte in bytes_[3:]] or [1.0]
    red, green, blue, alpha = (min(max(level, 0.0), 1.0) for level in levels + alphas)
    return (red, green, blue, alpha) if alpha > 0 else None


def shift(x: float, y: float) -> np.ndarray:
    """The 3x3 matrix that moves by (x, y) pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def stretch(x: float, y: float) -> np.ndarray:
    """The 3x3 matrix that scales by (x, y) about the origin."""
    return np.diag([x, y, 1.0])


def rotation(degrees: float) -> np.ndarray:
    """The 3x3 matrix that rotates about the origin; positive is clockwise, since y points down."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def transform(value: Any, size: tuple[float, float], what: str) -> np.ndarray:
    """The 3x3 matrix of a CSS transform about the centre of a box.

    Args:
        value: such as ``rotate(-5.16deg)`` or ``translate(4px, 0px) scale(-1, 1)``; the last one is applied first.
        size: (width, height) of the box in pixels; its centre is the origin, percentages refer to it.
        what: name of the property, for messages.

    Returns:
        float64, from the box's coordinates to its parent's, before ``left`` and ``top``.

    Raises:
        SampleError: if a function is unknown or an argument is no finite number.
    """
    if unset(value):
        return np.eye(3)
    if not isinstance(value, str) or len(value) > LONGEST:
        raise SampleError(f"{what}: {shown(value)} is no transform")
    matrix, rest = np.eye(3), value
    while rest.strip():
        call = _CALL.match(rest)
        if call is None:
            raise SampleError(f"{what}: {shown(value)} is no transform")
        matrix = matrix @ _step(call[1].lower(), call[2], size, what)
        rest = rest[call.end() :]
        if np.abs(matrix).max() > MAX_PX:
            raise SampleError(f"{what}: {shown(value)} goes beyond {MAX_PX:.0f} pixels")
    centre_x, centre_y = size[0] / 2.0, size[1] / 2.0
    return shift(centre_x, centre_y) @ matrix @ shift(-centre_x, -centre_y)


def _step(name: str, inside: str, size: tuple[float, float], what: str) -> np.ndarray:
    """The matrix of one function of a transform."""
    pairs = [quantity(part, what) for part in re.split(r"[,\s]+", inside.strip()) if part]
    count = len(pairs)
    units = {unit for _, unit in pairs}
    if name in ("rotate", "rotatez") and count == 1 and units <= {"", *DEGREES}:
        return rotation(pairs[0][0] * DEGREES.get(pairs[0][1], 1.0))
    if name in ("translate", "translatex", "translatey") and 1 <= count <= 2 and units <= {"", "px", "%"}:
        sides = (size[1],) if name == "translatey" else size
        moves = [
            number * side / 100.0 if unit == "%" else number for (number, unit), side in zip(pairs, sides, strict=False)
        ]
        if name == "translatey":
            return shift(0.0, moves[0])
        return shift(moves[0], moves[1] if count == 2 and name == "translate" else 0.0)
    numbers = [number for number, _ in pairs]
    if name == "scale" and 1 <= count <= 2 and units <= {""}:
        return stretch(numbers[0], numbers[-1])
    if name in ("scalex", "scaley") and count == 1 and units <= {""}:
        return stretch(numbers[0], 1.0) if name == "scalex" else stretch(1.0, numbers[0])
    if name == "matrix" and count == 6 and units <= {""}:
        a, b, c, d, e, f = numbers
        return np.array([[a, c, e], [b, d, f], [0.0, 0.0, 1.0]])
    raise SampleError(f"{what}: {shown(f'{name}({inside})')} is no transform known here")
