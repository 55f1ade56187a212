"""What layers are good for: edits replayed on predicted layers and on the true ones, and the two results compared.

For every true peel and every kind of edit the same edit is made in both stacks, both are flattened over white, and the
flat pictures are compared by PSNR and LPIPS. No published protocol is followed; the choices, and why they are as they
are:

**What is edited: peels**, as the main metric groups the true layers (LayerD protocol, sec. 1.2). Layers of a peel have
no order among themselves, so no picture tells whether they are one layer or many, and the network is asked for as many
layers as there are peels. Layers that show nowhere are left out: no picture tells of them.

**Which predicted layers stand for a peel** (:func:`counterparts`): a person takes the layers in which they see the
thing, all of them. So a predicted layer belongs to the peel with which its visible share, or to the one with a member
of which its visible share, has the largest soft IoU. IoU and not overlap, because a small thing in a layer with haze
overlaps the background most; visible shares and not alpha, because a copy that is hidden under the thing is not seen
and so not taken, and appears once the thing is gone. It follows that

- a thing split over two layers is edited whole;
- two things in one layer go together: the layer belongs to the one it is more like, and is edited with it, the other
  along; the other one has no layer and its edits cannot be made;
- an edit that cannot be made leaves the picture as it was. To edit the layer that holds most of the thing instead would
  take along whatever else is in it, which nobody wants, and ``psnr_changed``, blind to the rest, would praise it: with
  the whole picture the thing moves too. ``reached`` says how often an edit could be made at all;
- the composite as the only layer stands for the peel that fills most of the picture, and can make no edit of another.

**Edits** have no chance in them and no parameter that hangs on a stack, so both sides get the same one:

==========  ==========================================================================  ====================
kind        what                                                                        of which peels
==========  ==========================================================================  ====================
delete      taken out                                                                   all
move        right and down by an eighth of the canvas, whole pixels; what leaves the    all but the bottom
            canvas is lost, what comes in is transparent
recolour    each colour becomes its negative, 1 - value                                 all
fade        alpha times 0.5                                                             all
reorder     to the top                                                                  all but bottom and top
==========  ==========================================================================  ====================

Bottom and top are those of the peels that show. The bottom one stays where it is: nobody moves a background, and on top
it hides everything. The negative changes black and white, which a change of hue does not, keeps differences of colours
as they are, and, being affine, does not mind how a thing is split. An edit that changes no pixel of the true picture by
more than :data:`CHANGE`, such as white on white deleted, is no edit and left out; a kind that is left with none is
absent, never 0.

Where a prediction flattens to the picture exactly, a thing in one layer has the PSNR of its deletion plus 6.02 dB when
it fades: half alpha is the mean of the picture with it and without it. ``fade`` says something of its own by LPIPS, and
by PSNR where layers do not flatten to the picture or lie over each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from layers.imaging.compositing import group_into_peels, to_float, visible_weights
from metrics.decomposition.scores import check_stacks
from metrics.reconstruction.rgba import PIXELS_AT_ONCE, PSNR_CEILING, Distance, psnr

Kind = Literal["delete", "move", "recolour", "fade", "reorder"]
KINDS: tuple[Kind, ...] = ("delete", "move", "recolour", "fade", "reorder")
ALL = "all"  # the mean over kinds, beside them

SHIFT = 8  # a move is by this part of each side
FADED = 0.5
CHANGE = 1.5 / 255.0  # a pixel is changed if it is by more than one 8-bit level
MARGIN = 32  # the changed region is widened by this part of the longer side, for what an edit leaves around it
VISIBLE = 0.5 / 255.0  # share of a pixel, up to which a layer is not seen in it: half an 8-bit level

# By kind of edit, and under ALL.
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Edit:
    """One edit, to be made in both stacks.

    Attributes:
        kind: what is done.
        true: the true layers it is done to, a peel; indices from the bottom.
        predicted: the predicted layers that stand for them; none if the edit cannot be made.
    """

    kind: Kind
    true: tuple[int, ...]
    predicted: tuple[int, ...]


_Replayed = tuple[Edit, Tensor, Tensor]


def counterparts(
    predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], peels: Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """Which predicted layers stand for each true peel; a layer stands for one at most.

    A layer belongs where the soft IoU of visible shares is largest, of whole peels and of their members; equal ones are
    told apart by the soft IoU of alpha, then the lower peel has it. One that shows nowhere, or shares nothing visible
    with any, belongs nowhere. Of two equal stacks every layer of a peel stands for its own.

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
    # Members of a peel do not overlap, so that sums are unions.
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
    """Peels of a stack, as the main metric groups them, without the layers that show nowhere.

    Args:
        true: layers ``(H, W, 4)`` uint8, straight alpha, bottom to top.

    Returns:
        Groups of indices bottom to top, none of them empty.
    """
    seen = _alphas_and_shares(true)[1].max((1, 2)) > VISIBLE
    groups = group_into_peels([layer[..., 3] for layer in true])
    return [peel for group in groups if (peel := [index for index in group if seen[index]])]


