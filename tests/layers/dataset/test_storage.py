import os
import tarfile

import numpy as np
import pytest
import webdataset

from layers.dataset.storage import FileWriter, file_stem, open_shard, present, read_image, remove_strays, shard_path
from layers.imaging.codec import ImageError


def images(seed, count=3):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 6, 4), dtype=np.uint8))


def record(name):
    return {"id": name, "split": "train", "bucket": "w6-h8", "layers": [{"kind": "image"}] * 2, "caption": "hello"}


@pytest.mark.parametrize("system", ["unix", "windows"])
def test_webdataset_reads_what_is_written_and_so_do_ranges(tmp_path, monkeypatch, system):
    if system == "windows":
        monkeypatch.delattr(os, "pread")
    places = {}
    with open_shard(tmp_path, "train", 7) as writer:
        for seed, name in enumerate(("one", "two.with.dots", "x" * 90)):
            *layers, flat = images(seed)
            places[name] = writer.write(record(name), layers, flat)
    path = tmp_path / "shards" / "train-000007.tar"
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgba8"))
    assert [s["__key__"] for s in samples] == [file_stem(name) for name in places]
    for seed, (sample, (layers, flat)) in enumerate(zip(samples, places.values(), strict=True)):
        true = images(seed)
        assert np.array_equal(sample["comp000.png"], true[0]) and np.array_equal(sample["composite.png"], true[2])
        assert sample["json"]["caption"] == "hello"
        for place, image in zip([*layers, flat], true, strict=True):
            assert place["path"] == str(shard_path("train", 7))
            assert np.array_equal(read_image(tmp_path, place), image)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 12


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path):
    with pytest.raises(RuntimeError), open_shard(tmp_path, "val", 0) as writer:
        writer.write(record("a"), images(0)[:2], images(0)[2])
        raise RuntimeError
    assert not list((tmp_path / "shards").iterdir())


def test_stems_are_safe_and_never_collide():
    names = ["plain", "a/b", "a_b", "a.b", "../up", "ä", "x" * 200, "x" * 201, "", ".", "CON:"]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names) and stems[0] == "plain"
    assert all(not set(stem) & set("./\\:") and 0 < len(stem) <= 80 for stem in stems)


def test_missing_and_broken_images_are_named(tmp_path):
    *layers, flat = images(0)
    places, _ = FileWriter(tmp_path).write(record("a"), layers, flat)
    (tmp_path / places[0]["path"]).write_bytes(b"")
    (tmp_path / places[1]["path"]).unlink()
    with pytest.raises(ImageError, match=r"a_comp000\.png: .*zero bytes"):
        read_image(tmp_path, places[0])
    with pytest.raises(ImageError, match=r"a_comp001\.png: .*FileNotFoundError"):
        read_image(tmp_path, places[1])


def test_presence_of_files_and_of_ranges_of_tars(tmp_path):
    *layers, flat = images(0)
    places, composite = FileWriter(tmp_path).write(record("a"), layers, flat)
    assert present(tmp_path, {"layers": places, "composite": composite}, {})
    (tmp_path / places[1]["path"]).unlink()
    assert not present(tmp_path, {"layers": places, "composite": composite}, {})
    with open_shard(tmp_path, "train", 0) as writer:
        places, composite = writer.write(record("a"), layers, flat)
    assert present(tmp_path, {"layers": places, "composite": composite}, {})
    path = tmp_path / composite["path"]
    path.write_bytes(path.read_bytes()[: sum(composite["range"]) - 1])
    assert not present(tmp_path, {"layers": places, "composite": composite}, {})


def test_strays_go_and_what_is_not_ours_stays(tmp_path):
    *layers, flat = images(0)
    places, composite = FileWriter(tmp_path).write(record("a"), layers, flat)
    FileWriter(tmp_path).write(record("gone"), layers, flat)
    (tmp_path / "notes.txt").write_text("mine")
    expected = [place["path"] for place in (*places, composite)]
    assert remove_strays(tmp_path, iter(expected)) == 3
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == sorted([*expected, "notes.txt"])
