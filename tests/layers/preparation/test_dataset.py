import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from config.errors import UserError
from layers.dataset.buckets import BucketLimits
from layers.dataset.loaders import StackDataset
from layers.dataset.manifest import MANIFEST, journal_path
from layers.preparation.dataset import OutputError, kind_of_reason, prepare_dataset
from layers.preparation.sample import Preparation
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource
from tests.conftest import write_rendered

PREPARATION = Preparation(BucketLimits(min_side=32, max_side=96, max_pixels=6144, max_aspect=2.3), max_layers=6)
STORAGES = pytest.mark.parametrize("storage", ["files", "shards"])


def designs(root, names, **options):
    for index, name in enumerate(names):
        write_rendered(
            root, name, size=((96, 96), (144, 96))[index % 2], components=1 + index % 3, seed=index, **options
        )


def prepare(root, out="out", names=None, storage="files", **options):
    source = RenderedSource(Location(root / "rendered", "rendered_root"), Location(root / "layouts", "layout_root"))
    names = source.sample_ids() if names is None else names
    splits = {name: "val" if name.endswith("0") else "train" for name in names}
    options = {"preparation": PREPARATION, "shard_samples": 3 if storage == "shards" else None} | options
    return prepare_dataset(source, splits, root=root / out, **options)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written_at(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.png")}


@STORAGES
def test_a_second_run_does_nothing_and_changes_no_byte(tmp_path, storage):
    designs(tmp_path, [f"s{i}" for i in range(11)])
    first = prepare(tmp_path, storage=storage)
    before, times = content(tmp_path / "out"), written_at(tmp_path / "out")
    second = prepare(tmp_path, storage=storage)
    assert (first.reused, second.reused) == (0, 11)
    assert content(tmp_path / "out") == before and written_at(tmp_path / "out") == times
    assert second.samples == first.samples == {"train": 9, "val": 2} and second.buckets == first.buckets


@STORAGES
def test_only_what_is_new_or_changed_is_done_and_the_result_is_as_if_made_at_once(tmp_path, storage):
    designs(tmp_path, [f"s{i}" for i in range(9)])
    prepare(tmp_path, storage=storage)
    untouched = content(tmp_path / "out") if storage == "files" else {}
    designs(tmp_path, [f"t{i}" for i in range(4)])
    shutil.rmtree(tmp_path / "rendered" / "s3")
    (tmp_path / "rendered" / "s4" / "component_1.png").write_bytes(
        (tmp_path / "rendered" / "s6" / "component_1.png").read_bytes()
    )
    second = prepare(tmp_path, storage=storage)
    # A tar is written anew as a whole: with s3 and s4 go those that share their tar.
    assert second.reused == (7 if storage == "files" else 3)
    prepare(tmp_path, "fresh", storage=storage)
    pixels = {}
    for out in ("out", "fresh"):
        for split in ("train", "val"):
            dataset = StackDataset(tmp_path / out, split)
            for i in range(len(dataset)):
                pixels.setdefault(dataset[i]["id"], []).append(dataset[i]["layers"].numpy())
    assert len(pixels) == 12
    assert all(len(pair) == 2 and np.array_equal(*pair) for pair in pixels.values())
    if storage == "files":
        now = content(tmp_path / "out")
        assert now == content(tmp_path / "fresh")
        assert not [name for name in now if "s3_" in name] and [name for name in untouched if "s3_" in name]


def test_a_lost_image_is_made_again_and_another_recipe_makes_all_again(tmp_path):
    designs(tmp_path, [f"s{i}" for i in range(5)])
    prepare(tmp_path)
    before = content(tmp_path / "out")
    next((tmp_path / "out").rglob("s2_comp000.png")).unlink()
    assert prepare(tmp_path).reused == 4
    assert content(tmp_path / "out") == before
    other = Preparation(PREPARATION.limits, group="none", max_layers=6)
    assert prepare(tmp_path, preparation=other).reused == 0
    assert prepare(tmp_path, preparation=other, storage="shards").reused == 0
    assert not list((tmp_path / "out").rglob("*.png")), "what the other storage left is gone"


def test_other_code_makes_all_again(tmp_path, monkeypatch):
    designs(tmp_path, [f"s{i}" for i in range(3)])
    prepare(tmp_path)
    assert prepare(tmp_path).reused == 3
    monkeypatch.setattr("layers.preparation.dataset.PIXEL_CODE", ("dataset/buckets.py", "imaging"))
    assert prepare(tmp_path).reused == 0
    assert prepare(tmp_path).reused == 3


def test_processes_change_no_byte(tmp_path):
    designs(tmp_path, [f"s{i}" for i in range(20)])
    prepare(tmp_path, "one", jobs=1)
    prepare(tmp_path, "two", jobs=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_tars_and_files_hold_the_same_pixels(tmp_path):
    designs(tmp_path, [f"s{i}" for i in range(7)])
    prepare(tmp_path, "files")
    prepare(tmp_path, "shards", storage="shards")
    files, shards = StackDataset(tmp_path / "files", "train"), StackDataset(tmp_path / "shards", "train")
    assert len(files) == len(shards) == 6
    for i in range(6):
        assert files[i]["id"] == shards[i]["id"] and bool((files[i]["layers"] == shards[i]["layers"]).all())
        assert bool((files[i]["composite"] == shards[i]["composite"]).all())


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    designs(tmp_path, [f"s{i:03d}" for i in range(96)])
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.layers.preparation.test_dataset import prepare\n"
        "prepare(Path(sys.argv[1]), progress=lambda done: print(done, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    counts = [int(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert counts[0] == 0 and counts[1] > 0
    assert journal_path(tmp_path / "out").is_file() and not (tmp_path / "out" / MANIFEST).is_file()
    summary = prepare(tmp_path)
    assert sum(counts) <= summary.reused < 96
    prepare(tmp_path, "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole"), "nothing lost, nothing doubled"


class Killed(BaseException):
    pass


def killed_after(count):
    """A progress that ends the run as a kill would: what the journal holds is all there is."""
    done = []

    def progress(step):
        done.append(step)
        if sum(done) >= count:
            raise Killed

    return progress


def another_image(root, name):
    shutil.rmtree(root / "rendered" / name)
    write_rendered(root, name, size=(144, 96), components=2, seed=77)


@STORAGES
@pytest.mark.parametrize("later", ["fewer", "changed", "changed, killed"])
def test_a_set_of_another_checkout_is_not_taken_for_the_last_one(tmp_path, storage, later):
    """DVC puts an earlier set into the folder; what lies beside it, outside DVC, is of a later one."""
    names = [f"s{i}" for i in range(6)]
    designs(tmp_path, names)
    prepare(tmp_path, storage=storage)
    shutil.copytree(tmp_path / "out", tmp_path / "earlier")
    if "changed" in later:
        another_image(tmp_path, "s1")
    again = names[:3] if "fewer" in later else names
    if "killed" in later:
        with pytest.raises(Killed):
            prepare(tmp_path, names=again, storage=storage, progress=killed_after(6))
    else:
        prepare(tmp_path, names=again, storage=storage)
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(tmp_path / "earlier", tmp_path / "out")
    prepare(tmp_path, storage=storage)
    prepare(tmp_path, "fresh", storage=storage)
    (out, pixels), (_, expected) = ((root, images(tmp_path / root)) for root in ("out", "fresh"))
    assert pixels.keys() == expected.keys() and all(np.array_equal(pixels[name], expected[name]) for name in pixels)
    if storage == "files":
        assert content(tmp_path / out) == content(tmp_path / "fresh")


def images(root):
    found = {}
    for split in ("train", "val"):
        dataset = StackDataset(root, split)
        found |= {dataset[i]["id"]: dataset[i]["layers"].numpy() for i in range(len(dataset))}
    return found


def test_images_that_a_power_cut_emptied_are_made_again(tmp_path):
    designs(tmp_path, [f"s{i}" for i in range(6)])
    with pytest.raises(Killed):
        prepare(tmp_path, progress=killed_after(4))
    next((tmp_path / "out").rglob("*_comp000.png")).write_bytes(b"")
    prepare(tmp_path)
    prepare(tmp_path, "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_living_run_is_refused_and_a_killed_one_holds_nothing(tmp_path, end):
    designs(tmp_path, [f"s{i:03d}" for i in range(12)])
    script = (
        "import sys, time; from pathlib import Path\n"
        "from tests.layers.preparation.test_dataset import prepare\n"
        "def progress(done):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(60 if done else 0)\n"
        "prepare(Path(sys.argv[1]), progress=progress)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        process.stdout.readline()
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match=r"another run into \S+out is under way and holds \S+lock; wait until it ends"):
        prepare(tmp_path)
    assert content(tmp_path / "out") == before and before
    process.send_signal(end)
    process.wait()
    assert prepare(tmp_path).reused > 0
    assert prepare(tmp_path, "whole").reused == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.lock"))


def test_a_folder_of_others_is_not_touched(tmp_path):
    designs(tmp_path, ["s1"])
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "precious.txt").write_text("x")
    with pytest.raises(OutputError, match="is not empty and has no"):
        prepare(tmp_path)
    assert (tmp_path / "out" / "train" / "precious.txt").is_file()


def test_every_sample_is_in_the_manifest_once_with_reasons_gathered(tmp_path):
    designs(tmp_path, [f"s{i}" for i in range(6)])
    for name in ("s1", "s3"):
        (tmp_path / "rendered" / name / "background.png").unlink()
    (tmp_path / "rendered" / "s5" / "component_1.png").write_bytes(b"junk")
    summary = prepare(tmp_path)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert [x["id"] for x in manifest["samples"]] == ["s2", "s4", "s0"]
    assert {x["id"]: x["reason"] for x in manifest["dropped"]}.keys() == {"s1", "s3", "s5"}
    assert sorted(summary.reasons.values()) == [1, 2] and summary.dropped == 3
    assert prepare(tmp_path).reused == 6, "what was bad and has not changed is not tried again"


def test_kinds_of_reasons_leave_out_names_and_figures():
    assert kind_of_reason("component_1.png: not a readable image (zero bytes)") == "not a readable image (zero bytes)"
    assert kind_of_reason("aspect 3.00 of 300x100 is above max_aspect 2.3") == "aspect # of # is above max_aspect #"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_memory_stays_flat_in_the_number_of_samples(tmp_path):
    script = (
        "import resource, sys, orjson; from layers.dataset.manifest import Ledger, ManifestIndex\n"
        "ledger = Ledger(sys.argv[1], 'r')\n"
        "for i in range(int(sys.argv[2])):\n"
        "    name = f'{i:020d}'\n"
        "    layers = [{'path': f'{name}_comp{k:03d}.png', 'description': 'x' * 120} for k in range(6)]\n"
        "    ledger.add({'id': name, 'split': 'train', 'bucket': 'w64-h64', 'height': 64, 'width': 64,\n"
        "        'state': 's' * 32, 'layers': layers})\n"
        "ledger.finish({}); ManifestIndex(sys.argv[1], 'train')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (1000, 21000):
        command = [sys.executable, "-c", script, str(tmp_path / str(count)), str(count)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    per_sample = (peaks[1] - peaks[0]) * 1024 / 20000
    size = (tmp_path / "21000" / MANIFEST).stat().st_size / 21000
    assert size > 900 and per_sample < 600, f"{per_sample:.0f} bytes of memory a sample of {size:.0f} bytes"
