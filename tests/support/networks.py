"""Networks of a few thousand random weights."""

from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from config.decompose import TextCondition
from models.transformer.text_condition import save_text_condition
from models.transformer.trained_for import TrainedFor, save_trained_for
from models.transformer.vld_mmdit import VLDMMDiT, build_transformer
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig


def tiny_vae(**shape) -> RGBAVAE:
    torch.manual_seed(0)
    return RGBAVAE(VAEConfig(base_dim=8, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, **shape)).eval()


def tiny_transformer(**shape) -> QwenImageTransformer2DModel:
    """Two heads of 16 over four latent channels; ``shape`` are arguments of ``build_transformer`` that differ."""
    tiny = {
        "latent_channels": 4,
        "patch_size": 2,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 8,
    }
    torch.manual_seed(0)
    return build_transformer(**tiny | shape)


def tiny_network(**shape) -> VLDMMDiT:
    """A network around :func:`tiny_transformer`."""
    return VLDMMDiT(tiny_transformer(**shape)).eval()


def save_tiny(folder: Path, seed: int = 1, text: bool = False) -> Path:
    """A model of a few thousand random weights, in the layout that the stages write; with text it reads captions."""
    vae, network = tiny_vae(), tiny_network(joint_attention_dim=384 if text else 8)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network.save_pretrained(folder)
    vae.save_pretrained(folder / "vae")
    if text:
        save_text_condition(TextCondition(encoder="minilm", source=None, max_tokens=16, dropout=0.5), folder)
    save_trained_for(TrainedFor(min_side=32, max_side=96, max_pixels=6144, surplus_layers=3), folder)
    return folder
