"""The network at its real size: presets/qwen.yaml, 126.9 million parameters."""

import pytest
import torch

from config.params import load_params
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from tests.support.imports import ROOT
from training.vae.objective import VAEObjective


@pytest.mark.slow
def test_one_training_step_at_256_px():
    """Every term of the preset at once, the discriminator and gradient checkpointing included."""
    settings = load_params(ROOT / "presets" / "qwen.yaml").train_vae
    torch.manual_seed(0)
    vae = RGBAVAE(VAEConfig(settings.base_dim, settings.z_dim, tuple(settings.dim_mult), settings.num_res_blocks))
    assert sum(p.numel() for p in vae.parameters()) == 126_897_716 - temporal_parameters(vae)
    vae.enable_gradient_checkpointing(settings.gradient_checkpointing)
    objective = VAEObjective(vae, settings)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-5)
    batch = {name: torch.rand(1, 4, 256, 256) * 2 - 1 for name in ("component", "composite")}
    before = vae.decoder.conv_out.weight.detach().clone()
    terms = objective({**batch, "seen": settings.discriminator.start_samples})
    assert {"abmse", "lpips", "kl", "gan", "discriminator"} <= set(terms)
    assert all(value.isfinite() for value in terms.values())
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    optimizer.step()
    assert not torch.equal(before, vae.decoder.conv_out.weight)


def temporal_parameters(vae: RGBAVAE) -> int:
    """What diffusers' network has beside ours: two temporal taps of three, and time_conv of four resamplings."""
    from models.vae.blocks import FrameConv

    taps = sum(2 * m.weight.numel() for m in vae.modules() if isinstance(m, FrameConv) and m.kernel_size[0] == 3)
    # Encoder: 192 and 384 channels to themselves; decoder: 384 to 768, twice; each with 3 taps and a bias.
    time_conv = sum(3 * c * c + c for c in (192, 384)) + 2 * (3 * 384 * 768 + 768)
    return taps + time_conv
