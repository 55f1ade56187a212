"""Codec of image files: reading and writing of 8-bit pixels."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image, UnidentifiedImageError

from layers.files import write_whole
from layers.imaging.metadata import PNG_SIGNATURE, without_metadata

# 64 megapixels are beyond every bucket; a larger image is treated as a decompression bomb.
MAX_PIXELS = 64_000_000

# Modes that convert to 8-bit RGBA without loss and unambiguously. Palette colours are quantised, 16 bits would be
# reduced, and CMYK is undefined without its profile: such images have to be converted first.
MODES = ("RGBA", "RGB", "LA", "L")
# The only formats that are opened. Pillow knows dozens more, some of which start other programs: Ghostscript for EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
_FILTER_UP = 2


class ImageError(ValueError):
    """A file is no readable image; the message names it and the reason."""


@contextmanager
def opened(
    data: bytes, name: str, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Iterator[Image.Image]:
    """Open an image, the only place that does so; any error inside the block becomes one sentence.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.
        max_pixels: larger images are refused before they are decoded.
        formats: the accepted ones of :data:`FORMATS`.

    Yields:
        The image, not loaded; its metadata are in ``info``, unchecked (:mod:`layers.imaging.metadata`). Of a JPEG that
        holds several images it is the first, the main one.

    Raises:
        ImageError: if it is empty, broken, of another format or too large.
    """
    if not data:
        raise ImageError(f"{name}: not a readable image (zero bytes)")
    pixels, said = without_metadata(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(pixels), formats=formats) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError(f"{name}: {image.width}x{image.height} is above {max_pixels} pixels")
                image.info.update(said)
                yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: above {max_pixels} pixels") from None
    except UnidentifiedImageError:
        words = f"cannot identify its format, expected {', '.join(formats)}"
        raise ImageError(f"{name}: not a readable image ({words})") from None
    except Exception as error:
        # For broken files Pillow raises any error of its parsers. The message holds the buffer's address, which is
        # removed, since it would make every reason different.
        words = " ".join(str(error).split(" <_io.")[0].split()) or type(error).__name__
        raise ImageError(f"{name}: not a readable image ({words})") from None


def _mode(image: Image.Image, data: bytes) -> str:
    # Pillow opens 16-bit colour PNGs as 8-bit ones; the header's byte 24 is the bit depth.
    sixteen = data[:8] == PNG_SIGNATURE and data[24:25] == b"\x10"
    return f"{image.mode} of 16 bits" if sixteen else image.mode


def _pixels(image: Image.Image) -> np.ndarray:
    """Read-only ``(H, W, 4)`` view of an RGBA image's memory; a copy would take half as long as decoding."""
    image.load()
    try:
        flat = pyarrow.array(image).flatten().to_numpy(zero_copy_only=True)
    except ValueError:
        # Above 16 MB Pillow stores an image in several blocks.
        return np.asarray(image)
    return flat.reshape(image.height, image.width, 4)


def decode_rgba(data: bytes, name: str) -> np.ndarray:
    """Decode an image to read-only ``(H, W, 4)`` uint8 with straight alpha; RGB and grey become opaque.

    Args:
        data: the file's bytes, of one of :data:`FORMATS`.
        name: the file's name, for messages.

    Raises:
        ImageError: if it is empty, truncated, no image, of a mode that is not in :data:`MODES`, or larger than
            :data:`MAX_PIXELS`.
    """
    with opened(data, name) as image:
        if (mode := _mode(image, data)) not in MODES:
            raise ImageError(f"{name}: mode {mode}, expected 8-bit {', '.join(MODES)}")
        return _pixels(image if mode == "RGBA" else image.convert("RGBA"))


def read_rgba(path: Path) -> np.ndarray:
    """Read a file with :func:`decode_rgba`.

    Raises:
        ImageError: if the file is missing or is no readable image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{Path(path).name}: not a readable image ({type(error).__name__})") from None
    return decode_rgba(data, Path(path).name)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def encode_png(image: np.ndarray) -> bytes:
    """Encode ``(H, W, 4)`` or ``(H, W, 3)`` uint8 as PNG.

    Each row is stored as its difference to the row above and compressed by run lengths and Huffman codes alone. On
    layers that takes a quarter of the time of Pillow's encoder, which tries five filters on every row. The files have
    about the size of its default (benchmarks/prepare_throughput.py, docs/log.md).

    Raises:
        TypeError: for any other array.
    """
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8 or 0 in image.shape:
        raise TypeError(f"a PNG is made of (H, W, 3 or 4) uint8, got shape {image.shape} of {image.dtype}")
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = packer.compress(filtered) + packer.flush()
    colour_type = 6 if channels == 4 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def write_png(path: Path, image: np.ndarray) -> None:
    """Write ``(H, W, 4)`` or ``(H, W, 3)`` uint8 as PNG, complete or not at all."""
    write_whole(path, encode_png(image))
