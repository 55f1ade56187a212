"""What the paper does to designs before learning from them (data pipeline).

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
    """Which layers are dropped.

    Attributes:
        drop_empty: layers without a visible pixel.
        drop_hidden: layers that those above cover wholly.
        drop_unchanging: layers without which no pixel of the composite changes by more than ``min_change``, such as
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

    Each layer is judged against those above it and those below it that have been kept so far, from the bottom up; so
    of two equal layers on one another the lower goes, and the composite never changes by more than ``min_change``
    for a layer dropped.

    Args:
        patches: bottom to top.
        cleaning: what to drop.
        size: (height, width) of the canvas.

    Returns:
        The layers kept; what they flatten to, premultiplied ``(H, W, 4)`` float32; and how many were dropped as
        ``empty``, ``hidden`` and ``unchanging``.
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
    """For each patch, how much of it those above let through, ``(h, w)``; ``None`` where nothing lies above it."""
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
    """Whether any value is above a threshold; asks a coarse sample first, since a layer that shows, shows there."""
    coarse, every = slice(None, None, 16), slice(None)
    return bool((values(coarse) > threshold).any() or (values(every) > threshold).any())


def _shows(patch: Patch, through: np.ndarray | None) -> bool:
    """Whether any pixel is seen through those above by half an 8-bit level or more."""
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
    """Merge layers that do not overlap into peels, bottom to top, as the evaluation does.

    Args:
        patches: bottom to top.
        overlap_alpha: a pixel covers where its 8-bit alpha is above this. With 0, the rule of the evaluation, the
            last haze of a soft shadow or of a filtered edge gives an order to things that lie side by side.

    Returns:
        One layer a peel. The evaluation groups them no further: each is covered by the next.
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
