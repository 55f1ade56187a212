"""FSDP2 sharding: each process keeps its part of every trained matrix, its gradient, moments and EMA.

Started by ``accelerate launch --config_file presets/accelerate/fsdp2.yaml``. The network is the sharded root. The other
modules (VAE, text, LPIPS) are small in comparison and whole in every process. EMA, resume points and the best weights
are sharded too: element-wise arithmetic needs no other process.
"""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from models.precision import MixedPrecision


def is_sharded(accelerator: Accelerator) -> bool:
    """True if :meth:`Accelerator.prepare` shards."""
    return accelerator.distributed_type == DistributedType.FSDP


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; an unsharded tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def as_part_of(tensor: Tensor, part: Tensor) -> Tensor:
    """Give ``part``, this process's part of a tensor, the device, memory format and shards of ``tensor``.

    A ``part`` of another shape, such as a step counter, is returned unchanged.
    """
    own = local_part(tensor)
    if part.shape != own.shape:
        return part
    # Fused kernels treat weights and moments as flat memory.
    part = torch.empty_like(own, dtype=part.dtype).copy_(part)
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def without_weights(network: nn.Module) -> nn.Module:
    """Copy of a network whose parameters and buffers take no memory (device ``meta``)."""
    memo = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)


def prepare_sharded(
    module: nn.Module, network: MixedPrecision, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Shard ``network`` in place, block by block, each moved to its device only as shards.

    Args:
        module: the module that contains the network; its other parts move to the device whole.
        network: on the CPU.
        optimizer: optimizer of the network's parameters; its wrapped form has their shards.
        accelerator: started under FSDP2.

    Returns:
        A copy without weights for :func:`gather`, and the wrapped optimizer.
    """
    empty = without_weights(network)
    for part in module.children():
        if part is not network:
            part.to(accelerator.device)
    # accelerate's own policy casts inputs too: sigma in bfloat16 is off by up to 0.2 %. It sums gradients in bfloat16.
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=network.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    return empty, accelerator.prepare(network, optimizer)[1]


@torch.no_grad()
def gather(network: nn.Module, empty: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Gather a sharded network on the CPU of rank 0; every rank has to call it.

    Args:
        network: the sharded network.
        empty: its copy of :func:`without_weights`, made before it was sharded.
        accelerator: the processes.

    Returns:
        ``empty``, which on rank 0 now has the weights.
    """
    state = {}
    for name, value in network.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if accelerator.is_main_process:
            state[name] = whole.detach().cpu()
    if accelerator.is_main_process:
        empty.load_state_dict(state, assign=True)
    return empty
