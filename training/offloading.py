"""Networks larger than the GPU: their weights wait in main memory and visit it when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from diffusers.hooks import apply_group_offloading
from torch import nn

Offload = Literal["none", "models", "blocks"]
OFFLOADS = get_args(Offload)


def place(modules: Sequence[nn.Module], device: torch.device, how: Offload) -> list[UserCpuOffloadHook]:
    """Make networks compute on a device.

    Args:
        modules: in main memory, in the order in which they are called.
        device: where they compute.
        how: ``none`` moves them there; ``models`` takes each there whole at its call and the one before it back;
            ``blocks`` takes there a block of a network at a time, which needs the least memory and the most time.

    Returns:
        Under ``models`` what takes each back; else nothing.
    """
    hooks: list[UserCpuOffloadHook] = []
    for module in modules:
        if how == "none":
            module.to(device)
        elif how == "models":
            _, hook = cpu_offload_with_hook(module, device, hooks[-1] if hooks else None)
            hooks.append(hook)
        else:
            apply_group_offloading(
                module,
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=device.type == "cuda",
            )
    return hooks
