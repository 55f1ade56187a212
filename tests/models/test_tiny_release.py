"""The tiny release: read by diffusers and by what reads the released folder here."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageLayeredPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered as released
from PIL import Image
from safetensors import safe_open

from inference.decomposer import Decomposer
from models.tiny_release import TEXT_WIDTH, main, write_release
from models.transformer.sampling import start_noise
from models.transformer.text_encoders import QWEN_DROPPED_TOKENS, QWEN_TEMPLATE, load_text_encoder
from models.transformer.vld_mmdit import VLDMMDiT, pack
from models.vae.autoencoder import RGBAVAE
from models.vae.config import QWEN_LATENTS_MEAN

WEIGHTS = ("text_encoder/model", "transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return write_release(tmp_path_factory.mktemp("model") / "release", seed=3)


@pytest.fixture(scope="module")
def pipeline(release):
    loaded = QwenImageLayeredPipeline.from_pretrained(release, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def small(monkeypatch):
    """The pipeline knows areas of 640 and 1024 px squared; a 25th of it makes the same arithmetic fast."""
    whole = released.calculate_dimensions
    monkeypatch.setattr(released, "calculate_dimensions", lambda area, ratio: whole(area / 25, ratio))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_is_small_in_bfloat16_and_has_the_names_of_the_released_tensors(release):
    assert sum(map(len, contents(release).values())) < 5e6
    names = {}
    for file in WEIGHTS:
        with safe_open(release / f"{file}.safetensors", "pt") as tensors:
            names[file] = set(tensors.keys())
            assert {tensors.get_slice(name).get_dtype() for name in names[file]} == {"BF16"}
    with torch.device("meta"):
        assert names["vae/diffusion_pytorch_model"] == set(AutoencoderKLQwenImage(input_channels=4).state_dict())


def test_as_many_tokens_stand_before_the_caption_as_with_the_released_tokenizer(release, pipeline):
    encoder = load_text_encoder("qwen", release)
    before = QWEN_TEMPLATE.partition("{}")[0]
    assert len(encoder.tokenizer(before).input_ids) == QWEN_DROPPED_TOKENS == pipeline.prompt_template_encode_start_idx
    states, mask = encoder.encode(["disc", "a longer caption"])
    assert states.shape[2] == encoder.width == TEXT_WIDTH and mask.sum(1)[0] < mask.sum(1)[1]


@pytest.mark.usefixtures("small")
def test_the_pipeline_and_the_decomposer_make_the_same_layers_of_an_image_and_its_caption(release, pipeline):
    image = (torch.rand(1, 4, 96, 160, generator=torch.Generator().manual_seed(0)) * 255).round() / 127.5 - 1
    pixels = ((image[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    theirs = pipeline(
        image=Image.fromarray(pixels, "RGBA"),
        prompt="a disc",
        negative_prompt=" ",
        true_cfg_scale=4.0,
        latents=pack(start_noise(["x"], (3, 16, 12, 20), seed=1), 2),
        layers=2,
        num_inference_steps=2,
        output_type="pt",
    ).images[0]
    model = Decomposer.from_pretrained(str(release), "cpu")
    ours = model.decompose(image, 2, ["x"], ["a disc"], steps=2, seed=1, guidance=4.0)[0]
    assert ours.shape == (2, 4, 96, 160) and ours.std() > 0.01
    assert (ours - (theirs * 2 - 1)).abs().max() < 1e-4


def test_the_pipeline_captions_a_image_itself(pipeline):
    image = Image.new("RGBA", (90, 60), "red")
    shown = pipeline.vl_processor(text=pipeline.image_caption_prompt_en, images=image, return_tensors="pt")
    found = pipeline.text_encoder.generate(**shown, max_new_tokens=2, do_sample=False)
    assert found.shape[1] > shown.input_ids.shape[1]
    assert (shown.input_ids == pipeline.text_encoder.config.image_token_id).sum() == shown.image_grid_thw.prod() // 4


def test_all_three_networks_learn_from_it(release):
    vae, network = RGBAVAE.from_pretrained(release), VLDMMDiT.from_pretrained(release)
    assert vae.config.input_channels == 4 and vae.config.latents_mean == QWEN_LATENTS_MEAN
    text = load_text_encoder("qwen", release).encode(["a disc"])
    images = torch.rand(3, 4, 32, 32) * 2 - 1
    latents = vae.normalise(vae.encode(images).mode())
    velocity = network(latents[None, :2], latents[None, 2], torch.tensor([0.5]), text)
    loss = (vae.decode(vae.denormalise(latents)) - images).square().mean() + velocity.square().mean()
    loss.backward()
    assert loss.isfinite()
    for part in (vae.encoder.conv_in, vae.decoder.conv_out, network.transformer.txt_in, network.transformer.img_in):
        assert part.weight.grad.abs().max() > 0


def test_the_seed_decides_every_byte(release, tmp_path, capsys):
    torch.manual_seed(99)
    drawn = torch.rand(1)
    torch.manual_seed(99)
    assert main(["--out", str(tmp_path / "again"), "--seed", "3"]) == 0
    assert torch.equal(torch.rand(1), drawn), "the caller's random numbers are as they were"
    assert contents(tmp_path / "again") == contents(release)
    assert capsys.readouterr().out == f"{tmp_path / 'again'}: a release of random weights, 2.2 MB\n"

    (tmp_path / "other").mkdir()
    assert main(["--out", str(tmp_path / "other")]) == 0
    other, first = contents(tmp_path / "other"), contents(release)
    assert {name for name in first if other[name] != first[name]} == {f"{file}.safetensors" for file in WEIGHTS}


def test_what_is_there_is_left_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        assert main(["--out", str(place)]) == 2
        said = capsys.readouterr().err
        assert said == f"error: --out: {place} exists and is not an empty folder; expected a new or an empty one\n"
    assert contents(tmp_path) == {"file": b"mine"}
