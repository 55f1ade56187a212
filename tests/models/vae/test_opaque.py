import pytest
import torch
import torch.nn.functional as F

from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from models.vae.linear_code import init_as_linear_code, lack_of_room, patch_axes
from models.vae.opaque import OpaqueVAE, as_rgba
from tests.support.networks import tiny_vae

SHAPE = {"base_dim": 8, "z_dim": 4, "dim_mult": (1, 2, 2), "num_res_blocks": 1, "input_channels": 3}


@pytest.fixture
def rgb():
    torch.manual_seed(0)
    return RGBAVAE(VAEConfig(**SHAPE)).eval()


def test_colours_are_those_of_the_network_and_alpha_is_one(rgb):
    images = torch.rand(2, 4, 16, 24) * 2 - 1
    painted = as_rgba(rgb)(images)
    assert torch.equal(painted[:, :3], rgb(images[:, :3])) and torch.equal(painted[:, 3], torch.ones(2, 16, 24))
    see_through = images.clone()
    see_through[:, 3] = -1.0
    assert torch.equal(as_rgba(rgb)(see_through), painted), "alpha is not looked at"


def test_decoding_can_be_cut_to_the_range(rgb):
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        rgb.decoder.conv_out.weight.mul_(100.0)
    assert as_rgba(rgb).decode(latents, clamp=True).abs().max() <= 1.0 < as_rgba(rgb).decode(latents).abs().max()


def test_a_network_with_alpha_is_taken_as_it_is(rgb):
    vae = tiny_vae()
    assert as_rgba(vae) is vae and isinstance(as_rgba(rgb), OpaqueVAE)


def test_three_channels_start_as_a_linear_code_too():
    """Its encoder is the code of patches of 4x4 pixels of RGB."""
    config = VAEConfig(**SHAPE | {"base_dim": 16, "z_dim": 16, "dim_mult": (1, 2, 4)})
    assert lack_of_room(config.base_dim, config.z_dim, config.dim_mult, 3) is None
    assert lack_of_room(7, 16, (1, 5, 10), 3) is None and lack_of_room(7, 16, (1, 5, 10), 4) is not None
    ramp = torch.linspace(-0.8, 0.8, 32)
    torch.manual_seed(0)
    directions, offsets = torch.rand(8, 3, 2) - 0.5, torch.rand(8, 3, 1, 1) * 0.4
    images = directions[:, :, :1, None] * ramp[:, None] + directions[:, :, 1:, None] * ramp + offsets
    axes = patch_axes([images], 2, 16, 3)
    vae = init_as_linear_code(RGBAVAE(config), axes)
    # Faint images, where the constants alone decide the norm.
    faint = images * 0.02
    patches = F.pixel_unshuffle(F.pixel_unshuffle(faint, 2), 2)
    expected = torch.einsum("kc,bchw->bkhw", torch.linalg.pinv(axes), patches)
    with torch.no_grad():
        assert (vae.encode(faint).mean - expected).abs().max() < 5e-3 * expected.abs().max()
