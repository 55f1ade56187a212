import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from layers.imaging.codec import MAX_PIXELS, ImageError, decode_rgba, encode_png, read_rgba, write_png


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG"} | options)
    return buffer.getvalue()


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20).map(lambda s: (*s, 4))), st.sampled_from([3, 4])
)
@settings(max_examples=150, deadline=None)
def test_pillow_reads_back_exactly_what_was_encoded(image, channels):
    image = image[..., :channels]
    with Image.open(io.BytesIO(encode_png(image))) as reread:
        reread.verify()
    with Image.open(io.BytesIO(encode_png(image))) as reread:
        assert reread.mode == "RGBA"[:channels]
        assert np.array_equal(np.asarray(reread), image)


def test_encoding_refuses_what_is_no_image(tmp_path):
    for wrong in (np.zeros((2, 2, 7), np.uint8), np.zeros((2, 2, 4)), np.zeros((0, 2, 4), np.uint8)):
        with pytest.raises(TypeError, match="a PNG is made of"):
            write_png(tmp_path / "x.png", wrong)
    assert not list(tmp_path.iterdir()), "written whole or not at all"


@pytest.mark.parametrize(("mode", "value"), [("RGBA", (1, 2, 3, 4)), ("RGB", (1, 2, 3)), ("LA", (7, 9)), ("L", 7)])
def test_modes_without_doubt_are_read_and_opaque_ones_get_alpha_255(mode, value):
    pixel = decode_rgba(saved(Image.new(mode, (3, 2), value)), "x.png")[0, 0].tolist()
    assert pixel == {"RGBA": [1, 2, 3, 4], "RGB": [1, 2, 3, 255], "LA": [7, 7, 7, 9], "L": [7, 7, 7, 255]}[mode]


def sixteen_bit_png():
    """2 x 1 pixels of 16-bit RGBA, which Pillow opens as 8-bit RGBA without a word."""
    rows = b"\0" + struct.pack(">8H", *range(0, 80, 10))
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", 2, 1, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"\x89PNG\r\n", "cannot identify"),
        (b"not an image at all", "cannot identify"),
        (saved(Image.new("RGBA", (64, 64), (1, 2, 3, 4)))[:70], "truncated|broken"),
        (saved(Image.new("P", (4, 4))), "mode P, expected 8-bit"),
        (saved(Image.new("1", (4, 4))), "mode 1, expected"),
        (saved(Image.fromarray(np.full((4, 4), 60000, np.uint16))), "mode I;16"),
        (saved(Image.new("CMYK", (4, 4)), format="JPEG"), "mode CMYK"),
        (sixteen_bit_png(), "RGBA of 16 bits"),
    ],
)
def test_what_cannot_be_read_without_doubt_is_refused_by_name(data, reason):
    with pytest.raises(ImageError, match=rf"^x\.png: .*({reason})"):
        decode_rgba(data, "x.png")


def test_reasons_hold_no_addresses():
    with pytest.raises(ImageError) as caught:
        decode_rgba(b"junk", "x.png")
    assert "0x" not in str(caught.value)


def test_bombs_are_refused_unread(tmp_path):
    side = int(MAX_PIXELS**0.5) + 8
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"bomb\.png: .*above 64000000 pixels"):
        read_rgba(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"gone\.png: not a readable image \(FileNotFoundError\)"):
        read_rgba(tmp_path / "gone.png")
