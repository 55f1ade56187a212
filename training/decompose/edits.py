"""Edits of one layer of a true stack, as users edit a decomposed image (paper sec. 1 and fig. 1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.decompose.layer_costs import HALF_STEP

Edit = Literal["move", "resize", "recolour", "delete"]
EDITS: tuple[Edit, ...] = ("move", "resize", "recolour", "delete")

MAX_SHIFT = 0.25  # share of a side, in each direction
SIZES = (0.6, 1.4)
GAINS, OFFSET = (0.3, 1.0), 0.5  # of recolouring, for colours in [-1, 1]


def all_but(index: Tensor, count: int) -> Tensor:
    """Numbers 0 to ``count - 1`` without the entry of ``index`` ``(B,)``, in order: ``(B, count - 1)``."""
    rest = torch.arange(count - 1, device=index.device).expand(len(index), -1)
    # Indexing by a mask would make the host wait for the GPU.
    return rest + (rest >= index[:, None])


def edit_layers(layers: Tensor, index: Tensor, edit: Edit) -> Tensor:
    """Edit one layer of each stack; amounts are drawn from torch's global generator.

    Args:
        layers: ``(B, L, 4, H, W)`` in [-1, 1], bottom to top.
        index: ``(B,)`` index of the layer to edit.
        edit: ``move``, ``resize`` about its centre, ``recolour`` by a gain and an offset per channel, or ``delete``.

    Returns:
        ``(B, L, 4, H, W)``, or ``(B, L - 1, 4, H, W)`` after ``delete``.
    """
    batch, count = layers.shape[:2]
    rows = torch.arange(batch, device=layers.device)
    if edit == "delete":
        return layers[rows[:, None], all_but(index, count)]
    layer = layers[rows, index]
    if edit == "recolour":
        gain = layer.new_empty(batch, 3, 1, 1).uniform_(*GAINS)
        offset = layer.new_empty(batch, 3, 1, 1).uniform_(-OFFSET, OFFSET)
        changed = torch.cat([(layer[:, :3] * gain + offset).clamp(-1.0, 1.0), layer[:, 3:]], dim=1)
    else:
        shift, scale = torch.zeros(batch, 2, device=layer.device), torch.ones(batch, device=layer.device)
        if edit == "move":
            shift.uniform_(-2.0 * MAX_SHIFT, 2.0 * MAX_SHIFT)
        else:
            scale.uniform_(*SIZES)
        changed = _warped(layer, shift, scale)
    return torch.where((torch.arange(count, device=layers.device) == index[:, None])[..., None, None, None],
                       changed[:, None], layers)  # fmt: skip


def _warped(layer: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Move ``(B, 4, H, W)`` by shares of half a side and scale it about the centre of its visible part."""
    alpha = (layer[:, 3:] + 1.0) / 2.0
    height, width = layer.shape[-2:]
    weight = alpha.flatten(1) / alpha.flatten(1).sum(1, keepdim=True).clamp(min=1e-6)
    y, x = torch.meshgrid(
        (torch.arange(height, device=layer.device) * 2 + 1) / height - 1,
        (torch.arange(width, device=layer.device) * 2 + 1) / width - 1,
        indexing="ij",
    )
    centre = torch.stack([(weight * x.flatten()).sum(1), (weight * y.flatten()).sum(1)], dim=1)
    # Pixel p of the result samples the layer at centre + (p - centre - shift) / scale.
    diagonal = torch.diag_embed((1.0 / scale)[:, None].expand(-1, 2))
    moved = centre - (centre + shift) / scale[:, None]
    grid = F.affine_grid(torch.cat([diagonal, moved[..., None]], dim=2), list(layer.shape), align_corners=False)
    premultiplied = torch.cat([(layer[:, :3] + 1.0) / 2.0 * alpha, alpha], dim=1)
    sampled = F.grid_sample(premultiplied, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    cover = sampled[:, 3:]
    colour = torch.where(cover > HALF_STEP, sampled[:, :3] / cover.clamp(min=1e-6), 0.0)
    return torch.cat([colour, cover], dim=1).clamp(0.0, 1.0) * 2.0 - 1.0
