"""Memory estimate of a training step of the transformer on one GPU, from its shapes alone.

Activations are the tensors that a block of diffusers 0.42.1 saves for the backward pass, one by one. Attention is a
fused kernel (flash), so nothing grows with the square of the tokens. The peak holds gradients and activations together,
as with gradient checkpointing and accumulation; without either it is an upper bound.
tests/training/memory/test_estimate.py compares with the tensors that torch saves. The VAE, and its activations in a
loss on images, are not included.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from config.errors import UserError
from models.transformer.lora import TARGETS, target_modules
from models.transformer.vld_mmdit import build_transformer

# Bytes per trained parameter: weight, gradient, AdamW's two moments, EMA. training.engine.loop uses the first entry; in
# pure bfloat16 all are bfloat16, because torch takes the dtype of the weight.
TRAINED = {"float32": (4, 4, 8, 4), "bfloat16+master": (6, 2, 8, 4), "bfloat16": (2, 2, 4, 2)}

# Per stream: modulation; query, key, value; output of attention; first and second layer of the MLP.
STREAMS = (
    ("img_mod.1", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_out.0", "img_mlp.net.0.proj", "img_mlp.net.2"),
    (
        "txt_mod.1",
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.to_add_out",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    ),
)


class PlanError(UserError, ValueError):
    """Memory cannot be planned; the message says what was given and what was expected."""


@dataclass(frozen=True)
class Outline:
    """Sizes of a transformer on which memory depends.

    Attributes:
        parameters: number of all parameters.
        block_parameters: parameters of one block.
        lora_width: parameters of a LoRA of rank 1.
        lora_layers: names of the layers in a block that LoRA adapts.
        blocks: number of blocks.
        heads: attention heads.
        head_dim: channels of a head; the width is ``heads * head_dim``.
        in_channels: channels of an image token.
        text_width: channels of a text token.
        patch_size: latents per token side.
    """

    parameters: int
    block_parameters: int
    lora_width: int
    lora_layers: frozenset[str]
    blocks: int
    heads: int
    head_dim: int
    in_channels: int
    text_width: int
    patch_size: int

    @property
    def width(self) -> int:
        """Channels of a token inside the network."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Setup:
    """Training configuration that determines memory.

    Attributes:
        lora_rank: 0 trains every weight.
        weights: a key of ``TRAINED``; with LoRA the dtype of the frozen weights, adapters being float32.
        gradient_checkpointing: blocks save only their inputs and are recomputed.
        gpus: number of processes, one per GPU.
        fsdp: FSDP2 shards weights, gradients, moments and EMA over the GPUs; otherwise each has all (DDP).
    """

    lora_rank: int = 0
    weights: str = "float32"
    gradient_checkpointing: bool = False
    gpus: int = 1
    fsdp: bool = False

    def __str__(self) -> str:
        what = f"LoRA rank {self.lora_rank}, {self.weights} base" if self.lora_rank else f"full, {self.weights}"
        where = f", {'FSDP2' if self.fsdp else 'DDP'} over {self.gpus}" if self.gpus > 1 else ""
        return what + (", checkpointing" if self.gradient_checkpointing else "") + where


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. AdamW and the EMA update tensors in place, so they need no further memory."""

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int

    @property
    def trained(self) -> int:
        """Bytes beside the trained weights; in validation a copy of the weights takes the gradients' place."""
        return self.gradients + self.moments + self.average

    @property
    def peak(self) -> int:
        """Peak bytes."""
        return self.weights + self.trained + self.activations


def meta_transformer(**shape) -> QwenImageTransformer2DModel:
    """Build a transformer on the meta device, without memory; takes the arguments of ``build_transformer``."""
    with torch.device("meta"):
        return build_transformer(**shape)


def outline(transformer: nn.Module, targets: Collection[str] = TARGETS) -> Outline:
    """Measure the sizes of a transformer, real or on the meta device; ``targets`` are those of LoRA.

    Raises:
        LoRAError: if a target names no linear layer.
    """
    adapted, config = target_modules(transformer, tuple(targets)), transformer.config
    return Outline(
        parameters=sum(p.numel() for p in transformer.parameters()),
        block_parameters=sum(p.numel() for p in transformer.transformer_blocks[0].parameters()),
        lora_width=sum(layer.in_features + layer.out_features for layer in adapted.values()),
        lora_layers=frozenset(name.split(".", 2)[-1] for name in adapted if name.startswith("transformer_blocks.")),
        blocks=config.num_layers,
        heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        in_channels=config.in_channels,
        text_width=config.joint_attention_dim,
        patch_size=config.patch_size,
    )


