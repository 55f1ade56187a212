"""What an image file says besides its pixels, taken out before Pillow reads it.

Pillow refuses an image for what it finds in metadata: texts or profiles above a megabyte, broken EXIF, an index of
further images. None of that decides pixels, so none of it may decide whether they are read.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
# Of a profile or a text that is packed; a larger one is left aside.
MAX_UNPACKED = 16 * 2**20
# Chunks that a PNG reader may pass over (a small first letter) and that yet decide pixels or frames.
PNG_DECISIVE = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
# JPEG segments that decide colours: how they begin, and the least they hold.
JPEG_DECISIVE = {0xE0: (b"JFIF\0", 14), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}
EXIF = b"Exif\0\0"
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
# Keywords of PNG texts that may say how an image is turned, and what Pillow calls them.
PNG_TEXTS = {b"XML:com.adobe.xmp": "xmp", b"Raw profile type exif": "Raw profile type exif"}
# An AVIF's entry of EXIF among its items, which libavif refuses where it is broken; turned an image is by another box.
AVIF_EXIF = re.compile(rb"(infe[\x02\x03].{7}(?:..)?)Exif", re.DOTALL)
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Tags of a TIFF that say where its EXIF, its place on earth and its interoperability are.
TIFF_GROUPS = (0x8769, 0x8825, 0xA005)


def without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Take out of a file what does not decide its pixels.

    Args:
        data: the file. Of PNG, JPEG, TIFF and AVIF metadata are refused; of other formats nothing is taken.

    Returns:
        The file without it, and what readers may want of it, by the names that Pillow has in ``info``: ``exif``,
        ``icc_profile``, ``xmp``, ``Raw profile type exif``. Nothing of it is checked.
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
    # What is cut, or follows the end, is for Pillow to judge.
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
    # Behind the method of packing, and in iTXt behind the language and the translated keyword.
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
    """The same with the first image's :data:`TIFF_GROUPS` under numbers that say nothing; how it is turned stays."""
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
