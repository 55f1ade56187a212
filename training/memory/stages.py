"""Memory of every training stage on one GPU at its peak moments, and the options that reduce it.

Stages are planned for one bucket (H, W, L). The transformer's training memory is from training.memory.estimate; that of
images is probed (training.memory.work).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch

from config.base import MixedPrecision
from config.decompose import Refine, TrainDecompose
from config.vae import TrainVAE
from models.vae.discriminator import PatchDiscriminator
from models.vae.latents import STACKS_AT_ONCE, stacks_at_once
from training.memory.estimate import Memory, Setup, activation_bytes, estimate
from training.memory.networks import Networks
from training.memory.work import (
    Decoding,
    Key,
    Work,
    decoding,
    encoding,
    pixel_terms,
    vae_config,
    vae_step,
    vae_validation,
)

DEFAULT_RANK = 32
SMALLEST_RANK = 4
TEXTS_AT_ONCE = 32  # of training.engine.cache.embed_texts
EDIT_TERMS = ("edit_velocity", "edit_kept")


class Moment(NamedTuple):
    """Bytes on one GPU: networks; gradients, moments and EMA of trained weights; peak of a computation."""

    name: str
    weights: int
    trained: int
    work: int

    @property
    def peak(self) -> int:
        """Sum of all parts."""
        return self.weights + self.trained + self.work


class Option(NamedTuple):
    """Option for running a stage, with its memory.

    Attributes:
        label: names and values of parameters.
        moments: peak moments for a number of layers.
        least: lower bound of the bytes, known without probing.
    """

    label: str
    moments: Callable[[int], Sequence[Moment]]
    least: Callable[[int], int] = lambda layers: 0

    def peak(self, layers: int) -> int:
        """Peak bytes over all moments."""
        return max(moment.peak for moment in self.moments(layers))

    def fits(self, layers: int, room: int) -> bool:
        """True if ``room`` bytes are enough."""
        return self.least(layers) <= room and self.peak(layers) <= room


class Stage(NamedTuple):
    """Memory plan of a stage.

    Attributes:
        name: name of the stage.
        as_set: option that its parameters select.
        options: options for a number of GPUs, from most to least preferred.
        floor: bytes that no option reduces, and their description.
        shards: whether several GPUs reduce the memory of each.
    """

    name: str
    as_set: Option
    options: Callable[[int], Iterator[Option]]
    floor: tuple[int, str] = (0, "")
    shards: bool = False


def compute_dtype(choice: MixedPrecision) -> torch.dtype | None:
    """Dtype of computation on a GPU that has bfloat16; ``None`` for float32."""
    return None if choice == "no" else torch.bfloat16


def vae_stage(settings: TrainVAE, networks: Networks, key: Key) -> Stage:
    """Plan ``train_vae``."""
    game, compute = settings.discriminator, compute_dtype(settings.optimisation.mixed_precision)
    with torch.device("meta"):
        companions = sum(p.numel() for p in PatchDiscriminator(game.width, game.layers).parameters())
    companions *= settings.loss.gan > 0.0
    weights, trained = networks.vae_bytes + 4 * companions, 3 * networks.vae_bytes + 8 * companions

    @cache
    def moments(checkpointing: bool) -> list[Moment]:
        return [
            Moment("step", weights, trained, vae_step(settings, key, compute, checkpointing)),
            # The raw weights are stored beside the EMA.
            Moment("validation", weights, trained + networks.vae_bytes, vae_validation(vae_config(settings), key)),
        ]

    def option(checkpointing: bool) -> Option:
        return Option(f"gradient_checkpointing {str(checkpointing).lower()}", lambda _: moments(checkpointing))

    as_set = option(settings.gradient_checkpointing)
    return Stage("train_vae", as_set, lambda _: iter((option(False), option(True))))


def words(setup: Setup) -> str:
    """Description of a setup in names and values of parameters."""
    parts = [f"lora.rank {setup.lora_rank}"] if setup.lora_rank else ["every weight"]
    parts += ["gradient_checkpointing"] * setup.gradient_checkpointing
    parts += [f"{'FSDP2' if setup.fsdp else 'DDP'} over {setup.gpus}"] * (setup.gpus > 1)
    return ", ".join(parts)


def setups(gpus: int, lora_rank: int, low: str = "bfloat16") -> Iterator[Setup]:
    """Setups from most to least preferred: every weight before LoRA, high before low rank, fast before slow."""
    rank = lora_rank or DEFAULT_RANK
    ranks = [0] + [r for r in (rank >> k for k in range(rank.bit_length())) if r >= SMALLEST_RANK or r == rank]
    for rank, fsdp, checkpointing in itertools.product(ranks, (False, True) if gpus > 1 else (False,), (False, True)):
        yield Setup(rank, low if rank else "float32", checkpointing, gpus, fsdp)


class Trained:
    """Memory planner of a stage that trains the transformer.

    Args:
        name: name of the stage.
        settings: the stage's parameters.
        networks: networks of the model.
        key: the bucket (H, W, L).
    """

    def __init__(self, name: str, settings: TrainDecompose | Refine, networks: Networks, key: Key) -> None:
        self.name, self.settings, self.networks, self.key = name, settings, networks, key
        self.compute = compute_dtype(settings.optimisation.mixed_precision)
        self.low = "float32" if self.compute is None else "bfloat16"
        self.weights = settings.loss.model_dump()
        # Refinement calls the network a second time, for the edited image, in the same graph.
        self.passes = 1 + any(self.weights.get(name, 0.0) > 0.0 for name in EDIT_TERMS)
        self.stacks = stacks_at_once(key, STACKS_AT_ONCE)
        self.pixels = cache(self._pixels)
        self.asked = cache(self._asked)

    def stage(self) -> Stage:
        """Plan of the stage with all its options."""
        lora = self.settings.lora
        low = self.low if lora.rank else "float32"
        as_set = Setup(lora.rank, low, self.settings.gradient_checkpointing)

        def options(gpus: int) -> Iterator[Option]:
            return map(self.option, setups(gpus, lora.rank, self.low))

        base = (2 if self.compute else 4) * self.networks.net.parameters
        what = f"the {self.low} weights of the transformer"
        return Stage(self.name, self.option(as_set), options, (base, what), shards=True)

    def option(self, setup: Setup) -> Option:
        """Option of a training setup."""
        return Option(
            words(setup),
            lambda layers: self.moments(setup, layers),
            lambda layers: self.networks.vae_bytes + self._estimate(setup, layers)[0].peak,
        )

    def moments(self, setup: Setup, layers: int) -> list[Moment]:
        """Peak moments of a setup for stacks of ``layers`` layers."""
        networks, vae = self.networks, self.networks.vae_bytes
        size = 4 if self.settings.cache_dtype == "float32" else 2
        text = networks.text_work(TEXTS_AT_ONCE, size)
        memory, work = self._step(setup, layers)
        validation = self._validation(setup, layers)
        texts = [Moment("captions", vae + size * networks.text_size.parameters, 0, text)] if text else []
        return [
            Moment("encoding", vae, 0, encoding(networks.vae, self.key)),
            *texts,
            Moment("step", vae + memory.weights, memory.trained, work),
            Moment("validation", vae + memory.weights, memory.trained, validation),
        ]

    def _pixels(self, checkpointing: bool, layers: int, stacks: int | None = None) -> Work:
        settings, key = self.settings, (*self.key[:2], layers)
        how = Decoding(self.weights, settings.alignment, settings.decode_scale, self.compute, checkpointing)
        count = settings.optimisation.batch_size if stacks is None else stacks
        return pixel_terms(self.networks.vae, how, key, count, gradient=stacks is None)

    def _asked(self, layers: int) -> int:
        dtype = torch.float32 if self.low == "float32" else torch.bfloat16
        autocast, rank = self.compute is not None, self.settings.lora.rank
        return self.networks.sampling((*self.key[:2], layers), self.stacks, dtype, autocast, rank)

    def _estimate(self, setup: Setup, layers: int) -> tuple[Memory, int]:
        """Memory of the transformer with one pass in the graph, and the activations of a pass."""
        net, batch, autocast = self.networks.net, self.settings.optimisation.batch_size, self.compute is not None
        sizes = (self.networks.tokens((*self.key[:2], layers)), self.networks.text_tokens, batch)
        memory = estimate(net, *sizes, setup, autocast=autocast)
        return memory, activation_bytes(net, *sizes, setup, autocast=autocast)

    def _step(self, setup: Setup, layers: int) -> tuple[Memory, int]:
        """Memory of the transformer, and peak bytes of a step."""
        memory, kept = self._estimate(setup, layers)
        pixels = self.pixels(setup.gradient_checkpointing, layers)
        # Images are compared between the passes, and their activations stay until the backward pass has left the second
        # pass. With checkpointing no activations of the first pass exist until then.
        first = kept if self.passes == 1 or not setup.gradient_checkpointing else 0
        between = first + pixels.peak
        after = (self.passes - 1) * first + pixels.kept + memory.activations
        return memory, max(between, after)

    def _validation(self, setup: Setup, layers: int) -> int:
        net = self.networks.net
        asked = self.asked(layers)
        if setup.fsdp:
            asked += 4 * net.block_parameters  # the current block and the next one
        elif not setup.lora_rank and self.compute is not None:
            asked += 2 * net.parameters  # autocast caches a copy of trained weights
        shown = 0
        if self.name == "refine":  # which measures every term of the loss
            shown = self.pixels(False, layers, self.stacks).peak
        return max(asked, shown, decoding(self.networks.vae, (*self.key[:2], layers), self.stacks, self.compute))
