"""Whole files: forms of pixels, the stored image, bad documents, ids and signatures."""

import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.psd_image import Resource
from psd_tools.constants import Compression
from psd_tools.psd.image_resources import ImageResource, VersionInfo

from config.errors import SampleError, UserError
from layers.sources.location import Location
from layers.sources.psd.reader import PsdSource
from tests.layers.sources.psd.documents import BACK, SIZE, block, canvas, document, put, read, saved


def test_greyscale_and_16_bits_become_8_bit_rgb(tmp_path):
    psd = PSDImage.new("L", SIZE)
    psd.create_pixel_layer(Image.new("LA", (10, 8), (100, 128)), name="Grey", left=3)
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[0].image, canvas([((100, 100, 100, 128), 3, 0, 13, 8)]))
    psd = document(depth=16)
    put(psd, "Deep", (10, 20, 30, 77), left=3)
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((10, 20, 30, 77), 3, 0, 13, 8)]))
    assert sample.notes == ("16 bits reduced to 8",)


def test_the_stored_image_is_the_preview_if_it_is_real(tmp_path):
    psd = document()
    sample = read(tmp_path, psd)
    np.testing.assert_array_equal(sample.preview, np.broadcast_to(np.uint8([*BACK, 255]), (16, 20, 4)))
    version = VersionInfo(1, False, "test", "test", 1)
    psd.image_resources[Resource.VERSION_INFO] = ImageResource(key=Resource.VERSION_INFO.value, data=version.tobytes())
    assert read(tmp_path, psd).preview is None


def test_a_broken_colour_profile_and_a_broken_image_are_noted(tmp_path):
    psd = document()
    psd.image_resources[Resource.ICC_PROFILE] = ImageResource(key=Resource.ICC_PROFILE.value, data=b"no profile")
    sample = read(tmp_path, psd)
    assert sample.notes[0].startswith("colour profile cannot be used")
    np.testing.assert_array_equal(sample.layers[0].image[0, 0], (*BACK, 255))
    path = tmp_path / "a.psd"
    document().save(path)
    path.write_bytes(path.read_bytes()[:-40])
    sample = PsdSource(Location(tmp_path, "prepare.psd")).read("a")
    assert sample.preview is None and sample.notes[0].startswith("merged image cannot be read")


def test_a_document_without_layers_is_its_image(tmp_path):
    sample = read(tmp_path, PSDImage.frompil(Image.new("RGB", SIZE, BACK)))
    assert [layer.kind for layer in sample.layers] == ["background"]
    np.testing.assert_array_equal(sample.layers[0].image, canvas([((*BACK, 255), 0, 0, 20, 16)]))
    assert sample.notes == ("no layers, only the merged image",)
    image = Image.new("RGBA", SIZE, (9, 9, 9, 0))
    image.paste((1, 2, 3, 255), (0, 0, 4, 4))
    sample = read(tmp_path, PSDImage.frompil(image))
    np.testing.assert_array_equal(sample.layers[0].image, canvas([((1, 2, 3, 255), 0, 0, 4, 4)]))
    assert sample.layers[0].kind == "image"


def png():
    buffer = io.BytesIO()
    Image.new("RGB", SIZE).save(buffer, "PNG")
    return buffer.getvalue()


def header(width, height, depth=8, mode=3):
    return struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, depth, mode)


def only_hidden():
    psd = PSDImage.new("RGB", SIZE)
    put(psd, "Unseen", (1, 2, 3), visible=False)
    return psd


def with_huge_box():
    psd = document()
    put(psd, "Bomb", (1, 2, 3))._record.right = 100_000_000
    return psd._record.tobytes()


def with_huge_mask():
    psd = document()
    put(psd, "Bomb", (1, 2, 3, 4))._record.mask_data.right = 100_000_000
    return psd._record.tobytes()


