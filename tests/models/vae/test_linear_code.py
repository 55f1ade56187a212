"""The linear start: an exact patch code where the network is linear, and room checked where it is not."""

import pytest
import torch
import torch.nn.functional as F

from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from models.vae.linear_code import init_as_linear_code, lack_of_room, patch_axes

SHAPES = {
    "default": VAEConfig(base_dim=16, z_dim=16, dim_mult=(1, 2, 4)),
    "qwen": VAEConfig(base_dim=32, z_dim=16, dim_mult=(1, 2, 4, 4), num_res_blocks=1),
    "smoke": VAEConfig(base_dim=16, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1),
}


def smooth(count=6, size=64):
    torch.manual_seed(0)
    coarse = torch.rand(count, 4, 5, 5) * 2 - 1
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True).clamp(-1, 1)


def patches(images, levels):
    for _ in range(levels):
        images = F.pixel_unshuffle(images, 2)
    return images


def started(config):
    torch.manual_seed(0)
    levels = len(config.dim_mult) - 1
    assert lack_of_room(config.base_dim, config.z_dim, config.dim_mult) is None
    axes = patch_axes([smooth()], levels, config.z_dim)
    return init_as_linear_code(RGBAVAE(config), axes), axes, levels


def test_axes_span_the_principal_components():
    images = torch.rand(4, 4, 16, 16) * 2 - 1
    images = images.cumsum(-1) / 4
    axes = patch_axes([images[:2], images[2:]], 1, 5)
    rows = patches(images, 1).movedim(1, -1).reshape(-1, 16)
    _, _, vectors = torch.linalg.svd(rows, full_matrices=False)
    span = vectors[:5].T @ vectors[:5]
    assert torch.allclose(axes @ torch.linalg.pinv(axes), span, atol=1e-4)
    gram = axes.T @ axes
    assert torch.allclose(gram, gram[0, 0] * torch.eye(5), atol=1e-4 * float(gram[0, 0]))
    code = rows @ torch.linalg.pinv(axes).T
    assert code.square().mean().item() == pytest.approx(1.0, rel=1e-4)
    strongest = (axes.T @ vectors[0]).abs()
    assert torch.allclose(strongest, strongest.mean().expand(5), rtol=1e-3), "every channel has its share"


@pytest.mark.parametrize("name", SHAPES)
def test_the_encoder_is_the_code(name):
    vae, axes, levels = started(SHAPES[name])
    # Faint images, where the constants alone decide the norm.
    images = smooth() * 0.02
    with torch.no_grad():
        code = vae.encode(images).mean
    expected = torch.einsum("kc,bchw->bkhw", torch.linalg.pinv(axes), patches(images, levels))
    assert (code - expected).abs().max() < 5e-3 * expected.abs().max()


@pytest.mark.parametrize("name", SHAPES)
def test_the_start_reconstructs(name):
    vae, _, _ = started(SHAPES[name])
    images = smooth()
    with torch.no_grad():
        out = vae(images)
    # The rim lacks neighbours, and steps at the border of patches stay until the fit.
    inside = (..., slice(8, -8), slice(8, -8))
    error = (out - images)[inside].square().mean() / images[inside].square().mean()
    assert error < {"default": 0.03, "qwen": 0.1, "smoke": 0.1}[name]
    untrained = RGBAVAE(SHAPES[name]).init_from_scratch()
    with torch.no_grad():
        assert (untrained(images) - images)[inside].square().mean() / images[inside].square().mean() > 0.5


def test_branches_are_silent_at_the_start_and_can_be_left_out():
    vae, _, _ = started(SHAPES["default"])
    images = smooth(2)
    with torch.no_grad():
        full = vae(images)
        vae.enable_residual_branches(False)
        assert torch.equal(vae(images), full)
        vae.enable_residual_branches()
        torch.nn.init.normal_(vae.decoder.mid_block.resnets[0].conv2.weight, std=0.1)
        assert not torch.allclose(vae(images), full)


def test_all_branches_get_gradients():
    vae, _, _ = started(SHAPES["smoke"])
    vae(smooth(2)).square().mean().backward()
    for name, parameter in vae.named_parameters():
        if name.endswith(("conv2.weight", "proj.weight")):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((8, 16, (1, 2, 4)), "level 0 has 8 channels, the code needs 9"),
        ((16, 40, (1, 2, 4)), "the last level has 64 channels, the code needs 81"),
        ((16, 20, (1, 2, 4)), "the last strided convolution has 32 channels, the code needs 40"),
        ((12, 4, (1, 2, 2)), "level 1 has 12 channels, the code needs 16"),
        ((64, 17, (1, 1)), "a patch has 16 channels, the code needs 17"),
    ],
)
def test_widths_without_room(shape, reason):
    assert lack_of_room(*shape) == reason
