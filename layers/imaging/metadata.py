"""Metadata of image files, removed before Pillow reads the pixels.

Pillow refuses an image because of its metadata: texts or profiles above a megabyte, broken EXIF, an index of further
images. None of that affects pixels, so none of it may prevent reading them.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
# Maximum size in bytes of a decompressed profile or text; a larger one is ignored.
MAX_UNPACKED = 16 * 2**20
# Optional PNG chunks (a lower-case first letter) that nevertheless affect pixels or frames.
PNG_DECISIVE = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
# JPEG segments that affect colours: their first bytes and minimum length.
JPEG_DECISIVE = {0xE0: (b"JFIF\0", 14), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}
EXIF = b"Exif\0\0"
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
# Keywords of PNG texts that may hold the orientation, and Pillow's names for them.
PNG_TEXTS = {b"XML:com.adobe.xmp": "xmp", b"Raw profile type exif": "Raw profile type exif"}
# An AVIF's item entry of EXIF, which libavif refuses if it is broken; the orientation is in another box.
AVIF_EXIF = re.compile(rb"(infe[\x02\x03].{7}(?:..)?)Exif", re.DOTALL)
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Tags of a TIFF that point to its EXIF, GPS and interoperability directories.
TIFF_GROUPS = (0x8769, 0x8825, 0xA005)


def without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Remove the metadata that do not affect a file's pixels.

    Args:
        data: the file. PNG, JPEG, TIFF and AVIF are changed, since Pillow checks their metadata; others are not.

    Returns:
        The file without them, and the metadata that readers may need, under Pillow's names in ``info``: ``exif``,
        ``icc_profile``, ``xmp``, ``Raw profile type exif``. They are not checked.
    """
    if data.startswith(PNG_SIGNATURE):
        return _png(data)
    if data.startswith(JPEG_SIGNATURE):
        return _jpeg(data)
    if order := TIFF_ORDERS.get(data[:4]):
        return _tiff(data, order), {}
    return (AVIF_EXIF.sub(rb"\1skip", data) if data[4:8] == b"ftyp" else data), {}


def _png(data: bytes) -> tuple[bytes, dict[str, Any]]:
    view, kept, said = memoryview(data), [PNG_SIGNATURE], {}
    at = len(PNG_SIGNATURE)
    while (end := at + 12 + int.from_bytes(data[at : at + 4], "big")) <= len(data):
        kind = data[at + 4 : at + 8]
        if kind[0] & 0x20 and kind not in PNG_DECISIVE:
            said |= _said_by_chunk(kind, data[at + 8 : end - 4])
        else:
            kept.append(view[at:end])
        at = end
    # Truncated chunks and bytes after the end are left to Pillow.
    kept.append(view[at:])
    return b"".join(kept), said


def _said_by_chunk(kind: bytes, body: bytes) -> dict[str, Any]:
    if kind == b"eXIf":
        return {"exif": EXIF + body}
    if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
        return {}
    keyword, _, rest = body.partition(b"\0")
    if kind != b"iCCP" and keyword not in PNG_TEXTS:
        return {}
    packed = kind in (b"iCCP", b"zTXt") or (kind == b"iTXt" and rest[:1] == b"\1")
    # The text follows the compression method, in iTXt also the language and the translated keyword.
    text = rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest[packed:]
    value = _unpacked(text) if packed else text
    if value is None:
        return {}
    if kind == b"iCCP":
        return {"icc_profile": value}
    name = PNG_TEXTS[keyword]
    return {name: value if name == "xmp" else value.decode("latin-1")}


def _unpacked(packed: bytes) -> bytes | None:
    unpacker = zlib.decompressobj()
    try:
        value = unpacker.decompress(packed, MAX_UNPACKED)
    except zlib.error:
        return None
    return value if unpacker.eof else None


def _jpeg(data: bytes) -> tuple[bytes, dict[str, Any]]:
    view, kept, said = memoryview(data), [JPEG_SIGNATURE], {}
    at = len(JPEG_SIGNATURE)
    # Up to the first scan (DA); a segment may have more than one FF before its marker.
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1 : at + 2]) not in (b"\xda", b""):
        if marker == b"\xff":
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or (end := at + 2 + length) > len(data):
            break
        body = data[at + 4 : end]
        if 0xE0 <= marker[0] <= 0xEF or marker == b"\xfe":
            start, least = JPEG_DECISIVE.get(marker[0], (b"", len(data)))
            if body.startswith(start) and len(body) >= least:
                kept.append(view[at:end])
            elif marker == b"\xe1" and body.startswith(EXIF):
                said["exif"] = said.get("exif", EXIF) + body[len(EXIF) :]
            elif marker == b"\xe1" and body.startswith(XMP_SEGMENT):
                said["xmp"] = body[len(XMP_SEGMENT) :]
        else:
            kept.append(view[at:end])
        at = end
    kept.append(view[at:])
    return b"".join(kept), said


def _tiff(data: bytes, order: str) -> bytes:
    """Rename the first image's :data:`TIFF_GROUPS` to unused tag numbers; the orientation stays."""
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        tags = {start + 2 + 12 * k: struct.unpack_from(f"{order}H", data, start + 2 + 12 * k)[0] for k in range(count)}
    except struct.error:
        return data
    found = [(at, tag) for at, tag in tags.items() if tag in TIFF_GROUPS]
    if not found:
        return data
    changed = bytearray(data)
    for at, tag in found:
        struct.pack_into(f"{order}H", changed, at, tag + 1)
    return bytes(changed)
