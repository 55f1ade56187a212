"""Offloading of networks larger than the GPU: weights stay in main memory and are moved when needed."""

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
    """Place networks on a device, or move their weights there on demand.

    Args:
        modules: networks in main memory, in the order of their calls.
        device: device of computation.
        how: ``none`` moves all networks to the device; ``models`` moves each there at its call and the previous one
            back; ``blocks`` moves one block of a network at a time, which needs the least memory and the most time.
        residents: modules that stay on the device, such as the halves of a VAE; under ``models`` their calls move all
            of ``modules`` back, so that idle networks are in main memory.
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
