import csv
import json
import os
import pickle

import fsspec
import pytest
from PIL import Image

from config.errors import SampleError, UserError
from layers.imaging.stack import MAX_LAYERS
from layers.sources.diffsynth import DiffSynthSource
from layers.sources.location import Location

SIZE = (12, 8)


def save(path, value, size=SIZE, alpha=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, (value, 0, 0, alpha)).save(path)


def opened(root, metadata="metadata.json"):
    return DiffSynthSource(Location(root, "prepare_buckets.root"), metadata=metadata)


def reds(sample):
    return [int(layer.image[0, 0, 0]) for layer in sample.layers]


def write(path, records):
    """The same records in the form that the suffix names, as its users write them."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        keys = list(dict.fromkeys(key for record in records for key in record))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(records)


@pytest.fixture
def root(tmp_path):
    for value, name in enumerate(("full", "ground", "shade", "words"), 1):
        save(tmp_path / "data" / "one" / f"{name}.png", value, alpha=200 if name == "shade" else 255)
    save(tmp_path / "data" / "two" / "other.png", 9)
    save(tmp_path / "outside.png", 5)
    return tmp_path / "data"


ONE = {
    "image": ["one/full.png", "one/ground.png", "one/words.png", "one/shade.png"],
    "layer_input_image": "one/full.png",
    "layer_num": 3,
    "prompt": 'a poster, "new"\nand ü ',
}
TWO = {"image": ["two/other.png", "one/shade.png"], "layer_input_image": "", "layer_num": "", "prompt": ""}


@pytest.mark.parametrize("name", ["metadata.json", "lists/metadata.jsonl", "METADATA.CSV"])
def test_every_form_gives_the_same_samples(root, name):
    (root / name).parent.mkdir(exist_ok=True)
    write(root / name.lower(), [ONE, TWO])
    (root / name.lower()).rename(root / name)
    source = opened(root, name)
    assert source.sample_ids() == ["full", "other"]
    one, two = map(source.read, source.sample_ids())
    assert reds(one) == [2, 4, 3] and int(one.preview[0, 0, 0]) == 1
    assert one.caption == 'a poster, "new"\nand ü' and one.notes == ()
    assert [layer.kind for layer in one.layers] == ["background", "image", "image"]
    assert reds(two) == [3] and two.caption == "" and two.layers[0].kind == "image"


def test_lists_in_a_csv_may_be_json_or_python(root):
    rows = [f"image,layer_num,prompt\n{cell},1.0,p\n" for cell in ('"[""one/full.png"", ""one/words.png""]"',)]
    rows.append("image,layer_num,prompt\n\"['one/full.png', 'one/words.png']\",1,p\n")
    for text in rows:
        (root / "metadata.csv").write_text("\ufeff" + text, encoding="utf-8")
        assert reds(opened(root, "metadata.csv").read("full")) == [4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": None}, "image is no list"),
        ({"image": "one/full.png"}, "image is no list of the full image and its layers"),
        ({"image": []}, "image lists something that is no path"),
        ({"image": ["one/full.png", 3]}, "image lists something that is no path"),
        ({"image": ["one/full.png", ""]}, "image lists something that is no path"),
        ({"image": "[__import__('os').getcwd()]"}, "image is no list"),
        ({"image": "[" * 50_000}, "image is no list"),
        ({"image": ["one/full.png"], "layer_num": 0}, "no layers beside the flat image"),
        ({"layer_num": 4}, "layer_num is 4, but image lists 3 layers"),
        ({"layer_num": True}, "layer_num is True, but"),
        ({"layer_num": "three"}, "layer_num is 'three', but"),
        ({"layer_num": [3]}, "layer_num is a list, but"),
        ({"layer_num": 10**400}, "layer_num is 1000.*, but"),
        ({"image": ["one/full.png", "one/missing.png"], "layer_num": 1}, r"one/missing\.png: cannot be read"),
        ({"image": ["one/full.png", "one"], "layer_num": 1}, "one: cannot be read"),
        ({"image": ["one/full.png", "../outside.png"], "layer_num": 1}, "points outside"),
        ({"image": ["one/full.png", "/etc/passwd"], "layer_num": 1}, "points outside"),
        ({"image": ["../outside.png", "one/words.png"], "layer_num": 1}, "points outside"),
        ({"image": ["one/full.png", "one/link.png"], "layer_num": 1}, "points outside"),
        ({"image": ["one/full.png", "one/a\0b.png"], "layer_num": 1}, "points outside"),
        ({"image": ["one/full.png", "https://example.org/a.png"], "layer_num": 1}, "cannot be read"),
        ({"image": ["one/full.png", "one/words.png", "one/small.png"], "layer_num": 2}, "layers differ in size"),
        ({"image": ["one/cut.png", "one/words.png"], "layer_num": 1}, r"cut\.png: not a readable image"),
        ({"image": ["one/full.png", "one/cut.png"], "layer_num": 1}, r"cut\.png: not a readable image"),
        ({"image": ["one/full.png"] * (MAX_LAYERS + 2), "layer_num": None}, "501 layers are above 500"),
    ],
)
def test_a_bad_record_gives_its_reason(root, change, reason):
    save(root / "one" / "small.png", 1, (4, 4))
    (root / "one" / "cut.png").write_bytes((root / "one" / "full.png").read_bytes()[:55])
    (root / "one" / "link.png").symlink_to(root.parent / "outside.png")
    write(root / "metadata.json", [ONE | change, TWO])
    source = opened(root)
    first, second = source.sample_ids()
    with pytest.raises(SampleError, match=reason):
        source.read(first)
    assert reds(source.read(second)) == [3] and isinstance(source.signature(first), str)


def test_a_broken_line_loses_itself_alone(root):
    broken = {
        "line-000001": ('{"image": ["one/full.png"', "record is not valid JSON"),
        "line-000003": ('{"image": ["one/full.png", "one/words.png"], "layer_num": NaN}', "NaN is no JSON number"),
        "line-000004": ('{"image": ["one/full.png", "one/words.png"], "prompt": "\\udc00"}', "not Unicode"),
        "line-000005": ("null", "no JSON object"),
        "line-000006": ("{}", "image is no list"),
    }
    text = [line for line, _ in broken.values()]
    text.insert(1, "   ")
    (root / "metadata.jsonl").write_text("\r\n".join([*text, json.dumps(TWO)]))
    with (root / "metadata.jsonl").open("ab") as file:
        file.write(b'\n{"prompt": "\xff"}')
    source = opened(root, "metadata.jsonl")
    assert source.sample_ids() == [*broken, "other", "line-000008"]
    for name, (_, reason) in {**broken, "line-000008": ("", "record is not valid JSON")}.items():
        with pytest.raises(SampleError, match=reason):
            source.read(name)
    assert reds(source.read("other")) == [3]


def test_a_broken_row_loses_itself_alone(root):
    good = b"\"['two/other.png', 'one/words.png']\",p\n"
    bad = b"\"['one/full.png', 'one/words.png']\",\xff\n"
    (root / "metadata.csv").write_bytes(b"image,prompt\n" + b"x" * 200_000 + b",p\n" + good + bad + b"a,b,c,d\n")
    source = opened(root, "metadata.csv")
    assert source.sample_ids() == ["row-000001", "other", "row-000003", "row-000004"]
    for name, reason in (("1", "not valid CSV"), ("3", "not Unicode"), ("4", "image is no list")):
        with pytest.raises(SampleError, match=reason):
            source.read(f"row-00000{name}")
    assert reds(source.read("other")) == [4]


def test_what_is_not_used_is_noted(root):
    write(root / "metadata.json", [ONE | {"layer_input_image": "two/other.png", "context_image": "two/other.png"}])
    notes = opened(root).read("full").notes
    assert notes == ("context_image is not used", 'layer_input_image is not the full image: "two/other.png"')


def test_ids_stay_unique_where_stems_repeat(root):
    for folder in ("one", "two"):
        save(root / folder / "image.png", 1)
    records = [{"image": [f"{folder}/image.png", "one/words.png"]} for folder in ("one", "two", "two")]
    write(root / "metadata.json", [*records, 7])
    source = opened(root)
    assert source.sample_ids() == ["one-image", "two-image", "two-image-row-000003", "row-000004"]
    assert reds(source.read("two-image-row-000003")) == [4]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metadata.yaml", "", r"has no file metadata\.yaml"),
        ("nothere.json", None, r"has no file nothere\.json"),
        ("../metadata.json", "[]", "points outside"),
        ("metadata.json", "{", r"metadata\.json cannot be read"),
        ("metadata.json", '{"image": []}', "a dict, not a list"),
        ("metadata.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_wrong_metadata_is_one_clear_sentence(root, name, content, reason):
    if content is not None:
        (root / name).write_text(content)
    with pytest.raises(UserError, match=rf"^prepare_buckets\.root: .*{reason}.*; expected DiffSynth-Studio's metadata"):
        opened(root, name).sample_ids()


def test_the_signature_follows_the_sample_alone(root):
    write(root / "metadata.json", [ONE, TWO])
    before = [opened(root).signature(name) for name in ("full", "other")]
    assert before == [opened(root).signature(name) for name in ("full", "other")]
    os.utime(root / "one" / "words.png", (0, 0))
    after = [opened(root).signature(name) for name in ("full", "other")]
    assert after[0] != before[0] and after[1] == before[1]
    write(root / "metadata.json", [ONE | {"prompt": "new"}, TWO])
    final = [opened(root).signature(name) for name in ("full", "other")]
    assert final[0] != after[0] and final[1] == before[1]


def test_it_reads_from_another_file_system_and_travels(root):
    write(root / "metadata.jsonl", [ONE])
    files = fsspec.filesystem("memory")
    files.put(f"{root}/", "/diffsynth-test/", recursive=True)
    source = pickle.loads(pickle.dumps(opened("memory://diffsynth-test", "metadata.jsonl")))
    assert reds(source.read("full")) == [2, 4, 3] and len(pickle.dumps(source)) < 2000
    files.rm("/diffsynth-test", recursive=True)
