"""Our sampler against ``diffusers.QwenImageLayeredPipeline`` on one folder in the official layout."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageLayeredPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered as released
from PIL import Image

from models.transformer.sampling import Guidance, decompose_images
from models.transformer.vld_mmdit import VLDMMDiT, pack
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from models.vae.latents import encode_images
from tests.support.networks import tiny_network

TEXT_WIDTH = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model; of 4 latent channels, the pipeline would take RGBA images for latents."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    vae = RGBAVAE(VAEConfig(base_dim=8, z_dim=6, dim_mult=(1, 2, 2, 2), temperal_downsample=(False, True, True)))
    vae.set_latent_statistics([0.1, -0.2, 0.3, 0.0, 0.2, -0.1], [0.5, 0.7, 1.1, 0.9, 0.8, 1.2])
    vae.save_pretrained(path / "vae")
    tiny_network(latent_channels=6, num_layers=2, joint_attention_dim=TEXT_WIDTH).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return VLDMMDiT.from_pretrained(folder).eval(), RGBAVAE.from_pretrained(folder, "vae").eval()


@pytest.fixture(scope="module")
def theirs(folder):
    pipeline = QwenImageLayeredPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
        text_encoder=None,
        tokenizer=None,
        processor=None,
    )
    # All that a call with embeddings asks of the text encoder is its dtype.
    pipeline.text_encoder = SimpleNamespace(dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def small(monkeypatch):
    """The pipeline knows areas of 640 and 1024 px squared; a 25th of it makes the same arithmetic fast."""
    whole = released.calculate_dimensions
    monkeypatch.setattr(released, "calculate_dimensions", lambda area, ratio: whole(area / 25, ratio))


def embeddings(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    longest = max(lengths)
    states = torch.zeros(len(lengths), longest, TEXT_WIDTH)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        states[row, :length] = torch.randn(length, TEXT_WIDTH, generator=generator)
        mask[row, :length] = True
    return states, mask


def drawn(width, height, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, 4, height, width, generator=generator) * 255).round() / 127.5 - 1


def latents(networks, images):
    return encode_images(networks[1], images)


def start(layers, width, height, seed=5):
    return torch.randn(1, layers + 1, 6, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))


def run_theirs(pipeline, image, noise, layers, steps, text, negative, scale, normalise):
    pixels = ((image[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    arguments = {}
    if negative is not None:
        arguments = {"negative_prompt_embeds": negative[0], "negative_prompt_embeds_mask": negative[1]}
    out = pipeline(
        image=Image.fromarray(pixels, "RGBA"),
        prompt="given as embeddings",
        prompt_embeds=text[0],
        prompt_embeds_mask=text[1],
        latents=pack(noise, 2),
        layers=layers,
        num_inference_steps=steps,
        true_cfg_scale=scale,
        cfg_normalize=normalise,
        output_type="pt",
        **arguments,
    )
    return out.images[0] * 2 - 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("width", "height", "layers", "steps", "scale", "normalise"),
    [
        (128, 128, 1, 3, 1.0, False),
        (128, 128, 4, 4, 4.0, True),
        (160, 96, 3, 3, 4.0, False),
        (96, 160, 6, 2, 2.5, True),
    ],
)
def test_the_same_layers_from_the_same_noise(ours, theirs, width, height, layers, steps, scale, normalise):
    image, noise, text = drawn(width, height), start(layers, width, height), embeddings(5)
    negative = embeddings(2) if scale > 1 else None
    expected = run_theirs(theirs, image, noise, layers, steps, text, negative, scale, normalise)
    guidance = None if negative is None else Guidance(scale, negative, normalise)
    found = decompose_images(*ours, latents(ours, image), noise, steps=steps, text=text, guidance=guidance)[0]
    assert found.shape == expected.shape == (layers, 4, height, width)
    assert (found - expected).abs().max() < 1e-4
    assert found.std() > 0.01


def test_at_the_released_resolution_the_shift_is_the_pipelines(ours, theirs):
    image, noise, text = drawn(640, 640), start(1, 640, 640), embeddings(3)
    expected = run_theirs(theirs, image, noise, 1, 2, text, None, 1.0, False)
    found = decompose_images(*ours, latents(ours, image), noise, steps=2, text=text)[0]
    assert theirs.scheduler.sigmas[1].item() == pytest.approx(2.5 / 3.5)
    assert (found - expected).abs().max() < 1e-4


def test_a_batch_of_prompts_of_many_lengths_equals_its_samples(ours):
    network, vae = ours
    conditions = latents(ours, torch.cat([drawn(64, 32, seed) for seed in range(3)]))
    noise = torch.cat([start(2, 64, 32, seed) for seed in range(3)])
    text, negative = embeddings(1, 6, 3), embeddings(2, 2, 2)
    whole = decompose_images(
        network, vae, conditions, noise, steps=3, text=text, guidance=Guidance(3.0, negative, True)
    )
    for row, length in enumerate((1, 6, 3)):
        one = slice(row, row + 1)
        alone = decompose_images(
            network, vae, conditions[one], noise[one], steps=3,
            text=(text[0][one, :length], text[1][one, :length]),
            guidance=Guidance(3.0, (negative[0][one], negative[1][one]), True),
        )  # fmt: skip
        assert (alone[0] - whole[row]).abs().max() < 1e-5


def test_the_caption_and_the_guidance_change_the_layers(ours):
    network, vae = ours
    condition, noise = latents(ours, drawn(64, 32)), start(2, 64, 32)
    plain = decompose_images(network, vae, condition, noise, steps=2, text=embeddings(4))
    other = decompose_images(network, vae, condition, noise, steps=2, text=embeddings(7))
    guided = decompose_images(
        network, vae, condition, noise, steps=2, text=embeddings(4), guidance=Guidance(4.0, embeddings(2))
    )
    assert (plain - other).abs().max() > 1e-4 and (plain - guided).abs().max() > 1e-4


def test_guidance_normalised_keeps_the_length_of_every_token():
    from models.transformer.sampling import guided_velocity

    positive, negative = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    guided = guided_velocity(positive, negative, 4.0, normalise=True)
    assert torch.allclose(guided.norm(dim=-1), positive.norm(dim=-1), rtol=1e-5)
    assert torch.equal(guided_velocity(positive, negative, 0.0, normalise=False), negative)
    assert math.isclose(
        torch.nn.functional.cosine_similarity(guided, negative + 4 * (positive - negative), dim=-1).min().item(),
        1.0,
        rel_tol=1e-5,
    )
