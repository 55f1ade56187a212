import io
import json
import math
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from layers.compositing import composite, resize, to_float, to_uint8
from layers.errors import SampleError, UserError
from layers.sources.crello import CrelloSource
from layers.sources.crello_draw import Box, draw
from layers.sources.location import Location

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NUMBERS = pa.list_(pa.float32())
GEOMETRY = ("left", "top", "width", "height", "angle")
# Neither is in the order of the published files: only the names in the metadata may count.
TYPES_5 = ["TextElement", "MaskElement", "ColoredBackground", "SvgElement", "ImageElement", "VideoElement"]
TYPES_4 = ["svgElement", "imageElement", "textElement", "coloredBackground", "maskElement"]
SIDES_4 = ["30", "1080", "24", "20", "16"]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def noise(height, width, seed=0, alpha=None):
    image = np.random.default_rng(seed).integers(1, 256, (height, width, 4), dtype=np.uint8)
    if alpha is not None:
        image[..., 3] = alpha
    return image


def plain(rgb, height=2, width=2, alpha=255):
    return np.full((height, width, 4), (*rgb, alpha), np.uint8)


def element(image, left=0.0, top=0.0, width=None, height=None, kind="ImageElement", **more):
    """One element in the units of version 5, its picture as bytes, as an array or None; unscaled unless told."""
    data = png(image) if isinstance(image, np.ndarray) else image
    shape = image.shape if isinstance(image, np.ndarray) else (1, 1)
    width, height = shape[1] if width is None else width, shape[0] if height is None else height
    box = {"left": left, "top": top, "width": width, "height": height, "angle": 0.0, "opacity": 1.0}
    return {"type": kind, "image": data, "text": "", "color": [], **box, **more}


def design(*elements, width=30, height=20, sample_id="a", **more):
    return {"id": sample_id, "title": "A title", "canvas": (width, height), "elements": elements, **more}


def label(names, of_list=False):
    feature = {"names": names, "_type": "ClassLabel"}
    return {"feature": feature, "_type": "Sequence"} if of_list else feature


def as_row(row, version, types):
    width, height = row["canvas"]
    lists = {name: [item[name] for item in row["elements"]] for name in (*GEOMETRY, "opacity", "text", "color")}
    if version == 4:
        for name, unit in {"left": width, "top": height, "width": width, "height": height}.items():
            lists[name] = [value / unit for value in lists[name]]
        lists["angle"] = [math.radians(value) for value in lists["angle"]]
        width, height = SIDES_4.index(str(width)), SIDES_4.index(str(height))
    names = [item["type"] if version == 5 else item["type"][0].lower() + item["type"][1:] for item in row["elements"]]
    lists["type"] = [types.index(name) for name in names]
    lists["image"] = [item["image"] and {"bytes": item["image"], "path": None} for item in row["elements"]]
    out = {"id": row["id"], "title": row["title"], "length": len(names), "canvas_width": width, "canvas_height": height}
    preview = row.get("preview") and {"bytes": row["preview"], "path": None}
    return out | lists | {"preview": preview} | row.get("override", {})


