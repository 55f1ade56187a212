"""Good images with metadata that readers stumble on, as telephones, editors and cameras write them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

SIZE = (60, 40)  # width, height
LARGE = 2_000_000
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def colours(size=SIZE):
    ramp = np.linspace(0, 200, size[0]) + np.linspace(0, 50, size[1])[:, None]
    return Image.fromarray(np.stack([ramp, 250 - ramp, ramp // 2], axis=-1).astype(np.uint8))


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(kind, body, last=False):
    """A chunk behind the header, or before the end."""
    png, at = encoded(colours()), -12 if last else 33
    return png[:at] + chunk(kind, body) + png[at:]


def jpeg_with(marker, body):
    jpeg = encoded(colours(), "JPEG", quality=95)
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def large_profile():
    profile = SRGB + bytes(LARGE)
    return struct.pack(">I", len(profile)) + profile[4:]


def avif_with_broken_exif():
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    data = encoded(colours(), "AVIF", quality=100, exif=exif)
    at = data.index(b"Exif\0\0MM")
    return data[: at + 6] + b"\xff" * 8 + data[at + 14 :]


def tiff_with(tag, value):
    """A number more in the directory, which is written anew at the end."""
    data = bytearray(encoded(colours(), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [bytes(data[at : at + 12]) for at in range(start + 2, start + 2 + 12 * count, 12)]
    entries.append(struct.pack("<HHII", tag, 4, 1, value))
    struct.pack_into("<I", data, 4, len(data))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    return bytes(data) + struct.pack("<H", count + 1) + b"".join(entries) + bytes(4)


def mpo(**options):
    return encoded(colours(), "MPO", save_all=True, append_images=[colours((30, 20))], quality=95, **options)


EXIF_1 = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0"
# All show colours(), upright.
GOOD = {
    "several images, as of a telephone": mpo(),
    "an index of images that is broken": mpo().replace(b"MPF\0II*\0\x08", b"MPF\0II*\0\xff"),
    "an index of images without images": jpeg_with(0xE2, b"MPF\0"),
    "EXIF twice": jpeg_with(0xE1, b"Exif\0\0Exif\0\0" + EXIF_1),
    "EXIF of nothing": jpeg_with(0xE1, b"Exif\0\0"),
    "EXIF of garbage": jpeg_with(0xE1, b"Exif\0\0" + bytes(range(40))),
    "EXIF cut": jpeg_with(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01"),
    "EXIF as text": png_with(b"eXIf", b"b'Exif\\x00\\x00II*'"),
    "EXIF of garbage, PNG": png_with(b"eXIf", bytes(range(40))),
    "EXIF of garbage, WebP": encoded(colours(), "WEBP", lossless=True, exif=b"Exif\0\0" + bytes(range(40))),
    "EXIF of garbage, AVIF": avif_with_broken_exif(),
    "EXIF nowhere, TIFF": tiff_with(0x8769, 999_999),
    "EXIF in a circle, TIFF": tiff_with(0x8825, 8),
    "EXIF of no kind, TIFF": tiff_with(0xA005, 8),
    "EXIF in hexadecimal that is none": png_with(b"tEXt", b"Raw profile type exif\0\nexif\n4\nzz"),
    "a JFIF header cut": jpeg_with(0xE0, b"JFIF\0\1"),
    "an Adobe marker cut": jpeg_with(0xEE, b"Adobe"),
    "a packed text of 2 MB": png_with(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(LARGE))),
    "a Unicode text of 2 MB": png_with(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * LARGE)),
    "a text of 2 MB at the end": png_with(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(LARGE)), last=True),
    "a text of 70 MB": png_with(b"iTXt", b"workflow\0\0\0\0\0" + bytes(70_000_000)),
    "a profile of 2 MB": png_with(b"iCCP", b"large\0\0" + zlib.compress(large_profile())),
    "a profile that fills the memory": png_with(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(100_000_000))),
    "a resolution cut": png_with(b"pHYs", b"\0\0"),
    "a text with a wrong checksum": png_with(b"tEXt", b"Title\0image").replace(b"Title", b"title"),
}  # fmt: skip