def with_broken_channel():
    psd = document()
    layer = psd.create_pixel_layer(block((1, 2, 3)), name="Torn", compression=Compression.ZIP)
    layer._channels[1].data = b"\xff" * len(layer._channels[1].data)
    return psd._record.tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: b"", "zero bytes"),
        (png, "not a Photoshop document"),
        (lambda: saved(document())[:20], "not a Photoshop document"),
        (lambda: saved(document())[:26], "not a readable document"),
        (lambda: saved(document())[:400], "not a readable document"),
        (lambda: header(8001, 8000), "8001x8000 is above 64000000 pixels"),
        (lambda: header(0, 5), "0x5 has no pixels"),
        (lambda: header(5, 5, 8, 4), "mode CMYK of 8 bits"),
        (lambda: header(5, 5, 16, 9), "mode LAB of 16 bits"),
        (lambda: header(5, 5, 32), "mode RGB of 32 bits"),
        (lambda: header(5, 5, 8, 77), "mode 77 of 8 bits"),
        (lambda: saved(only_hidden()), "no visible layer"),
        (with_huge_box, 'layer "Bomb" of 100000000x8 is above 64000000 pixels'),
        (with_huge_mask, 'layer "Bomb" of 100000000x8 is above 64000000 pixels'),
        (with_broken_channel, 'layer "Torn" cannot be drawn'),
    ],
)
def test_a_bad_document_gives_its_reason(tmp_path, data, reason):
    (tmp_path / "bad.psd").write_bytes(data())
    with pytest.raises(SampleError, match=rf"bad\.psd: .*{reason}"):
        PsdSource(Location(tmp_path, "prepare.psd")).read("bad")


def test_no_cut_document_raises_anything_else(tmp_path):
    psd = document()
    put(psd, "Base", (255, 0, 0, 128), size=(8, 8))
    put(psd.create_group(name="Group"), "Child", (1, 2, 3))
    data = saved(psd)
    source = None
    for length in range(0, len(data), 97):
        (tmp_path / "cut.psd").write_bytes(data[:length])
        source = source or PsdSource(Location(tmp_path, "prepare.psd"))
        try:
            assert len(source.read("cut").layers) == 3
        except SampleError as error:
            assert str(error).startswith("cut.psd: ")


def test_too_many_layers_are_refused_and_hidden_ones_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("layers.sources.psd.facts.MAX_LAYERS", 3)
    psd = document()
    put(psd, "Unseen", (1, 2, 3), visible=False)
    put(psd, "Two", (1, 2, 3))
    put(psd, "Three", (1, 2, 3))
    assert len(read(tmp_path, psd).layers) == 3
    put(psd, "Four", (1, 2, 3))
    with pytest.raises(SampleError, match="more than 3 visible layers"):
        read(tmp_path, psd)


def test_ids_are_unique_and_lead_to_their_own_document(tmp_path):
    reds = {"a.psd": 1, "a.psb": 2, "b.PSD": 3, "in/b.psd": 4, "in__c.psd": 5, "in/c.psd": 6, "in/deep/d.e.psd": 7}
    for name, red in reds.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        document((red, 0, 0)).save(path)
    (tmp_path / "notes.txt").write_text("no document")
    source = pickle.loads(pickle.dumps(PsdSource(Location(tmp_path, "prepare.psd"))))
    ids = source.sample_ids()
    found = {name: int(source.read(name).layers[0].image[0, 0, 0]) for name in ids}
    assert len(ids) == len(set(ids)) == len(reds) and not any("/" in name for name in ids)
    assert sorted(found.values()) == sorted(reds.values())
    assert found["a.psd"] == 1 and found["a.psb"] == 2 and found["b"] == 3 and found["in__b"] == 4
    assert found["in__deep__d.e"] == 7
    assert ids == PsdSource(Location(tmp_path, "prepare.psd")).sample_ids()


def test_signature_follows_the_file_and_unknown_ids_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"prepare\.psd: no \.psd or \.psb file below"):
        PsdSource(Location(tmp_path, "prepare.psd"))
    document().save(tmp_path / "a.psd")
    source = PsdSource(Location(tmp_path, "prepare.psd"))
    before = source.signature("a")
    assert before == source.signature("a")
    psd = document()
    put(psd, "More", (1, 2, 3))
    psd.save(tmp_path / "a.psd")
    assert source.signature("a") != before
    for use in (source.read, source.signature):
        with pytest.raises(SampleError, match="no document 'b'"):
            use("b")