def save(path, *rows, version=5, types=None, group_rows=2, without=(), metadata=None):
    """Write designs as one parquet file in the form of a version; ``override`` in a design replaces stored values."""
    types = types or (TYPES_5 if version == 5 else TYPES_4)
    colour = pa.string() if version == 5 else pa.float32()
    fields = {name: pa.int64() for name in ("length", "canvas_width", "canvas_height")}
    fields |= dict.fromkeys((*GEOMETRY, "opacity"), NUMBERS) | {"id": pa.string(), "title": pa.string()}
    fields |= {"type": pa.list_(pa.int64()), "image": pa.list_(IMAGE), "text": pa.list_(pa.string())}
    fields |= {"color": pa.list_(pa.list_(colour)), "preview": IMAGE}
    features = {"type": label(types, True), "id": {"dtype": "string", "_type": "Value"}}
    if version == 4:
        features |= {"canvas_width": label(SIDES_4), "canvas_height": label(SIDES_4)}
    info = metadata if metadata is not None else json.dumps({"info": {"features": features}})
    schema = pa.schema([(name, kind) for name, kind in fields.items() if name not in without])
    stored = [{key: value for key, value in as_row(row, version, types).items() if key not in without} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(stored, schema=schema.with_metadata({"huggingface": info} if info else {}))
    pq.write_table(table, path, row_group_size=group_rows)


def source(root, split="all", short_side=None, layerd_filters=False):
    return CrelloSource(
        Location(root, "data.crello"), split=split, short_side=short_side, layerd_filters=layerd_filters
    )


def read(tmp_path, *elements, version=5, short_side=None, layerd_filters=False, **more):
    save(tmp_path / "data" / "train-00000-of-00001.parquet", design(*elements, **more), version=version)
    return source(tmp_path, short_side=short_side, layerd_filters=layerd_filters).read("a")


def drawn(tmp_path, item, **more):
    """The element's layer; white lies below it unless it covers the canvas."""
    return read(tmp_path, item, **more).layers[-1].image


def placed(image, top, left, height=20, width=30):
    canvas = np.zeros((height, width, 4), np.uint8)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


GREY = plain((90, 90, 90), 20, 30)


# ---- what a row says


def test_layers_are_bottom_to_top_with_kinds_and_texts_of_their_own(tmp_path):
    sample = read(
        tmp_path,
        element(plain((1, 0, 0), 20, 30), kind="ColoredBackground"),
        element(plain((2, 0, 0)), kind="TextElement", text=" Fish &amp; chips\n"),
        element(plain((3, 0, 0)), kind="SvgElement", text="no text"),
        element(plain((4, 0, 0)), kind="MaskElement"),
        element(plain((5, 0, 0)), kind="TextElement", text="last"),
        element(plain((6, 0, 0)), kind="ImageElement"),
    )
    assert [int(layer.image[0, 0, 0]) for layer in sample.layers] == [1, 2, 3, 4, 5, 6]
    assert [layer.kind for layer in sample.layers] == ["background", "text", "shape", "image", "text", "image"]
    assert [layer.description for layer in sample.layers] == ["", "Fish & chips", "", "", "last", ""]
    assert sample.caption == "A title"
    assert sample.notes == ()


def test_class_labels_are_decoded_by_the_names_of_their_own_file(tmp_path):
    items = [element(GREY, kind="ColoredBackground"), element(noise(2, 2), kind="TextElement")]
    save(tmp_path / "train-0.parquet", design(*items, sample_id="a"))
    save(tmp_path / "train-1.parquet", design(*items, sample_id="b"), types=TYPES_5[::-1])
    reader = source(tmp_path)
    for sample_id in ("a", "b"):
        assert [layer.kind for layer in reader.read(sample_id).layers] == ["background", "text"]


def test_an_unknown_type_is_an_image_and_says_so(tmp_path):
    sample = read(tmp_path, element(GREY, kind="VideoElement"))
    assert [layer.kind for layer in sample.layers] == ["image"]
    assert sample.notes == ('unknown type taken for an image: "element 0 (VideoElement)"',)


def test_preview_is_the_sources_own_picture(tmp_path):
    preview = noise(5, 7, seed=3)
    assert np.array_equal(read(tmp_path, element(GREY), preview=png(preview)).preview, preview)
    broken = read(tmp_path, element(GREY), preview=b"no picture")
    assert broken.preview is None
    assert broken.notes[0].startswith("preview left out")


# ---- drawing


def test_a_picture_on_whole_pixels_keeps_its_pixels(tmp_path):
    image = noise(5, 7)
    assert np.array_equal(drawn(tmp_path, element(image, left=4, top=3)), placed(image, 3, 4))


def test_what_reaches_beyond_the_canvas_is_cut(tmp_path):
    image = noise(40, 50)
    expected = image[7:27, 10:40]
    assert np.array_equal(drawn(tmp_path, element(image, left=-10, top=-7)), expected)


def test_shrinking_into_whole_pixels_is_the_projects_resize(tmp_path):
    image = noise(30, 40)
    expected = to_uint8(resize(to_float(image), (6, 10)))
    assert np.array_equal(drawn(tmp_path, element(image, 2, 1, width=10, height=6)), placed(expected, 1, 2))


def test_a_stretched_picture_fills_its_box_to_a_sharp_edge(tmp_path):
    image = plain((250, 10, 10), 3, 2)
    image[:, 1] = (10, 10, 250, 255)
    layer = drawn(tmp_path, element(image, 5, 4, width=16, height=9))
    assert np.array_equal(layer[..., 3], placed(plain((0, 0, 0), 9, 16), 4, 5)[..., 3])
    # Beside a step of 240 levels a cubic overshoots by some 4 %.
    assert np.abs(layer[4:13, 5].astype(int) - (250, 10, 10, 255)).max() <= 12
    assert np.abs(layer[4:13, 20].astype(int) - (10, 10, 250, 255)).max() <= 12
    # The colours meet in the middle of the box: mirrored about it, red and blue change places.
    assert np.array_equal(layer[4:13, 5:21], layer[4:13, 5:21][:, ::-1, [2, 1, 0, 3]])


def test_a_fraction_of_a_pixel_becomes_coverage(tmp_path):
    layer = drawn(tmp_path, element(plain((9, 8, 7), 4, 4), left=1.25, top=2.5))
    columns, rows = np.zeros(30), np.zeros(20)
    columns[1:6], rows[2:7] = [0.75, 1, 1, 1, 0.25], [0.5, 1, 1, 1, 0.5]
    assert np.abs(layer[..., 3] - 255 * np.outer(rows, columns)).max() <= 0.5
    assert (layer[layer[..., 3] > 0][:, :3] == (9, 8, 7)).all()


def test_an_element_thinner_than_a_pixel_leaves_its_share_of_alpha(tmp_path):
    layer = drawn(tmp_path, element(plain((9, 8, 7), 8, 8), left=3.25, top=2, width=0.5, height=8))
    assert (layer[2:10, 3] == (9, 8, 7, 128)).all()
    assert np.count_nonzero(layer[..., 3]) == 8


@pytest.mark.parametrize(
    ("angle", "turns", "left", "top"), [(90, -1, 13, 6), (-90, 1, 13, 6), (450, -1, 13, 6), (180, 2, 10, 9)]
)
def test_quarter_turns_are_clockwise_about_the_centre_and_exact(tmp_path, angle, turns, left, top):
    image = noise(4, 10)
    layer = drawn(tmp_path, element(image, left=10, top=9, angle=angle))
    assert np.array_equal(layer, placed(np.rot90(image, turns), top, left))


def test_a_small_clockwise_turn_moves_the_right_end_down(tmp_path):
    layer = drawn(tmp_path, element(plain((1, 1, 1), 2, 20), left=5, top=9, angle=20))
    rows = np.arange(20)[:, None]
    middle = (layer[..., 3] * rows).sum(0) / np.maximum(layer[..., 3].sum(0, dtype=int), 1)
    assert middle[22] > middle[15] + 2 > middle[8] + 4


def test_opacity_multiplies_alpha_and_leaves_colour(tmp_path):
    image = noise(5, 7)
    layer = drawn(tmp_path, element(image, 4, 3, opacity=0.25))[3:8, 4:11]
    assert np.abs(layer[..., 3] - 0.25 * image[..., 3]).max() <= 0.5
    shown = layer[..., 3] > 0
    assert np.array_equal(layer[shown][:, :3], image[shown][:, :3])


def test_what_hides_under_alpha_0_never_bleeds(tmp_path):
    image = plain((0, 200, 0), 8, 8)
    image[:, :4] = (255, 0, 255, 0)
    for more in ({"width": 19.3, "height": 11}, {"width": 3.6, "height": 3}, {"angle": 33}):
        layer = drawn(tmp_path, element(image, 6.4, 5.2, **more))
        shown = layer[layer[..., 3] > 2].astype(int)
        assert len(shown)
        assert shown[:, [0, 2]].max() <= 1
        assert np.abs(shown[:, 1] - 200).max() <= 1


def smooth(height, width, sigma):
    raw = np.random.default_rng(5).random((height, width, 4))
    soft = np.stack([gaussian_filter(raw[..., c], sigma, mode="nearest") for c in range(4)], axis=-1)
    low, high = soft.min((0, 1)), soft.max((0, 1))
    return ((soft - low) / (high - low)).astype(np.float32)


def dense(picture, box, size, fine=12):
    """Premultiplied drawing as the mean of ``fine`` x ``fine`` samples of a cubic spline in every pixel."""
    premultiplied = np.concatenate([picture[..., :3] * picture[..., 3:], picture[..., 3:]], axis=-1)
    y, x = (np.mgrid[0 : size[0] * fine, 0 : size[1] * fine] + 0.5) / fine
    x, y = x - box.left - box.width / 2, y - box.top - box.height / 2
    angle = math.radians(box.angle)
    u = math.cos(angle) * x + math.sin(angle) * y + box.width / 2
    v = math.cos(angle) * y - math.sin(angle) * x + box.height / 2
    inside = (u >= 0) & (u < box.width) & (v >= 0) & (v < box.height)
    where = [v * picture.shape[0] / box.height - 0.5, u * picture.shape[1] / box.width - 0.5]
    samples = [map_coordinates(premultiplied[..., c], where, order=3, mode="nearest") * inside for c in range(4)]
    return np.stack(samples, axis=-1).reshape(size[0], fine, size[1], fine, 4).mean((1, 3))


@pytest.mark.parametrize(
    ("picture", "box"),
    [
        (smooth(30, 40, 6), Box(12.3, 6.7, 60.4, 37.2, 30)),
        (smooth(120, 160, 24), Box(10.3, 15.7, 60.4, 35.2, 50)),
        (smooth(60, 60, 8), Box(-10, 5, 60, 60, -75)),
        (smooth(40, 20, 8), Box(30, 10, 20, 40, 200)),
        (np.ones((5, 5, 4), np.float32), Box(20, 20, 40.3, 0.6, 20)),
        (np.ones((5, 5, 4), np.float32), Box(20, 10, 40, 20, 45)),
    ],
    ids=["enlarged", "shrunk", "cut", "turned over", "a hair", "diamond"],
)
def test_turned_and_scaled_drawings_agree_with_a_dense_reference(picture, box):
    ours = to_float(draw(picture, box, 1.0, (60, 90)))
    ours[..., :3] *= ours[..., 3:]
    reference = dense(picture, box, (60, 90))
    error = 255 * np.abs(ours - reference)
    # In 8-bit levels. The reference's own 12 steps a pixel are 21 levels of an edge, worst along a straight one.
    assert error[reference[..., 3] > 0].mean() < 1.0
    assert error.max() < 8.0


def test_strong_shrinking_does_not_alias():
    stripes = plain((0, 0, 0), 240, 240)
    stripes[:, ::2, :3] = 255
    layer = draw(to_float(stripes), Box(5.3, 5.1, 20, 20, 17), 1.0, (32, 32))
    inside = layer[11:21, 11:21, :3].astype(int)
    assert np.abs(inside - 128).max() <= 3


# ---- canvas


def test_a_short_side_scales_the_design_and_never_enlarges(tmp_path):
    image = noise(40, 60, alpha=255)
    item = element(image, left=6, top=4, width=12, height=8)
    small = read(tmp_path, item, short_side=10)
    assert small.size == (10, 15)
    expected = placed(to_uint8(resize(to_float(image), (4, 6))), 2, 3, 10, 15)
    assert np.array_equal(small.layers[-1].image, expected)
    assert read(tmp_path, item, short_side=400).size == (20, 30)


@pytest.mark.parametrize(("width", "height", "size"), [(29, 20, (13, 18)), (20, 29, (18, 13))])
def test_a_scaled_canvas_is_rounded_down_so_that_backgrounds_cover_it(tmp_path, width, height, size):
    full = {"width": width, "height": height}
    sample = read(tmp_path, element(GREY, **full), **full, short_side=13)
    assert sample.size == size
    assert len(sample.layers) == 1
    assert (sample.layers[0].image == (90, 90, 90, 255)).all()


def test_white_lies_below_unless_the_bottom_is_opaque_all_over(tmp_path):
    part = element(noise(5, 5, alpha=255), 3, 3)
    sample = read(tmp_path, part)
    assert (sample.layers[0].image == 255).all()
    assert sample.layers[0].kind == "background"
    assert sample.notes == ("white canvas below",)
    assert len(read(tmp_path, element(GREY), part).layers) == 2
    assert len(read(tmp_path, element(GREY, opacity=0.5), part).layers) == 3
    assert len(read(tmp_path, part, element(GREY)).layers) == 3


def test_the_stack_recomposes_to_the_design_over_white(tmp_path):
    images = [noise(6, 9, seed) for seed in range(3)]
    sample = read(tmp_path, *(element(image, 3 * i, 2 * i, opacity=0.8) for i, image in enumerate(images)))
    expected = np.ones((20, 30, 3))
    for i, image in enumerate(images):
        alpha = np.rint(image[..., 3:] * 0.8) / 255
        region = expected[2 * i : 2 * i + 6, 3 * i : 3 * i + 9]
        region[:] = image[..., :3] / 255 * alpha + region * (1 - alpha)
    flat = composite([to_float(layer.image) for layer in sample.layers])
    assert (flat[..., 3] == 1).all()
    assert np.abs(flat[..., :3] - expected).max() < 1e-5


def test_a_background_without_a_picture_is_its_colour(tmp_path):
    full = {"width": 30, "height": 20, "kind": "ColoredBackground"}
    layer = read(tmp_path, element(None, color=["rgba(52, 103, 151, 1)"], **full)).layers[0]
    assert (layer.image == (52, 103, 151, 255)).all()
    assert layer.kind == "background"
    half = drawn(tmp_path, element(None, color=["rgba(52, 103, 151, 0.5)", "rgba(1, 1, 1, 1)"], **full))
    assert (half == (52, 103, 151, 128)).all()
    assert (drawn(tmp_path, element(None, color=[52.0, 103.0, 151.0], **full), version=4)[..., 1] == 103).all()


def test_what_cannot_be_drawn_is_left_out_with_a_note(tmp_path):
    sample = read(
        tmp_path,
        element(GREY),
        element(None, kind="TextElement", color=["rgba(1, 2, 3, 1)"], width=5, height=5),
        element(noise(3, 3), left=50),
        element(noise(3, 3), width=0, height=3),
        element(noise(3, 3), opacity=0.0),
    )
    assert len(sample.layers) == 1
    assert sample.notes == (
        'left out, has no picture: "element 1 (TextElement)"',
        *(f'left out, shows nothing on the canvas: "element {i} (ImageElement)"' for i in (2, 3, 4)),
    )


# ---- LayerD's filters


def test_layerd_filters_leave_out_what_an_opaque_layer_hides(tmp_path):
    part, other = element(plain((1, 0, 0), 5, 5)), element(plain((3, 0, 0), 5, 5))
    items = [part, element(GREY), part, element(plain((2, 0, 0), 20, 30)), other]
    assert len(read(tmp_path, *items).layers) == 6
    sample = read(tmp_path, *items, layerd_filters=True)
    assert [int(layer.image[0, 0, 0]) for layer in sample.layers] == [2, 3]
    assert sample.notes == ('left out, hidden by an opaque layer: "3 layers"',)


def test_layerd_filters_leave_out_pictures_that_are_nowhere_opaque(tmp_path):
    ghost, thin = element(plain((9, 9, 9), 5, 5, alpha=254)), element(plain((8, 8, 8), 5, 5), 9, 9, opacity=0.5)
    sample = read(tmp_path, element(GREY), ghost, thin, layerd_filters=True)
    assert [int(layer.image[9, 9, 0]) for layer in sample.layers] == [90, 8]
    assert sample.notes == ('left out, nowhere opaque: "element 1 (ImageElement)"',)


def test_layerd_filters_add_white_and_want_two_layers(tmp_path):
    parts = [element(plain((i, 0, 0), 5, 5), 2 * i, 0) for i in (1, 2)]
    assert [layer.image[4, 4, 0] for layer in read(tmp_path, *parts, layerd_filters=True).layers] == [255, 1, 2]
    with pytest.raises(SampleError, match="fewer than 2 layers"):
        read(tmp_path, parts[0], layerd_filters=True)
    with pytest.raises(SampleError, match="fewer than 2 layers"):
        read(tmp_path, *parts, element(GREY), layerd_filters=True)


# ---- version 4


def test_version_4_gives_the_same_pixels(tmp_path):
    items = [
        element(GREY, kind="ColoredBackground"),
        element(noise(8, 9), 3, 2.25, kind="SvgElement", opacity=0.6),
        element(noise(8, 9), -2.5, 6, width=14, height=5, kind="TextElement", text="words"),
        element(noise(4, 10), 10, 9, angle=90.0, kind="MaskElement"),
        element(noise(9, 9), 12, 3, angle=-37.0, kind="ImageElement"),
    ]
    new = read(tmp_path / "5", *items)
    old = read(tmp_path / "4", *[item | {"color": [1.0, 2.0, 3.0]} for item in items], version=4)
    assert old.size == new.size == (20, 30)
    assert [(a.kind, a.description) for a in old.layers] == [(b.kind, b.description) for b in new.layers]
    assert np.array_equal(old.layers[3].image, placed(np.rot90(noise(4, 10), -1), 6, 13))
    for a, b in zip(old.layers, new.layers, strict=True):
        # Fractions are stored with 24 bits: a value may round the other way.
        assert np.abs(a.image.astype(int) - b.image).max() <= 1


# ---- the files


def many(count, first=0):
    return [design(element(plain((i, 0, 0), 20, 30)), sample_id=f"id{i:02d}") for i in range(first, first + count)]


@pytest.fixture
def dataset(tmp_path):
    save(tmp_path / "data" / "train-00000-of-00002.parquet", *many(7), group_rows=3)
    save(tmp_path / "data" / "train-00001-of-00002.parquet", *many(5, 7), group_rows=2)
    save(tmp_path / "data" / "validation-00000-of-00001.parquet", *many(2, 12))
    save(tmp_path / "data" / "test-00000-of-00001.parquet", *many(3, 14))
    save(tmp_path / ".cache" / "train-00000-of-00002.parquet", *many(1, 99))
    return tmp_path


@pytest.mark.parametrize(
    ("split", "numbers"), [("train", range(12)), ("validation", (12, 13)), ("test", (14, 15, 16)), ("all", range(17))]
)
def test_splits_are_told_by_file_names(dataset, split, numbers):
    ids = source(dataset, split).sample_ids()
    assert sorted(ids) == [f"id{i:02d}" for i in numbers]
    reader = source(dataset / "data", split)
    assert reader.sample_ids() == ids
    assert [reader.split_key(sample_id) for sample_id in ids] == ids


def test_files_may_lie_in_a_folder_named_after_the_split(tmp_path):
    save(tmp_path / "default" / "test" / "0000.parquet", *many(2))
    save(tmp_path / "default" / "train" / "0000.parquet", *many(2, 2))
    assert source(tmp_path, "test").sample_ids() == ["id00", "id01"]


def test_rows_are_found_in_any_order_across_files_and_row_groups(dataset):
    reader = source(dataset)
    order = np.random.default_rng(0).permutation(17).tolist()
    for i in [*range(17), *range(16, -1, -1), *order]:
        assert reader.read(f"id{i:02d}").layers[0].image[0, 0, 0] == i


def test_a_long_row_group_is_read_forwards_and_backwards(tmp_path):
    save(tmp_path / "train-0.parquet", *many(40), group_rows=100)
    reader = source(tmp_path)
    for i in (30, 3, 4, 39, 0):
        assert reader.read(f"id{i:02d}").layers[0].image[0, 0, 0] == i


def test_a_reader_travels_with_an_open_file_and_reads_on(dataset):
    reader = source(dataset)
    reader.read("id08")
    state = pickle.dumps(reader)
    assert len(state) < 4000
    copy = pickle.loads(state)
    for i in (9, 8, 0):
        assert copy.read(f"id{i:02d}").layers[0].image[0, 0, 0] == i


def test_a_forked_process_opens_its_own_file(dataset, monkeypatch):
    reader = source(dataset)
    reader.read("id00")
    opened = []
    real = Location.open
    monkeypatch.setattr(Location, "open", lambda self, name: opened.append(name) or real(self, name))
    reader.read("id01")
    assert opened == []
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert reader.read("id02").layers[0].image[0, 0, 0] == 2
    assert opened == ["data/train-00000-of-00002.parquet"]


def test_one_sample_reads_one_row_group(dataset, monkeypatch):
    read_groups = []
    real = pq.ParquetFile.iter_batches

    def spy(self, *args, row_groups, **more):
        read_groups.append(row_groups)
        return real(self, *args, row_groups=row_groups, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    reader = source(dataset)
    for i in (3, 4, 5, 6):
        reader.read(f"id{i:02d}")
    assert read_groups == [[1], [2]]


def test_signature_changes_with_file_row_and_rendering(dataset):
    reader = source(dataset)
    first = reader.signature("id00")
    assert first == source(dataset).signature("id00")
    others = [reader.signature("id01"), reader.signature("id08"), source(dataset, short_side=9).signature("id00")]
    assert len({first, *others}) == 4
    save(dataset / "data" / "train-00000-of-00002.parquet", *many(8), group_rows=3)
    assert source(dataset).signature("id00") != first


def test_repeated_ids_are_listed_once_and_refused(tmp_path):
    save(tmp_path / "train-0.parquet", *many(2))
    save(tmp_path / "test-0.parquet", *many(2, 1))
    reader = source(tmp_path)
    assert sorted(reader.sample_ids()) == ["id00", "id01", "id02"]
    with pytest.raises(SampleError, match='more than one row has the id "id01"'):
        reader.read("id01")
    assert reader.read("id02").layers


@pytest.mark.parametrize("bad", [None, "", "../up", "a/b"])
def test_a_row_without_a_usable_id_is_called_after_its_place(tmp_path, bad):
    rows = many(3)
    rows[1]["id"] = bad
    save(tmp_path / "train-0.parquet", *rows)
    reader = source(tmp_path)
    assert reader.sample_ids() == ["id00", "train-0-row1", "id02"]
    assert reader.read("train-0-row1").layers[0].image[0, 0, 0] == 1


# ---- faults


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"left": [NAN]}, r"element 0 \(ImageElement\): left is nan, no finite number"),
        ({"angle": [INF]}, "angle is inf"),
        ({"top": [None]}, "top is None"),
        ({"width": [1e9]}, "box reaches farther than 1000000 pixels"),
        ({"left": [-3e38]}, "box reaches farther"),
        ({"angle": [3e38]}, "box reaches farther"),
        ({"height": [-4.0]}, "its box is 3x-4 pixels"),
        ({"opacity": [1.5]}, "opacity is 1.5, expected 0 to 1"),
        ({"opacity": [-0.5]}, "opacity is -0.5"),
        ({"opacity": [NAN]}, "opacity is nan"),
        ({"left": [1.0, 2.0]}, "column left has 2 entries for 1 elements"),
        ({"type": [0, 0]}, "column type has 2 entries"),
        ({"text": []}, "column text has 0 entries"),
        ({"image": []}, "column image has 0 entries"),
        ({"width": None}, "column width has None"),
        ({"length": 0}, "there are no elements"),
        ({"length": None}, "there are no elements"),
        ({"length": -1}, "there are no elements"),
        ({"length": 501}, "501 elements, more than 500"),
        ({"type": [17]}, "type is 17, which is none of the 6 classes"),
        ({"type": [None]}, "type is None"),
        ({"type": None}, "type is None"),
        ({"canvas_width": None}, "canvas_width is None, no number of pixels"),
        ({"canvas_height": 0}, "canvas_height is 0"),
        ({"canvas_width": 2**62}, "is above 64000000 pixels"),
        ({"image": [{"bytes": b"\x89PNG\r\n\x1a\nbroken", "path": None}]}, "image: not a readable picture"),
        ({"image": [{"bytes": b"", "path": None}]}, "image: not a readable picture"),
        ({"image": [None]}, "no element shows anything on the canvas"),
        ({"image": [{"bytes": None, "path": "a.png"}]}, "no element shows anything"),
    ],
)
def test_a_bad_row_gives_its_reason(tmp_path, change, reason):
    item = element(noise(3, 3))
    with pytest.raises(SampleError, match=reason):
        read(tmp_path, item, override=change)


