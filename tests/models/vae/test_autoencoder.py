"""RGBA-VAE: equal to the 3-D diffusers model on single frames, to its files and to the paper's surgery."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file

from models.vae.autoencoder import RGBAVAE, DiagonalGaussian, widen_to_rgba
from models.vae.blocks import NormSiLU
from models.vae.config import QWEN_LATENTS_MEAN, VAEConfig

TINY = VAEConfig(base_dim=8, z_dim=4, dim_mult=(1, 2), num_res_blocks=1)
CONFIGS = {
    "flat": VAEConfig(base_dim=12, z_dim=16, dim_mult=(1, 2, 4)),
    "qwen": VAEConfig(base_dim=8, z_dim=4, dim_mult=(1, 2, 4, 4), temperal_downsample=(False, True, True)),
    "temporal": VAEConfig(base_dim=16, z_dim=3, dim_mult=(1, 3), num_res_blocks=1, temperal_downsample=(True,)),
}
PREFIX = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomise(model):
    """Leave no parameter at a value that hides its use, such as gamma 1 or bias 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


def diffusers_vae(config: VAEConfig) -> AutoencoderKLQwenImage:
    kwargs = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_diffusers().items() if k[0] != "_"}
    return randomise(AutoencoderKLQwenImage(**kwargs))


def pair(config: VAEConfig, folder: Path) -> tuple[AutoencoderKLQwenImage, RGBAVAE]:
    """The 3-D model with weights in every tap and in time_conv, and ours read from its folder."""
    reference = diffusers_vae(config)
    reference.save_pretrained(folder)
    return reference, RGBAVAE.from_pretrained(folder)


def images(config: VAEConfig, size=(32, 48), batch=2) -> torch.Tensor:
    return torch.rand(batch, config.input_channels, *size) * 2 - 1


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    scale = theirs.abs().max().clamp_min(1e-6)
    assert ((ours - theirs).abs().max() / scale).item() < tolerance


def decode_3d(reference: AutoencoderKLQwenImage, z: torch.Tensor) -> torch.Tensor:
    """What its ``decode`` does before the clamp, which would hide values and gradients."""
    reference.clear_cache()
    z = reference.post_quant_conv(z.unsqueeze(2))
    return reference.decoder(z, feat_cache=reference._feat_map, feat_idx=[0]).squeeze(2)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_equal_diffusers(name, tmp_path):
    reference, ours = pair(CONFIGS[name], tmp_path)
    x = images(CONFIGS[name])
    with torch.no_grad():
        theirs = reference.encode(x.unsqueeze(2)).latent_dist
        posterior = ours.encode(x)
        assert_close(posterior.mean, theirs.mean.squeeze(2))
        assert_close(posterior.logvar, theirs.logvar.squeeze(2))
        z = torch.randn_like(posterior.mean)
        assert_close(ours.decode(z), decode_3d(reference, z))
        assert_close(ours.decode(9 * z, clamp=True), reference.decode(9 * z.unsqueeze(2)).sample.squeeze(2))
        assert_close(ours(x).clamp(-1, 1), reference(x.unsqueeze(2)).sample.squeeze(2))
    assert posterior.mean.shape[-1] * ours.spatial_factor == x.shape[-1]


