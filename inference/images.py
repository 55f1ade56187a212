"""The tool people came for: images of any size in, layers of that size out; the command and the page call it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from config.base import MOST_LAYERS
from config.errors import UserError
from inference.decomposer import Decomposer
from inference.restore import restore, without_empty
from inference.sizes import shown_to_model, stretched_size
from layers.imaging.tensors import to_image, to_tensor

# An image has no name that would mean anything: its noise hangs on the seed alone.
NAME = "picture"  # seeds the noise: another name, other layers
AUTO = "auto"
LARGE = 256  # pixels a side that a network was trained for, from which on a try takes minutes on a CPU


class LayerCountError(UserError):
    """No number of layers, or the network cannot choose it."""


def layer_count(said: object, name: str = "layers") -> int | None:
    """The number of layers that somebody asks for; ``None`` for ``auto``, which leaves it to the network.

    Args:
        said: ``auto``, or 1 to :data:`config.base.MOST_LAYERS`.
        name: of the flag or field, for the message.

    Raises:
        LayerCountError: if it is neither.
    """
    words = str(said).strip().lower()
    if words == AUTO:
        return None
    # Digits of other scripts are digits to Python.
    if not (words.isascii() and words.isdigit() and len(words) < 4 and 1 <= int(words) <= MOST_LAYERS):
        raise LayerCountError(f"{name}: got {words[:20]!r}, expected {AUTO} or 1 to {MOST_LAYERS}")
    return int(words)


class Effort(NamedTuple):
    """What is spent on an image: network calls are steps times tries, and twice that with guidance."""

    steps: int
    tries: int


SMALL_EFFORT, LARGE_EFFORT = Effort(steps=2, tries=8), Effort(steps=50, tries=1)


def effort_of(model: Decomposer, steps: int | None = None, tries: int | None = None) -> Effort:
    """What is asked for, and of what is left open what is usual for the network.

    That is several short tries by one of small images, by one of large ones the released pipeline's 50 steps.
    """
    usual = SMALL_EFFORT if model.trained_for.max_side < LARGE else LARGE_EFFORT
    return Effort(usual.steps if steps is None else steps, usual.tries if tries is None else tries)


def layers_asked(model: Decomposer, layer_count: int | None) -> int:
    """How many layers the network is asked for: the number, or where it may choose as many as it was trained for.

    Raises:
        LayerCountError: if the network has never seen a layer stay empty, and is to choose.
    """
    count = model.trained_for.surplus_layers if layer_count is None else layer_count
    if count is None:
        raise LayerCountError(
            "layers: got auto, expected a number: this network was trained without surplus layers "
            "(train_decompose.surplus.share)"
        )
    return count


def stacks_of(
    model: Decomposer,
    images: Sequence[np.ndarray],
    layer_count: int | None = None,
    *,
    captions: Sequence[str] | None = None,
    steps: int | None = None,
    tries: int | None = None,
    seed: int = 0,
    guidance: float = 1.0,
) -> list[list[np.ndarray]]:
    """Decompose images of any size; their layers are as the network gives them, at the size it sees.

    Args:
        model: the networks.
        images: ``(H, W, 4)`` uint8, straight alpha.
        layer_count: of each; ``None`` leaves it to the network: it is asked for as many as it was trained for, then
            again for as many as it has filled, and what stays empty is dropped.
        captions: what they show; ``None`` for nothing said.
        steps: of the Euler sampler; ``None`` for :func:`effort_of`.
        tries: decompositions from different noise, of which the one is kept that the others are nearest to and that
            flattens best; ``None`` for :func:`effort_of`.
        seed: of the noise, which is the same for every image. Sums of batches of another size are rounded otherwise:
            single values may differ by one of 255 from those of the image alone.
        guidance: by the caption, see :meth:`inference.decomposer.Decomposer.decompose`.

    Returns:
        For each image its layers, ``(h, w, 4)`` uint8, bottom to top.

    Raises:
        LayerCountError: see :func:`layers_asked`.
        GuidanceError: for guidance of a network without text.
    """
    count, effort = layers_asked(model, layer_count), effort_of(model, steps, tries)
    sizes = [stretched_size(image.shape[:2], model.trained_for.limits) for image in images]
    shown = [to_tensor(shown_to_model(image, size)) for image, size in zip(images, sizes, strict=True)]
    found: list[list[np.ndarray]] = [[] for _ in images]

    def decompose(alike: Sequence[int], number: int) -> None:
        batch = torch.stack([shown[index] for index in alike])
        said = None if captions is None else [captions[index] for index in alike]
        names = [NAME] * len(alike)
        stacks = model.decompose(batch, number, names, said, seed=seed, guidance=guidance, **effort._asdict())
        for index, stack in zip(alike, stacks, strict=True):
            found[index] = list(to_image(stack))

    for alike in _groups(range(len(images)), sizes):
        decompose(alike, count)
        if layer_count is None:
            # A network that is told the number decomposes better than one that has to find it as well.
            filled = {index: len(without_empty(found[index])) for index in alike}
            for same in _groups(alike, list(filled.values())):
                if 1 < filled[same[0]] < count:
                    decompose(same, filled[same[0]])
    return [without_empty(layers) for layers in found] if layer_count is None else found


def layers_of(
    model: Decomposer, images: Sequence[np.ndarray], layer_count: int | None = None, **how: Any
) -> list[list[np.ndarray]]:
    """As :func:`stacks_of`, and the layers are brought to the image's size and flatten to it (inference/restore.py).

    Returns:
        For each image its layers, ``(H, W, 4)`` uint8, bottom to top.
    """
    stacks = stacks_of(model, images, layer_count, **how)
    return [restore(stack, image) for stack, image in zip(stacks, images, strict=True)]


def _groups(indices: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """Indices whose keys are equal together, in the order of their first."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in zip(indices, keys, strict=True):
        groups.setdefault(key, []).append(index)
    return list(groups.values())