@pytest.mark.parametrize(
    ("colour", "reason"),
    [
        ("blue", "cannot be read"),
        ("rgba(1, 2)", "cannot be read"),
        ("rgba(1, 2, nan)", "cannot be read"),
        ("rgba(1, 2, 1e999)", "cannot be read"),
        ("rgba(1, 2, 300, 1)", "is out of range"),
        ("rgba(1, 2, 3, 7)", "is out of range"),
    ],
)
def test_a_bad_colour_gives_its_reason(tmp_path, colour, reason):
    with pytest.raises(SampleError, match=rf"element 0 \(ColoredBackground\): colour .*{reason}"):
        read(tmp_path, element(None, kind="ColoredBackground", color=[colour]))


def test_a_row_of_nulls_is_refused(tmp_path):
    rows = many(2)
    nulls = dict.fromkeys((*GEOMETRY, "opacity", "type", "image", "text", "color", "length", "title"))
    rows[0]["override"] = nulls | {"canvas_width": None, "canvas_height": None}
    save(tmp_path / "train-0.parquet", *rows)
    with pytest.raises(SampleError, match="type is None"):
        source(tmp_path).read("id00")
    assert source(tmp_path).read("id01").layers


@pytest.mark.parametrize("side", [-1, 5, None])
def test_a_version_4_canvas_without_a_class_is_refused(tmp_path, side):
    with pytest.raises(SampleError, match=f"canvas_width is {side}, which is none of the 5 classes"):
        read(tmp_path, element(noise(3, 3), color=[]), version=4, override={"canvas_width": side})


