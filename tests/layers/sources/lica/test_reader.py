"""Samples of a LICA folder: layers, words, previews, signatures, and where images come from."""

import io
import pickle
import shutil

import matplotlib
import numpy as np
import pytest
from PIL import Image

from config.errors import SampleError
from layers.imaging.codec import encode_png
from tests.layers.sources.lica.folders import GROUP, IMAGE, LAYOUT, TEXT, URL, image, only, read, source, write


def test_ids_and_templates_come_from_the_table(root):
    lica = source(root)
    assert lica.sample_ids() == ["L0", "L1"]
    assert [lica.split_key(name) for name in ("L0", "L1")] == ["T2", "T1"]


def test_without_a_table_the_layouts_are_listed(root):
    (root / "metadata.csv").unlink()
    write(root / "annotations/template_annotations.json", {})
    lica = source(root)
    assert lica.sample_ids() == ["L0", "L1"]
    assert lica.split_key("L1") == "T1"


def test_layers_lie_bottom_to_top_with_their_words(root):
    sample = read(root, only(IMAGE | {"alt": "a cat"}, GROUP, TEXT))
    assert sample.sample_id == "L1" and sample.size == (40, 60) and sample.caption == "a cat on a hill"
    assert [layer.kind for layer in sample.layers] == ["background", "image", "shape", "text"]
    assert [layer.description for layer in sample.layers] == ["", "a cat", "", "Hill"]
    page, cat, shape, _ = (layer.image for layer in sample.layers)
    assert (page == (1, 2, 3, 255)).all()
    expected = np.zeros((40, 60, 4), np.uint8)
    expected[4:12, 5:15] = (255, 0, 0, 255)
    assert np.array_equal(cat, expected)
    expected = np.zeros((40, 60, 4), np.uint8)
    expected[10:20, 20:40] = (0, 255, 0, 255)
    assert np.array_equal(shape, expected)
    assert sample.preview is None
    assert sample.notes == ("font Rufina--400 replaced",)


def test_colour_under_alpha_0_is_0(root):
    write(root / "assets/cat.png", image((9, 9, 9, 0)))
    write(root / "assets/dog.png", image((9, 9, 9, 128)))
    sample = read(root, only(IMAGE | {"src": f"{URL}dog.png", "transform": "rotate(9deg)"}, TEXT))
    for layer in sample.layers:
        assert (layer.image[layer.image[..., 3] == 0] == 0).all()


def test_an_invisible_component_is_noted_and_shifts_no_words(root):
    sample = read(root, only(IMAGE | {"opacity": 0, "alt": "gone"}, IMAGE | {"left": "900px", "alt": "far"}, TEXT))
    assert [layer.description for layer in sample.layers] == ["", "Hill"]
    assert sample.notes[:2] == ("components[0] shows nothing", "components[1] shows nothing")


def test_a_bottom_image_that_covers_the_canvas_is_a_background(root):
    cover = IMAGE | {"left": "-3px", "top": "-3px", "width": "70px", "height": "50px", "opacity": 0.5}
    assert [layer.kind for layer in read(root, only(cover, IMAGE)).layers] == ["background", "background", "image"]
    assert [layer.kind for layer in read(root, only(IMAGE, cover)).layers] == ["background", "image", "image"]
    write(root / "assets/cat.png", image((255, 0, 0, 0)))
    assert [layer.kind for layer in read(root, only(cover, TEXT)).layers] == ["background", "text"]


def test_a_page_without_colour_is_white_unless_something_covers_it(root):
    bare = {key: value for key, value in LAYOUT.items() if key != "background"}
    sample = read(root, bare)
    assert (sample.layers[0].image == 255).all() and sample.layers[0].kind == "background"
    assert "no page colour, white taken" in sample.notes
    cover = IMAGE | {"left": "0px", "top": "0px", "width": "60px", "height": "40px"}
    assert [layer.kind for layer in read(root, bare | {"components": [cover]}).layers] == ["background"]
    write(root / "images/T1/L1.png", image((0, 0, 0, 0)))
    assert [layer.kind for layer in read(root, bare).layers] == ["image", "shape", "text"]


def test_a_group_is_one_layer_and_text_groups_are_text(root):
    card = GROUP | {"components": [IMAGE | {"left": "1px", "top": "1px", "width": "4px", "height": "4px"}, TEXT]}
    words = {"type": "GROUP", "left": "1px", "top": "1px", "components": [TEXT, TEXT | {"text": "two"}]}
    sample = read(root, only(card, words))
    assert [layer.kind for layer in sample.layers] == ["background", "group", "text"]
    assert [layer.description for layer in sample.layers] == ["", "Hill", "Hill, two"]
    card_layer = sample.layers[1].image
    assert card_layer[12, 22].tolist() == [255, 0, 0, 255] and card_layer[18, 22].tolist() == [0, 255, 0, 255]


