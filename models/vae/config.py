"""Configuration of the RGBA-VAE, in the fields of diffusers' AutoencoderKLQwenImage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

CLASS_NAME = "AutoencoderKLQwenImage"


# fmt: off
QWEN_LATENTS_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                     0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)


QWEN_LATENTS_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the network; the names, including a misspelt one, are those of the diffusers config.

    Attributes:
        base_dim: width, multiplied by one factor of ``dim_mult`` per resolution; each next one halves H and W.
        num_res_blocks: residual blocks per resolution of the encoder; the decoder has one more.
        attn_scales: encoder scales (1.0, 0.5, ...) with attention. No released model has any, and diffusers cannot
            run its own encoder with them through ``encode``.
        temperal_downsample: one flag per halving; used by the 3-D form on disk, not by single frames. None: all False.
        input_channels: 4 for RGBA, 3 for the RGB model to be widened.
        latents_mean: mean per latent channel; None means 0. ``latents_std`` likewise, None means 1.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] | None = None
    input_channels: int = 4
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        halvings = len(self.dim_mult) - 1
        defaults = {"temperal_downsample": [False] * halvings, "latents_mean": [0.0] * self.z_dim}
        defaults["latents_std"] = [1.0] * self.z_dim
        for name in ("dim_mult", "attn_scales", *defaults):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(defaults[name] if value is None else value))
        if len(self.temperal_downsample) != halvings:
            raise ValueError(f"temperal_downsample: {len(self.temperal_downsample)} flags, dim_mult needs {halvings}")
        fits = len(self.latents_mean) == len(self.latents_std) == self.z_dim
        if not fits or not all(std > 0 for std in self.latents_std):
            raise ValueError(f"latents_mean and latents_std must be z_dim = {self.z_dim} numbers, std above 0")

    @classmethod
    def from_diffusers(cls, config: Mapping) -> VAEConfig:
        """Read a diffusers ``config.json``; missing keys take the defaults of diffusers, not those of this class.

        Raises:
            ValueError: for another class, or for dropout, which this network lacks and no released model uses.
        """
        if config.get("_class_name", CLASS_NAME) != CLASS_NAME:
            raise ValueError(f"expected a config of {CLASS_NAME}, got one of {config['_class_name']}")
        if config.get("dropout"):
            raise ValueError(f"expected dropout 0, got {config['dropout']}")
        silent = {"temperal_downsample": (False, True, True), "input_channels": 3}
        silent |= {"latents_mean": QWEN_LATENTS_MEAN, "latents_std": QWEN_LATENTS_STD}
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in {**silent, **config}.items() if key in known})

    def to_diffusers(self) -> dict:
        """Return the content of ``config.json`` for ``diffusers.AutoencoderKLQwenImage``."""
        return {"_class_name": CLASS_NAME, **asdict(self), "dropout": 0.0}
