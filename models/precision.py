"""Mixed precision where it belongs: inside a network's call, never around what compares its results.

Under autocast, SSIM of two equal images is 0.98 and the costs of an alignment are rounded to three digits. So neither
the training loop nor validation opens autocast; each network does it for itself, and gives float32 back.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class MixedPrecision(nn.Module):
    """A network that computes in :attr:`compute_dtype`, whatever its weights are stored in.

    Attributes:
        compute_dtype: of matrix products and convolutions inside its calls; ``None`` computes in the weights' own.
    """

    compute_dtype: torch.dtype | None = None

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """What the network's calls on ``device`` run in."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, self.compute_dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, unless it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
