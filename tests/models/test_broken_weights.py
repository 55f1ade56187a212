"""Weights that are something else, or only a part: one sentence and exit code 2, wherever weights are read."""

import json
import shutil
import urllib.error

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from config.errors import UserError
from layers.weight_files import WeightsFileError, check_weights, read_json
from metrics.reconstruction import perceptual
from metrics.reconstruction.perceptual import Perceptual, TrunkError, inception_distance
from models.diffusers_folder import WEIGHTS_FILE, weight_files
from models.transformer.lora import LORA_FILE, adapted_base, add_lora, load_lora, save_lora
from models.transformer.text_encoders import load_text_encoder
from models.transformer.vld_mmdit import VLDMMDiT
from models.vae.autoencoder import RGBAVAE
from stages.decompose import main
from tests.support.networks import save_tiny, tiny_transformer
from tests.support.released import write_text_encoder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 29500000\n"
BROKEN = {
    "pointer": (lambda data: POINTER, "is a pointer of Git LFS, expected"),
    "page": (lambda data: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a page of HTML, expected"),
    "cut": (lambda data: data[: len(data) // 2], "is cut short, damaged or something else, expected"),
    "cut in its header": (lambda data: data[:20], "is cut short, damaged or something else, expected"),
    "empty": (lambda data: b"", "is empty, expected"),
    "XML of a bucket": (lambda data: b'<?xml version="1.0"?><Error>AccessDenied</Error>', "is a page of HTML"),
    "longer than it says": (lambda data: data + b"more", "is cut short, damaged or something else"),
}
READERS = {"vae": lambda folder: RGBAVAE.from_pretrained(folder, "vae"), "transformer": VLDMMDiT.from_pretrained}
each = pytest.mark.parametrize("kind", BROKEN)


def spoil(path, kind):
    path.write_bytes(BROKEN[kind][0](path.read_bytes()))


@pytest.fixture
def model(tmp_path):
    return save_tiny(tmp_path / "model")


def refused(kind, read, *arguments):
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert BROKEN[kind][1] in str(caught.value) and "\n" not in str(caught.value)


@each
@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_networks(model, part, kind):
    spoil(model / part / WEIGHTS_FILE, kind)
    refused(kind, READERS[part], model)


@pytest.mark.parametrize("kind", ["pointer", "page", "cut", "empty"])
@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_configs(model, part, kind):
    spoil(model / part / "config.json", kind)
    refused(kind, READERS[part], model)


@pytest.mark.parametrize("part", ["vae/diffusion_pytorch_model.safetensors", "transformer/config.json"])
def test_the_command_ends_with_a_sentence(model, tmp_path, capsys, part):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    spoil(model / part, "pointer")
    out = str(tmp_path / "out")
    assert main(["--model", str(model), str(tmp_path / "a.png"), "--layers", "2", "--out", out]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "is a pointer of Git LFS" in error


@each
def test_adapters(tmp_path, kind):
    transformer = tiny_transformer()
    add_lora(transformer, 2)
    save_lora(transformer, tmp_path, "base")
    spoil(tmp_path / LORA_FILE, kind)
    refused(kind, load_lora, tiny_transformer(), tmp_path)
    refused(kind, adapted_base, tmp_path, 2, 2.0)


@each
def test_text_encoders(tmp_path, kind):
    release = write_text_encoder(tmp_path)
    spoil(release / "text_encoder" / "model.safetensors", kind)
    refused(kind, load_text_encoder, "qwen", release)


@each
def test_the_trunk_of_lpips(tmp_path, monkeypatch, kind):
    shutil.copy(perceptual.ALEXNET_FILE, tmp_path / "alexnet.safetensors")
    monkeypatch.setattr(perceptual, "ALEXNET_FILE", tmp_path / "alexnet.safetensors")
    spoil(tmp_path / "alexnet.safetensors", kind)
    refused(kind, Perceptual)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["pointer", "page", "cut", "empty", "XML of a bucket"])
def test_inception(tmp_path, suffix, kind):
    path = tmp_path / f"inception{suffix}"
    (torch.save if suffix == ".pth" else save_file)({"weight": torch.zeros(99)}, path)
    spoil(path, kind)
    refused(kind, inception_distance, path)


def test_a_download_of_inception_is_compared_with_the_known_file(tmp_path, monkeypatch):
    """One that was just made, and one that an earlier download has left."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(url, place, progress):
        asked.append(url)
        torch.save({"weight": torch.zeros(2)}, place)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        with pytest.raises(TrunkError, match=rf"has the sha256 [0-9a-f]{{64}}, expected {perceptual.INCEPTION_SHA256}"):
            inception_distance(None)
    assert len(asked) == 1 and perceptual.INCEPTION_SHA256[:8] in asked[0], "its name begins the digest"


def test_a_trunk_that_an_earlier_download_has_left_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"<html>")
    with pytest.raises(TrunkError, match=r"LPIPS trunk vgg in .* is damaged .*; delete it there"):
        Perceptual("vgg")
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(urllib.error.URLError("no")))
    with pytest.raises(TrunkError, match="cannot be downloaded"):
        Perceptual("vgg")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "expected files beside it"),
    ],
)
@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_an_index_that_is_none(model, part, index, sentence):
    (model / part / f"{WEIGHTS_FILE}.index.json").write_text(index)
    with pytest.raises(WeightsFileError, match=sentence):
        weight_files(model / part)
    with pytest.raises(WeightsFileError, match=sentence):
        READERS[part](model)


@pytest.mark.parametrize("change", [{"num_layers": 2}, {"num_attention_heads": "many"}, {"attention_head_dim": 32}])
def test_a_transformer_of_another_shape(model, change):
    path = model / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsFileError, match="transformer: no transformer of this kind"):
        VLDMMDiT.from_pretrained(model)


@pytest.mark.parametrize("change", [{"z_dim": 5}, {"base_dim": 16}, {"_class_name": "AutoencoderKL"}, {"z_dim": "x"}])
def test_a_vae_of_another_shape(model, change):
    path = model / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsFileError):
        RGBAVAE.from_pretrained(model, "vae")


def halved(path, variant, dtype=torch.float16):
    """Weights under the name of a variant alone."""
    tensors = {name: value.to(dtype) for name, value in load_file(path).items()}
    save_file(tensors, path.with_name(f"{path.stem}.{variant}.safetensors"), {"format": "pt"})
    path.unlink()


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_weights_that_are_there_as_a_variant_only(model, tmp_path, capsys, variant, dtype):
    whole = VLDMMDiT.from_pretrained(model), RGBAVAE.from_pretrained(model, "vae")
    for part in ("vae", "transformer"):
        halved(model / part / WEIGHTS_FILE, variant, dtype)
    halves = VLDMMDiT.from_pretrained(model), RGBAVAE.from_pretrained(model, "vae")
    for before, after in zip(whole, halves, strict=True):
        for name, value in after.state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, before.state_dict()[name].to(dtype).float())
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    arguments = ["--model", str(model), str(tmp_path / "a.png"), "--layers", "2", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--steps", "1", "--tries", "1"]) == 0


def test_a_variant_in_shards(model):
    path = model / "transformer" / WEIGHTS_FILE
    before = VLDMMDiT.from_pretrained(model).transformer
    path.unlink()
    before.save_pretrained(model / "transformer", variant="fp16", max_shard_size="20KB")
    assert len(list((model / "transformer").glob("*.safetensors"))) > 1
    after = VLDMMDiT.from_pretrained(model).transformer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())
    spoil(sorted((model / "transformer").glob("*.safetensors"))[-1], "pointer")
    refused("pointer", VLDMMDiT.from_pretrained, str(model))


def test_a_text_encoder_that_is_there_as_a_variant_only(tmp_path):
    release = write_text_encoder(tmp_path)
    halved(release / "text_encoder" / "model.safetensors", "fp16")
    assert load_text_encoder("qwen", release).encode(["a disc"])[0].isfinite().all()


def test_what_there_is_whole_goes_before_its_variants(model):
    shutil.copy(model / "vae" / WEIGHTS_FILE, model / "vae" / "kept")
    halved(model / "vae" / WEIGHTS_FILE, "fp16")
    (model / "vae" / "kept").rename(model / "vae" / WEIGHTS_FILE)
    assert weight_files(model / "vae") == (None, [model / "vae" / WEIGHTS_FILE])
    check_weights(model / "vae" / WEIGHTS_FILE)
    assert read_json(model / "vae" / "config.json")["z_dim"] == 4
