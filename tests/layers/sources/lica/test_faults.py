"""Bad layouts, tables and names: each is refused with its reason."""

import copy

import pytest

from config.errors import SampleError, UserError
from layers.imaging.stack import MAX_LAYERS
from layers.sources.lica.reader import LicaSource
from tests.layers.sources.lica.folders import GROUP, IMAGE, LAYOUT, TEXT, image, only, read, source, write

# Bad layouts


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (b"{", r"layouts/T1/L1\.json: not valid JSON"),
        (b"", r"not valid JSON"),
        (b'{"width": NaN}', r"not valid JSON"),
        (b"[" * 100_000, r"not valid JSON"),
        ([], "the layout holds no such list"),
        (LAYOUT | {"components": {}}, "the layout holds no such list"),
        (LAYOUT | {"components": None}, "the layout holds no such list"),
        ({"layout_config": 5}, "the layout holds no such list"),
        (LAYOUT | {"width": None}, "width is missing"),
        (LAYOUT | {"width": "NaNpx"}, "width: 'NaNpx' is no finite number"),
        (LAYOUT | {"height": "abcpx"}, "height: 'abcpx' is no finite number"),
        (LAYOUT | {"height": "0px"}, "a canvas of 60x0 pixels"),
        (LAYOUT | {"height": -5}, "a canvas of 60x-5 pixels"),
        (LAYOUT | {"height": "50000px", "width": "50000px"}, "above 64000000 pixels"),
        (LAYOUT | {"height": 10**40}, "height: .*beyond"),
        (LAYOUT | {"background": "linear-gradient(red, blue)"}, "background: .*no plain colour"),
        (only(7), r"components\[0\]: 7 is no object"),
        (only({}), r"components\[0\]\.type: None is none of IMAGE, TEXT, GROUP"),
        (only(IMAGE | {"type": "VIDEO"}), r"components\[0\]\.type: 'VIDEO' is none"),
        (only(TEXT, {"type": "IMAGE", "width": 3, "height": 3}), r"components\[1\]\.src is missing"),
        (only(IMAGE | {"width": None}), r"components\[0\]\.width is missing"),
        (only(IMAGE | {"left": "NaNpx"}), r"components\[0\]\.left: 'NaNpx' is no finite number"),
        (only(IMAGE | {"width": "-5px"}), r"components\[0\]: a box of -5x8 pixels"),
        (only(IMAGE | {"width": "1e7px"}), r"components\[0\]\.width: .*beyond"),
        (only(IMAGE | {"transform": "skew(1deg)"}), r"components\[0\]\.transform: "),
        (only(IMAGE | {"clipPath": "circle(3px)"}), r"components\[0\]\.clipPath: "),
        (only(GROUP | {"components": 5}), r"components\[0\]\.components: 5 is no list"),
        (only(GROUP | {"components": [IMAGE, 5]}), r"components\[0\]\.components\[1\]: 5 is no object"),
        (only(background=None, width=10) | {"components": [IMAGE | {"opacity": "x"}]}, r"components\[0\]\.opacity: "),
        (only(*[IMAGE] * 501), "501 components and a page, more than 500 layers"),
        (only(GROUP | {"components": [GROUP] * 2000}), "2001 components, groups counted through"),
    ],
)
def test_a_bad_layout_gives_its_reason(root, layout, reason):
    with pytest.raises(SampleError, match=reason):
        read(root, layout)