def _widths(setup: Setup, autocast: bool) -> tuple[int, int, int]:
    """Bytes of a weight, of a number in linear layers and attention, and of a number in layer norms."""
    weight = 4 if setup.weights == "float32" else 2
    return (weight, 2, 4) if autocast else (weight, weight, weight)


def block_bytes(net: Outline, image: int, text: int, batch: int, setup: Setup, *, autocast: bool = True) -> int:
    """Bytes that one block saves for the backward pass.

    Args:
        net: the transformer.
        image: image tokens of a sample, noisy and condition.
        text: text tokens of a sample.
        batch: batch size of a process.
        setup: its LoRA and dtype are used.
        autocast: whether the networks autocast to bfloat16 on a GPU; else everything has the dtype of the weights.
    """
    lora, (weight, low, high) = setup.lora_rank > 0, _widths(setup, autocast)
    total = 18 * batch * net.width * low  # modulations, one per sample
    for tokens, (modulation, projections, out, up, down) in zip((image, text), STREAMS, strict=True):
        keeps = {name: not lora or name in net.lora_layers for name in (modulation, *projections, out, up, down)}
        inputs = sum(keeps[name] for name in projections)
        recast = batch > 1 or (autocast and (lora or weight == 4))
        kept = 2 * high  # inputs of both layer norms
        kept += keeps[modulation] * 2 * (high + low)  # factors of scales and gates
        kept += (inputs if autocast else min(inputs, 1)) * low  # under autocast each projection casts for itself
        kept += 2 * (low + (low == 2) * 4)  # query and key before their norm, and in float32 for it
        kept += (not lora) * 2 * weight  # and after the norm, for its weights
        kept += (4 + (keeps[out] and recast)) * low  # attention: query, key, value, output
        kept += (keeps[up] + 4 + 4 * keeps[down]) * low  # MLP: input, and four times as wide before and after GELU
        adapters = setup.lora_rank * low * (sum(keeps.values()) - keeps[modulation])
        # Float32: mean and deviation of two layer norms, norms of query and key, log-sum-exp of attention.
        statistics = 4 * (4 + 3 * net.heads)
        total += batch * tokens * (kept * net.width + adapters + statistics)
    return total


def activation_bytes(net: Outline, image: int, text: int, batch: int, setup: Setup, *, autocast: bool = True) -> int:
    """Bytes that the network saves for the backward pass; arguments of :func:`block_bytes`."""
    weight, low, high = _widths(setup, autocast)
    if setup.gradient_checkpointing:
        block = batch * (image + text) * net.width * low  # its inputs
    else:
        block = block_bytes(net, image, text, batch, setup, autocast=autocast)
    ends = image * high * net.width  # input of the last layer norm
    if not setup.lora_rank:
        ends += image * ((high + low) * net.width + net.in_channels * low) + text * net.text_width * (weight + low)
    rotations = 4 * net.head_dim * (image + 4096)
    return net.blocks * block + batch * ends + rotations


def estimate(net: Outline, image: int, text: int, batch: int, setup: Setup, *, autocast: bool = True) -> Memory:
    """Memory of a training step with AdamW and EMA; arguments of :func:`block_bytes`.

    Raises:
        PlanError: for unknown dtypes.
    """
    lora, shards = setup.lora_rank > 0, setup.gpus if setup.fsdp else 1
    if setup.weights not in TRAINED or (lora and setup.weights == "bfloat16+master"):
        raise PlanError(f"weights {setup.weights!r}: expected one of {list(TRAINED)}, with LoRA float32 or bfloat16")
    base, _, high = _widths(setup, autocast)
    count = setup.lora_rank * net.lora_width if lora else net.parameters
    weights, gradients, moments, average = (n * count for n in TRAINED["float32" if lora else setup.weights])
    held = activation_bytes(net, image, text, batch, setup, autocast=autocast)
    if setup.gradient_checkpointing:
        held += block_bytes(net, image, text, batch, setup, autocast=autocast)
    # By torch's memory tracker (see the tests): gradients inside a block, six times the width of a token. Or, if
    # larger, a block's temporary tensors during computation; with LoRA four times the width in float32.
    held += (9 if lora and autocast else 6) * batch * (image + text) * net.width * high
    if setup.fsdp:
        # The current block and the next one, gathered in bfloat16, and float32 gradients before they are scattered.
        held += net.block_parameters * (2 * 2 + 4 * (not lora))
    elif autocast and base == 4:
        # bfloat16 copies of weights: without checkpointing all are saved for the backward pass.
        held += 2 * (net.block_parameters if setup.gradient_checkpointing else net.parameters)
    return Memory(
        weights=(weights + lora * base * net.parameters) // shards,
        # DDP's communication buckets hold gradients a second time.
        gradients=gradients * (2 if setup.gpus > shards else 1) // shards,
        moments=moments // shards,
        average=average // shards,
        activations=held,
    )
