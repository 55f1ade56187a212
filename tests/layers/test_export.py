"""What is written opens in the libraries that read such files, and shows the same image."""

import io
import json
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pptx import Presentation
from pptx.util import Emu
from psd_tools import PSDImage

from config.errors import UserError
from layers.export import ENCODERS, export, layer_names
from layers.export.crop import crop
from layers.imaging.compositing import composite_8bit


def stack(height=40, width=60, seed=0):
    """An opaque gradient, a soft disc, an opaque box, a layer with nothing."""
    rng = np.random.default_rng(seed)
    ground = np.zeros((height, width, 4), np.uint8)
    ground[..., :3] = rng.integers(0, 256, (height, width, 3))
    ground[..., 3] = 255
    y, x = np.mgrid[:height, :width]
    disc = np.zeros_like(ground)
    disc[..., :3] = (200, 40, 90)
    disc[..., 3] = np.clip(255 - 12 * np.hypot(y - height / 2, x - width / 3), 0, 255)
    disc[disc[..., 3] == 0] = 0
    box = np.zeros_like(ground)
    box[5:17, 30:51] = (10, 220, 30, 255)
    return [ground, disc, box, np.zeros_like(ground)]


def test_psd_has_the_layers_in_place_and_the_same_composite(tmp_path):
    layers = stack()
    (path,) = export(layers, tmp_path / "out", ["psd"], ["ground", "disc ä", "box", "nothing"])
    document = PSDImage.open(path)
    assert (document.width, document.height) == (60, 40)
    assert [layer.name for layer in document] == ["ground", "disc ä", "box", "nothing"], "bottom to top"
    assert document[2].bbox == (30, 5, 51, 17)
    assert np.array_equal(np.asarray(document[2].topil()), layers[2][5:17, 30:51])
    shown = np.asarray(document.composite(force=True).convert("RGBA"))
    assert np.abs(shown.astype(int) - composite_8bit(layers)).max() <= 1
    merged = np.asarray(document.topil().convert("RGBA"))
    assert np.abs(merged.astype(int) - composite_8bit(layers)).max() <= 1, "what viewers show that read no layers"


def test_pptx_has_one_image_a_layer_in_place(tmp_path):
    layers = stack()
    (path,) = export(layers, tmp_path / "out", ["pptx"], ["ground", "disc", "box", "nothing"])
    deck = Presentation(path)
    assert (deck.slide_width, deck.slide_height) == (max(60 * 9525, 60 * 914400 // 40), 914400)
    (slide,) = deck.slides
    assert [shape.name for shape in slide.shapes] == ["ground", "disc", "box"], "bottom to top, without the empty one"
    box, unit = slide.shapes[2], deck.slide_height / 40
    assert (box.left, box.top, box.width, box.height) == tuple(Emu(round(n * unit)) for n in (30, 5, 21, 12))
    image = np.asarray(Image.open(io.BytesIO(box.image.blob)))
    assert np.array_equal(image, layers[2][5:17, 30:51])


@pytest.mark.parametrize("size", [(1080, 1920), (200, 9000)])
def test_a_slide_is_as_large_as_its_canvas_within_what_powerpoint_takes(size):
    canvas = np.full((*size, 4), 255, np.uint8)
    deck = Presentation(io.BytesIO(ENCODERS["pptx"]([canvas], ["ground"])))
    assert deck.slide_width / deck.slide_height == pytest.approx(size[1] / size[0], rel=0.01)
    assert (
        min(deck.slide_width, deck.slide_height) >= 914_400 and max(deck.slide_width, deck.slide_height) <= 51_206_400
    )
    assert size != (1080, 1920) or deck.slide_width == 1920 * 9525


def test_ora_is_what_openraster_says(tmp_path):
    layers = stack()
    (path,) = export(layers, tmp_path / "out", ["ora"], ["ground", 'disc <"&>', "box", "nothing"])
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
        assert first.filename == "mimetype" and first.compress_type == zipfile.ZIP_STORED
        assert archive.read("mimetype") == b"image/openraster"
        image = ElementTree.fromstring(archive.read("stack.xml"))
        assert (image.get("w"), image.get("h")) == ("60", "40")
        found = list(image.iter("layer"))
        assert [layer.get("name") for layer in found] == ["nothing", "box", 'disc <"&>', "ground"], "topmost first"
        again = np.zeros((40, 60, 4), np.uint8)
        restored = []
        for layer in reversed(found):
            cut = np.asarray(Image.open(io.BytesIO(archive.read(layer.get("src")))))
            x, y = int(layer.get("x")), int(layer.get("y"))
            again = np.zeros_like(again)
            again[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
            restored.append(again)
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(restored, layers, strict=True))
        merged = np.asarray(Image.open(io.BytesIO(archive.read("mergedimage.png"))))
        assert np.array_equal(merged, composite_8bit(layers))
        assert max(Image.open(io.BytesIO(archive.read("Thumbnails/thumbnail.png"))).size) <= 256


def test_zip_and_folder_hold_the_layers_on_the_whole_canvas(tmp_path):
    layers = stack()
    archive_path, folder = export(layers, tmp_path / "out", ["zip", "png"])
    with zipfile.ZipFile(archive_path) as archive:
        described = json.loads(archive.read("layers.json"))
        assert (described["width"], described["height"]) == (60, 40)
        assert [entry["name"] for entry in described["layers"]] == layer_names(4)
        assert described["layers"][2]["visible"] == [30, 5, 51, 17] and described["layers"][3]["visible"] is None
        for layer, entry in zip(layers, described["layers"], strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(archive.read(entry["file"])))), layer)
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["00_background.png", "01_layer_1.png", "02_layer_2.png", "03_layer_3.png"]
    assert all(np.array_equal(np.asarray(Image.open(p)), layer) for p, layer in zip(files, layers, strict=True))


def test_names_from_data_stay_inside_the_folder(tmp_path):
    export(stack(), tmp_path / "out", ["png", "zip"], ["../../a", "/etc/b", "", "c" * 500])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["00_a.png", "01_etc_b.png", "02.png", f"03_{'c' * 40}.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.zip"]


def test_zip_and_ora_are_equal_for_equal_layers():
    for name in ("zip", "ora"):
        assert ENCODERS[name](stack(), layer_names(4)) == ENCODERS[name](stack(), layer_names(4))


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="format 'gif': expected one of png, psd, pptx, ora, zip"):
        export(stack(), tmp_path / "out", ["psd", "gif"])
    with pytest.raises(ValueError, match="at least one"):
        export([], tmp_path / "out", ["psd"])
    with pytest.raises(ValueError, match="layer 1 is 5x4 pixels"):
        export([stack()[0], np.zeros((4, 5, 4), np.uint8)], tmp_path / "out", ["psd"])
    with pytest.raises(UserError, match="psd: 30001x1 pixels"):
        export([np.zeros((1, 30001, 4), np.uint8)], tmp_path / "out", ["psd"])
    assert not list(tmp_path.iterdir())


def test_a_crop_is_the_box_of_what_is_visible():
    cut = crop(stack()[2])
    assert (cut.left, cut.top, cut.image.shape) == (30, 5, (12, 21, 4))
    assert crop(stack()[3]).image.shape == (1, 1, 4)
