"""Text of a layout: lines, letters, and the fonts that stand in for missing ones."""

import shutil

import matplotlib
import numpy as np
import pytest

from config.errors import SampleError
from layers.sources.lica.fonts import Fonts, Wanted, file_style
from layers.sources.lica.text import clean, in_case
from layers.sources.location import Location
from tests.layers.sources.lica.components import extent, render, text


def ink(words, size=(60, 200), fonts=None, **more):
    drawn, notes = render(text(words, **({"width": 200} | more)), size=size, fonts=fonts)
    return drawn[..., 3], notes


def test_alignment():
    lefts = [extent(ink("Hill", textAlign=align)[0]) for align in ("left", "center", "right")]
    left, centre, right = lefts
    assert left[0] <= 2 and right[2] >= 198
    assert abs((centre[0] + centre[2]) / 2 - 100) <= 1.5
    assert left[2] - left[0] == right[2] - right[0]


def test_colour_and_opacity_of_text():
    drawn, _ = render(text("Hill", fontSize="30px", color="rgba(0, 0, 255, 0.5)", opacity=0.5))
    assert drawn[..., 3].max() == pytest.approx(0.25, abs=1e-6)
    assert np.allclose(drawn[drawn[..., 3] > 0][:, :3], (0, 0, 1))
    assert render(text("Hill", color="rgba(0, 0, 255, 0)"))[0] is None
    assert render(text(" \n "))[0] is None


def test_text_without_a_colour_is_black():
    drawn, _ = render(text("Hill", fontSize="30px"))
    assert drawn[..., 3].max() > 0.99 and drawn[..., :3].max() == 0.0


def rows_of(mask):
    filled = np.concatenate([[False], (mask > 0.5).any(axis=1), [False]])
    return np.flatnonzero(filled[1:] & ~filled[:-1]).tolist()


def test_lines_break_at_newlines_and_at_the_width_and_lie_a_line_height_apart():
    explicit = rows_of(ink("HHH\nHHH HHH\nHHH", lineHeight="15px", height=45)[0])
    assert len(explicit) == 3 and np.diff(explicit).tolist() == [15, 15]
    wrapped = rows_of(ink("HHH HHH HHH", lineHeight="20px", width=28, height=60)[0])
    assert len(wrapped) == 3 and np.diff(wrapped).tolist() == [20, 20]


def test_the_first_base_line_is_where_css_puts_it():
    # A letter without descender in the middle of a line as high as its box: ascent and descent share the leading.
    face = Fonts(None).choose(Wanted("", 400, False), "H")[0].at(20)
    ascent, descent = face.getmetrics()
    mask, _ = ink("H", fontSize="20px", lineHeight="40px", height=40)
    assert extent(mask)[3] == pytest.approx((40 - ascent - descent) / 2 + ascent, abs=1.0)


def test_letter_spacing_follows_every_letter():
    narrow, wide = extent(ink("HHHH")[0]), extent(ink("HHHH", letterSpacing="0.5em")[0])
    assert (wide[2] - wide[0]) - (narrow[2] - narrow[0]) == pytest.approx(15, abs=1)
    flush = extent(ink("HHHH", letterSpacing="5px", textAlign="right")[0])
    assert 200 - flush[2] == pytest.approx(6, abs=1.5)  # the last letter has its space, too


def test_empty_lines_take_their_height_with_and_without_letter_spacing():
    for spacing in ("0em", "0.2em"):
        rows = rows_of(ink("HHH\n\nHHH\n", lineHeight="15px", height=60, letterSpacing=spacing)[0])
        assert len(rows) == 2 and rows[1] - rows[0] == 30


def test_case():
    assert in_case("the don't-care día", "capitalize", "t") == "The Don't-Care Día"
    assert in_case("Größe", "uppercase", "t") == "GRÖSSE"
    assert in_case("Größe", "none", "t") == "Größe"
    assert np.array_equal(ink("hill", textTransform="uppercase")[0], ink("HILL")[0])
    with pytest.raises(SampleError, match="textTransform"):
        in_case("a", ["uppercase"], "t")


def test_turned_text_runs_downwards():
    left, top, right, bottom = extent(ink("HHHHHH", width=40, height=12, left=20, top=20, transform="rotate(90deg)")[0])
    assert bottom - top > 2.5 * (right - left)
    assert left >= 34 and right <= 46


def test_text_may_run_over_its_box_and_the_canvas():
    mask, _ = ink("HHHHHHHH\nHHHHHHHH", size=(26, 30), left=-10, width=200, lineHeight="16px", height=32)
    assert mask[:, 0].max() > 0 or mask[:, 1].max() > 0
    assert mask[-2:].max() > 0 and mask[:, -2:].max() > 0


@pytest.fixture
def font_folder(tmp_path):
    shipped = f"{matplotlib.get_data_path()}/fonts/ttf"
    (tmp_path / "fonts" / "sub").mkdir(parents=True)
    shutil.copy(f"{shipped}/DejaVuSansMono.ttf", tmp_path / "fonts" / "Rufina-Regular.ttf")
    shutil.copy(f"{shipped}/DejaVuSansMono-Bold.ttf", tmp_path / "fonts" / "sub" / "Rufina-Bold.ttf")
    shutil.copy(f"{shipped}/DejaVuSerif.ttf", tmp_path / "fonts" / "RufinaStencil-Regular.ttf")
    return Location(tmp_path / "fonts", "fonts")


