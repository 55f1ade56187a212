"""Working memory of the stages' calls in bytes, without the networks, probed with the stages' own code.

Every function simulates (training.memory.probe), so it takes a few seconds and no memory. Keys are (H, W, L) in pixels
and layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from config.decompose import AlignmentLoss
from config.vae import TrainVAE
from inference.consensus import most_agreed
from metrics.reconstruction.rgba import reconstruction_metrics
from models.transformer.lora import add_lora
from models.transformer.sampling import Guidance, decompose_latents
from models.transformer.vld_mmdit import VLDMMDiT, build_transformer
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from models.vae.latents import STACKS_AT_ONCE, at_once, decode_layers, encode_stack, stacks_at_once
from models.vae.opaque import as_rgba
from training.decompose.pixel_terms import PixelTerms
from training.memory.probe import Meter, PretendedDistance, pretended
from training.vae.objective import VAEObjective
from training.vae.validation import STACKS_AT_ONCE as VALIDATED_AT_ONCE
from training.vae.validation import measure_stacks

Key = tuple[int, int, int]


class Work(NamedTuple):
    """Bytes: ``peak`` of the computation; ``kept`` from the forward pass for the backward pass."""

    peak: int
    kept: int = 0


class Decoding(NamedTuple):
    """Parameters of decoding and comparing predicted images.

    Attributes:
        weights: weights of the loss terms by name.
        alignment: parameters of the alignment loss.
        scale: factor by which latents are resized.
        compute: dtype of the VAE's computation; ``None`` for float32.
        checkpointing: gradient checkpointing of the VAE.
    """

    weights: Mapping[str, float]
    alignment: AlignmentLoss
    scale: float
    compute: torch.dtype | None
    checkpointing: bool


def vae_config(settings: TrainVAE) -> VAEConfig:
    """Configuration of the VAE that ``train_vae`` trains."""
    shape = settings.model_dump(include={"base_dim", "z_dim", "num_res_blocks"})
    return VAEConfig(dim_mult=tuple(settings.dim_mult), input_channels=settings.channels, **shape)


@cache
def encoding(config: VAEConfig, key: Key) -> int:
    """Bytes to encode the stacks that go to the cache of latents together, in float32."""
    stacks = stacks_at_once(key, STACKS_AT_ONCE)
    with _quietly_pretended():
        vae = _vae(config)

        def encode() -> Tensor:
            layers = _images(stacks * key[2], key).unflatten(0, (stacks, key[2]))
            return encode_stack(vae, _images(stacks, key), layers)

        return _without_gradient(encode)


@cache
def decoding(config: VAEConfig, key: Key, stacks: int, compute: torch.dtype | None = None) -> int:
    """Bytes to decode the layers of stacks that are sampled together, and to choose among candidates."""
    with _quietly_pretended():
        vae = _vae(config, compute)

        def decode() -> Tensor:
            images, latents = _images(stacks, key), _latents(config, key, stacks)
            return most_agreed(torch.stack([decode_layers(vae, latents[:, 1:])]), images)

        return _without_gradient(decode)


def vae_step(settings: TrainVAE, key: Key, compute: torch.dtype | None, checkpointing: bool) -> int:
    """Bytes of a step of ``train_vae`` with all loss terms, including gradients."""
    with _quietly_pretended():
        objective = VAEObjective(as_rgba(_vae(vae_config(settings), compute, checkpointing)), settings)
        with Meter(objective) as meter:
            held = meter.now
            images = {name: _images(settings.optimisation.batch_size, key) for name in ("component", "composite")}
            objective({**images, "seen": settings.discriminator.start_samples})["loss"].backward()
    return meter.peak - held


def vae_validation(config: VAEConfig, key: Key) -> int:
    """Bytes to reconstruct and measure the images that ``train_vae`` validates together, in float32 as at its end."""
    stacks = stacks_at_once(key, VALIDATED_AT_ONCE)
    # The other images stay in main memory.
    return _judging(config, key[:2], min(stacks * (key[2] + 1), at_once(key[0] * key[1])))


@cache
def _judging(config: VAEConfig, size: tuple[int, int], count: int) -> int:
    with _quietly_pretended():
        network, distance = as_rgba(_vae(config)), PretendedDistance()
        stack = {"composite": _images(1, size)[0], "layers": _images(count - 1, size)}
        return _without_gradient(lambda: measure_stacks(network, {0: stack}, [0], distance))


def scoring(key: Key) -> int:
    """Bytes to measure, over nine backgrounds, the layers of a sample that ``evaluate`` compares together."""
    return _comparing(key[:2], min(key[2], at_once(key[0] * key[1])))


@cache
def _comparing(size: tuple[int, int], count: int) -> int:
    with _quietly_pretended():
        distance = PretendedDistance()

        def compare() -> list[dict[str, float]]:
            return reconstruction_metrics(_images(count, size), _images(count, size), distance=distance)

        return _without_gradient(compare)


def pixel_terms(config: VAEConfig, how: Decoding, key: Key, stacks: int = 1, gradient: bool = True) -> Work:
    """Bytes of the pixel loss terms of ``stacks`` stacks: in a step, or without gradient in validation."""
    aligned = how.weights.get("alignment", 0.0) > 0.0
    # The alignment is thousands of small operations of known memory: it is left out and another term decodes.
    weights = {**how.weights, "alignment": 0.0} | ({"layer_pixels": 1.0} if aligned else {})
    with _quietly_pretended():
        vae = _vae(config, how.compute, how.checkpointing)
        terms = PixelTerms(vae, weights, how.alignment, decode_scale=how.scale, trust=1.0, distance=PretendedDistance())
        if not terms.names:
            return Work(0)
        clean, estimate = _latents(config, key, stacks), _latents(config, key, stacks).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient), Meter() as meter:
            found = sum(terms(estimate, clean, torch.rand(stacks)).values())
            kept = meter.now
            if gradient:
                found.backward()
    pixels = stacks * key[0] * key[1] * key[2] * how.scale**2
    extra = alignment_bytes(pixels, how.alignment.max_merges) if aligned else 0
    return Work(meter.peak + extra, kept + extra)


def alignment_bytes(pixels: float, merges: int) -> int:
    """Bytes that the alignment loss keeps for stacks of ``pixels``: both in [0, 1], and again after each merge."""
    return round(pixels * 16 * (2 + 3 * merges))


def sampling(
    shape: Mapping[str, Any],
    key: Key,
    stacks: int,
    *,
    text_tokens: int,
    dtype: torch.dtype,
    autocast: bool,
    lora_rank: int = 0,
) -> int:
    """Bytes of network passes without gradient, with and without the caption; independent of the number of blocks.

    Args:
        shape: arguments of :func:`models.transformer.vld_mmdit.build_transformer`, and ``spatial_factor`` of the VAE.
        key: size and layers of the stacks.
        stacks: stacks that are sampled together.
        text_tokens: tokens of a caption.
        dtype: dtype of the weights.
        autocast: whether it computes in bfloat16, whatever the dtype of its weights.
        lora_rank: rank of the adapters; 0 for none.
    """
    built = {name: value for name, value in shape.items() if name != "spatial_factor"}
    with _quietly_pretended():
        torch.set_default_dtype(dtype)
        try:
            network = VLDMMDiT(build_transformer(**built | {"num_layers": 1})).requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        network.compute_dtype = torch.bfloat16 if autocast else None
        if lora_rank:
            add_lora(network.transformer, lora_rank)
        text = torch.randn(stacks, text_tokens, built["joint_attention_dim"]), None
        size = [side // shape["spatial_factor"] for side in key[:2]]
        condition = torch.randn(stacks, built["latent_channels"], *size)
        noise = torch.randn(stacks, key[2] + 1, *condition.shape[1:])
        how = {"steps": 1, "shift": 1.0, "text": text, "guidance": Guidance(2.0, text)}
        return _without_gradient(lambda: decompose_latents(network, condition, noise, **how))


@contextmanager
def _quietly_pretended() -> Iterator[None]:
    with pretended(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips loads its backbones from torchvision with deprecated arguments
        yield


def _vae(config: VAEConfig, compute: torch.dtype | None = None, checkpointing: bool = False) -> RGBAVAE:
    vae = RGBAVAE(config).eval()
    vae.enable_gradient_checkpointing(checkpointing)
    vae.compute_dtype = compute
    return vae


def _images(count: int, size: Sequence[int]) -> Tensor:
    return torch.randn(count, 4, *size[:2])


def _latents(config: VAEConfig, key: Key, stacks: int) -> Tensor:
    factor = 2 ** (len(config.dim_mult) - 1)
    return torch.randn(stacks, key[2] + 1, config.z_dim, key[0] // factor, key[1] // factor)


@torch.no_grad()
def _without_gradient(call: Callable[[], Any]) -> int:
    with Meter() as meter:
        call()
    return meter.peak
