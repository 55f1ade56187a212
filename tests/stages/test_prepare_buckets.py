import csv
import json
import os
import shutil

import pytest
from PIL import Image
from psd_tools import PSDImage

from layers.composer.compose import sample_id
from layers.dataset.splits import SPLITS
from layers.preparation.dataset import Summary
from layers.preparation.report import bucket_rows
from stages.prepare_buckets import main
from tests.conftest import write_rendered
from tests.support.workspace import SMOKE, make_workspace, run, stage


def rendered(root, **more):
    paths = {"rendered_root": str(root / "rendered"), "layout_root": str(root / "layouts")}
    return {"source": "rendered", "val_share": 0.4} | paths | more


def report(root):
    return json.loads((root / "metrics/reports/prepare_buckets.json").read_text())


def manifest(root, folder="data/rgba_layers"):
    return json.loads((root / folder / "metadata" / "manifest.json").read_text())


def test_flags_override_parameters_bad_samples_are_listed_and_a_second_run_does_nothing(rendered_root, tmp_path):
    broken = rendered_root / "rendered" / "sample00" / "component_1.png"
    kept = broken.read_bytes()
    broken.write_bytes(kept[:60])
    root = make_workspace(tmp_path / "work", prepare_buckets=rendered(rendered_root))
    flags = ("--output-root", "elsewhere", "--train-count", "5", "--val-count", "3")
    try:
        run(stage("prepare_buckets", *flags), root)
        again = run(stage("prepare_buckets", *flags), root)
    finally:
        broken.write_bytes(kept)
    listed = manifest(root, "elsewhere")
    samples = listed["samples"] + listed["dropped"]
    assert [sample["split"] for sample in samples].count("val") == 3
    assert [sample["split"] for sample in samples].count("train") == 5
    assert listed["settings"]["train_count"] == 5 and "jobs" not in listed["settings"]
    for dropped in listed["dropped"]:
        assert dropped["id"] == "sample00" and dropped["reason"].startswith("component_1.png: not a readable image")
    assert "8 were there" in again.stdout and report(root)["asked_for"] == {"train": 5, "val": 3, "test": 6}
    with (root / "metrics/reports/buckets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["samples"]) for row in rows) == len(listed["samples"])
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1.0, abs=1e-4)


def test_lists_of_ids_are_the_validation_and_the_test_set(rendered_root, tmp_path):
    root = make_workspace(
        tmp_path / "work",
        prepare_buckets=rendered(
            rendered_root,
            validation_list="val.txt",
            test_list="test.txt",
            **{f"{split}_count": None for split in SPLITS},
            storage="shards",
        ),
    )
    (root / "test.txt").write_text("sample05\n")
    (root / "val.txt").write_text("sample03\nsample07\n\n")
    run(stage("prepare_buckets"), root)
    splits = {sample["id"]: sample["split"] for sample in manifest(root)["samples"]}
    assert {name for name, split in splits.items() if split == "val"} == {"sample03", "sample07"} and len(splits) == 12
    assert {name for name, split in splits.items() if split == "test"} == {"sample05"}
    assert sorted(path.name for path in (root / "data/rgba_layers/shards").iterdir()) == [
        "test-000000.tar",
        "train-000000.tar",
        "val-000000.tar",
    ]
    assert report(root)["asked_for"] == {}
    (root / "test.txt").write_text("sample03\n")
    failed = run(stage("prepare_buckets"), root, check=False)
    assert (
        failed.returncode == 2
        and "sample 'sample03', or another of its split key, is named for val and for test" in failed.stderr
    )


def test_a_split_that_evaluate_asks_for_has_to_have_samples_before_anything_is_prepared(rendered_root, tmp_path):
    root = make_workspace(tmp_path / "work", prepare_buckets=rendered(rendered_root), evaluate={"split": "test"})
    failed = run(stage("prepare_buckets"), root, check=False)
    sentence = (
        "none is for test, which evaluate.split asks for: got test_share 0.0 and test_count 6; raise test_share, or "
        "name some in test_list, or set evaluate.split val"
    )
    assert failed.returncode == 2 and sentence in failed.stderr
    assert not (root / "data" / "rgba_layers").exists()
    (root / "val.txt").write_text("")
    lists = {"validation_list": "val.txt"}
    root = make_workspace(tmp_path / "other", prepare_buckets=rendered(rendered_root, **lists))
    (root / "val.txt").write_text("")
    failed = run(stage("prepare_buckets"), root, check=False)
    assert failed.returncode == 2 and "none is for val, which training asks for: got validation_list" in failed.stderr


