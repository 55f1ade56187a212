"""Networks larger than the GPU: their weights wait in main memory and visit it when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from diffusers.hooks import apply_group_offloading
from torch import nn

from config.base import Offload

OFFLOADS = get_args(Offload)


def place(
    modules: Sequence[nn.Module], device: torch.device, how: Offload, residents: Sequence[nn.Module] = ()
) -> None:
    """Make networks compute on a device.

    Args:
        modules: in main memory, in the order in which they are called.
        device: where they compute.
        how: ``none`` moves them there; ``models`` takes each there whole at its call and the one before it back;
            ``blocks`` takes there a block of a network at a time, which needs the least memory and the most time.
        residents: what is on the device and stays there, such as the halves of a VAE; under ``models`` their calls take
            all of ``modules`` back, so that what does not compute is in main memory.
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

    def send_back(*_: Any) -> None:
        for hook in hooks:
            hook.offload()

    if hooks:
        for resident in residents:
            resident.register_forward_pre_hook(send_back)
