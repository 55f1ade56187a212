"""Network sizes of a model (transformer, VAE, text encoder) on which memory depends, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config.params import Params
from layers.weight_files import read_json
from models.diffusers_folder import CONFIG_FILE
from models.transformer.text_condition import read_text_condition
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from training.decompose.build import SHAPE
from training.memory.estimate import Outline, PlanError, meta_transformer, outline
from training.memory.work import Key, sampling, vae_config

# Shape of the transformer of Qwen/Qwen-Image-Layered.
RELEASED = {
    "latent_channels": 16,
    "patch_size": 2,
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "joint_attention_dim": 3584,
}
RELEASED_TOKENS = 512


class TextSize(NamedTuple):
    """Parameters of a text encoder, of one block, of the rest; peak count of numbers per token."""

    parameters: int
    block: int
    rest: int
    token: int


# MiniLM-L6, and the language model of Qwen2.5-VL-7B. Per token: products of an MLP, and some hidden states.
TEXTS = {
    "none": TextSize(0, 0, 0, 0),
    "minilm": TextSize(22_713_216, 1_774_464, 12_066_432, 2 * 1536 + 4 * 384),
    "qwen": TextSize(7_070_619_136, 233_057_792, 545_000_960, 3 * 18944 + 4 * 3584),
}


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks of a model.

    Attributes:
        shape: arguments of :func:`models.transformer.vld_mmdit.build_transformer`.
        vae: shape of the VAE.
        text: kind of the text encoder.
        text_tokens: tokens of a caption; a network without text sees one.
    """

    shape: Mapping[str, Any]
    vae: VAEConfig
    text: str
    text_tokens: int

    @cached_property
    def net(self) -> Outline:
        """Sizes of the transformer."""
        return outline(meta_transformer(**self.shape))

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.vae.dim_mult) - 1)

    @cached_property
    def vae_bytes(self) -> int:
        """Bytes of the VAE, which is always in float32."""
        with torch.device("meta"):
            return 4 * sum(p.numel() for p in RGBAVAE(self.vae).parameters())

    @property
    def text_size(self) -> TextSize:
        """Size of the text encoder."""
        return TEXTS[self.text]

    def text_work(self, texts: int, width: int) -> int:
        """Bytes that ``texts`` captions take in the text encoder, with ``width`` bytes per number."""
        return texts * self.text_tokens * self.text_size.token * width

    def tokens(self, key: Key) -> int:
        """Image tokens of a sample of L layers: ``(L + 2) (H / f / p) (W / f / p)``, composite and condition included.

        Raises:
            PlanError: if H or W is no multiple of ``f p``, or L is below 1.
        """
        height, width, layers = key
        side = self.spatial_factor * self.net.patch_size
        if height % side or width % side or layers < 1:
            raise PlanError(f"bucket {height}x{width} of {layers} layers: expected multiples of {side} px, >= 1 layer")
        return (layers + 2) * (height // side) * (width // side)

    def sampling(self, key: Key, stacks: int, dtype: torch.dtype, autocast: bool, lora_rank: int = 0) -> int:
        """See :func:`training.memory.work.sampling`."""
        shape = {**self.shape, "spatial_factor": self.spatial_factor}
        return sampling(
            shape, key, stacks, text_tokens=self.text_tokens, dtype=dtype, autocast=autocast, lora_rank=lora_rank
        )


def networks_of(params: Params) -> Networks:
    """Networks that the parameters train."""
    settings = params.train_decompose
    tokens = 1 if settings.text.encoder == "none" else settings.text.max_tokens
    shape = settings.model_dump(include=set(SHAPE)) | {"latent_channels": params.train_vae.z_dim}
    vae = replace(vae_config(params.train_vae), input_channels=4)  # a VAE of three channels is trained on its own
    return Networks(shape, vae, settings.text.encoder, tokens)


def networks_in(folder: Path) -> Networks:
    """Networks of a model folder, from its ``config.json`` files.

    Raises:
        FileNotFoundError: if one of them is missing.
        PlanError: if one of them describes another kind of network.
        WeightsFileError: if one is not a config.
    """
    found = {}
    for part in ("transformer", "vae"):
        path = folder / part / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; expected a model folder")
        found[part] = read_json(path)
    try:
        transformer = found["transformer"]
        shape = {name: transformer[name] for name in SHAPE} | {"latent_channels": transformer["out_channels"]}
        vae = VAEConfig.from_diffusers(found["vae"])
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"{folder}: no configs of a transformer and a VAE in it ({error})") from None
    text = read_text_condition(folder)
    return Networks(shape, vae, text.encoder, 1 if text.encoder == "none" else text.max_tokens)


def released() -> Networks:
    """Networks of Qwen/Qwen-Image-Layered."""
    return Networks(RELEASED, VAEConfig(), "qwen", RELEASED_TOKENS)