def test_a_design_in_two_splits_under_two_ids_is_told(rendered_root, tmp_path):
    root = make_workspace(
        tmp_path / "work",
        prepare_buckets=rendered(tmp_path, validation_list="val.txt", **{f"{split}_count": None for split in SPLITS}),
    )
    for name in ("rendered", "layouts"):
        shutil.copytree(rendered_root / name, tmp_path / name)
    shutil.copytree(tmp_path / "rendered" / "sample03", tmp_path / "rendered" / "again")
    (root / "val.txt").write_text("again\n")
    said = run(stage("prepare_buckets"), root).stdout
    assert "prepare_buckets: 1 designs are in more than one split" in said and report(root)["in_several_splits"] == 1


def test_test_designs_of_the_composer_are_a_stream_of_their_own(tmp_path):
    counts = {"train_count": 4, "val_count": 1, "test_count": 5}
    root = make_workspace(tmp_path / "work", prepare_buckets=counts)
    run(stage("prepare_buckets"), root)
    listed = [sample for sample in manifest(root)["samples"] if sample["split"] == "test"]
    size = SMOKE["prepare_buckets"]["composer"]["size"]
    expected = {
        sample_id(index, seed=1127, size=size, pool=("train", "test")[index % 2]): ("known", "unseen")[index % 2]
        for index in range(5)
    }
    assert {sample["id"]: sample["stratum"] for sample in listed} == {n: f"{s}_assets" for n, s in expected.items()}
    assert report(root)["samples"] == {"test": 5, "train": 4, "val": 1}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"source": "rendered", "rendered_root": "nowhere"}, "prepare_buckets.rendered_root: nowhere is no folder"),
        ({"source": "psd"}, "location the folder or URL of the dataset that source psd reads, got null"),
        ({"source": "psd", "location": "nope://x"}, "prepare_buckets.location: nope://x cannot be opened"),
        ({"jobs": 0}, "jobs 1 or more, or -1 for one per core, got 0"),
        ({"val_share": 0.0}, "val_share between 0 and 1 to fill both counts, got 0.0"),
        ({"cluster": "slurm", "source": "composer"}, "cluster: got 'slurm', expected local"),
    ],
)
def test_what_a_user_can_cause_is_one_line(tmp_path, monkeypatch, capsys, settings, sentence):
    monkeypatch.chdir(make_workspace(tmp_path / "work", prepare_buckets=settings))
    assert main([]) == 2
    assert sentence in capsys.readouterr().err.strip().splitlines()[-1]


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (96, 96), (value, 40, 90, 255 if value < 100 else 128)).save(path)


