"""The AIM-500-style command: its figures are torchmetrics' on the same tensors, its report says what was done."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from layers.imaging.tensors import to_tensor
from metrics.reconstruction.backgrounds import stored
from metrics.reconstruction.luma_ssim import ssim_y
from metrics.reconstruction.perceptual import Perceptual, alexnet_distance
from metrics.reconstruction.rgba import BACKGROUNDS, over_background
from models.vae.autoencoder import RGBAVAE
from stages.evaluate_vae import find_images, main, prepare
from tests.support.networks import tiny_vae


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("reconstruction")
    tiny_vae().save_pretrained(root / "vae")
    rng = np.random.default_rng(0)
    (root / "images" / "more").mkdir(parents=True)
    for index, (height, width) in enumerate([(48, 64), (64, 40), (50, 50)]):
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 4), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        image.save(root / "images" / ("more" if index == 2 else "") / f"p{index}.png")
    Image.new("RGB", (40, 40), (10, 200, 30)).save(root / "images" / "opaque.jpg")
    (root / "images" / "broken.png").write_bytes(b"no image")
    Image.new("RGBA", (8, 8)).save(root / "images" / "speck.png")
    return root


def run(root, out, *more):
    command = ["--images", str(root / "images"), "--vae", str(root / "vae"), "--out", str(out), "--device", "cpu"]
    code = main([*command, *more])
    return code, json.loads(out.read_text()) if out.is_file() else None


def test_the_figures_are_those_of_torchmetrics(folders, tmp_path):
    code, report = run(folders, tmp_path / "report.json", "--size", "32")
    assert code == 0 and report["images"] == 5 and list(report["skipped"]) == ["broken.png"]
    vae, perceptual = RGBAVAE.from_pretrained(folders / "vae"), Perceptual()
    rows = {name: [] for name in BACKGROUNDS}
    for path in find_images(folders / "images"):
        if path.name == "broken.png":
            continue
        pixels = np.array(Image.open(path).convert("RGBA"))
        target = to_tensor(prepare(pixels, 32, 4))[None]
        with torch.no_grad():
            predicted = vae(target)
            for name, colour in BACKGROUNDS.items():
                pair = over_background(predicted, colour), over_background(target, colour)
                rows[name].append(
                    (
                        float(peak_signal_noise_ratio(*pair, data_range=1.0)),
                        float(structural_similarity_index_measure(*pair, data_range=1.0)),
                        float(ssim_y(*pair)),
                        float(perceptual(pair[0] * 2 - 1, pair[1] * 2 - 1)),
                    )
                )
    for name, values in rows.items():
        for metric, expected in zip(("psnr", "ssim", "ssim_y", "lpips"), np.mean(values, axis=0), strict=True):
            assert report["backgrounds"][name][metric] == pytest.approx(expected, rel=1e-4)
    assert report["mean"]["psnr"] == pytest.approx(np.mean([np.mean(v, axis=0)[0] for v in rows.values()]), rel=1e-4)


def test_the_report_says_what_was_done_and_never_calls_alexnet_rfid(folders, tmp_path):
    _, report = run(folders, tmp_path / "report.json", "--size", "32")
    assert report["protocol"]["crop"] == "centre 32x32" and "32 px" in report["protocol"]["resize"]
    assert set(report["backgrounds"]) == set(BACKGROUNDS) and len(report["protocol"]["vae"]["safetensors_md5"]) == 32
    for row in (report["mean"], *report["backgrounds"].values()):
        assert "fid_alexnet" in row and "rfid" not in row
    assert "not comparable with rFID" in report["protocol"]["frechet"]
    assert report["protocol"]["ssim"].startswith("RGB") and report["protocol"]["ssim_y"].startswith("luma")


def test_each_background_has_a_frechet_distance_of_its_own(folders, tmp_path):
    """One network serves all nine; their statistics must not mix."""
    _, report = run(folders, tmp_path / "report.json", "--size", "32")
    vae, perceptual = RGBAVAE.from_pretrained(folders / "vae"), Perceptual()
    for name in ("red", "black"):
        alone = alexnet_distance(perceptual)
        for path in find_images(folders / "images"):
            if path.name != "broken.png":
                target = to_tensor(prepare(np.array(Image.open(path).convert("RGBA")), 32, 4))[None]
                with torch.no_grad():
                    alone.update(over_background(vae(target), BACKGROUNDS[name]), real=False)
                    alone.update(over_background(target, BACKGROUNDS[name]), real=True)
        assert report["backgrounds"][name]["fid_alexnet"] == pytest.approx(float(alone.compute()), rel=1e-2)
    assert report["backgrounds"]["red"]["fid_alexnet"] != report["backgrounds"]["black"]["fid_alexnet"]


def test_native_resolution_and_jpeg_blends(folders, tmp_path):
    _, exact = run(folders, tmp_path / "a.json", "--size", "native")
    _, jpeg = run(folders, tmp_path / "b.json", "--size", "native", "--blends", "jpeg")
    assert exact["skipped"].keys() == {"broken.png", "speck.png"}
    assert exact["mean"]["psnr"] != jpeg["mean"]["psnr"] and "JPEG" in jpeg["protocol"]["blends"]
    assert exact["protocol"]["crop"] == "centre, to multiples of 4 px"


def test_cropping():
    image = np.arange(6 * 10 * 4, dtype=np.uint8).reshape(6, 10, 4)
    assert np.array_equal(prepare(image, 6, 2), image[:, 2:8])
    assert np.array_equal(prepare(image, None, 4), image[1:5, 1:9])
    wide = np.full((100, 333, 4), 255, np.uint8)
    assert prepare(wide, 40, 8).shape == (40, 40, 4) and (prepare(wide, 40, 8) == 255).all()


def test_stored_blends():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(stored(images, "float"), images)
    assert (stored(images, "png") - images).abs().max() <= 0.5 / 255 + 1e-6
    flat = torch.full((1, 3, 16, 16), 100 / 255)
    assert torch.allclose(stored(flat, "jpeg"), flat, atol=1.5 / 255)


def test_what_a_user_can_get_wrong_is_one_line(folders, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    base = {"--images": str(folders / "images"), "--vae": str(folders / "vae"), "--out": str(tmp_path / "out.json")}
    for change, sentence in [
        ({"--images": str(tmp_path / "none")}, "is not a folder"),
        ({"--images": str(tmp_path / "empty")}, "no image below"),
        ({"--vae": str(tmp_path / "none")}, "no folder at"),
        ({"--size": "33"}, "got 33, expected at least 32 and a multiple of 4"),
        ({"--size": "big"}, "got big, expected a number of pixels or native"),
        ({"--out": str(tmp_path)}, "is a folder, expected a file"),
        ({"--out": str(tmp_path / "file" / "deep" / "out.json")}, "which is a file, expected a folder"),
        ({"--inception": str(tmp_path / "none.pth")}, "no such file"),
    ]:
        assert main([part for pair in (base | change).items() for part in pair]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and sentence in error
    assert not (tmp_path / "out.json").exists()
