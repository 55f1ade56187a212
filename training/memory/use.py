"""Memory of the stages that only use a model (evaluate, decompose) on one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch

from config.base import Offload
from training.memory.networks import Networks
from training.memory.stages import Moment, Option, Stage
from training.memory.work import Key, decoding, scoring


class Used(NamedTuple):
    """Networks of a model in use, dtype of the weights, and offloading."""

    networks: Networks
    dtype: torch.dtype
    offload: Offload


def used_stage(name: str, models: Sequence[Used], key: Key, stacks: int, scored: bool) -> Stage:
    """Plan a stage that decomposes.

    Args:
        name: name of the stage.
        models: models that are loaded together.
        key: size and layers of the images.
        stacks: images that are decomposed together.
        scored: whether the predicted layers are compared with the true ones.
    """

    @cache
    def works(networks: Networks, dtype: torch.dtype, layers: int) -> tuple[int, int, int]:
        texts, same = networks.text_work(stacks, dtype.itemsize), (*key[:2], layers)
        asked = networks.sampling(same, stacks, dtype, dtype != torch.float32)
        return texts, asked, max(decoding(networks.vae, same, stacks), scoring(same) if scored else 0)

    def moments(used: Sequence[Used], layers: int) -> list[Moment]:
        resident = sum(model.networks.vae_bytes for model in used)
        resident += sum(_whole(model) for model in used if model.offload == "none")
        found = []
        for model in used:
            texts, asked, images = works(model.networks, model.dtype, layers)
            encoder, network = _visiting(model)
            found += [
                Moment("captions", resident + encoder, 0, texts),
                Moment("network", resident + network, 0, asked),
                Moment("images", resident, 0, images),
            ]
        names = dict.fromkeys(moment.name for moment in found)
        return [max((m for m in found if m.name == name), key=lambda m: m.peak) for name in names]

    def option(offload: Offload | None) -> Option:
        used = [model if offload is None else model._replace(offload=offload) for model in models]
        label = ", ".join(dict.fromkeys(model.offload for model in used))
        return Option(f"offload {label}", lambda layers: moments(used, layers))

    def options(gpus: int) -> Iterator[Option]:
        del gpus  # each process has one
        return (option(offload) for offload in ("none", "models", "blocks"))

    return Stage(name, option(None), options)


def _whole(model: Used) -> int:
    return model.dtype.itemsize * (model.networks.net.parameters + model.networks.text_size.parameters)


def _visiting(model: Used) -> tuple[int, int]:
    """Bytes of text encoder and transformer that come from main memory while they compute."""
    net, text, size = model.networks.net, model.networks.text_size, model.dtype.itemsize
    if model.offload == "none":
        return 0, 0
    if model.offload == "models":
        return size * text.parameters, size * net.parameters
    # The current block, the next one in transfer, and the weights outside blocks.
    around = net.parameters - net.blocks * net.block_parameters
    return size * (text.rest + 2 * text.block), size * (around + 2 * net.block_parameters)