def test_too_many_layers_are_refused_before_images_are_read(root, monkeypatch):
    monkeypatch.setattr(LicaSource, "_image", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(SampleError, match="more than 500 layers"):
        read(root, only(*[IMAGE] * MAX_LAYERS))


def test_boxes_far_larger_than_the_canvas_are_drawn_without_computing_them(root):
    huge = {"left": "-50000px", "top": "-40000px", "width": "100000px", "height": "90000px"}
    turned = huge | {"transform": "rotate(3deg)"}
    sample = read(root, only(IMAGE | huge, IMAGE | turned, GROUP | huge, GROUP | turned))
    assert [layer.image[..., 3].min() for layer in sample.layers] == [255] * 5


def test_other_broken_files_give_their_reason(root):
    write(root / "annotations/T1/L1.json", b"{")
    with pytest.raises(SampleError, match=r"annotations/T1/L1\.json: not valid JSON"):
        read(root)
    write(root / "annotations/T1/L1.json", b"[]")
    assert read(root).caption == ""
    write(root / "images/T1/L1.png", b"no image")
    with pytest.raises(SampleError, match=r"L1\.png: not a readable image"):
        read(root)
    (root / "layouts/T1/L1.json").unlink()
    with pytest.raises(SampleError, match=r"layouts/T1/L1\.json: cannot be read"):
        read(root)


JUNK = [None, True, 0, -1, 1e300, 10**400, "", "NaN", "abcpx", "\ud800", "\x00", "%s", "((", [], {}, [[1]], "1e-320px"]


@pytest.mark.parametrize("component", [IMAGE, TEXT, GROUP], ids=lambda component: component["type"])
def test_whatever_a_property_holds_the_sample_is_read_or_refused(root, component):
    write(root / "images/T1/L1.png", image((9, 9, 9, 255), (40, 60)))
    keys = {*component, "objectFit", "clipPath", "alt", "style", "element", "filter", "description", "components"}
    lica, outcomes = source(root), set()
    for key in sorted(keys):
        for junk in JUNK:
            for inside in (False, True):
                spoilt = copy.deepcopy(component) | {key: junk}
                layout = only(GROUP | {"components": [spoilt]} if inside else spoilt)
                write(root / "layouts/T1/L1.json", layout)
                try:
                    lica.signature("L1")
                    outcomes.add(type(lica.read("L1")).__name__)
                except SampleError as error:
                    outcomes.add("SampleError")
                    assert "\n" not in str(error)
    assert outcomes == {"LayeredSample", "SampleError"}


def test_whatever_the_layout_holds_the_sample_is_read_or_refused(root):
    lica = source(root)
    for key in (*LAYOUT, "layout_config", "layout_metadata", "style", "layout_semantic_description", "user_intent"):
        for junk in JUNK:
            write(root / "layouts/T1/L1.json", LAYOUT | {key: junk})
            for name in ("L1", "L0"):
                try:
                    lica.signature(name)
                    lica.read(name)
                except SampleError as error:
                    assert "\n" not in str(error)


# Names


@pytest.mark.parametrize("row", ["../../secret,T1", "L9,..", "L9,../T1", "L9,/etc", "a b,T1", "L9,T1/../T2", ".,T1"])
def test_ids_that_lead_elsewhere_are_refused(root, row):
    layout, template = row.split(",")
    write(root / "metadata.csv", f"layout_id,template_id\n{layout},{template}\n".encode())
    write(root / "secret.json", LAYOUT)
    write(root / "layouts/L9.json", LAYOUT)
    lica = source(root)
    assert lica.sample_ids() == [layout]
    with pytest.raises(SampleError, match="is no id"):
        lica.read(layout)
    assert lica.signature(layout)


def test_an_unknown_id_is_refused(root):
    with pytest.raises(SampleError, match=r"'nobody' is no layout of prepare_buckets\.root"):
        source(root).read("nobody")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"id,template_id\nL1,T1\n", r"row 1 of metadata\.csv lacks a layout_id or a template_id"),
        (b"layout_id,template_id\nL1,T1\nL2\n", r"row 2 of metadata\.csv lacks"),
        (b"layout_id,template_id\nL1,T1\nL1,T2\n", r"layout 'L1' is in two templates"),
        (b"layout_id,template_id\nL1,\xff\n", r"metadata\.csv is no readable table"),
        (b"layout_id,template_id\nL1," + b"x" * 200_000, r"metadata\.csv is no readable table"),
    ],
)
def test_a_broken_table_is_the_user_s_to_mend(root, table, reason):
    write(root / "metadata.csv", table)
    with pytest.raises(UserError, match=rf"^prepare_buckets\.root: .*{reason}"):
        source(root)


def test_a_table_s_double_rows_and_byte_order_mark_do_no_harm(root):
    write(root / "metadata.csv", b"\xef\xbb\xbflayout_id,template_id\r\nL1,T1\r\nL1,T1\r\n")
    assert source(root).sample_ids() == ["L1"]


def test_a_folder_of_another_form_is_the_user_s_to_mend(tmp_path):
    with pytest.raises(UserError, match=r"^prepare_buckets\.root: .* has no folder layouts"):
        source(tmp_path)


def test_missing_fonts_are_the_user_s_to_mend(root):
    with pytest.raises(UserError, match=r"^prepare_buckets\.fonts: /nowhere"):
        source(root, "/nowhere")