def test_the_user_s_font_of_the_nearest_weight_is_taken(font_folder):
    names = {}
    for weight in (300, 400, 600, 900):
        face, own, _ = Fonts(font_folder).choose(Wanted("Rufina", weight, False), "Hi")
        assert own
        names[weight] = face.name
    assert names == {300: "Rufina-Regular.ttf", 400: "Rufina-Regular.ttf"} | dict.fromkeys(
        (600, 900), "sub/Rufina-Bold.ttf"
    )


def test_text_in_the_user_s_font(font_folder):
    mask, notes = ink("iiiiiiii", fonts=font_folder, fontFamily="Rufina--400", fontWeight="400")
    assert notes == []
    left, _, right, _ = extent(mask)
    assert right - left == pytest.approx(8 * 6.02, abs=5)  # all letters of that face are 0.602 em wide
    assert ink("iiii", fonts=font_folder, fontFamily="Rufina--700")[1] == []
    assert ink("iiii", fonts=font_folder, fontFamily="Rufina--300")[1] == ["font Rufina--300 set in weight 400"]


def test_a_missing_font_is_replaced_and_noted(font_folder):
    assert ink("Hill", fonts=font_folder, fontFamily="Cinzel--400")[1] == ["font Cinzel--400 replaced"]
    assert ink("Hill", fontFamily="Rufina--700", fontWeight="bold")[1] == ["font Rufina--700 replaced"]


def test_stand_ins_follow_weight_slant_and_serifs():
    faces = [
        Fonts(None).choose(Wanted(family, weight, italic), "Hill")[0].name
        for family, weight, italic in [
            ("Arimo", 400, False),
            ("Arimo", 700, False),
            ("Rufina", 700, False),
            ("Rufina", 400, True),
            ("Arimo", 400, True),
            ("Open Sans Serif", 400, False),
        ]
    ]
    assert faces == [
        "Manrope-Regular.ttf",
        "Manrope-Bold.ttf",
        "Caladea-Bold.ttf",
        "Caladea-Italic.ttf",
        "DejaVuSans-Oblique.ttf",
        "Manrope-Regular.ttf",
    ]


def test_glyphs_come_from_a_face_that_has_them():
    face, own, without = Fonts(None).choose(Wanted("Rufina", 400, False), "∀x")
    assert (face.name, own, without) == ("DejaVuSans.ttf", False, [])
    _, notes = ink("a 漢", fontFamily="Arimo--400")
    assert any(note.startswith("no glyph for '漢'") for note in notes)
    assert "right-to-left text not shaped" in ink("שלום")[1]


def test_a_stand_in_that_is_too_wide_is_set_smaller():
    # One line of the original font by its height: the stand-in must not break it, and fits the width.
    mask, notes = ink("WWWWW WWWWW", width=70, height=12)
    assert len(rows_of(mask)) == 1 and extent(mask)[2] <= 72
    assert any("% to fit its box" in note for note in notes)
    mask, notes = ink("WWW WWW", width=40, height=None)
    assert len(rows_of(mask)) == 2 and not any("to fit" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Cinzel-Bold.ttf", (700, False)),
        ("cinzel.otf", (400, False)),
        ("Cinzel-SemiBoldItalic.ttf", (600, True)),
        ("cinzel-latin-ext-300-normal.ttf", (300, False)),
        ("Cinzel[wght].ttf", (None, False)),
        ("Cinzel-Italic-VariableFont_wght.ttf", (None, True)),
        ("CinzelDecorative-Bold.ttf", None),
        ("Cinze-Bold.ttf", None),
    ],
)
def test_names_of_font_files(name, expected):
    assert file_style(name, "Cinzel") == expected


def test_a_variable_font_is_set_in_its_weight(tmp_path):
    from font_manrope import __file__ as package

    shutil.copy(f"{package.rsplit('/', 1)[0]}/files/Manrope-VariableFont_wght.ttf", tmp_path)
    location = Location(tmp_path, "fonts")
    thin, notes = ink("HHHH", fonts=location, fontFamily="Manrope--200")
    heavy, _ = ink("HHHH", fonts=location, fontFamily="Manrope--800")
    assert heavy.sum() > 1.5 * thin.sum() and notes == []


def test_a_broken_font_file_is_the_sample_s_reason(tmp_path):
    (tmp_path / "Rufina-Regular.ttf").write_bytes(b"no font")
    with pytest.raises(SampleError, match=r"Rufina-Regular\.ttf: not a readable font"):
        ink("Hill", fonts=Location(tmp_path, "fonts"), fontFamily="Rufina--400")


def test_text_is_cleaned():
    assert clean("a\r\nb\u2028c\td\x00\ud800e") == "a\nb\nc de"
    assert clean(None) == clean(["a"]) == ""


@pytest.mark.parametrize(
    "spoilt",
    [
        {"text": "a" * 10_001},
        {"text": "W " * 4000, "fontSize": "900px", "lineHeight": "4000px"},
        {"fontSize": "5000px"},
        {"fontSize": 0},
        {"fontSize": "0.4px"},
        {"fontSize": "-3px"},
        {"textAlign": "middle"},
        {"lineHeight": "3vh"},
        {"letterSpacing": "abc"},
        {"fontWeight": []},
        {"width": None},
        {"height": None, "transform": "rotate(3deg)"},
    ],
)
def test_text_that_makes_no_sense(spoilt):
    with pytest.raises(SampleError, match=r"^c[.:]"):
        render(text("Hill") | spoilt)
