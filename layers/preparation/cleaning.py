"""Cleaning of designs before training, as in the paper's data pipeline.

Layers that do not contribute to the composite are removed, layers that do not overlap are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layers.imaging.compositing import peels
from layers.preparation.patches import Patch, intersection, lay, merged


@dataclass(frozen=True)
class Cleaning:
    """Rules for dropping layers.

    Attributes:
        drop_empty: layers without a visible pixel.
        drop_hidden: layers that are completely covered by those above.
        drop_unchanging: layers whose removal changes no pixel of the composite by more than ``min_change``, such as
            white on white.
        min_change: in 8-bit levels.
    """

    drop_empty: bool = True
    drop_hidden: bool = True
    drop_unchanging: bool = True
    min_change: float = 1.0


def clean(
    patches: Sequence[Patch], cleaning: Cleaning, size: tuple[int, int]
) -> tuple[list[Patch], np.ndarray, dict[str, int]]:
    """Drop the layers that do not contribute.

    From the bottom up, each layer is judged against all layers above it and the remaining ones below it. So of two
    equal layers on one another the lower is dropped, and each dropped layer changes the composite by at most
    ``min_change``.

    Args:
        patches: bottom to top.
        cleaning: rules for dropping.
        size: (height, width) of the canvas.

    Returns:
        The remaining layers; their composite, premultiplied ``(H, W, 4)`` float32; and the numbers of layers dropped
        as ``empty``, ``hidden`` and ``unchanging``.
    """
    counts = {"empty": 0, "hidden": 0, "unchanging": 0}
    seen_through = _transmittance(patches, size)
    below = np.zeros((*size, 4), np.float32)
    kept = []
    for patch, through in zip(patches, seen_through, strict=True):
        if patch.empty:
            reason = "empty" if cleaning.drop_empty else None
        elif cleaning.drop_hidden and not _shows(patch, through):
            reason = "hidden"
        elif cleaning.drop_unchanging and not _changes(patch, through, below, cleaning.min_change):
            reason = "unchanging"
        else:
            reason = None
        if reason is not None:
            counts[reason] += 1
            continue
        kept.append(patch)
        lay(patch, below)
    return kept, below, counts


def _transmittance(patches: Sequence[Patch], size: tuple[int, int]) -> list[np.ndarray | None]:
    """Transmittance ``(h, w)`` of the layers above each patch; ``None`` where nothing lies above it."""
    through = np.ones(size, np.float32)
    touched = False
    parts: list[np.ndarray | None] = []
    for patch in reversed(patches):
        parts.append(through[patch.where].copy() if touched else None)
        if not patch.empty:
            through[patch.where] *= 1.0 - patch.premultiplied[..., 3]
            touched = True
    return parts[::-1]


def _exceeds(values: Callable[[slice], np.ndarray], threshold: float) -> bool:
    """Whether any value is above a threshold; checks a coarse sample first, which finds most visible layers."""
    coarse, every = slice(None, None, 16), slice(None)
    return bool((values(coarse) > threshold).any() or (values(every) > threshold).any())


def _shows(patch: Patch, through: np.ndarray | None) -> bool:
    """Whether any pixel is visible through the layers above by half an 8-bit level or more."""
    alpha = patch.image[..., 3]

    def seen(step: slice) -> np.ndarray:
        part = alpha[step, step]
        return part if through is None else part * through[step, step]

    return _exceeds(seen, 0.5)


def _changes(patch: Patch, through: np.ndarray | None, below: np.ndarray, min_change: float) -> bool:
    """Whether a premultiplied channel would change by more than ``min_change`` levels if the patch were not there.

    The change is through * (patch - alpha * below).
    """
    region = below[patch.where]

    def change(step: slice) -> np.ndarray:
        own = patch.premultiplied[step, step]
        difference = np.abs(own - own[..., 3:] * region[step, step])
        return difference if through is None else difference * through[step, step, None]

    return _exceeds(change, min_change / 255.0)


def group_layers(patches: Sequence[Patch], overlap_alpha: int = 0) -> list[Patch]:
    """Merge layers that do not overlap into peels, bottom to top, as in the evaluation.

    Args:
        patches: bottom to top.
        overlap_alpha: a pixel counts as covered where 8-bit alpha is above this. With 0, the rule of the evaluation,
            the faint rim of a soft shadow or filtered edge imposes an order on objects that lie side by side.

    Returns:
        One layer per peel. The evaluation groups them no further, since each is covered by the next.
    """
    groups = peels([_covered_by(patches, i, overlap_alpha) for i in range(len(patches))])
    return [_merged([patches[i] for i in indices]) for indices in groups]


def _covered_by(patches: Sequence[Patch], index: int, overlap_alpha: int) -> list[int]:
    lower = patches[index]
    above = []
    for j in range(index + 1, len(patches)):
        shared = intersection(lower.where, patches[j].where)
        if shared is not None:
            covers = (lower.alpha_at(shared) > overlap_alpha) & (patches[j].alpha_at(shared) > overlap_alpha)
            if covers.any():
                above.append(j)
    return above


def _merged(members: list[Patch]) -> Patch:
    kinds = {member.kind for member in members}
    words = ", ".join(member.description for member in members if member.description)
    return merged(members, kinds.pop() if len(kinds) == 1 else "group", words)
