"""Reading and writing PNG files: the border where pixels are 8-bit."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

# A design of 64 megapixels is beyond every bucket; more is a decompression bomb, not data.
MAX_PIXELS = 64_000_000


class PictureError(ValueError):
    """A file is no readable picture; the message names it and the reason."""


def read_rgba(path: Path) -> np.ndarray:
    """Read a picture as ``(H, W, 4)`` uint8 with straight alpha; modes without alpha become opaque.

    Raises:
        PictureError: if the file is missing, truncated, no picture, or larger than :data:`MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise PictureError(f"{path.name}: {picture.width}x{picture.height} is above {MAX_PIXELS} pixels")
                return np.array(picture.convert("RGBA"))
    except PictureError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{path.name}: not a readable picture ({error})") from None


def write_png(path: Path, image: np.ndarray) -> None:
    """Write ``(H, W, 4)`` or ``(H, W, 3)`` uint8 as PNG, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            Image.fromarray(image).save(file, format="PNG", compress_level=1)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
