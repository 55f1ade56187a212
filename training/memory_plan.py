"""What training will take before it starts: parameters, tokens of each bucket, memory, and what to switch on.

    python -m stages.train_decompose --plan

Estimates are those of training.memory, for the bucket with the most tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from training.memory import Memory, Outline, PlanError, Setup, estimate

GIB = 2**30
# Assumed, not measured: CUDA context, workspaces, fragments, the VAE that draws previews.
RESERVE = 2 * GIB
# (GPUs, GiB of each)
BUDGETS = ((1, 24), (1, 48), (1, 80), (8, 80))
DEFAULT_RANK = 32
SMALLEST_RANK = 4
SHOWN_BUCKETS = 12


@dataclass(frozen=True)
class Bucket:
    """Tokens of a sample: ``key`` is (H, W, L) in pixels and layers."""

    key: tuple[int, int, int]
    image_tokens: int
    text_tokens: int

    @property
    def tokens(self) -> int:
        """What attention sees."""
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True)
class Recommendation:
    """What to switch on with ``gpus`` of ``gib`` GiB.

    Attributes:
        gpus: how many.
        gib: memory of each.
        setup: the first that fits, ``None`` if none does.
        tokens: image tokens of a sample up to which it fits; of the smallest setup where none does.
        enough_gpus: where none fits, how many of these GPUs would do; ``None`` if not even 64.
    """

    gpus: int
    gib: int
    setup: Setup | None
    tokens: int
    enough_gpus: int | None


@dataclass(frozen=True)
class MemoryPlan:
    """What :func:`describe` prints; ``buckets`` begin with the one of most tokens, which ``rows`` are for."""

    net: Outline
    batch_size: int
    lora_rank: int
    buckets: tuple[Bucket, ...]
    rows: tuple[tuple[Setup, Memory], ...]
    recommendations: tuple[Recommendation, ...]


def count_tokens(key: tuple[int, int, int], *, spatial_factor: int, patch_size: int, text_tokens: int = 1) -> Bucket:
    """Tokens of a sample of L layers: ``(L + 2) (H / f / p) (W / f / p)``, composite and condition included, and text.

    Args:
        key: (H, W, L) of the bucket.
        spatial_factor: pixels per latent, f.
        patch_size: latents per token side, p.
        text_tokens: of the caption; a network without text sees one.

    Raises:
        PlanError: if H or W is no multiple of ``f p``, or L is below 1.
    """
    height, width, layers = key
    side = spatial_factor * patch_size
    if height % side or width % side or layers < 1:
        raise PlanError(f"bucket {height}x{width} of {layers} layers: expected multiples of {side} px, and layers")
    return Bucket(key, (layers + 2) * (height // side) * (width // side), text_tokens)


def plan_memory(
    net: Outline,
    keys: Iterable[tuple[int, int, int]],
    *,
    spatial_factor: int,
    batch_size: int = 1,
    text_tokens: int = 1,
    lora_rank: int = DEFAULT_RANK,
    budgets: Sequence[tuple[int, int]] = BUDGETS,
) -> MemoryPlan:
    """Plan the training of a transformer.

    Args:
        net: from ``training.memory.outline``.
        keys: (H, W, L) of buckets in pixels and layers; duplicates count once.
        spatial_factor: of the VAE, pixels per latent.
        batch_size: samples of a process.
        text_tokens: of a caption, padding included.
        lora_rank: to plan LoRA with; 0 for the default.
        budgets: (GPUs, GiB of each) to advise on.

    Raises:
        PlanError: without buckets, or if a bucket does not split into tokens.
    """
    rank = lora_rank or DEFAULT_RANK
    sizes = {"spatial_factor": spatial_factor, "patch_size": net.patch_size, "text_tokens": text_tokens}
    buckets = sorted((count_tokens(key, **sizes) for key in set(keys)), key=lambda b: (-b.tokens, b.key))
    if not buckets:
        raise PlanError("no bucket to plan memory for: expected prepared data with at least one sample")
    image = buckets[0].image_tokens
    sharded = {"gradient_checkpointing": True, "gpus": 8, "fsdp": True}
    setups = [
        Setup(),
        Setup(gradient_checkpointing=True),
        Setup(weights="bfloat16+master", gradient_checkpointing=True),
        Setup(weights="bfloat16", gradient_checkpointing=True),
        Setup(**sharded),
        Setup(lora_rank=rank, gradient_checkpointing=True),
        Setup(lora_rank=rank, weights="bfloat16"),
        Setup(lora_rank=rank, weights="bfloat16", gradient_checkpointing=True),
        Setup(lora_rank=rank, weights="bfloat16", **sharded),
    ]
    rows = tuple((setup, estimate(net, image, text_tokens, batch_size, setup)) for setup in setups)
    advice = tuple(recommend(net, image, text_tokens, batch_size, rank, *budget) for budget in budgets)
    return MemoryPlan(net, batch_size, rank, tuple(buckets), rows, advice)


def recommend(net: Outline, image: int, text: int, batch: int, lora_rank: int, gpus: int, gib: int) -> Recommendation:
    """Choose for ``gpus`` of ``gib`` GiB: every weight before LoRA, high before low rank, fast before slow.

    Args:
        net: the transformer.
        image: image tokens of a sample.
        text: its text tokens.
        batch: samples of a process.
        lora_rank: the highest rank to think of.
        gpus: how many.
        gib: memory of each.
    """
    room = gib * GIB - RESERVE

    def fits(setup: Setup, tokens: int = image) -> bool:
        return estimate(net, tokens, text, batch, setup).peak <= room

    ladder = list(_ladder(gpus, lora_rank))
    setup = next((setup for setup in ladder if fits(setup)), None)
    enough = None
    if setup is None:
        more = (n for n in (2, 4, 8, 16, 32, 64) if n > gpus)
        enough = next((n for n in more if fits(replace(ladder[-1], gpus=n, fsdp=True))), None)
    low, high = 0, 2**24
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(setup or ladder[-1], middle) else (low, middle - 1)
    return Recommendation(gpus, gib, setup, low, enough)


def _ladder(gpus: int, lora_rank: int) -> Iterator[Setup]:
    """Setups from the most to the least wanted."""
    ranks = [0] + [
        r for r in (lora_rank >> k for k in range(lora_rank.bit_length())) if r >= SMALLEST_RANK or r == lora_rank
    ]
    for rank, fsdp, checkpointing in itertools.product(ranks, (False, True) if gpus > 1 else (False,), (False, True)):
        yield Setup(rank, "bfloat16" if rank else "float32", checkpointing, gpus, fsdp)


def describe(plan: MemoryPlan) -> str:
    """Lay a plan out for the terminal."""
    net, largest = plan.net, plan.buckets[0]
    adapters = plan.lora_rank * net.lora_width
    lines = [
        f"transformer  {net.parameters:,} parameters in {net.blocks} blocks of width {net.width}",
        f"LoRA         {adapters:,} parameters at rank {plan.lora_rank} ({adapters / net.parameters:.2%})",
        "",
        f"{'bucket':>11} {'layers':>6} {'tokens':>8}   = image + text, of a sample",
    ]
    for bucket in plan.buckets[:SHOWN_BUCKETS]:
        height, width, layers = bucket.key
        split = f"{bucket.image_tokens} + {bucket.text_tokens}"
        lines.append(f"{f'{height}x{width}':>11} {layers:>6} {bucket.tokens:>8}   = {split}")
    if len(plan.buckets) > SHOWN_BUCKETS:
        lines.append(f"{'':>11} and {len(plan.buckets) - SHOWN_BUCKETS} buckets of fewer tokens")
    height, width, layers = largest.key
    columns = ("weights", "grads", "AdamW", "average", "activ.", "peak")
    lines += [
        "",
        f"GiB on one GPU, estimated: {height}x{width}, {layers} layers, batch {plan.batch_size}, bfloat16 autocast",
        f"{'':<55}" + "".join(f"{column:>9}" for column in columns),
    ]
    for setup, memory in plan.rows:
        parts = (memory.weights, memory.gradients, memory.moments, memory.average, memory.activations, memory.peak)
        lines.append(f"{setup!s:<55}" + "".join(f"{part / GIB:>9.1f}" for part in parts))
    lines += ["", f"what fits, {RESERVE / GIB:.0f} GiB kept free"]
    lines += [f"{f'{advice.gpus} x {advice.gib} GB':>9}  {_sentence(advice, net)}" for advice in plan.recommendations]
    lines += [
        "",
        "Latents and captions are cached before training, so the text encoder takes nothing and the VAE little;",
        "what the VAE keeps where a loss compares pictures comes on top.",
        "Not supported: 8-bit or 4-bit frozen weights, 8-bit AdamW, moving blocks to the CPU.",
        "FSDP2 is launcher: accelerate launch --config_file presets/accelerate/fsdp2.yaml; torchrun gives DDP.",
    ]
    return "\n".join(lines)


def _sentence(advice: Recommendation, net: Outline) -> str:
    if advice.setup is not None:
        return f"{advice.setup}; up to {advice.tokens:,} image tokens a sample"
    if advice.tokens:
        hint = f"LoRA with checkpointing fits up to {advice.tokens:,} image tokens a sample"
    else:
        hint = f"the bfloat16 weights alone are {2 * net.parameters / GIB:.1f} GiB"
    if advice.enough_gpus:
        return f"not this bucket: {hint}; FSDP2 over {advice.enough_gpus} would do"
    return f"not this bucket on any number: {hint}; prepare_buckets.max_pixels and max_layers make it smaller"