def test_outputs_equal_diffusers_in_float64(tmp_path):
    reference, ours = pair(CONFIGS["qwen"], tmp_path)
    reference, ours, x = reference.double(), ours.double(), images(CONFIGS["qwen"]).double()
    with torch.no_grad():
        posterior = ours.encode(x)
        theirs = reference.encode(x.unsqueeze(2)).latent_dist.parameters.squeeze(2)
        assert_close(torch.cat([posterior.mean, posterior.logvar], dim=1), theirs, 1e-12)
        # Its upsampling goes through float32.
        assert_close(ours.decode(posterior.mean), decode_3d(reference, posterior.mean), 1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_diffusers(name, tmp_path):
    reference, ours = pair(CONFIGS[name], tmp_path)
    x = images(CONFIGS[name]).requires_grad_()
    x_3d = x.detach().unsqueeze(2).requires_grad_()
    posterior, theirs = ours.encode(x), reference.encode(x_3d).latent_dist
    noise = torch.randn_like(posterior.mean)
    z = posterior.mean + torch.exp(0.5 * posterior.logvar) * noise
    z_3d = (theirs.mean + theirs.std * noise.unsqueeze(2)).squeeze(2)
    (ours.decode(z).square().mean() + 1e-2 * posterior.kl().mean()).backward()
    kl_3d = 0.5 * (theirs.mean.square() + theirs.var - 1 - theirs.logvar).sum(dim=(1, 2, 3, 4))
    (decode_3d(reference, z_3d).square().mean() + 1e-2 * kl_3d.mean()).backward()

    assert_close(x.grad, x_3d.grad.squeeze(2))
    parameters_3d = dict(reference.named_parameters())
    unused = {n for n, p in parameters_3d.items() if p.grad is None}
    assert all(".time_conv." in n for n in unused)
    parameters = dict(ours.named_parameters())
    assert parameters.keys() == parameters_3d.keys() - unused
    for parameter_name, parameter in parameters.items():
        grad = parameters_3d[parameter_name].grad
        if grad.ndim == 5:
            assert grad[:, :, :-1].abs().sum() == 0
            grad = grad[:, :, -1]
        assert_close(parameter.grad, grad.reshape(parameter.shape))


def test_attention_scales_equal_the_encoder_of_diffusers(tmp_path):
    config = replace(CONFIGS["temporal"], attn_scales=(1.0, 0.5))
    reference, ours = pair(config, tmp_path)
    x = images(config, size=(16, 16))
    with torch.no_grad():
        # Its encode() passes a cache that its attention does not take; without one the encoder runs.
        moments = reference.quant_conv(reference.encoder(x.unsqueeze(2))).squeeze(2)
        posterior = ours.encode(x)
    assert_close(torch.cat([posterior.mean, posterior.logvar], dim=1), moments)


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_folder_loads_in_diffusers(name, tmp_path):
    ours = randomise(RGBAVAE(CONFIGS[name]))
    ours.set_latent_statistics([0.5] * ours.config.z_dim, [2.0] * ours.config.z_dim)
    ours.save_pretrained(tmp_path)
    reference, info = AutoencoderKLQwenImage.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    saved = load_file(tmp_path / f"{PREFIX}.safetensors")
    assert {k: t.shape for k, t in saved.items()} == {k: t.shape for k, t in reference.state_dict().items()}
    assert reference.config.latents_std == [2.0] * ours.config.z_dim
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", f"{PREFIX}.safetensors"]
    x = images(ours.config)
    with torch.no_grad():
        assert_close(ours(x).clamp(-1, 1), reference(x.unsqueeze(2)).sample.squeeze(2))

    again = RGBAVAE.from_pretrained(tmp_path)
    assert again.config == ours.config
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in ours.state_dict().items())


def test_sharded_folder_and_subfolder(tmp_path):
    reference = diffusers_vae(TINY)
    reference.save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    assert (tmp_path / "vae" / f"{PREFIX}.safetensors.index.json").is_file()
    ours = RGBAVAE.from_pretrained(tmp_path, subfolder="vae")
    x = images(TINY)
    with torch.no_grad():
        assert_close(ours(x).clamp(-1, 1), reference(x.unsqueeze(2)).sample.squeeze(2))

        # A save over shards must win over the index they leave behind.
        ours.decoder.conv_out.bias.add_(1.0)
        ours.save_pretrained(tmp_path / "vae")
    assert torch.equal(
        RGBAVAE.from_pretrained(tmp_path / "vae").decoder.conv_out.bias, ours.decoder.conv_out.bias.detach()
    )


def test_hub_repository_is_fetched_without_pickles(tmp_path, monkeypatch):
    RGBAVAE(TINY).save_pretrained(tmp_path / "vae")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **kwargs: asked.append((repo, kwargs)) or str(tmp_path)
    )
    assert RGBAVAE.from_pretrained("owner/model", subfolder="vae").config == TINY
    patterns = ["vae/*.json", "vae/*.txt", "vae/*.safetensors"]
    assert asked == [("owner/model", {"allow_patterns": patterns, "local_files_only": False})]

    def offline(repo, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="owner/model: offline"):
        RGBAVAE.from_pretrained("owner/model")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        RGBAVAE.from_pretrained(Path("owner/model"))