def test_a_version_4_canvas_whose_class_is_no_number_is_refused(tmp_path):
    names = {"type": label(TYPES_4, True), "canvas_width": label(["wide"]), "canvas_height": label(SIDES_4)}
    rows = [design(element(noise(3, 3), color=[]), override={"canvas_width": 0})]
    save(tmp_path / "train-0.parquet", *rows, version=4, metadata=json.dumps({"info": {"features": names}}))
    with pytest.raises(SampleError, match="canvas_width is 'wide', no number of pixels"):
        source(tmp_path).read("a")


def test_missing_optional_columns_leave_words_and_preview_empty(tmp_path):
    save(tmp_path / "train-0.parquet", *many(1), without=("title", "text", "color", "preview"))
    sample = source(tmp_path).read("id00")
    assert (sample.caption, sample.preview, sample.layers[0].description) == ("", None, "")


def test_an_unknown_id_is_a_sample_error(dataset):
    with pytest.raises(SampleError, match='no row has the id "nobody"'):
        source(dataset).read("nobody")


def test_a_file_that_breaks_after_it_was_listed_is_a_sample_error(dataset):
    reader = source(dataset)
    (dataset / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing else")
    (dataset / "data" / "validation-00000-of-00001.parquet").unlink()
    for name in ("id14", "id12"):
        with pytest.raises(SampleError, match="cannot be read"):
            reader.read(name)
    assert reader.read("id00").layers


def test_reading_goes_on_after_a_connection_broke(dataset, monkeypatch):
    def broken(*args, **more):
        yield from ()
        raise ConnectionResetError("gone")

    reader = source(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "iter_batches", broken)
        with pytest.raises(SampleError, match=r"row 1 cannot be read \(ConnectionResetError\)"):
            reader.read("id01")
    assert reader.read("id01").layers[0].image[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"without": ("left", "image")}, r"data\.crello: train-0\.parquet has no column left, image"),
        ({"without": ("id",)}, "has no column id"),
        ({"metadata": ""}, "has no class names of column type"),
        ({"metadata": "{"}, "has huggingface metadata that cannot be read"),
        ({"metadata": "[]"}, "has huggingface metadata that cannot be read"),
        ({"metadata": '{"info": {"features": {"type": {"dtype": "int64"}}}}'}, "has no class names of column type"),
        ({"metadata": json.dumps({"info": {"features": {"type": label(TYPES_4, True)}}})}, "mixes versions"),
    ],
)
def test_files_that_are_not_crellos_are_refused(tmp_path, options, reason):
    save(tmp_path / "train-0.parquet", *many(1), **options)
    with pytest.raises(UserError, match=reason):
        source(tmp_path)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.crello: .* has no parquet files of split 'test'"):
        source(tmp_path, "test")
    (tmp_path / "test-0.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"data\.crello: test-0\.parquet cannot be read as parquet"):
        source(tmp_path, "test")


@pytest.mark.parametrize("options", [{"split": "dev"}, {"short_side": 0}, {"short_side": True}, {"short_side": 3.5}])
def test_impossible_arguments_are_refused(dataset, options):
    with pytest.raises(UserError, match=rf"data\.crello: {next(iter(options))}"):
        source(dataset, **options)
