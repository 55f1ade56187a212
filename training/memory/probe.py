"""Peak-memory probe of a computation at any size, with simulated tensors that take no memory.

    with pretended():
        network = build()
        with Meter(network) as meter:
            network(image).sum().backward()
    meter.peak

Simulated tensors are on the device ``meta``: they have shapes and no numbers, and take neither memory nor time.
Autocast and fused kernels, which torch lacks there, are simulated as on a GPU. Not counted: workspaces of kernels, and
fragmentation of torch's allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import lpips
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from metrics.reconstruction.perceptual import Perceptual
from models.vae import blocks as vae_blocks
from training.vae import objective as vae_objective

AUTOCAST, TO_LIST = torch.autocast, Tensor.tolist
KNOWN: dict[Any, Any] = {}


class Form(NamedTuple):
    """Shape, strides and dtype of a simulated tensor."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Meter(TorchDispatchMode):
    """Counter of the bytes of all tensors created inside, by storage, until they are released.

    Args:
        held: networks that exist from the start.

    Attributes:
        now: current bytes.
        peak: peak bytes so far.
    """

    def __init__(self, *held: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}
        for network in held:
            self.hold(*network.parameters(), *network.buffers())

    def hold(self, *tensors: Tensor) -> None:
        """Count tensors that were created outside."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key not in self._alive:
                self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._let_go(key, size))
                self.now += size
        self.peak = max(self.peak, self.now)

    def _let_go(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: Mapping | None = None) -> Any:
        result = answer(func, args, kwargs or {})
        self.hold(*(leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor)))
        return result


def answer(func: Callable, args: Sequence, kwargs: Mapping[str, Any]) -> Any:
    """Result of an operation, also where simulated tensors have none: reading a number, or a copy to the CPU."""
    if func is torch.ops.aten._local_scalar_dense.default:
        return _numbers(args[0])
    if func is torch.ops.aten._to_copy.default:
        kwargs = {**kwargs, "device": "meta"}
    # Torch infers results slowly, and the blocks of a network are alike: inferred results are cached.
    key = (func, _form(args), _form(kwargs))
    if key in KNOWN:
        return _made(KNOWN[key])
    result = func(*args, **kwargs)
    made = [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
    given = {leaf.untyped_storage()._cdata for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)}
    new = all(leaf.is_meta and leaf.untyped_storage()._cdata not in given for leaf in made)
    if made and new and not func._schema.is_mutable:
        KNOWN[key] = _form(result)
    return result


def _form(value: Any) -> Any:
    """Lookup key: everything on which the form of a result depends."""
    if isinstance(value, Tensor):
        return Form(value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return (type(value), *map(_form, value))
    if isinstance(value, Mapping):
        return tuple((name, _form(item)) for name, item in value.items())
    return value


def _made(form: Any) -> Any:
    """Create a result of a form: a tensor, another value, or a tuple or list of them."""
    if isinstance(form, Form):
        return torch.empty_strided(form.size, form.stride, dtype=form.dtype, device="meta")
    if isinstance(form, tuple) and form and form[0] in (list, tuple):
        return form[0](map(_made, form[1:]))
    return form


def _numbers(tensor: Tensor) -> Any:
    return TO_LIST(torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu"))


class Autocast:
    """Simulation of GPU autocast for the operations of networks; enabled whenever CPU autocast is."""

    def __init__(self) -> None:
        self.copies: dict[int, Tensor] = {}

    def lowered(self, operation: Callable) -> Callable:
        """Wrap an operation that autocast runs in the lower precision."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                args, kwargs = tree_map_only(Tensor, lambda tensor: self._cast(tensor, dtype), (args, kwargs))
            return operation(*args, **kwargs)

        return call

    def raised(self, operation: Callable) -> Callable:
        """Wrap an operation that autocast runs in float32."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
            return operation(*args, **kwargs)

        return call

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.dtype == dtype or not (tensor.requires_grad and tensor.is_leaf):
            return tensor.to(dtype)
        # Casts of trained weights are cached until autocast ends.
        if id(tensor) not in self.copies:
            self.copies[id(tensor)] = tensor.to(dtype)
        return self.copies[id(tensor)]


class PretendedDistance(Perceptual):
    """LPIPS whose backbone is neither read nor downloaded."""

    def __init__(self, trunk: str = "alex") -> None:
        nn.Module.__init__(self)
        self.trunk = trunk
        # Its scaling layer has tensors that the device context does not move.
        self.lpips = lpips.LPIPS(net=trunk, pretrained=False, pnet_rand=True, verbose=False).to("meta")
        self.requires_grad_(False).eval()


class _FusedNorm(torch.autograd.Function):
    """Tensors that ``F.rms_norm`` creates and saves on a GPU, where it is one kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(x, gamma, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, gamma, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(gamma)


def _rms_norm(norm: vae_blocks.RMSNorm, x: Tensor, silu: bool = False) -> Tensor:
    y = _FusedNorm.apply(x.movedim(1, -1), norm.gamma.to(x.dtype)).movedim(-1, 1)
    return F.silu(y) if silu else y


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Fused attention kernel, which saves no attention matrix."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> torch.autocast:
    return AUTOCAST("cpu" if device_type == "meta" else device_type, *args, **kwargs)


REPLACED = (
    (torch, "autocast", _autocast),
    (Tensor, "tolist", lambda tensor: _numbers(tensor) if tensor.is_meta else TO_LIST(tensor)),
    (vae_blocks.RMSNorm, "forward", _rms_norm),
    (vae_objective, "Perceptual", PretendedDistance),
)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def pretended() -> Iterator[None]:
    """Simulate tensors inside the block, without memory or time; networks must be built inside too."""
    autocast = Autocast()
    computed = (
        (F, "scaled_dot_product_attention", autocast.lowered(_attention)),
        *((F, name, autocast.lowered(getattr(F, name))) for name in ("linear", "conv2d", "conv_transpose2d")),
        (F, "layer_norm", autocast.raised(F.layer_norm)),
        (torch, "clear_autocast_cache", autocast.copies.clear),
    )
    with ExitStack() as stack:
        for replacement in (*REPLACED, *computed):
            stack.enter_context(_replaced(*replacement))
        stack.enter_context(torch.device("meta"))
        yield
