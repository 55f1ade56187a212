"""Memory plan of every stage before it starts: parameters, tokens, peak bytes, and options that fit.

    python -m stages.train_decompose --plan        # any stage prints it; stages.plan chooses the sizes

Estimates, for the bucket with the most tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from training.memory.estimate import Memory, PlanError, Setup, estimate
from training.memory.networks import Networks
from training.memory.stages import DEFAULT_RANK, Stage
from training.memory.work import Key

GIB = 2**30
# Assumed, not measured: CUDA context, kernel workspaces, fragmentation.
RESERVE = 2 * GIB
# (GPUs, GiB of each)
BUDGETS = ((1, 24), (1, 48), (1, 80), (8, 80))
SHOWN_BUCKETS = 12


@dataclass(frozen=True)
class Recommendation:
    """Recommended options on ``gpus`` GPUs of ``gib`` GiB each.

    Attributes:
        stage: name of the stage.
        gpus: number of GPUs.
        gib: memory of each GPU.
        label: label of the first option that fits, ``None`` if none does.
        as_set: whether that option is the one in the parameters.
        layers: if none fits, the most layers of this size that fit with the last option; 0 if not even one.
        last: label of the last option.
        enough_gpus: if none fits, the number of such GPUs that suffices, up to 64; ``None`` if none, or if unneeded.
    """

    stage: str
    gpus: int
    gib: int
    label: str | None
    as_set: bool
    layers: int
    last: str
    enough_gpus: int | None


def largest_first(networks: Networks, keys: Iterable[Key]) -> list[Key]:
    """Buckets (H, W, L) without duplicates, sorted by descending number of tokens.

    Raises:
        PlanError: without buckets, or if one cannot be split into tokens.
    """
    found = sorted(set(keys), key=lambda key: (-networks.tokens(key), key))
    if not found:
        raise PlanError("no bucket to plan memory for: expected prepared data with at least one sample")
    return found


def recommend(stage: Stage, layers: int, gpus: int, gib: int) -> Recommendation:
    """Choose the first option that fits on ``gpus`` GPUs of ``gib`` GiB, with ``RESERVE`` left free.

    Args:
        stage: the stage.
        layers: layers of its stacks.
        gpus: number of GPUs.
        gib: memory of each GPU.
    """
    room = gib * GIB - RESERVE
    options = list(stage.options(gpus))
    chosen = next((option for option in options if option.fits(layers, room)), None)
    asked = (stage.name, gpus, gib)
    if chosen is not None:
        return Recommendation(*asked, chosen.label, chosen.label == stage.as_set.label, layers, chosen.label, None)
    fewer = bisect_left(range(1, layers), True, key=lambda count: not options[-1].fits(count, room))
    more = (n for n in (2, 4, 8, 16, 32, 64) if n > gpus and stage.shards)
    enough = next((n for n in more if any(option.fits(layers, room) for option in stage.options(n))), None)
    return Recommendation(*asked, None, False, fewer, options[-1].label, enough)


def setup_rows(networks: Networks, key: Key, batch_size: int, lora_rank: int) -> list[tuple[Setup, Memory]]:
    """Memory of a training step of the transformer alone on one GPU, for the usual setups."""
    rank = lora_rank or DEFAULT_RANK
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
    tokens = networks.tokens(key), networks.text_tokens
    return [(setup, estimate(networks.net, *tokens, batch_size, setup)) for setup in setups]


def describe_training(networks: Networks, keys: Sequence[Key], batch_size: int, lora_rank: int) -> Iterator[str]:
    """Lines about the transformer and its buckets; memory is planned for the first bucket."""
    net, rank = networks.net, lora_rank or DEFAULT_RANK
    adapters = rank * net.lora_width
    yield f"transformer  {net.parameters:,} parameters in {net.blocks} blocks of width {net.width}"
    yield f"LoRA         {adapters:,} parameters at rank {rank} ({adapters / net.parameters:.2%})"
    yield ""
    yield f"{'bucket':>11} {'layers':>6} {'tokens':>8}   = image + text, of a sample"
    for key in keys[:SHOWN_BUCKETS]:
        image, text = networks.tokens(key), networks.text_tokens
        yield f"{f'{key[0]}x{key[1]}':>11} {key[2]:>6} {image + text:>8}   = {image} + {text}"
    if len(keys) > SHOWN_BUCKETS:
        yield f"{'':>11} and {len(keys) - SHOWN_BUCKETS} buckets of fewer tokens"
    yield ""
    yield f"GiB on one GPU, estimated: the transformer's step, {_named(keys[0])}, batch {batch_size}, bfloat16 autocast"
    yield f"{'':<55}" + "".join(f"{name:>9}" for name in ("weights", "grads", "AdamW", "EMA", "activ.", "peak"))
    for setup, memory in setup_rows(networks, keys[0], batch_size, lora_rank):
        parts = (memory.weights, memory.gradients, memory.moments, memory.average, memory.activations, memory.peak)
        yield f"{setup!s:<55}" + "".join(f"{part / GIB:>9.1f}" for part in parts)
    yield ""


def describe_stages(stages: Sequence[Stage], key: Key, budgets: Sequence[tuple[int, int]] = BUDGETS) -> Iterator[str]:
    """Lines about the peak moments of stages as set, and recommended options for each budget (GPUs, GiB)."""
    yield f"GiB on one GPU, estimated: peak moments of each stage as set, {_named(key)}"
    yield f"{'':<28}" + "".join(f"{name:>9}" for name in ("weights", "trained", "work", "peak"))
    for stage in stages:
        for moment in stage.as_set.moments(key[2]):
            parts = (moment.weights, moment.trained, moment.work, moment.peak)
            yield f"{stage.name:<15} {moment.name:<12}" + "".join(f"{part / GIB:>9.1f}" for part in parts)
    yield ""
    yield f"options that fit; {RESERVE / GIB:.0f} GiB stay free for kernel workspaces and fragmentation"
    for gpus, gib in budgets:
        for stage in stages:
            first, *more = _sentences(recommend(stage, key[2], gpus, gib), stage)
            yield f"{f'{gpus} x {gib} GB':>9}  {stage.name:<15} {first}"
            yield from (f"{'':>26} {sentence}" for sentence in more)


NOTES = (
    "",
    "Not supported: 8-bit or 4-bit frozen weights, 8-bit AdamW, moving blocks to the CPU in training.",
    "For FSDP2, launcher: accelerate launch --config_file presets/accelerate/fsdp2.yaml; torchrun gives DDP.",
    "For bfloat16, optimisation.mixed_precision: auto, and precision: auto where a model is used.",
)


def _named(key: Key) -> str:
    return f"{key[0]}x{key[1]}, {key[2]} layers"


def _sentences(advice: Recommendation, stage: Stage) -> Iterator[str]:
    if advice.label is not None:
        yield advice.label + (", as set" if advice.as_set else "")
        return
    yield "does not fit" + (f"; FSDP2 over {advice.enough_gpus} GPUs would" if advice.enough_gpus else "")
    size, what = stage.floor
    if size > advice.gib * GIB - RESERVE:
        yield f"({what} alone are {size / GIB:.1f} GiB)"
    elif advice.layers:
        yield f"(up to {advice.layers} {'layer' if advice.layers == 1 else 'layers'} of this size with {advice.last})"
    else:
        yield "(not one layer of this size; prepare_buckets.max_pixels makes it smaller)"
