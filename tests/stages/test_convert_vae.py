"""The surgery as a command, against diffusers' own RGB network."""

import json

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from models.vae.autoencoder import RGBAVAE
from stages import convert_vae
from stages.convert_vae import convert, main, opaque_images, prove

SMALL = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
SMALL |= {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}


@pytest.fixture
def rgb(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(**SMALL, input_channels=3)
    vae.save_pretrained(tmp_path / "hub" / "vae")
    return tmp_path / "hub", vae


def test_opaque_images_give_what_the_rgb_network_gives(rgb, tmp_path, capsys):
    root, original = rgb
    out = tmp_path / "rgba"
    command = ["--source", str(root), "--subfolder", "vae", "--output-dir", str(out)]
    assert main(command) == 0
    assert "alpha from 1 by 0.0e+00" in capsys.readouterr().out
    rgba = AutoencoderKLQwenImage.from_pretrained(out)
    images = opaque_images()[:, :, None]
    with torch.no_grad():
        theirs, ours = original.encode(images[:, :3]).latent_dist, rgba.encode(images).latent_dist
        assert torch.allclose(ours.parameters, theirs.parameters, atol=1e-5)
        decoded = rgba.decode(ours.mode()).sample
        assert torch.allclose(decoded[:, :3], original.decode(theirs.mode()).sample, atol=1e-5)
    assert torch.equal(decoded[:, 3], torch.ones_like(decoded[:, 3]))
    first, last = rgba.encoder.conv_in.weight, rgba.decoder.conv_out
    assert torch.equal(first[:, :3, -1], original.encoder.conv_in.weight[:, :, -1]) and first[:, 3].abs().max() == 0
    assert torch.equal(last.weight[:3, :, -1], original.decoder.conv_out.weight[:, :, -1])
    assert last.weight[3].abs().max() == 0 and last.bias[3] == 1.0
    config = json.loads((out / "config.json").read_text())
    assert config["input_channels"] == 4 and config["temperal_downsample"] == [False, True, True]
    assert config["latents_std"] == [1.5] * 4


def test_a_folder_itself_and_one_that_is_rgba_already(rgb, tmp_path):
    root, _ = rgb
    proof = convert(str(root / "vae"), None, tmp_path / "rgba", alpha_bias_init=0.5)
    assert proof.worst <= 1e-5
    again = convert(str(tmp_path / "rgba"), None, tmp_path / "again")
    assert again.worst <= 1e-6
    first, second = (RGBAVAE.from_pretrained(tmp_path / name).state_dict() for name in ("rgba", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["decoder.conv_out.bias"][3] == 0.5


def test_the_proof_sees_what_is_wrong(rgb, tmp_path, monkeypatch, capsys):
    root, _ = rgb
    source = RGBAVAE.from_pretrained(root, "vae")
    widen = convert_vae.widen_to_rgba

    def careless(vae, bias):
        wide = widen(vae, bias)
        with torch.no_grad():
            wide.encoder.conv_in.weight[:, 3] = 1e-3
        return wide

    assert prove(source, careless(source, 1.0), 1.0).latents > 1e-5
    assert prove(source, widen(source, 0.9), 1.0).alpha == pytest.approx(0.1, abs=1e-6)
    monkeypatch.setattr(convert_vae, "widen_to_rgba", careless)
    assert main(["--source", str(root), "--subfolder", "vae", "--output-dir", str(tmp_path / "out")]) == 2
    assert "is not the source on opaque images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_user_can_get_wrong_is_one_line(rgb, tmp_path, capsys):
    root, _ = rgb
    (tmp_path / "file").write_text("")
    for arguments, sentence in [
        (["--source", str(tmp_path / "none"), "--output-dir", "x"], "no folder at"),
        (["--source", str(tmp_path), "--output-dir", "x"], "no config.json in"),
        (["--source", str(root), "--subfolder", "unet", "--output-dir", "x"], "no folder unet in"),
        (["--source", str(root / "vae"), "--output-dir", "x", "--alpha-bias-init", "2"], "got 2.0, expected a value"),
        (["--source", str(root / "vae"), "--output-dir", str(tmp_path / "file")], "is a file, expected a folder"),
        (["--source", str(root / "vae"), "--output-dir", str(tmp_path / "file" / "x")], "lies below"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert sentence in error and "\n" not in error
