import json
import os
import pickle

import fsspec
import numpy as np
import pytest
from PIL import Image

from config.errors import SampleError, UserError
from layers.imaging.stack import MAX_LAYERS
from layers.sources.location import Location
from layers.sources.memo import LIMIT
from layers.sources.musubi import MusubiSource

SIZE = (12, 8)


def save(path, value, size=SIZE, alpha=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, (value, 0, 0, alpha)).save(path)


def opened(root):
    return MusubiSource(Location(root, "prepare_buckets.root"))


def reds(sample):
    return [int(layer.image[0, 0, 0]) for layer in sample.layers]


def flat(sample):
    return int(sample.preview[0, 0, 0])


def lines(path, *records):
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))


def test_layers_are_ordered_by_number_and_the_flat_image_is_the_preview(tmp_path):
    save(tmp_path / "poster.png", 200, (24, 16))
    for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9):
        save(tmp_path / f"poster_{number}.png", 100 + number, alpha=255 if number == 0 else 128)
    (tmp_path / "poster.txt").write_text("\ufeffa poster\n", encoding="utf-8")
    source = opened(tmp_path)
    sample = source.read("poster")
    assert source.sample_ids() == ["poster"]
    assert reds(sample) == [100 + number for number in range(11)]
    assert flat(sample) == 200 and sample.preview.shape == (16, 24, 4) and sample.size == (8, 12)
    assert sample.caption == "a poster"
    assert [layer.kind for layer in sample.layers] == ["background"] + ["image"] * 10
    assert sample.notes == ("the flat image has another size than the layers",)


def test_layer_counts_may_differ_and_numbers_may_begin_with_1(tmp_path):
    for name in ("a", "a_1", "a_2", "b", "b_0"):
        save(tmp_path / f"{name}.png", 7)
    source = opened(tmp_path)
    assert [len(source.read(name).layers) for name in source.sample_ids()] == [2, 1]
    assert source.read("a").notes == source.read("b").notes == ()


def test_a_number_left_out_is_noted(tmp_path):
    for value, name in enumerate(("a", "a_0", "a_2", "b", "b_2")):
        save(tmp_path / f"{name}.png", value)
    source = opened(tmp_path)
    assert reds(source.read("a")) == [1, 2]
    assert source.read("a").notes == ('layers are not numbered throughout: "0, 2"',)
    assert source.read("b").notes == ('layers are not numbered throughout: "2"',)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # No a.png, so a_1.png is a flat image itself.
        ("a_1.png a_1_0.png a_1_1.png", {"a_1": 2}),
        ("a.png a_1.png", {"a": 1}),
        # A caption makes a flat image of what would be a layer.
        ("a.png a_0.png a_1.png a_1.txt a_1_0.png", {"a": 1, "a_1": 1}),
        # So do layers of its own: a layer has none.
        ("a.png a_0.png a_1.png a_1_0.png", {"a": 1, "a_1": 1}),
        ("a.png a_0.png a_b.png a_b_0.png a_b_1.png", {"a": 1, "a_b": 2}),
        ("shot_2024_05.JPG shot_2024_05_1.webp", {"shot_2024_05": 1}),
        ("a.png a_0.png a_0.txt.png", {"a": 1, "a_0.txt": 0}),
        # What file managers leave behind is nobody's.
        ("a.png a_0.png ._a.png ._a_0.png ._a.txt .b.png .b_0.png", {"a": 1}),
    ],
)
def test_which_images_are_samples(tmp_path, files, expected):
    for name in files.split(" "):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("words")
        else:
            Image.new("RGB", SIZE).save(tmp_path / name)
    source = opened(tmp_path)
    assert source.sample_ids() == sorted(expected)
    for name, count in expected.items():
        if count:
            assert len(source.read(name).layers) == count
        else:
            with pytest.raises(SampleError, match="no layers beside the flat image"):
                source.read(name)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: (root / "a_1.png").write_bytes(b""), r"a_1\.png: not a readable image"),
        (lambda root: (root / "a.png").write_bytes((root / "a.png").read_bytes()[:50]), r"a\.png: not a readable"),
        (lambda root: save(root / "a_1.png", 1, (8, 8)), r"a_1\.png: layers differ in size, this is 8x8, .* 12x8"),
        (lambda root: save(root / "a.webp", 1), r"a\.png: several flat images, also a\.webp"),
        (lambda root: save(root / "a_01.png", 1), "several images are one layer"),
        (lambda root: (root / "a.txt").write_bytes(b"\xff\xfe\xfa"), r"a\.txt: not UTF-8"),
        (lambda root: (root / "a_2.png").symlink_to("/etc/passwd"), "points outside"),
        (lambda root: [(root / f"a_{n}.png").write_bytes(b"") for n in range(MAX_LAYERS + 1)], "501 layers are above"),
    ],
)
def test_a_bad_sample_gives_its_reason_and_leaves_the_others(tmp_path, spoil, reason):
    for name in ("a", "a_0", "a_1", "z", "z_0"):
        save(tmp_path / f"{name}.png", 3)
    spoil(tmp_path)
    source = opened(tmp_path)
    with pytest.raises(SampleError, match=reason):
        source.read("a")
    assert len(source.read("z").layers) == 1
    with pytest.raises(SampleError, match="no sample"):
        source.read("../a")