def test_config_without_newer_keys_is_the_rgb_model_of_qwen(tmp_path):
    config = VAEConfig(base_dim=8, temperal_downsample=(False, True, True), input_channels=3)
    diffusers_vae(config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for key in ("input_channels", "latents_mean", "latents_std", "temperal_downsample"):
        del stored[key]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    ours = RGBAVAE.from_pretrained(tmp_path)
    assert ours.config.input_channels == 3
    assert ours.config.temperal_downsample == (False, True, True)
    assert ours.config.latents_mean == QWEN_LATENTS_MEAN


def test_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        RGBAVAE.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        RGBAVAE.from_pretrained(tmp_path)

    ours = RGBAVAE(TINY)
    ours.save_pretrained(tmp_path)
    weights = tmp_path / f"{PREFIX}.safetensors"
    state = load_file(weights)
    weights.unlink()
    torch.save(state, tmp_path / f"{PREFIX}.bin")
    with pytest.raises(FileNotFoundError, match="safetensors only"):
        RGBAVAE.from_pretrained(tmp_path)

    save_file({n: t for n, t in state.items() if n != "quant_conv.bias"}, weights)
    with pytest.raises(ValueError, match=r"do not fit.*quant_conv\.bias"):
        RGBAVAE.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="AutoencoderKLQwenImage"):
        RGBAVAE.from_pretrained(tmp_path)

    with pytest.raises(ValueError, match="multiples of 2"):
        ours.encode(torch.zeros(1, 4, 8, 9))
    with pytest.raises(ValueError, match="expected latents"):
        ours.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="temperal_downsample"):
        VAEConfig(dim_mult=(1, 2), temperal_downsample=(False, True))
    with pytest.raises(ValueError, match="latents_mean"):
        ours.set_latent_statistics([0.0], [1.0])


def test_widening_keeps_the_rgb_model(tmp_path):
    rgb = randomise(RGBAVAE(replace(CONFIGS["qwen"], input_channels=3)))
    rgba = widen_to_rgba(rgb, alpha_bias_init=1.0)
    assert (rgb.config.input_channels, rgba.config.input_channels) == (3, 4)
    x = images(rgba.config)
    x[:1, 3] = 1.0
    with torch.no_grad():
        flat, wide = rgb.encode(x[:, :3]), rgba.encode(x)
        assert_close(wide.mean, flat.mean)
        assert_close(wide.logvar, flat.logvar)
        out = rgba.decode(wide.mean)
        assert_close(out[:, :3], rgb.decode(flat.mean))
    assert torch.equal(out[:, 3], torch.ones_like(out[:, 3]))

    rgba.save_pretrained(tmp_path)
    reference = AutoencoderKLQwenImage.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(out.clamp(-1, 1), reference.decode(wide.mean.unsqueeze(2)).sample.squeeze(2))

    copy = widen_to_rgba(rgba)
    assert all(torch.equal(t, copy.state_dict()[n]) for n, t in rgba.state_dict().items())
    assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in rgba.parameters()}
    with pytest.raises(ValueError, match="3 channels"):
        widen_to_rgba(RGBAVAE(replace(TINY, input_channels=1)))


def test_normalise_round_trip():
    ours = RGBAVAE(replace(TINY, latents_mean=(1.0, -2.0, 0.0, 0.5), latents_std=(2.0, 0.5, 1.0, 3.0)))
    z = torch.randn(2, 5, 4, 6, 6)
    assert_close(ours.denormalise(ours.normalise(z)), z)
    assert_close(ours.normalise(z)[:, :, 1], (z[:, :, 1] + 2.0) / 0.5)
    assert not any("latents" in name for name in ours.state_dict())


def test_posterior_against_torch_distributions():
    mean, logvar = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    posterior = DiagonalGaussian(mean, logvar)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert_close(posterior.kl(), expected)
    assert posterior.mode() is mean

    draw = [posterior.sample(torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    clamped = DiagonalGaussian(mean, torch.full_like(mean, 1e3))
    assert clamped.logvar.max() == 20.0
    many = DiagonalGaussian(torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), 2.0).log()).sample()
    assert many.mean().item() == pytest.approx(3.0, abs=0.05)
    assert many.var().item() == pytest.approx(2.0, rel=0.05)


def test_gradient_checkpointing_gives_the_same_gradients():
    ours = randomise(RGBAVAE(CONFIGS["flat"]))
    x = images(ours.config)
    grads = []
    for enabled in (False, True):
        ours.enable_gradient_checkpointing(enabled)
        ours.zero_grad()
        ours(x).square().mean().backward()
        grads.append([p.grad.clone() for p in ours.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for plain, again in zip(*grads, strict=True):
        assert_close(again, plain, 1e-6)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_fused_norm_gradient(layout):
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    gamma = torch.randn(5, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(NormSiLU.apply, (x, gamma))


def test_bfloat16_stays_near_float32():
    ours = randomise(RGBAVAE(TINY))
    x = images(TINY)
    full = ours(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ours(x)
    mixed.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)
    assert_close(mixed.float(), full, 0.1)
    assert_close(ours.bfloat16()(x.bfloat16()).float(), full, 0.1)


def test_init_from_scratch_makes_residual_blocks_their_shortcut():
    ours = RGBAVAE(TINY).init_from_scratch()
    block = ours.encoder.mid_block.resnets[0]
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(block(x), x)
    ours(images(TINY)).square().mean().backward()
    assert block.conv2.weight.grad.abs().sum() > 0
