import numpy as np
import pytest

from config.errors import SampleError
from layers.sources.lica.clip import coverage, over_box, parse_clip, rectangle
from layers.sources.lica.css import colour, opacity, px, rotation, shift, stretch, transform

CIRCLE = (
    'path("M128,0C57.3,0 0,57.3 0,128C0,198.7 57.3,256 128,256C198.7,256 256,198.7 256,128C256,57.3 198.7,0 128,0Z")'
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("126.646px", 126.646), ("-12px", -12), ("7", 7), (3.5, 3.5), (0, 0), (" 4 px ", 4), ("1e2px", 100)],
)
def test_lengths(value, expected):
    assert px(value, "left") == expected


@pytest.mark.parametrize("value", [None, "", "auto"])
def test_an_absent_length_is_the_default_or_an_error(value):
    assert px(value, "left", 0.0) == 0.0
    with pytest.raises(SampleError, match="width is missing"):
        px(value, "width")


@pytest.mark.parametrize(
    "value",
    [
        "abcpx",
        "NaNpx",
        "infpx",
        float("nan"),
        float("inf"),
        "1e400px",
        10**400,
        "1" * 100_000 + "x",
        True,
        [],
        {},
        "5em",
        "50%",
        "1px 2px",
    ],
)
def test_no_length(value):
    with pytest.raises(SampleError, match=r"^left: "):
        px(value, "left")


@pytest.mark.parametrize("value", ["100001px", -1e9])
def test_a_length_beyond_any_canvas(value):
    with pytest.raises(SampleError, match="beyond 100000 pixels"):
        px(value, "left")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("rgb(252, 105, 45)", (252, 105, 45, 255)),
        ("rgba(1, 2, 3, 0.5)", (1, 2, 3, 127.5)),
        ("rgb(1 2 3 / 50%)", (1, 2, 3, 127.5)),
        ("rgb(100%, 0%, 300)", (255, 0, 255, 255)),
        ("#0f8", (0, 255, 136, 255)),
        ("#01020380", (1, 2, 3, 128)),
        ("white", (255, 255, 255, 255)),
    ],
)
def test_colours(value, expected):
    assert np.allclose(np.array(colour(value, "color")) * 255, expected)


@pytest.mark.parametrize("value", [None, "none", "transparent", "rgba(1, 1, 1, 0)", "#12345600"])
def test_no_colour_is_none(value):
    assert colour(value, "background") is None


@pytest.mark.parametrize(
    "value", ["rgb(1,2)", "rgb(nan,0,0)", "linear-gradient(red, blue)", "url(a.png)", "#12", 7, ["red"], "rgb(1px,2,3)"]
)
def test_what_is_no_colour(value):
    with pytest.raises(SampleError, match=r"^background: "):
        colour(value, "background")


def test_opacity_is_cut_to_its_range():
    values = [opacity(value, "o") for value in (None, 0.4, "0.4", "40%", 7, -1)]
    assert values == [1.0, 0.4, 0.4, 0.4, 1.0, 0.0]
    for value in ("abc", float("nan"), [], "3px"):
        with pytest.raises(SampleError, match=r"^o: "):
            opacity(value, "o")


def moved(matrix, x, y):
    return np.round(matrix @ np.array([x, y, 1.0]), 9)[:2].tolist()


def test_a_positive_angle_turns_clockwise_about_the_centre():
    matrix = transform("rotate(90deg)", (20, 10), "t")
    assert moved(matrix, 10, 5) == [10, 5]
    assert moved(matrix, 20, 5) == [10, 15]  # what was right comes to lie below
    assert moved(matrix, 10, 0) == [15, 5]  # what was above, right


def test_the_last_transform_is_applied_first():
    matrix = transform("translate(3px, 4px) rotate(90deg)", (0, 0), "t")
    assert moved(matrix, 1, 0) == [3, 5]
    matrix = transform("rotate(90deg) translate(3px, 4px)", (0, 0), "t")
    assert moved(matrix, 1, 0) == [-4, 4]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (2, 3)),
        ("none", (2, 3)),
        ("translate(50%, 10%)", (12, 4)),
        ("translateX(5px)", (7, 3)),
        ("translateY(50%)", (2, 8)),
        ("translate(5px)", (7, 3)),
        ("scaleX(-1)", (18, 3)),
        ("scale(2)", (-6, 1)),
        ("rotate(0.5turn)", (18, 7)),
        ("matrix(1, 0, 0, 1, 5, 6)", (7, 9)),
    ],
)
def test_transforms_of_a_20_by_10_box(value, expected):
    assert moved(transform(value, (20, 10), "t"), 2, 3) == list(expected)