def test_the_caption_falls_back_to_the_intent(root):
    write(root / "annotations/T1/L1.json", {"description": " ", "user_intent": "to amuse"})
    assert read(root).caption == "to amuse"
    assert source(root).read("L0").caption == ""


def test_rows_of_the_benchmark(root):
    component = {"type": "IMAGE", "element": {"src": f"{URL}cat.png", "alt": "a cat"}}
    component["style"] = {"left": 5, "top": "4px", "width": 10.0, "height": 8, "opacity": 0.5}
    row = {
        "layout_config": {"components": [component], "background": "#010203"},
        "layout_metadata": {"width": 60, "height": 40},
        "layout_semantic_description": {"description": "a card"},
    }
    (root / "annotations/T1/L1.json").unlink()
    sample = read(root, row)
    assert sample.size == (40, 60) and sample.caption == "a card"
    assert sample.layers[1].image[6, 8].tolist() == [255, 0, 0, 128] and sample.layers[1].description == "a cat"


def test_the_flat_render_is_the_preview(root):
    write(root / "images/T1/L1.png", image((7, 8, 9, 255), (20, 30)))
    assert (read(root).preview == (7, 8, 9, 255)).all() and read(root).preview.shape == (20, 30, 4)


def test_a_video_is_refused_unless_it_has_a_still(root):
    write(root / "images/T1/L1.mp4", b"moving")
    with pytest.raises(SampleError, match=r"images/T1/L1\.mp4: the layout is a video"):
        read(root)
    write(root / "images/T1/L1.png", image((7, 8, 9, 255)))
    assert read(root).preview is not None


def test_a_photograph_s_clip_is_placed_by_the_flat_render(root):
    photograph = np.random.default_rng(0).integers(0, 255, (30, 40, 4)).astype(np.uint8)
    photograph[..., 3] = 255
    page = np.broadcast_to(np.uint8((1, 2, 3, 255)), (40, 60, 4)).copy()
    page[12:24, 30:44] = photograph[8:20, 20:34]
    write(root / "assets/cat.png", encode_png(photograph))
    write(root / "images/T1/L1.png", encode_png(page))
    component = IMAGE | {"left": "10px", "top": "4px", "width": "40px", "height": "30px"}
    sample = read(root, only(component | {"clipPath": 'path("M0,0L14,0L14,12L0,12Z")'}))
    assert np.array_equal(sample.layers[1].image[12:24, 30:44], page[12:24, 30:44])
    assert (sample.layers[1].image[..., 3] > 0).sum() == 12 * 14
    assert sample.notes == ("clip of components[0] placed by the flat render",)


def test_fonts_of_the_user(root, tmp_path):
    (tmp_path / "fonts").mkdir()
    shutil.copy(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", tmp_path / "fonts/Rufina-Regular.ttf")
    assert read(root, fonts=str(tmp_path / "fonts")).notes == ()


def test_a_source_pickles_and_reads_alike(root, tmp_path):
    (tmp_path / "fonts").mkdir()
    shutil.copy(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", tmp_path / "fonts/Rufina-Regular.ttf")
    with (root / "metadata.csv").open("a") as table:
        table.writelines(f"M{number},Cards,T{number // 9},60,40\n" for number in range(2000))
    lica = source(root, str(tmp_path / "fonts"))
    assert len(lica.sample_ids()) == 2002
    first = lica.read("L1")
    state = pickle.dumps(lica)
    assert len(state) < 5000
    again = pickle.loads(state).read("L1")
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first.layers, again.layers, strict=True))


def test_the_signature_follows_every_file_of_the_sample(root, tmp_path):
    seen = [source(root).signature("L1")]
    assert source(root).signature("L1") == seen[0]
    for name, content in [
        ("layouts/T1/L1.json", only(IMAGE, TEXT)),
        ("annotations/T1/L1.json", {"description": "another"}),
        ("images/T1/L1.png", image((1, 1, 1, 255))),
        ("assets/cat.png", image((1, 1, 1, 255), (50, 50))),
    ]:
        write(root / name, content)
        seen.append(source(root).signature("L1"))
    write(tmp_path / "fonts/Rufina.ttf", b"one")
    seen.append(source(root, str(tmp_path / "fonts")).signature("L1"))
    write(tmp_path / "fonts/Rufina.ttf", b"other")
    seen.append(source(root, str(tmp_path / "fonts")).signature("L1"))
    assert len(set(seen)) == len(seen)
    write(root / "assets/dog.png", b"of another layout")
    write(root / "layouts/T2/L0.json", {})
    assert source(root, str(tmp_path / "fonts")).signature("L1") == seen[-1]


