import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from layers.imaging.codec import ImageError, decode_rgba
from layers.imaging.to_srgb import decode_image, find_images, read_image_file
from tests.support import sample_images
from tests.support.imports import ROOMS, ROOT
from tests.support.sample_images import GOOD, encoded


def colours(mode="RGB", size=(20, 12)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_mode_is_what_pillow_shows(mode):
    image = colours().convert(mode)
    found = decode_image(encoded(image), "x")
    assert found.dtype == np.uint8 and np.array_equal(found, np.asarray(image.convert("RGBA")))


def test_transparency_of_palettes_is_alpha():
    image = Image.new("P", (10, 10), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    found = decode_image(encoded(image, transparency=0), "x")
    assert found[0, 0, 3] == 0 and tuple(found[5, 5]) == (0, 255, 0, 255)


@pytest.mark.parametrize(("orientation", "turn"), [(1, lambda a: a), (3, lambda a: np.rot90(a, 2)),
                                                   (6, lambda a: np.rot90(a, -1)), (8, np.rot90),
                                                   (2, lambda a: a[:, ::-1])])  # fmt: skip
def test_images_are_turned_as_exif_says(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = colours()
    found = decode_image(encoded(image, exif=exif), "x")
    assert np.array_equal(found[..., :3], turn(np.asarray(image)))


def test_sixteen_bits_are_rounded_to_eight():
    values = np.linspace(0, 65535, 100).reshape(10, 10).astype(np.uint16)
    found = decode_image(encoded(Image.fromarray(values)), "x")
    assert np.abs(found[..., 0] - values / 257.0).max() <= 0.5 and (found[..., 3] == 255).all()


def test_cmyk_is_converted():
    image = colours("CMYK")
    found = decode_image(encoded(image, "TIFF"), "x")
    assert np.array_equal(found, np.asarray(image.convert("RGBA")))


def test_a_colour_profile_is_applied_and_alpha_kept():
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = colours("RGBA")
    image.putalpha(77)
    same = decode_image(encoded(image, icc_profile=srgb), "x")
    assert np.abs(same.astype(int) - np.asarray(image)).max() <= 1 and (same[..., 3] == 77).all()
    for unfit in (linear.tobytes(), b"no profile"):
        left = decode_image(encoded(image, icc_profile=unfit), "x")
        assert np.array_equal(left, np.asarray(image)), "a profile that does not fit is left aside"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "x: not a readable image"),
        (b"no image at all", "x: not a readable image"),
        (encoded(colours())[:90], "x: not a readable image"),
        (encoded(Image.new("RGB", (1, 1))), "x: 1x1 pixels, expected at least 8 a side"),
        (encoded(Image.new("1", (20000, 20000))), "x: above 64000000 pixels"),
        (
            encoded(colours(), "GIF", save_all=True, append_images=[colours("L").convert("RGB")]),
            "x: 2 frames, expected a still image",
        ),
    ],
)
def test_what_is_no_image_is_one_sentence(data, sentence):
    with pytest.raises(ImageError) as caught:
        decode_image(data, "x")
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_files_folders_and_patterns(tmp_path, monkeypatch):
    for name in ("b.png", "a.jpg", "deep/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    names = [str(path) for path in find_images(["b.png", "*.jpg", ".", str(tmp_path / "b*")])]
    assert names == ["b.png", "a.jpg", "deep/c.webp", str(tmp_path / "b.png")]
    for given in ("nothing", "*.gif"):
        with pytest.raises(ImageError, match="no image; expected a file, a folder with images or a pattern"):
            find_images([given])
    with pytest.raises(ImageError, match=r"gone\.png: not a readable image"):
        read_image_file(tmp_path / "gone.png")


LEFT = ("._a.png", ".hidden.png", ".cache/a.png", "__MACOSX/a.png", "@eaDir/a.png", "Thumbs.db", ".DS_Store")


@pytest.mark.parametrize("given", [".", "*", "**/*.png", "*.png"])
def test_what_file_managers_leave_behind_is_no_image(tmp_path, monkeypatch, given):
    home = tmp_path / ".config" / "here"
    for name in (*LEFT, "a.png", "deep/b.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"")
    monkeypatch.chdir(home)
    found = {str(path) for path in find_images([given])} - {"__MACOSX/a.png", "@eaDir/a.png"}
    assert found == {"a.png", "deep/b.png"} - ({"deep/b.png"} if given in ("*", "*.png") else set())
    assert find_images([str(home)])[0] == home / "a.png", "a folder that is asked for may be hidden itself"
    assert find_images([".hidden.png"]) == [Path(".hidden.png")], "and so may a file"


@pytest.mark.parametrize("name", GOOD)
def test_metadata_never_decide_whether_a_image_is_read(name):
    """For people who decompose it, for datasets alike."""
    shown = np.asarray(sample_images.colours()).astype(int)
    for read in (decode_image, decode_rgba):
        found = read(GOOD[name], "x")
        assert found.shape == (40, 60, 4) and np.abs(found[..., :3] - shown).mean() < 3.0


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize(
    "make",
    [
        lambda exif: sample_images.mpo(exif=exif),
        lambda exif: encoded(sample_images.colours(), "JPEG", exif=exif),
        lambda exif: encoded(sample_images.colours(), "WEBP", exif=exif),
        lambda exif: encoded(sample_images.colours(), "TIFF", exif=exif),
        lambda exif: encoded(sample_images.colours(), "AVIF", exif=exif),
        lambda exif: sample_images.png_with(
            b"tEXt", b"Raw profile type exif\0\nexif\n8\n" + exif.tobytes().hex().encode()
        ),
        lambda exif: sample_images.png_with(
            b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="%d"/>' % exif[0x0112]
        ),
        lambda exif: sample_images.jpeg_with(
            0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="%d"/>' % exif[0x0112]
        ),
        # The orientation can be read, what follows cannot.
        lambda exif: sample_images.jpeg_with(0xE1, exif.tobytes().replace(b"\0\x01\x01\x12", b"\0\x09\x01\x12")),
    ],
)
def test_wherever_the_orientation_is_said(make, orientation):
    found = decode_image(make(sample_images.turned(orientation)), "x").astype(int)
    upright = np.rot90(np.asarray(sample_images.colours()), 1 if orientation == 8 else -1)
    assert found.shape == (60, 40, 4) and np.abs(found[..., :3] - upright).mean() < 5.0


@pytest.mark.parametrize("read", [decode_image, decode_rgba])
@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "PDF", "PSD"])
def test_formats_that_nobody_meant_are_not_opened(read, kind, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("another program was started"))
    data = b"8BPS\0\1" + bytes(100) if kind == "PSD" else encoded(sample_images.colours(), kind)
    with pytest.raises(ImageError, match=r"^x: not a readable image .*expected PNG, JPEG, WEBP, TIFF"):
        read(data, "x")


def test_one_place_opens_images():
    files = [path for room in ("benchmarks", *ROOMS) for path in (ROOT / room).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if re.search(r"\bImage\.open\b", path.read_text())}
    assert found == {"layers/imaging/codec.py"}


def test_a_smaller_copy_in_a_tiff_is_no_further_image():
    """As scanners and editors add it; a page of its own is one."""
    large, small = Image.new("RGB", (40, 30), (9, 120, 40)), Image.new("RGB", (20, 15))
    for kind, expected in ((1, (30, 40, 4)), (2, None)):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[254] = kind
        small.encoderinfo = {"tiffinfo": tags}
        buffer = io.BytesIO()
        large.save(buffer, "TIFF", save_all=True, append_images=[small])
        if expected is None:
            with pytest.raises(ImageError, match="2 frames"):
                decode_image(buffer.getvalue(), "scan.tif")
        else:
            found = decode_image(buffer.getvalue(), "scan.tif")
            assert found.shape == expected and tuple(found[0, 0]) == (9, 120, 40, 255)
