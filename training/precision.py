"""What numbers networks compute in, where nobody has said so: one rule for training and for use."""

from __future__ import annotations

from typing import get_args

import torch

from training.param_types import Precision

PRECISIONS = get_args(Precision)
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def has_bf16(device: torch.device | None = None) -> bool:
    """Whether a device is a GPU that computes in bfloat16.

    Args:
        device: ``None`` for the one that would be taken: a GPU if there is one.
    """
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return on_gpu and torch.cuda.is_bf16_supported()


def weights_dtype(choice: Precision, device: torch.device) -> torch.dtype:
    """What weights that are only used are kept in; ``auto`` is bf16 on a GPU that has it, else fp32."""
    if choice == "auto":
        choice = "bf16" if has_bf16(device) else "fp32"
    return DTYPES[choice]


def name_of(dtype: torch.dtype) -> str:
    """``fp32`` or ``bf16``."""
    return next(name for name, found in DTYPES.items() if found == dtype)