def edits(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> list[Edit]:
    """The edits that are replayed, peel by peel from the bottom; those that will change nothing are among them.

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
        kind: of the edit, see the table above.

    Returns:
        The stack after it, ``(L', 4, H, W)``; ``L'`` is smaller after ``delete`` and may be 0.
    """
    # Numbers and no masks: a mask on a GPU makes the host wait for how many it holds.
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


def composite_over_white(layers: Tensor) -> Tensor:
    """Flatten ``(L, 4, H, W)`` in [0, 1], straight alpha, bottom to top, over white: ``(3, H, W)`` in [0, 1]."""
    flat = layers.new_ones(3, *layers.shape[-2:])
    for layer in layers:
        flat = layer[3] * layer[:3] + (1.0 - layer[3]) * flat
    return flat


@torch.no_grad()
def edit_scores(
    predicted: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
    distance: Distance | None = None,
    device: torch.device | str = "cpu",
) -> Scores:
    """Replay all edits on both stacks and compare what comes out, over white.

    Args:
        predicted: layers ``(H, W, 4)`` uint8, straight alpha, bottom to top.
        true: likewise and of the same size.
        distance: LPIPS, see :class:`metrics.reconstruction.perceptual.Perceptual`; without it there is no ``lpips``.
        device: where ``distance`` is, and where pictures are flattened.

    Returns:
        Figures of each kind of edit, means over peels, and as ``all`` the mean over the kinds that are there:
        ``psnr`` of the whole picture in dB, at most :data:`metrics.reconstruction.rgba.PSNR_CEILING`;
        ``psnr_changed``, that of the region which the edit changes in the true picture, widened by 1/32 of the longer
        side: what stays the same does not count there, nor does what is wrongly changed elsewhere; ``lpips`` of the
        whole picture; and ``reached``, the share of edits for which there was a predicted layer. Kinds that no peel
        allows are absent; the mapping is empty if none does.

    Raises:
        ValueError: if a side has no layers, a layer is not RGBA of 8 bits or sizes differ.
        TooSmallError: by ``distance``, of pictures smaller than its network can pool.
    """
    check_stacks(predicted, true)
    stacks = [_as_tensor(stack, device) for stack in (predicted, true)]
    height, width = true[0].shape[:2]
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    changing = _changing(edits(predicted, true), stacks[1])
    for batch in _batches(changing, max(1, PIXELS_AT_ONCE // (height * width))):
        ours = torch.stack([composite_over_white(edited(stacks[0], edit.predicted, edit.kind)) for edit, _, _ in batch])
        theirs, regions = (torch.stack(column) for column in list(zip(*batch, strict=True))[1:])
        figures = {"psnr": psnr(ours, theirs), "psnr_changed": _masked_psnr(ours, theirs, regions)}
        if distance is not None:
            figures["lpips"] = distance(ours * 2.0 - 1.0, theirs * 2.0 - 1.0)
        columns = {name: values.tolist() for name, values in figures.items()}
        for number, (edit, _, _) in enumerate(batch):
            row = {name: values[number] for name, values in columns.items()}
            rows[edit.kind].append(row | {"reached": float(len(edit.predicted) > 0)})
    scores = {kind: _mean(found) for kind, found in rows.items() if found}
    return scores | {ALL: _mean(list(scores.values()))} if scores else {}


def mean_edit_scores(samples: Sequence[Mapping[str, Mapping[str, float]]]) -> Scores:
    """Unweighted mean over samples of each kind, and of ``all``, over those that have it.

    Args:
        samples: of :func:`edit_scores`, all with ``lpips`` or all without.

    Returns:
        The same figures, and ``samples``, how many have the kind; kinds that none has are absent.
    """
    found: Scores = {}
    for kind in (*KINDS, ALL):
        rows = [sample[kind] for sample in samples if kind in sample]
        if rows:
            found[kind] = _mean(rows) | {"samples": float(len(rows))}
    return found


def _changing(planned: Sequence[Edit], true: Tensor) -> Iterator[_Replayed]:
    """Edits that change the true picture, what it is after them ``(3, H, W)`` and where they change it ``(H, W)``."""
    before = composite_over_white(true)
    margin = max(1, round(max(true.shape[-2:]) / MARGIN))
    for edit in planned:
        after = composite_over_white(edited(true, edit.true, edit.kind))
        changed = ((after - before).abs().amax(0) > CHANGE).float()
        if changed.any():
            yield edit, after, _widened(changed, margin)


def _widened(region: Tensor, margin: int) -> Tensor:
    """Widen ``(H, W)`` of 0 and 1 by as many pixels to each side; rows, then columns, which is a square's maximum."""
    tall = F.max_pool2d(region[None], (2 * margin + 1, 1), stride=1, padding=(margin, 0))
    return F.max_pool2d(tall, (1, 2 * margin + 1), stride=1, padding=(0, margin))[0]


def _batches(items: Iterator[_Replayed], size: int) -> Iterator[list[_Replayed]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _masked_psnr(ours: Tensor, theirs: Tensor, regions: Tensor) -> Tensor:
    """PSNR in dB of ``(B, 3, H, W)`` in [0, 1] inside ``(B, H, W)`` of 0 and 1, none of it empty: ``(B,)``."""
    squares = ((ours - theirs).square().mean(1) * regions).sum((1, 2)) / regions.sum((1, 2))
    return (-10.0 * torch.log10(squares)).clamp(max=PSNR_CEILING)


def _moved(layers: Tensor) -> Tensor:
    """Shift ``(L, 4, H, W)`` right and down by the part :data:`SHIFT` of each side, at least a pixel."""
    height, width = layers.shape[-2:]
    down, right = max(1, round(height / SHIFT)), max(1, round(width / SHIFT))
    out = torch.zeros_like(layers)
    out[..., down:, right:] = layers[..., : height - down, : width - right]
    return out


def _units(peel: Sequence[int]) -> list[Sequence[int]]:
    """What a layer may be alike: the whole peel, or one of its members."""
    return [peel, *([index] for index in peel)] if len(peel) > 1 else [peel]


def _alphas_and_shares(stack: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Alphas and visible shares of a stack, ``(L, H, W)`` in [0, 1] each."""
    alphas = np.stack([to_float(layer[..., 3]) for layer in stack])
    return alphas, visible_weights(alphas)


def _soft_iou(first: np.ndarray, second: np.ndarray) -> float:
    union = float(np.maximum(first, second).sum(dtype=np.float64))
    return float(np.minimum(first, second).sum(dtype=np.float64)) / union if union > 0.0 else 0.0


def _as_tensor(stack: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    """``(L, 4, H, W)`` in [0, 1] of layers ``(H, W, 4)`` uint8."""
    return torch.from_numpy(np.stack(stack)).to(device).permute(0, 3, 1, 2).float() / 255.0


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