def test_colours_under_alpha_0_are_cleared(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "a_0.png", 9, alpha=0)
    sample = opened(tmp_path).read("a")
    assert not sample.layers[0].image.any() and sample.layers[0].kind == "image"


def test_json_lines_count_before_the_folder(tmp_path):
    for value, name in enumerate(("full", "ground", "words"), 1):
        save(tmp_path / "images" / f"{name}.png", value)
    save(tmp_path / "stray.png", 9)
    save(tmp_path / "stray_0.png", 9)
    paths = {f"image_path_{n}": f"images/{name}.png" for n, name in ((2, "words"), (0, "full"), (1, "ground"))}
    plain = {"image_path": "images/words.png", "image_path_1": "images/ground.png", "control_path": "x.png"}
    lines(tmp_path / "data.jsonl", paths | {"caption": " a poster "}, "", plain)
    source = opened(tmp_path)
    assert source.sample_ids() == ["full", "words"]
    first, second = map(source.read, source.sample_ids())
    assert (flat(first), reds(first), first.caption, first.notes) == (1, [2, 3], "a poster", ())
    assert (flat(second), reds(second), second.caption) == (3, [2], "")
    assert second.notes == ("control images are not used",)


def test_more_than_nine_layers_in_a_line_keep_their_order(tmp_path):
    for number in range(12):
        save(tmp_path / f"{number:02d}.png", number)
    record = {f"image_path_{number}": f"{number:02d}.png" for number in reversed(range(12))}
    lines(tmp_path / "data.jsonl", record)
    assert reds(opened(tmp_path).read("00")) == list(range(1, 12))


def test_a_broken_line_loses_itself_alone(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    good = {"image_path_0": "a.png", "image_path_1": "b.png"}
    broken = {
        "line-000002": ('{"image_path_0": "a.png", ', "record is not valid JSON"),
        "line-000003": ('{"image_path_0": "b.png", "image_path_1": NaN}', "NaN is no JSON number"),
        "line-000004": ("[1, 2]", "no JSON object but a list"),
        "line-000005": ('{"caption": "no images"}', "record has no image_path_0"),
        "line-000006": ('{"image_path_0": 7, "image_path_1": "b.png"}', "image_path_0 is no path"),
        "line-000007": ("[" * 100_000, "nested too deeply"),
        "line-000008": ('{"image_path_0": "..", "image_path_1": "b.png"}', "points outside"),
        "line-000009": ('{"image_path_0": "a\\u0000.png", "image_path_1": "b.png"}', "points outside"),
        "line-000010": ('{"image_path_0": "\\ud800.png", "image_path_1": "b.png"}', "not Unicode"),
    }
    lines(tmp_path / "data.jsonl", good, *(line for line, _ in broken.values()), {**good, "image_path_0": "b.png"})
    source = opened(tmp_path)
    assert source.sample_ids() == ["a", *broken, "b"]
    for name, (_, reason) in broken.items():
        with pytest.raises(SampleError, match=reason):
            source.read(name)
        assert isinstance(source.signature(name), str)
    assert reds(source.read("a")) == reds(source.read("b")) == [2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_path_1": None}, "record has no image_path_1"),
        ({"image_path_3": "b.png", "image_path_2": None}, "record has no image_path_2"),
        ({"image_path_01": "b.png"}, "'image_path_01' is no valid key of a path"),
        ({"image_path": "a.png"}, "image_path and image_path_0 are both given"),
        ({"image_path_1": ""}, "image_path_1 is no path"),
        ({"image_path_1": ["b.png"]}, "image_path_1 is no path"),
        ({"image_path_1": "missing.png"}, r"missing\.png: cannot be read"),
        ({"image_path_1": "../b.png"}, "points outside"),
        ({"image_path_1": "/etc/passwd"}, "points outside"),
        ({"image_path_1": "."}, "cannot be read"),
        ({f"image_path_{number}": "b.png" for number in range(1, 502)}, "501 layers are above 500"),
    ],
)
def test_a_bad_line_gives_its_reason(tmp_path, change, reason):
    save(tmp_path / "root" / "a.png", 1)
    save(tmp_path / "root" / "b.png", 2)
    save(tmp_path / "b.png", 2)
    record = {"image_path_0": "a.png", "image_path_1": "b.png", "image_path_2": "b.png"} | change
    lines(tmp_path / "root" / "data.jsonl", record)
    with pytest.raises(SampleError, match=reason):
        opened(tmp_path / "root").read("a")


