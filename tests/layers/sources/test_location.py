import io
import os
import pickle

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from PIL import Image

from config.errors import SampleError, UserError
from layers.sources.location import Location, LocationError, parse_json


def png(value, size=(3, 2)):
    buffer = io.BytesIO()
    Image.new("RGBA", size, (value, 0, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "b/two.png": png(2),
    "b/deep/three.PNG": png(3),
    "a/one.json": b'{"one": 1}',
    "a/broken.json": b"{",
    "a/nan.json": b"[NaN]",
    "top.txt": b"words",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "data"


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    for name, data in FILES.items():
        files.pipe_file(f"/location-test/{name}", data)
    yield files
    files.rm("/location-test", recursive=True)


@pytest.fixture(params=["local", "memory"])
def location(request, folder, memory):
    return Location(folder if request.param == "local" else "memory://location-test/", "some.root")


def test_a_local_folder_and_another_file_system_give_the_same_answers(location):
    assert location.folders() == ["a", "b"]
    assert location.files() == ["top.txt"]
    assert location.folders("b") == ["deep"] and location.files("b") == ["two.png"]
    assert location.files("nowhere") == [] and location.folders("nowhere") == []
    assert location.files("top.txt") == []
    assert location.find([".png", ".txt"]) == ["b/deep/three.PNG", "b/two.png", "top.txt"]
    assert location.find([".png"], "b/deep") == ["b/deep/three.PNG"]
    assert location.find([".png"], "nowhere") == []
    assert location.exists("a/one.json") and not location.exists("a/two.json") and not location.exists("a")
    assert location.read("top.txt") == b"words"
    assert location.read_json("a/one.json") == {"one": 1}
    np.testing.assert_array_equal(location.read_rgba("b/two.png"), np.tile(np.uint8([2, 0, 0, 255]), (2, 3, 1)))
    with location.open("top.txt") as file:
        file.seek(2)
        assert file.read(2) == b"rd"


def test_hidden_files_and_those_of_file_managers_are_not_listed(location):
    before = [location.files("b"), location.folders(), location.find([".png"])]
    for name in ("b/._two.png", "b/Thumbs.db", ".cache/x.png", "__MACOSX/b/two.png", "b/@eaDir/two.png"):
        path = f"{location.root}/{name}"
        location.files_system.makedirs(path.rpartition("/")[0], exist_ok=True)
        location.files_system.pipe_file(path, png(9))
    assert [location.files("b"), location.folders(), location.find([".png"])] == before
    assert location.exists("b/._two.png"), "who names one gets it"


@pytest.mark.parametrize("name", ["../data/top.txt", "a/../../data/top.txt", "/etc/passwd", "a\\..\\b", "a\0b", ".."])
def test_names_never_lead_out(location, name):
    for use in (location.read, location.open, location.exists, location.files, location.read_rgba):
        with pytest.raises(SampleError, match=r"points outside some\.root"):
            use(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/missing.png", r"a/missing\.png: cannot be read"),
        ("a", "a: cannot be read"),
        ("top.txt", r"top\.txt: not a readable image"),
        ("\ud800.png", "is no file name"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_fault_of_the_sample(location, name, reason):
    with pytest.raises(SampleError, match=reason):
        location.read_rgba(name)


def test_json_that_is_none_is_a_fault_of_the_sample(location):
    with pytest.raises(SampleError, match=r"a/broken\.json: not valid JSON"):
        location.read_json("a/broken.json")
    with pytest.raises(SampleError, match=r"a/nan\.json: not valid JSON \(NaN"):
        location.read_json("a/nan.json")


BAD_JSON = [
    b"[Infinity]",
    b"\xff\xfe\xfd",
    b"[" * 100_000,
    b"9" * 10_000,
    b"",
    b'"\xed\xa0\x80"',
    b'["\\ud83d"]',
    '"\\uDE00"',
]


@pytest.mark.parametrize("data", BAD_JSON)
def test_parse_json_raises_nothing_but_value_errors(data):
    with pytest.raises(ValueError):
        parse_json(data)


def test_parse_json_takes_text_and_every_encoding_of_json():
    words = '{"a": "ü😀"}'
    for data in (
        words,
        words.encode(),
        words.encode("utf-16"),
        words.encode("utf-8-sig"),
        b'{"a": "\\u00fc\\ud83d\\ude00"}',
    ):
        assert parse_json(data) == {"a": "ü😀"}


def test_links_out_of_the_root_are_refused_and_those_within_it_are_not(folder, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("secret")
    (folder / "file.txt").symlink_to(tmp_path / "secret" / "key.txt")
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "inner").symlink_to(folder / "b")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "a" / "loop").symlink_to(folder)
    location = Location(folder, "some.root")
    for name in ("file.txt", "linked/key.txt"):
        with pytest.raises(SampleError, match="points outside"):
            location.read(name)
    with pytest.raises(SampleError, match="points outside"):
        location.files("linked")
    assert location.folders() == ["a", "b", "inner", "linked"]
    assert location.files() == ["dangling", "file.txt", "top.txt"]
    assert location.read("inner/two.png") == FILES["b/two.png"]
    with pytest.raises(SampleError, match="dangling: cannot be read"):
        location.read("dangling")
    assert "b/two.png" in location.find([".png"])


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data-secret").mkdir()
    (tmp_path / "data-secret" / "key").write_text("secret")
    (tmp_path / "data" / "key").symlink_to(tmp_path / "data-secret" / "key")
    with pytest.raises(SampleError, match="points outside"):
        Location(tmp_path / "data", "some.root").read("key")


def test_a_root_that_is_a_link_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert Location(tmp_path / "link", "some.root").read("top.txt") == b"words"


def test_the_signature_changes_with_size_time_and_presence_only(folder):
    location = Location(folder, "some.root")
    names = ["top.txt", "a/one.json"]
    before = location.signature(names)
    assert location.signature(reversed(names)) == before
    assert location.signature(names[:1]) != before

    stat = (folder / "top.txt").stat()
    (folder / "top.txt").chmod(0o600)
    os.utime(folder / "top.txt", ns=(0, stat.st_mtime_ns))
    assert location.signature(names) == before
    os.utime(folder / "top.txt", ns=(0, stat.st_mtime_ns + 10**9))
    touched = location.signature(names)
    (folder / "top.txt").write_text("more words")
    os.utime(folder / "top.txt", ns=(0, stat.st_mtime_ns + 10**9))
    grown = location.signature(names)
    (folder / "top.txt").unlink()
    gone = location.signature(names)
    assert len({before, touched, grown, gone}) == 4
    for bad in ("../outside", "\ud800"):
        assert location.signature([bad]) == location.signature([bad])


def test_the_signature_changes_with_equally_long_content_where_there_is_no_mtime(memory):
    location = Location("memory://location-test", "some.root")
    before = location.signature(["top.txt"])
    assert location.signature(["top.txt"]) == before
    memory.pipe_file("/location-test/top.txt", b"WORDS")
    assert location.signature(["top.txt"]) != before


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nosuch://bucket/data", "cannot be opened .*nosuch"),
        ("nothere/at/all", "is no folder; expected the root of a dataset"),
        ("memory://nothere", "is no folder"),
    ],
)
def test_a_wrong_root_is_one_clear_sentence_naming_the_parameter(url, reason):
    with pytest.raises(LocationError, match=f"^some.root: {url} {reason}") as caught:
        Location(url, "some.root")
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


class Sealed(MemoryFileSystem):
    protocol = "sealed"

    def isdir(self, path):
        raise RuntimeError("no credentials\nwere found")


def test_a_missing_package_or_credentials_are_one_clear_sentence(monkeypatch):
    needy = {"class": "no_such_package.FileSystem", "err": "Install no_such_package to read needy://"}
    monkeypatch.setitem(known_implementations, "needy", needy)
    with pytest.raises(LocationError, match=r"^some.root: needy://x cannot be opened \(Install no_such_package"):
        Location("needy://x", "some.root")
    fsspec.register_implementation("sealed", Sealed, clobber=True)
    with pytest.raises(LocationError, match=r"^some.root: sealed://x cannot be opened \(no credentials were found\)$"):
        Location("sealed://x", "some.root")


class Marked(MemoryFileSystem):
    protocol = "marked"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("marked://", "memory://"))

    def ls(self, path, detail=True, **kwargs):
        marker = {"name": path.rstrip("/") + "/", "size": 0, "type": "directory"}
        return [marker, *super().ls(path, detail=detail, **kwargs)]


def test_markers_of_folders_are_no_entries(memory):
    fsspec.register_implementation("marked", Marked, clobber=True)
    location = Location("marked://location-test", "some.root")
    assert location.folders() == ["a", "b"] and location.folders("a") == []


def test_a_folder_that_cannot_be_listed_is_a_fault_not_an_empty_one(folder, monkeypatch):
    location = Location(folder, "some.root")

    def denied(path, **kwargs):
        raise PermissionError(path)

    monkeypatch.setattr(location.files_system, "ls", denied)
    with pytest.raises(SampleError, match=r"^a: cannot be listed \(PermissionError\)"):
        location.files("a")
    with pytest.raises(LocationError, match=r"^some\.root: .* cannot be listed"):
        location.folders()


def test_it_travels_to_other_processes(location):
    copy = pickle.loads(pickle.dumps(location))
    assert copy.files("b") == ["two.png"] and copy.key == "some.root"
    assert copy.signature(["top.txt"]) == location.signature(["top.txt"])
