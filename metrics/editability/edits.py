"""Edits of one object in a stack of layers, each planned for the true layers and for the predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from layers.imaging.compositing import group_into_peels, to_float, visible_weights

Kind = Literal["delete", "move", "recolour", "fade", "reorder"]


KINDS: tuple[Kind, ...] = ("delete", "move", "recolour", "fade", "reorder")


SHIFT = 8  # a move is by each side / SHIFT


FADED = 0.5


VISIBLE = 0.5 / 255.0  # visible share of a pixel up to which a layer counts as invisible: half an 8-bit level


@dataclass(frozen=True)
class Edit:
    """One edit, to be made in both stacks.

    Attributes:
        kind: kind of edit.
        true: indices of the edited true layers, a peel; from the bottom.
        predicted: the predicted layers that stand for them; none if the edit cannot be made.
    """

    kind: Kind
    true: tuple[int, ...]
    predicted: tuple[int, ...]


def counterparts(
    predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], peels: Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """Assign predicted layers to true peels; each layer to one peel at most.

    A layer belongs where the soft IoU of visible shares is largest, over whole peels and their members. Ties are broken
    by the soft IoU of alpha, then by the lower peel. A layer that is visible nowhere, or overlaps no peel visibly,
    belongs to none. For two equal stacks every layer is assigned to its own peel.

    Args:
        predicted: layers ``(H, W, 4)`` uint8, straight alpha, bottom to top.
        true: likewise and of the same size.
        peels: indices of true layers that do not overlap, such as :func:`shown_peels` gives.

    Returns:
        For each peel the indices of predicted layers, ascending; empty if it has none.
    """
    if not peels:
        return []
    alphas, shares = _alphas_and_shares(predicted)
    true_alphas, true_shares = _alphas_and_shares(true)
    units = [(place, list(members)) for place, peel in enumerate(peels) for members in _units(peel)]
    # Members of a peel do not overlap, so sums are unions.
    of_units = [(true_shares[members].sum(0), true_alphas[members].sum(0)) for _, members in units]
    found: list[list[int]] = [[] for _ in peels]
    for index, (share, alpha) in enumerate(zip(shares, alphas, strict=True)):
        if share.max() <= VISIBLE:
            continue
        likeness = [(_soft_iou(share, theirs), _soft_iou(alpha, cover)) for theirs, cover in of_units]
        best = max(range(len(units)), key=likeness.__getitem__)
        if likeness[best][0] > 0.0:
            found[units[best][0]].append(index)
    return [tuple(indices) for indices in found]


def shown_peels(true: Sequence[np.ndarray]) -> list[list[int]]:
    """Peels of a stack, as the main metric groups them, without the layers that are visible nowhere.

    Args:
        true: layers ``(H, W, 4)`` uint8, straight alpha, bottom to top.

    Returns:
        Groups of indices bottom to top, none of them empty.
    """
    seen = _alphas_and_shares(true)[1].max((1, 2)) > VISIBLE
    groups = group_into_peels([layer[..., 3] for layer in true])
    return [peel for group in groups if (peel := [index for index in group if seen[index]])]


def edits(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> list[Edit]:
    """List the edits to replay, peel by peel from the bottom, including those that will change nothing.

    Args:
        predicted: layers ``(H, W, 4)`` uint8, straight alpha, bottom to top.
        true: likewise and of the same size.
    """
    peels = shown_peels(true)
    found = []
    for place, (peel, mates) in enumerate(zip(peels, counterparts(predicted, true, peels), strict=True)):
        allowed = {"delete", "recolour", "fade"}
        if place > 0:
            allowed.add("move")
        if 0 < place < len(peels) - 1:
            allowed.add("reorder")
        found += [Edit(kind, tuple(peel), mates) for kind in KINDS if kind in allowed]
    return found


def edited(layers: Tensor, members: Sequence[int], kind: Kind) -> Tensor:
    """Edit some layers of a stack, all of them in the same way.

    Args:
        layers: ``(L, 4, H, W)`` in [0, 1], straight alpha, bottom to top; not changed.
        members: which layers; with none the stack comes back as it is.
        kind: kind of edit, see the table in :mod:`metrics.editability`.

    Returns:
        The stack after it, ``(L', 4, H, W)``; ``L'`` is smaller after ``delete`` and may be 0.
    """
    # Indices instead of masks: with a mask on a GPU the host has to wait for its count.
    chosen, others = (
        torch.tensor(
            [k for k in range(len(layers)) if (k in members) == wanted], dtype=torch.long, device=layers.device
        )
        for wanted in (True, False)
    )
    parts = layers[chosen]
    if kind == "delete":
        return layers[others]
    if kind == "reorder":
        return torch.cat([layers[others], parts])
    if kind == "recolour":
        parts[:, :3] = 1.0 - parts[:, :3]
    elif kind == "fade":
        parts[:, 3] *= FADED
    else:
        parts = _moved(parts)
    out = layers.clone()
    out[chosen] = parts
    return out


def _moved(layers: Tensor) -> Tensor:
    """Shift ``(L, 4, H, W)`` right and down by 1 / :data:`SHIFT` of each side, at least one pixel."""
    height, width = layers.shape[-2:]
    down, right = max(1, round(height / SHIFT)), max(1, round(width / SHIFT))
    out = torch.zeros_like(layers)
    out[..., down:, right:] = layers[..., : height - down, : width - right]
    return out


def _units(peel: Sequence[int]) -> list[Sequence[int]]:
    """Units that a layer is compared with: the whole peel, and each of its members."""
    return [peel, *([index] for index in peel)] if len(peel) > 1 else [peel]


def _alphas_and_shares(stack: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Alphas and visible shares of a stack, ``(L, H, W)`` in [0, 1] each."""
    alphas = np.stack([to_float(layer[..., 3]) for layer in stack])
    return alphas, visible_weights(alphas)


def _soft_iou(first: np.ndarray, second: np.ndarray) -> float:
    union = float(np.maximum(first, second).sum(dtype=np.float64))
    return float(np.minimum(first, second).sum(dtype=np.float64)) / union if union > 0.0 else 0.0
