"""Decomposition of images of any size into layers of the same size, as called by the command and the page."""

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

# Images are not named: their noise depends on the seed alone.
NAME = "picture"  # seeds the noise: another name would give other layers
AUTO = "auto"
LARGE = 256  # side in pixels of the training images, from which on a candidate takes minutes on a CPU


class LayerCountError(UserError):
    """The number of layers is invalid, or ``auto`` for a network that cannot choose it."""


def layer_count(said: object, name: str = "layers") -> int | None:
    """Parse a requested number of layers; ``None`` for ``auto``, which lets the network choose.

    Args:
        said: ``auto``, or 1 to :data:`config.base.MOST_LAYERS`.
        name: name of the flag or field, for the message.

    Raises:
        LayerCountError: if it is neither.
    """
    words = str(said).strip().lower()
    if words == AUTO:
        return None
    # Python also accepts digits of other scripts.
    if not (words.isascii() and words.isdigit() and len(words) < 4 and 1 <= int(words) <= MOST_LAYERS):
        raise LayerCountError(f"{name}: got {words[:20]!r}, expected {AUTO} or 1 to {MOST_LAYERS}")
    return int(words)


class Effort(NamedTuple):
    """Sampling effort for an image: network calls are steps times candidates, and twice that with guidance."""

    steps: int
    tries: int


SMALL_EFFORT, LARGE_EFFORT = Effort(steps=2, tries=8), Effort(steps=50, tries=1)


def effort_of(model: Decomposer, steps: int | None = None, tries: int | None = None) -> Effort:
    """Effort with missing values replaced by the defaults for the network.

    Networks of small images take several candidates of few steps, others the released pipeline's 50 steps.
    """
    usual = SMALL_EFFORT if model.trained_for.max_side < LARGE else LARGE_EFFORT
    return Effort(usual.steps if steps is None else steps, usual.tries if tries is None else tries)


def layers_asked(model: Decomposer, layer_count: int | None) -> int:
    """Number of layers to sample: the requested one, or for ``auto`` as many as the network was trained for.

    Raises:
        LayerCountError: for ``auto`` if the network was trained without empty layers.
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
    """Decompose images of any size; the layers are the network's raw output, at its input size.

    Args:
        model: the loaded networks.
        images: ``(H, W, 4)`` uint8, straight alpha.
        layer_count: layers of each image. ``None`` lets the network choose: it samples as many as it was trained for,
            then again as many as it has filled; empty layers are dropped.
        captions: descriptions of the images; ``None`` for none.
        steps: steps of the Euler sampler; ``None`` for :func:`effort_of`.
        tries: candidates from different noise, of which :mod:`inference.consensus` chooses one; ``None`` for
            :func:`effort_of`.
        seed: seed of the noise, which is the same for every image. Rounding depends on the batch size: single values
            may differ by one of 255 levels from those of the image alone.
        guidance: guidance scale, see :meth:`inference.decomposer.Decomposer.decompose`.

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
            # A network that is given the number of layers decomposes better than one that has to choose it as well.
            filled = {index: len(without_empty(found[index])) for index in alike}
            for same in _groups(alike, list(filled.values())):
                if 1 < filled[same[0]] < count:
                    decompose(same, filled[same[0]])
    return [without_empty(layers) for layers in found] if layer_count is None else found


def layers_of(
    model: Decomposer, images: Sequence[np.ndarray], layer_count: int | None = None, **how: Any
) -> list[list[np.ndarray]]:
    """Decompose as :func:`stacks_of`, then restore layers to the image's size and colours (inference/restore.py).

    Returns:
        For each image its layers, ``(H, W, 4)`` uint8, bottom to top.
    """
    stacks = stacks_of(model, images, layer_count, **how)
    return [restore(stack, image) for stack, image in zip(stacks, images, strict=True)]


def _groups(indices: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """Groups of indices with equal keys, ordered by their first index."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in zip(indices, keys, strict=True):
        groups.setdefault(key, []).append(index)
    return list(groups.values())
