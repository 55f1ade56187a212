"""A GPU that is not there: fake tensors have shapes and devices, no numbers, and refuse to be mixed across devices.

What torch cannot pretend is added here: modules that move, gradients inside a loss (zeros), and numbers that the host
reads (zeros). Reads of what is on the GPU are recorded, because on a real one each makes the host wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

GPU = torch.device("cuda", 0)


def moved(module: nn.Module, device: torch.device | str) -> nn.Module:
    """What ``module.to(device)`` does: parameters and buffers move, other tensors stay where they are."""
    for part in module.modules():
        move_own(part, device)
    return module


def move_own(module: nn.Module, device: torch.device | str) -> None:
    """Move what is the module's own, not its parts'."""
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = nn.Parameter(value.detach().to(device), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = value.to(device)


def _to(module: nn.Module, *args, **kwargs) -> nn.Module:
    device = kwargs.get("device", args[0] if args and isinstance(args[0], str | torch.device | int) else None)
    return module if device is None else moved(module, GPU if isinstance(device, int) else device)


def _gradients(outputs: object, inputs: Tensor | Sequence[Tensor], **_: object) -> tuple[Tensor, ...]:
    """Backward passes need a real device; what comes out of them has the shapes and devices of the inputs."""
    return tuple(torch.zeros_like(value) for value in ([inputs] if isinstance(inputs, Tensor) else inputs))


@contextmanager
def fake_gpu() -> Iterator[list[str]]:
    """Everything inside happens with fake tensors; what comes is filled with the names of reads from the GPU."""
    reads: list[str] = []

    def reading(name: str, give: Callable[[Tensor], object]) -> Callable:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *args, **kwargs):
            if not isinstance(tensor, FakeTensor):
                return original(tensor, *args, **kwargs)
            if tensor.device.type == "cuda":
                reads.append(name)
            return give(tensor)

        return read

    def array(tensor: Tensor) -> np.ndarray:
        assert tensor.device.type == "cpu", "numpy reads from the CPU only"
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    gives = {
        "item": lambda tensor: 0,
        "tolist": lambda tensor: np.zeros(tuple(tensor.shape)).tolist(),
        "numpy": array,
        "__array__": array,
        "__float__": lambda tensor: 0.0,
        "__int__": lambda tensor: 0,
        "__index__": lambda tensor: 0,
        "__bool__": lambda tensor: False,
    }
    with ExitStack() as stack:
        for name, give in gives.items():
            stack.enter_context(mock.patch.object(Tensor, name, reading(name, give)))
        # Without a GPU autocast to one is switched off, with a warning only.
        stack.enter_context(mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
        stack.enter_context(mock.patch.object(nn.Module, "to", _to))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", _gradients))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield reads