@pytest.mark.parametrize(
    "value",
    [
        "rotate(abc)",
        "rotate(1deg) " * 100,
        "rotate(NaNdeg)",
        "skew(3deg)",
        "rotate3d(1,1,1,3deg)",
        "rotate(3px)",
        "rotate()",
        "spin",
        "(",
        5,
        [],
    ],
)
def test_what_is_no_transform(value):
    with pytest.raises(SampleError, match=r"^t: "):
        transform(value, (20, 10), "t")


def test_a_transform_that_grows_without_bounds_is_refused():
    with pytest.raises(SampleError, match="beyond"):
        transform("scale(1e4) " * 80, (20, 10), "t")


def test_coverage_is_exact_on_pixels_and_in_halves():
    whole = coverage(rectangle(10, 4), shift(2, 1), (8, 16))
    assert whole[1:5, 2:12].min() == 1.0 and whole.sum() == 40.0
    half = coverage(rectangle(10, 4), shift(2.25, 1.5), (8, 16))
    assert (half[1, 5], half[2, 2], half[2, 12], half[1, 12]) == (0.5, 0.75, 0.25, 0.125)


def test_coverage_of_a_turned_box_agrees_with_counting_points():
    matrix = shift(20, 18) @ rotation(27) @ stretch(1.5, 0.75) @ shift(-8, -6)
    y, x = (np.mgrid[: 40 * 16, : 40 * 16] + 0.5) / 16
    inside = np.linalg.inv(matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    counted = (np.abs(inside[0] - 8) < 8) & (np.abs(inside[1] - 6) < 6)
    counted = counted.reshape(40, 16, 40, 16).mean(axis=(1, 3))
    drawn = coverage(rectangle(16, 12), matrix, (40, 40))
    assert np.abs(drawn - counted).max() < 0.05
    assert abs(drawn.sum() - 16 * 12 * 1.5 * 0.75) < 0.1


def test_an_outline_beyond_the_canvas_covers_its_part_of_it():
    assert coverage(rectangle(1e5, 1e5), shift(-5e4, -5e4), (6, 7)).min() == 1.0
    assert coverage(rectangle(10, 10), shift(-20, 0), (6, 7)).max() == 0.0
    assert coverage(rectangle(10, 10), shift(20, 0), (6, 7)).max() == 0.0


def test_holes_follow_the_fill_rule():
    outer, against, along = "M0,0H10V10H0Z", "M2,2V8H8V2Z", "M2,2H8V8H2Z"
    areas = [
        coverage(parse_clip(f'path({rule}"{outer} {inner}")', "c"), np.eye(3), (10, 10)).sum()
        for rule, inner in (("", against), ("", along), ("evenodd, ", along), ("nonzero,", against))
    ]
    assert areas == [64.0, 100.0, 64.0, 64.0]


def test_a_path_is_stretched_over_its_box():
    outline = parse_clip(CIRCLE, "c")
    assert outline.frame == (256.0, 256.0)
    mask = coverage(outline, over_box(outline, (40, 20)), (20, 40))
    assert abs(mask.sum() - np.pi * 20 * 10) < 1.0
    assert mask[10, 0] > 0.5 and mask[0, 0] == 0.0 and mask[0, 20] > 0.5


@pytest.mark.parametrize(
    "value",
    [
        "circle(50%)",
        'path("L1,1")',
        'path("M0,0C1")',
        'path("M0")',
        'path("M0,0L1e999,1L3,3Z")',
        "path('M0,0L999999,1L3,3Z')",
        "path(M0,0)",
        7,
        {},
    ],
)
def test_what_is_no_clip(value):
    with pytest.raises(SampleError, match=r"^c: "):
        parse_clip(value, "c")


def test_no_clip_and_an_empty_one():
    assert parse_clip("none", "c") is None
    assert coverage(parse_clip('path("")', "c"), np.eye(3), (4, 4)).max() == 0.0


def test_paths_too_long_or_too_intricate_are_refused():
    with pytest.raises(SampleError, match="characters"):
        parse_clip(f'path("M0,0{"L1,1" * 60_000}")', "c")
    zigzag = "".join(f"L{i % 7},{2000 * (i % 2)}" for i in range(8000))
    with pytest.raises(SampleError, match="too intricate"):
        coverage(parse_clip(f'path("M0,0{zigzag}Z")', "c"), np.eye(3), (2000, 10))