def write_source(kind, root, names):
    """A small dataset of a kind; gives the block that reads it."""
    for index, name in enumerate(names):
        if kind == "rendered":
            write_rendered(root, name, seed=index)
        elif kind == "musubi":
            for number, suffix in enumerate(("", "_0", "_1")):
                save(root / f"{name}{suffix}.png", index * 10 + 100 * (number == 2))
        else:
            document = PSDImage.new("RGB", (96, 96))
            for value, layer in ((index * 20, "back"), (200, "front")):
                document.create_pixel_layer(Image.new("RGBA", (96 - value // 4, 96), (value, 9, 90, 255)), name=layer)
            root.mkdir(exist_ok=True)
            document.save(root / f"{name}.psd")
    if kind == "rendered":
        return rendered(root)
    return {"source": kind, "location": str(root), "val_share": 0.4}


ALL = {"train_count": None, "val_count": None, "test_count": None, "jobs": 1}


@pytest.mark.parametrize("kind", ["rendered", "musubi", "psd"])
def test_names_that_are_no_utf8_are_dropped_with_their_reason(kind, tmp_path):
    good = [f"s{i}" for i in range(5)]
    # Latin 1, no encoding at all, half a surrogate pair written as if it were a letter.
    bad = [os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe", b"a\xed\xa0\x80b")]
    block = write_source(kind, tmp_path / "data", [*good, *bad])
    root = make_workspace(tmp_path / "work", prepare_buckets=block | ALL)
    (root / "val.txt").write_bytes(os.fsencode("\n".join([bad[0], "s1"])))
    for more in ({}, {"validation_list": "val.txt"}):
        make_workspace(root, prepare_buckets=block | ALL | more)
        run(stage("prepare_buckets"), root)
        found = manifest(root)
        assert sorted(sample["id"] for sample in found["samples"]) == good
        assert len(found["dropped"]) == 3
        assert {sample["reason"] for sample in found["dropped"]} == {"the id is not valid UTF-8"}


@pytest.mark.parametrize("kind", ["rendered", "musubi", "psd"])
def test_links_out_of_a_dataset_are_followed_where_that_is_asked_for(kind, tmp_path):
    names = [f"s{i}" for i in range(6)]
    write_source(kind, tmp_path / "there", names)
    home = tmp_path / "here"
    block = write_source(kind, home, names[:2])
    # Folders of samples, single files, folders of files.
    for path in sorted((tmp_path / "there").iterdir()):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            place = home / file.relative_to(tmp_path / "there")
            if not place.exists():
                place.symlink_to(file)
    if kind == "psd":
        (home / "deep").symlink_to(tmp_path / "there")
        (home / "loop").symlink_to(home)
    root = make_workspace(tmp_path / "work", prepare_buckets=block | ALL)
    run(stage("prepare_buckets"), root)
    refused = manifest(root)
    assert {sample["id"] for sample in refused["samples"]} <= set(names[:2])
    assert all("points outside" in sample["reason"] for sample in refused["dropped"])
    make_workspace(root, prepare_buckets=block | ALL | {"follow_links": True})
    run(stage("prepare_buckets"), root)
    found = manifest(root)
    assert found["dropped"] == [] and "follow_links" not in found["settings"]
    expected = {*names, *(f"deep__{name}" for name in names if kind == "psd")}
    assert {sample["id"] for sample in found["samples"]} == expected
    # What a link leads to is what counts, not the link.
    before = {sample["id"]: sample["pixels"] for sample in found["samples"]}
    write_source(kind, tmp_path / "other", [names[0], *names[2:][::-1]])
    target = {"rendered": "rendered/s5/component_1.png", "musubi": "s5_1.png", "psd": "s5.psd"}[kind]
    (tmp_path / "there" / target).write_bytes((tmp_path / "other" / target).read_bytes())
    run(stage("prepare_buckets"), root)
    changed = {sample["id"] for sample in manifest(root)["samples"] if before[sample["id"]] != sample["pixels"]}
    assert changed == {name for name in expected if name.endswith("s5")}
    make_workspace(root, prepare_buckets=block | ALL)
    run(stage("prepare_buckets"), root)
    assert manifest(root) == refused


def test_rows_of_the_bucket_table():
    summary = Summary()
    for split, side, crop in (("train", 64, 0.1), ("train", 64, 0.3), ("val", 96, 0.0)):
        summary.add(
            {
                "split": split,
                "height": 64,
                "width": side,
                "layers": [0, 0],
                "crop_share": crop,
                "scale": 0.5,
                "merged_layers": 1,
                "dropped_layers": {"hidden": 2},
                "change": 0.5,
                "pixels": f"{side} {crop}",
            },
            8.0,
        )
    first, second = bucket_rows(summary)
    assert first == {
        "split": "train",
        "bucket": "train w64-h64-l2",
        "samples": 2,
        "share": pytest.approx(2 / 3),
        "mean_crop_share": pytest.approx(0.2),
        "mean_scale": 0.5,
    }
    assert second["bucket"] == "val w96-h64-l2"
    assert summary.layers == {"kept": 6, "merged": 3, "hidden": 6}


def test_figures_do_not_depend_on_the_order_of_samples():
    """That of a run that was killed is another: what was there comes first."""
    shares = [round(0.1 * k + 1e-6, 6) for k in range(1, 8)]
    common = {"split": "train", "height": 64, "width": 64, "layers": [0], "merged_layers": 0, "dropped_layers": {}}
    found = set()
    for order in (shares, shares[::-1], shares[3:] + shares[:3]):
        summary = Summary()
        for share in order:
            summary.add(common | {"crop_share": share, "scale": share, "change": 0.0, "pixels": str(share)}, 8.0)
        (row,) = bucket_rows(summary)
        found.add((row["mean_crop_share"], row["mean_scale"]))
    assert len({sum(order) for order in (shares, shares[::-1], shares[3:] + shares[:3])}) > 1
    assert len(found) == 1