def test_absolute_paths_in_the_root_are_as_good_as_relative_ones(tmp_path):
    save(tmp_path / "data" / "a.png", 1)
    save(tmp_path / "data" / "b.png", 2)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for root in (tmp_path / "data", tmp_path / "link"):
        lines(root / "data.jsonl", {"image_path_0": f"{root}/a.png", "image_path_1": f"{root}/b.png"})
        assert reds(opened(root).read("a")) == [2]


def test_ids_stay_unique_where_stems_repeat(tmp_path):
    for name in ("one/full", "two/full", "ground"):
        save(tmp_path / f"{name}.png", 1)
    records = [{"image_path": f"{folder}/full.png", "image_path_1": "ground.png"} for folder in ("one", "two", "one")]
    lines(tmp_path / "a.jsonl", *records)
    lines(tmp_path / "b.jsonl", "broken", {"image_path": "ground.png", "image_path_1": "ground.png"})
    ids = opened(tmp_path).sample_ids()
    assert ids == ["one-full", "two-full", "one-full-a-line-000003", "b-line-000001", "ground"]


def test_a_wrong_root_is_one_clear_sentence(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 1)
    with pytest.raises(UserError, match=r"^prepare_buckets\.root: .* holds neither a \*\.jsonl nor an image"):
        opened(tmp_path)


@pytest.mark.parametrize("form", ["folder", "lines"])
def test_the_signature_follows_the_sample_alone(tmp_path, form):
    for name in ("a", "a_0", "b", "b_0"):
        save(tmp_path / f"{name}.png", 1)
    (tmp_path / "a.txt").write_text("words")
    records = [{"image_path_0": f"{name}.png", "image_path_1": f"{name}_0.png"} for name in "ab"]
    if form == "lines":
        lines(tmp_path / "data.jsonl", *records)
    before = {name: opened(tmp_path).signature(name) for name in "ab"}
    assert before == {name: opened(tmp_path).signature(name) for name in "ab"} and before["a"] != before["b"]
    os.utime(tmp_path / "a_0.png", (0, 0))
    after = {name: opened(tmp_path).signature(name) for name in "ab"}
    assert after["a"] != before["a"] and after["b"] == before["b"]
    (tmp_path / "a.txt").write_text("other words")
    if form == "lines":
        lines(tmp_path / "data.jsonl", {"caption": "new", **records[0]}, "broken", records[1])
    final = {name: opened(tmp_path).signature(name) for name in "ab"}
    assert final["a"] != after["a"] and final["b"] == before["b"]


@pytest.mark.parametrize("form", ["folder", "lines"])
def test_it_reads_from_another_file_system_and_travels(tmp_path, form):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "a_0.png", 2)
    if form == "lines":
        lines(tmp_path / "data.jsonl", {"image_path_0": "a.png", "image_path_1": "a_0.png"})
    files = fsspec.filesystem("memory")
    files.put(f"{tmp_path}/", "/musubi-test/", recursive=True)
    source = opened("memory://musubi-test")
    copies = [pickle.loads(pickle.dumps(source)) for _ in range(3)]
    others = [opened("memory://musubi-test") for _ in range(LIMIT + 1)]
    assert all(reds(reader.read("a")) == [2] for reader in [*copies, *others, source])
    assert len(pickle.dumps(source)) < 2000
    files.rm("/musubi-test", recursive=True)


def test_the_layers_over_one_another_give_the_flat_image(tmp_path):
    ground, top = np.full((8, 12, 4), 255, np.uint8), np.zeros((8, 12, 4), np.uint8)
    ground[..., :3], top[2:5, 3:7] = (10, 20, 30), (200, 100, 50, 255)
    whole = ground.copy()
    whole[2:5, 3:7] = (200, 100, 50, 255)
    for name, pixels in (("a", whole), ("a_1", ground), ("a_2", top)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    sample = opened(tmp_path).read("a")
    stacked = sample.layers[0].image.copy()
    mask = sample.layers[1].image[..., 3] > 0
    stacked[mask] = sample.layers[1].image[mask]
    np.testing.assert_array_equal(stacked, sample.preview)
