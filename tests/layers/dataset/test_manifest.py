import json

import pytest

from layers.dataset.manifest import (
    DatasetError,
    Ledger,
    ManifestIndex,
    journal_path,
    read_header,
    states_paths,
    write_manifest,
)


def record(name, split="train", side=64, layers=2, **more):
    base = {"id": name, "split": split, "bucket": f"w{side}-h64", "height": 64, "width": side, "state": f"s-{name}"}
    return base | {"layers": [{"path": f"{name}{k}"} for k in range(layers)], "caption": 'quo"te\n{"id":'} | more


def dropped(name):
    return {"id": name, "split": "train", "reason": "broken", "state": "s"}


def test_it_is_one_json_document_sorted_and_without_states(tmp_path):
    ledger = Ledger(tmp_path / "set", "r1")
    for entry in (record("b"), dropped("x"), record("a"), record("c", split="val")):
        ledger.add(entry)
    path = ledger.finish({"settings": {"k": 1}, "counts": {"samples": 3}})
    document = json.loads(path.read_text())
    assert [s["id"] for s in document["samples"]] == ["a", "b", "c"]
    assert document["dropped"] == [{"id": "x", "split": "train", "reason": "broken"}]
    assert "state" not in json.dumps(document) and document["settings"] == {"k": 1}
    assert read_header(tmp_path / "set")["recipe"] == "r1"
    assert not journal_path(tmp_path / "set").exists()
    assert [p.name for p in (tmp_path / "set").rglob("*") if p.is_file()] == ["manifest.json"]


def test_the_order_of_work_leaves_no_trace(tmp_path):
    for folder, names in (("one", "abcd"), ("two", "dbca")):
        write_manifest(tmp_path / folder, [record(name) for name in names])
    assert (tmp_path / "one/metadata/manifest.json").read_bytes() == (
        tmp_path / "two/metadata/manifest.json"
    ).read_bytes()


def test_a_killed_run_is_known_up_to_its_last_whole_line(tmp_path):
    ledger = Ledger(tmp_path / "set", "r1")
    ledger.add(record("a"))
    ledger.add(record("b"))
    ledger.close()
    journal = journal_path(tmp_path / "set")
    journal.write_bytes(journal.read_bytes()[:-5])
    again = Ledger(tmp_path / "set", "r1")
    assert set(again.known) == {"a"} and again.states == {"a": "s-a"}
    again.add(record("c"))
    assert again.record("c")["state"] == "s-c"
    again.close()
    third = Ledger(tmp_path / "set", "r1")
    assert set(third.known) == {"a", "c"}
    third.close()
    other = Ledger(tmp_path / "set", "another recipe")
    assert not other.known
    other.close()


def test_a_finished_set_is_known_again_only_by_its_recipe_and_states(tmp_path):
    ledger = Ledger(tmp_path / "set", "r1")
    ledger.add(record("a"))
    ledger.finish({})
    again = Ledger(tmp_path / "set", "r1")
    assert again.record("a")["caption"] == record("a")["caption"] and again.states == {"a": "s-a"}
    again.add(record("a", state="changed", side=96))
    assert again.record("a")["width"] == 96
    again.finish({})
    assert not Ledger(tmp_path / "set", "r2").known
    (states,) = states_paths(tmp_path / "set")
    states.unlink()
    journal_path(tmp_path / "set").unlink()
    assert not Ledger(tmp_path / "set", "r1").known, "without states nobody knows whether the source has changed"


def test_the_index_finds_every_sample_of_its_split(tmp_path):
    records = [record(f"s{i}", "train" if i % 3 else "val", side=(64, 96)[i % 2], layers=1 + i % 4) for i in range(40)]
    write_manifest(tmp_path, [*records, dropped("x")])
    for split in ("train", "val"):
        index = ManifestIndex(tmp_path, split)
        wanted = {r["id"]: r for r in records if r["split"] == split}
        assert len(index) == len(wanted)
        for i in range(len(index)):
            found = index.record(i)
            assert found["id"] in wanted
            assert index.bucket(i) == (64, found["width"], len(found["layers"]))
    with pytest.raises(DatasetError, match="the split 'test' is empty"):
        ManifestIndex(tmp_path, "test")
    with pytest.raises(DatasetError, match="run the stage prepare_buckets"):
        ManifestIndex(tmp_path / "nowhere", "train")


def test_a_manifest_in_other_clothes_is_no_manifest(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "manifest.json").write_text("[]")
    assert read_header(tmp_path) == {}
    with pytest.raises(DatasetError):
        ManifestIndex(tmp_path, "train")