def test_the_signature_of_a_broken_layout_is_a_word(root):
    good = source(root).signature("L1")
    write(root / "layouts/T1/L1.json", b"{")
    assert source(root).signature("L1") not in ("", good)
    assert source(root).signature("nobody")


# Images


@pytest.mark.parametrize(
    "src",
    [
        "file:///etc/passwd",
        "file://{root}/assets/cat.png",
        "{root}/assets/cat.png",
        "/etc/passwd",
        "cat.png",
        "../assets/cat.png",
        "local://{root}/assets/cat.png",
        "memory://cat.png",
        "https://storage.example/a::file://{root}/assets/cat.png",
        "simplecache::https://storage.example/cat.png",
        "data:image/png;base64,AAAA",
        "https:///cat.png",
        "https://[/cat.png",
        "https://storage.example/\x07.png",
    ],
)
def test_only_addresses_are_read_never_files_of_the_machine(root, src):
    src = src.replace("{root}", str(root))
    with pytest.raises(SampleError, match=r"components\[0\]\.src: .*is no address of http"):
        read(root, only(IMAGE | {"src": src}))


@pytest.mark.parametrize("name", ["..", "..\\secret.png"])
def test_a_name_of_a_mirrored_image_never_leads_out(root, name):
    write(root / "secret.png", image((1, 1, 1, 255)))
    with pytest.raises(SampleError, match="points outside"):
        read(root, only(IMAGE | {"src": f"{URL}{name}"}))


def test_a_mirror_s_link_out_of_the_root_is_not_followed(root, tmp_path):
    write(tmp_path / "secret.png", image((1, 1, 1, 255)))
    (root / "assets/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SampleError, match="points outside"):
        read(root, only(IMAGE | {"src": f"{URL}link.png"}))


def test_an_image_without_a_mirror_is_read_from_its_address(root, monkeypatch):
    asked = []

    def fetch(src, most):
        asked.append(src)
        return image((0, 0, 255, 255))

    monkeypatch.setattr("layers.sources.lica.reader.fetch", fetch)
    layout = only(IMAGE | {"src": f"{URL}dog.png?size=1"})
    with pytest.raises(SampleError, match=r"dog.png\?size=1' has no copy in assets/; expected one, or prepare_buckets"):
        read(root, layout)
    assert not asked
    assert source(root).signature("L1") != source(root, download=True).signature("L1"), "so that it is tried again"
    sample = read(root, layout, download=True)
    assert asked == [f"{URL}dog.png?size=1"]
    assert sample.layers[1].image[6, 8].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnectionError("no network"), r"https://storage\.example/bucket/dog\.png cannot be read \(ConnectionError\)"),
        (ImportError("gcsfs"), r"dog\.png cannot be read \(ImportError\)"),
        (RuntimeError("odd"), r"dog\.png cannot be read \(RuntimeError\)"),
        (b"<html>", r"dog\.png: not a readable image"),
        (b"", r"dog\.png: not a readable image"),
        (b"x" * 200, r"dog\.png is above 100 bytes"),
    ],
)
def test_an_image_that_cannot_be_had_is_named(root, monkeypatch, answer, reason):
    def fetch(src, most):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("layers.sources.lica.reader.fetch", fetch)
    monkeypatch.setattr("layers.sources.lica.reader.MAX_BYTES", 100)
    with pytest.raises(SampleError, match=rf"components\[0\]\.src: .*{reason}"):
        read(root, only(IMAGE | {"src": f"{URL}dog.png"}), download=True)


def test_a_broken_mirrored_image_is_named(root):
    write(root / "assets/cat.png", image((1, 2, 3, 4))[:40])
    with pytest.raises(SampleError, match=r"components\[0\]\.src: .*cat\.png: not a readable image"):
        read(root)


def test_a_jpeg_is_read(root):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(buffer, format="JPEG", quality=95)
    write(root / "assets/cat.jpg", buffer.getvalue())
    image = read(root, only(IMAGE | {"src": f"{URL}cat.jpg"})).layers[1].image
    assert np.abs(image[8, 10].astype(int) - (200, 100, 50, 255)).max() <= 4
