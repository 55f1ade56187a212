import json

import pytest

from stages.prepare_buckets import _emptied
from tests.stages.workspace import make_workspace, run, stage
from training.params import ParamsError


def test_only_what_is_ours_is_cleared(tmp_path):
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "precious.txt").write_text("x")
    with pytest.raises(ParamsError, match="is not empty and has no"):
        _emptied(tmp_path / "mine")
    assert (tmp_path / "mine" / "train" / "precious.txt").is_file()
    manifest = _emptied(tmp_path / "ours")
    (tmp_path / "ours" / "train").mkdir()
    assert _emptied(tmp_path / "ours") == manifest and not (tmp_path / "ours" / "train").exists()


def test_flags_override_parameters_and_bad_samples_are_listed(rendered_root, tmp_path):
    broken = rendered_root / "rendered" / "sample00" / "component_1.png"
    kept = broken.read_bytes()
    broken.write_bytes(kept[:60])
    prepare = {
        "source": "rendered",
        "rendered_root": str(rendered_root / "rendered"),
        "layout_root": str(rendered_root / "layouts"),
    }
    root = make_workspace(tmp_path / "work", prepare_buckets=prepare)
    flags = ("--output-root", "elsewhere", "--train-count", "7", "--val-count", "5")
    try:
        run(stage("prepare_buckets", *flags), root)
    finally:
        broken.write_bytes(kept)
    manifest = json.loads((root / "elsewhere" / "metadata" / "manifest.json").read_text())
    listed = manifest["samples"] + manifest["dropped"]
    assert sorted(sample["id"] for sample in listed) == [f"sample{i:02d}" for i in range(12)]
    assert [sample["split"] for sample in listed].count("val") == 5
    (dropped,) = manifest["dropped"]
    assert dropped["id"] == "sample00" and dropped["reason"].startswith("component_1.png: not a readable picture")
    report = json.loads((root / "metrics/reports/prepare_buckets.json").read_text())
    assert sum(report["samples"].values()) == 11 and sum(report["dropped"].values()) == 1


def test_a_missing_source_is_one_line(tmp_path):
    root = make_workspace(tmp_path / "work", prepare_buckets={"source": "rendered", "rendered_root": "nowhere"})
    result = run(stage("prepare_buckets"), root, check=False)
    assert result.returncode == 2
    assert (
        result.stderr.strip().splitlines()[-1].startswith("error: prepare_buckets.rendered_root: nowhere is no folder")
    )
