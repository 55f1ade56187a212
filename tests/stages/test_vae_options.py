"""The paper's way to an RGBA-VAE: an RGB VAE, widened, trained on; then its decoder alone."""

import json

import pytest
import torch

from models.vae.autoencoder import RGBAVAE
from tests.support.workspace import make_workspace, run, stage


def vae_of(root):
    return RGBAVAE.from_pretrained(root / "models" / "weights" / "vae", "vae")


@pytest.fixture(scope="module")
def rgb(bucketed_root, tmp_path_factory):
    changes = {"channels": 3, "opaque_share": 1.0, "init": "random"}
    root = make_workspace(tmp_path_factory.mktemp("rgb") / "project", bucketed_root, train_vae=changes)
    run(stage("train_vae"), root)
    return root


def start_from(root, folder, bucketed_root, **changes):
    checkpoint = str(folder / "models" / "weights" / "vae" / "vae")
    make_workspace(root, bucketed_root, train_vae={"rgb_checkpoint": checkpoint, **changes})
    run(stage("train_vae"), root)
    return root


def test_an_rgb_vae_is_trained_and_measured_on_flat_images(rgb):
    assert vae_of(rgb).config.input_channels == 3
    report = json.loads((rgb / "metrics" / "reports" / "train_vae.json").read_text())
    assert report["psnr_white"] > 5.0 and "alpha_l1" not in report and not any("layer" in name for name in report)
    assert list((rgb / "metrics" / "reports" / "val_recon").glob("*.png"))


def test_it_becomes_an_rgba_vae_whose_decoder_can_go_on_alone(rgb, bucketed_root, tmp_path):
    first = start_from(tmp_path / "rgba", rgb, bucketed_root)
    assert vae_of(first).config.input_channels == 4
    assert "alpha_l1" in json.loads((first / "metrics" / "reports" / "train_vae.json").read_text())
    second = start_from(tmp_path / "decoder", first, bucketed_root, trained="decoder")
    before, after = vae_of(first), vae_of(second)
    images = torch.rand(1, 4, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = [vae.normalise(vae.encode(images).mode()) for vae in (before, after)]
    assert torch.equal(*latents), "what learnt in this latent space still fits"
    assert not torch.equal(before.decoder.conv_in.weight, after.decoder.conv_in.weight)
