"""Networks of a few thousand random weights."""

import torch

from models.rgba_vae import RGBAVAE, VAEConfig
from models.vld_mmdit import VLDMMDiT, build_transformer


def tiny_vae() -> RGBAVAE:
    torch.manual_seed(0)
    return RGBAVAE(VAEConfig(base_dim=8, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1)).eval()


def tiny_network(num_layers: int = 1) -> VLDMMDiT:
    torch.manual_seed(0)
    transformer = build_transformer(
        latent_channels=4,
        patch_size=2,
        num_layers=num_layers,
        num_attention_heads=2,
        attention_head_dim=16,
        axes_dims_rope=(4, 6, 6),
        joint_attention_dim=8,
    )
    return VLDMMDiT(transformer).eval()
