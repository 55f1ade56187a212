"""Precision of weights and of computation.

Autocast is opened inside a network's call, never around comparisons of its results. Under autocast, SSIM of two equal
images is 0.98 and the costs of an alignment are rounded to three digits. So neither the training loop nor validation
opens autocast; each network opens it itself and returns float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import get_args

import torch
from torch import Tensor, nn

from config.base import Precision

PRECISIONS = get_args(Precision)
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class MixedPrecision(nn.Module):
    """Network that computes in :attr:`compute_dtype`, whatever the dtype of its weights.

    Attributes:
        compute_dtype: dtype of matrix products and convolutions in its calls; ``None`` for that of the weights.
    """

    compute_dtype: torch.dtype | None = None

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Autocast context of the network's calls on ``device``."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, self.compute_dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a tensor to float32 unless it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def has_bf16(device: torch.device | None = None) -> bool:
    """True if a device is a GPU that computes in bfloat16.

    Args:
        device: ``None`` for the default device: a GPU if there is one.
    """
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return on_gpu and torch.cuda.is_bf16_supported()


def weights_dtype(choice: Precision, device: torch.device) -> torch.dtype:
    """Dtype of weights for inference; ``auto`` is bf16 on a GPU that has it, else fp32."""
    if choice == "auto":
        choice = "bf16" if has_bf16(device) else "fp32"
    return DTYPES[choice]


def name_of(dtype: torch.dtype) -> str:
    """Name of a dtype: ``fp32`` or ``bf16``."""
    return next(name for name, found in DTYPES.items() if found == dtype)
