"""Editability scores: PSNR and LPIPS between the same edit of predicted and of true layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.decomposition.scores import check_stacks
from metrics.editability.edits import KINDS, Edit, edited, edits
from metrics.reconstruction.rgba import PIXELS_AT_ONCE, PSNR_CEILING, Distance, psnr

ALL = "all"  # key of the mean over kinds

CHANGE = 1.5 / 255.0  # a pixel counts as changed above one 8-bit level
MARGIN = 32  # the changed region is widened by the longer side / MARGIN, for residue that an edit leaves around it

# Scores by kind of edit, and under ALL their mean.
Scores = dict[str, dict[str, float]]


_Replayed = tuple[Edit, Tensor, Tensor]


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
    """Replay all edits on both stacks and compare the results over white.

    Args:
        predicted: layers ``(H, W, 4)`` uint8, straight alpha, bottom to top.
        true: likewise and of the same size.
        distance: LPIPS, see :class:`metrics.reconstruction.perceptual.Perceptual`; without it there is no ``lpips``.
        device: device of ``distance``, on which images are flattened.

    Returns:
        Metrics of each kind of edit, means over peels, and as ``all`` the mean over the kinds present. ``psnr`` is of
        the whole image in dB, at most :data:`metrics.reconstruction.rgba.PSNR_CEILING`. ``psnr_changed`` is of the
        region that the edit changes in the true image, widened by 1/32 of the longer side. Neither unchanged pixels
        nor wrong changes elsewhere count in it. ``lpips`` is of the whole image; ``reached`` is the share of edits
        with a predicted layer. Kinds that no peel allows are absent; the mapping is empty if none is allowed.

    Raises:
        ValueError: if a side has no layers, a layer is not RGBA of 8 bits or sizes differ.
        TooSmallError: by ``distance``, for images smaller than its network can pool.
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
        samples: results of :func:`edit_scores`, all with ``lpips`` or all without.

    Returns:
        The same metrics, and ``samples``, the number of samples with the kind; kinds that none has are absent.
    """
    found: Scores = {}
    for kind in (*KINDS, ALL):
        rows = [sample[kind] for sample in samples if kind in sample]
        if rows:
            found[kind] = _mean(rows) | {"samples": float(len(rows))}
    return found


def _changing(planned: Sequence[Edit], true: Tensor) -> Iterator[_Replayed]:
    """Yield edits that change the true image, the image after them ``(3, H, W)`` and the changed region ``(H, W)``."""
    before = composite_over_white(true)
    margin = max(1, round(max(true.shape[-2:]) / MARGIN))
    for edit in planned:
        after = composite_over_white(edited(true, edit.true, edit.kind))
        changed = ((after - before).abs().amax(0) > CHANGE).float()
        if changed.any():
            yield edit, after, _widened(changed, margin)


def _widened(region: Tensor, margin: int) -> Tensor:
    """Widen ``(H, W)`` of 0 and 1 by ``margin`` pixels to each side: a maximum over a square, by rows, then columns."""
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


def _as_tensor(stack: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    """``(L, 4, H, W)`` in [0, 1] of layers ``(H, W, 4)`` uint8."""
    return torch.from_numpy(np.stack(stack)).to(device).permute(0, 3, 1, 2).float() / 255.0


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
