"""Conversion of users' images to ``(H, W, 4)`` uint8 sRGB: any mode, EXIF orientation, CMYK or 16 bits.

Datasets are read by :mod:`layers.imaging.codec`, which refuses ambiguous files. Here a user wants an image decomposed,
so ambiguous files are converted as common viewers do.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

from config.paths import LEFT_BEHIND, visible_files
from layers.imaging.codec import FORMATS, MAX_PIXELS, ImageError, opened

MIN_SIDE = 8  # pixels; smaller images have no layers
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
SUBFILE_TYPE = 254  # tag of a TIFF's image; its lowest bit marks a reduced copy
# Transpositions that undo each EXIF orientation; 1 is upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    data: bytes,
    name: str,
    max_pixels: int = MAX_PIXELS,
    *,
    formats: Sequence[str] = FORMATS,
    min_side: int = MIN_SIDE,
) -> np.ndarray:
    """Decode any still image.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.
        max_pixels: larger images are refused before they are decoded.
        formats: the accepted ones of :data:`layers.imaging.codec.FORMATS`.
        min_side: smaller images are refused.

    Returns:
        ``(H, W, 4)`` uint8 in sRGB, straight alpha, rotated as EXIF says; 16 bits are rounded to 8, an embedded colour
        profile is applied. Of a JPEG with several images, as phones write them, the main one.

    Raises:
        ImageError: one sentence: no image, truncated, animated, too small or too large.
    """
    with opened(data, name, max_pixels, formats) as image:
        if min(image.size) < min_side:
            size = f"{image.width}x{image.height}"
            raise ImageError(f"{name}: {size} pixels, expected at least {min_side} a side")
        if (frames := _frames(image)) > 1:
            raise ImageError(f"{name}: {frames} frames, expected a still image")
        image.load()
        return np.asarray(_rgba(_upright(image)))


def _frames(image: Image.Image) -> int:
    """Number of images in a file; reduced copies of the first, as scanners and editors add to a TIFF, do not count."""
    frames = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or frames == 1:
        return frames
    copies = 0
    for number in range(1, frames):
        image.seek(number)
        copies += image.tag_v2.get(SUBFILE_TYPE, 0) & 1
    image.seek(0)
    return frames - copies


def read_image_file(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a file with :func:`decode_image`.

    Raises:
        ImageError: also if there is no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path.name}: not a readable image ({type(error).__name__})") from None
    return decode_image(data, path.name, max_pixels)


def find_images(paths: list[str]) -> list[Path]:
    """Find the files that arguments name: files, all visible images below folders, globs; each once, in order.

    Raises:
        ImageError: if an argument names nothing.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = visible_files(path, SUFFIXES)
        elif path.is_file():
            files = [path]
        else:
            # Like shells and unlike Path.glob, glob skips hidden files unless the pattern begins with a dot.
            matching = glob.glob(given, recursive=True) if glob.has_magic(given) else ()  # noqa: PTH207
            files = sorted(p for p in map(Path, matching) if p.is_file() and p.name.lower() not in LEFT_BEHIND)
        if not files:
            raise ImageError(f"{given}: no image; expected a file, a folder with images or a pattern")
        found.update(dict.fromkeys(files))
    return list(found)


def _upright(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF says; unreadable EXIF is ignored."""
    try:
        method = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # struct.error, AttributeError, SyntaxError: Pillow expects its EXIF to be whole
        return image
    return image if method is None else image.transpose(method)


def _rgba(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    profile = image.info.get("icc_profile")
    if profile:
        image = _to_srgb(image, profile)
    return image.convert("RGBA")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey of 16 or 32 bits or floats to 8 bits: from the 16-bit range if the mode says so, else by content."""
    values = np.asarray(image, dtype=np.float64)
    top = 65535.0 if values.max() > 255 or image.mode.startswith("I;16") else 255.0
    top = 1.0 if image.mode == "F" and values.max() <= 1.0 else max(top, values.max())
    return Image.fromarray(np.rint(np.clip(values / top, 0.0, 1.0) * 255.0).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply an embedded profile; one that is broken or does not fit the mode is ignored, as in viewers."""
    alpha = image.convert("RGBA").getchannel("A") if "A" in image.mode or "transparency" in image.info else None
    colours = image.convert("RGB") if image.mode in ("RGBA", "P", "PA") else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if alpha is not None:
        colours.putalpha(alpha)
    return colours
