"""Figures by sub-folder, as AlphaVAE averages them: by hand, nested, incomplete, in any order."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from metrics.reconstruction.backgrounds import Scores, grouped, left_out, mean_over_groups
from metrics.reconstruction.rgba import BACKGROUNDS
from stages.evaluate_vae import main
from tests.support.networks import tiny_vae

FIGURES = ["psnr", "ssim", "ssim_y", "lpips", "fid_alexnet", "alpha_l1"]


class Corners(torch.nn.Module):
    """Features that take no time: mean colour of the image and of its upper left quarter."""

    num_features = 6

    def forward(self, images):
        quarter = images[..., : images.shape[-2] // 2, : images.shape[-1] // 2]
        return torch.cat([images.mean((2, 3)), quarter.mean((2, 3))], 1)


def corners(*_) -> FrechetInceptionDistance:
    return FrechetInceptionDistance(Corners(), normalize=True, input_img_size=(3, 32, 32))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Only which features a distance is over is replaced; test_evaluate_vae.py has those of AlexNet."""
    monkeypatch.setattr("stages.evaluate_vae.alexnet_distance", corners)


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)


def save(root, layout) -> None:
    """Write images by ``{folder: seeds}``; a seed is a file."""
    for folder, seeds in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            image(seed).save(root / folder / f"p{seed}.png")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups") / "vae"
    tiny_vae().save_pretrained(folder)
    return folder


def run(images, vae, out) -> dict:
    command = ["--images", str(images), "--vae", str(vae), "--out", str(out), "--device", "cpu", "--size", "32"]
    assert main(command) == 0
    return json.loads(out.read_text())


def test_the_mean_of_groups_by_hand():
    groups = {
        "cats": {"images": 3, "psnr": 30.0, "rfid": 2.0},
        "dogs": {"images": 1, "psnr": 20.0},
        "toys": {"images": 96, "psnr": 34.0, "rfid": 5.0},
    }
    assert mean_over_groups(groups) == {"psnr": 28.0, "rfid": 3.5}


def test_a_group_is_the_images_of_one_folder(tmp_path):
    save(tmp_path, {".": [0], "b": [1], "a": [2, 3], "a/deep/er": [4], "empty": []})
    found = grouped(list(tmp_path.rglob("*.png")), tmp_path)
    assert list(found) == [".", "a", "a/deep/er", "b"]
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        ".": ["p0.png"],
        "a": ["p2.png", "p3.png"],
        "a/deep/er": ["p4.png"],
        "b": ["p1.png"],
    }


def test_each_group_is_what_its_folder_alone_gives_and_the_mean_is_unweighted(tmp_path, vae):
    save(tmp_path / "all", {"cats": [0, 1, 2, 3], "toys/red": [4, 5]})
    whole = run(tmp_path / "all", vae, tmp_path / "all.json")
    assert list(whole["groups"]) == ["cats", "toys/red"] and whole["images"] == 6 and not whole["left_out"]
    alone = {name: run(tmp_path / "all" / name, vae, tmp_path / f"{n}.json") for n, name in enumerate(whole["groups"])}
    for name, report in alone.items():
        assert list(report["groups"]) == ["."], "a folder without sub-folders is one group"
        assert report["mean_over_groups"] == report["mean"]
        assert whole["groups"][name] == pytest.approx({"images": report["images"], **report["mean"]}, rel=1e-5)
    cats, toys = (alone[name]["mean"] for name in ("cats", "toys/red"))
    assert list(whole["mean_over_groups"]) == list(whole["mean"])
    for figure in FIGURES:
        assert whole["mean_over_groups"][figure] == pytest.approx((cats[figure] + toys[figure]) / 2, rel=1e-5)
        if figure != "fid_alexnet":
            assert whole["mean"][figure] == pytest.approx((4 * cats[figure] + 2 * toys[figure]) / 6, rel=1e-5)
    assert whole["mean"]["psnr"] != pytest.approx(whole["mean_over_groups"]["psnr"], rel=1e-5)


def test_the_pooled_distance_is_of_all_images_together(tmp_path, vae):
    """Statistics of groups are merged; the same images in one folder give the same."""
    save(tmp_path / "groups", {"a": [0, 1, 2], "b": [3, 4], "c": [5, 6, 7]})
    save(tmp_path / "flat", {".": range(8)})
    groups, flat = (run(tmp_path / name, vae, tmp_path / f"{name}.json") for name in ("groups", "flat"))
    assert groups["mean"] == pytest.approx(flat["mean"], rel=1e-3)
    for name in BACKGROUNDS:
        assert groups["backgrounds"][name] == pytest.approx(flat["backgrounds"][name], rel=1e-3)
    assert groups["mean_over_groups"]["fid_alexnet"] != pytest.approx(groups["mean"]["fid_alexnet"], rel=0.01)


def test_a_distance_asked_for_before_more_images_came_is_not_kept():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 4, 32, 32) * 2 - 1
    first, second, together = (Scores(lambda a, b: (a - b).abs().mean((1, 2, 3)), corners(), "float") for _ in "123")
    for target, scores in zip(images, (first, second), strict=True):
        scores.add(0.7 * target, target)
        together.add(0.7 * target, target)
    before = first.result("fid")["mean"]["fid"]
    assert first.absorb(second) is first and len(first.alpha) == 6
    assert first.result("fid")["mean"] == pytest.approx(together.result("fid")["mean"], rel=1e-6)
    assert first.result("fid")["mean"]["fid"] != pytest.approx(before, rel=1e-3)


def test_what_a_group_lacks_is_said_and_stops_nothing(tmp_path, vae, capsys):
    save(tmp_path / "in", {"many": [0, 1, 2], "one": [3]})
    (tmp_path / "in" / "none").mkdir()
    (tmp_path / "in" / "none" / "broken.png").write_bytes(b"no image")
    report = run(tmp_path / "in", vae, tmp_path / "out.json")
    assert list(report["groups"]) == ["many", "one"] and list(report["skipped"]) == ["none/broken.png"]
    assert "fid_alexnet" not in report["groups"]["one"] and report["images"] == 4
    many, one = report["groups"].values()
    assert report["mean_over_groups"]["fid_alexnet"] == many["fid_alexnet"] != report["mean"]["fid_alexnet"]
    assert report["mean_over_groups"]["psnr"] == pytest.approx((many["psnr"] + one["psnr"]) / 2)
    assert list(report["left_out"]) == ["none", "one"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("4 images, 1 skipped: psnr ")
    assert printed[1].startswith("unweighted mean of 2 groups: psnr ")
    assert printed[2:] == [
        "group none: none of its 1 images can be scored, so no mean over groups holds it",
        "group one: a Fréchet distance takes 2 images and it has 1, so the mean of that over groups is without it",
    ]
    assert left_out("many", 3, 3) is None


def test_names_and_order_of_files_change_nothing(tmp_path, vae):
    save(tmp_path / "in", {"a": [0, 1, 2], "b": [3, 4]})
    report = run(tmp_path / "in", vae, tmp_path / "first.json")
    for old, new in {"b": "0b", "a": "z"}.items():
        (tmp_path / "turned" / new).mkdir(parents=True)
        for place, path in enumerate(sorted((tmp_path / "in" / old).iterdir(), reverse=True)):
            shutil.copy(path, tmp_path / "turned" / new / f"{place}.png")
    turned = run(tmp_path / "turned", vae, tmp_path / "second.json")
    assert list(report["groups"]) == ["a", "b"] and list(turned["groups"]) == ["0b", "z"]
    for kind in ("mean", "mean_over_groups"):
        assert turned[kind] == pytest.approx(report[kind], rel=1e-3)
    assert turned["groups"]["z"] == pytest.approx(report["groups"]["a"], rel=1e-3)
