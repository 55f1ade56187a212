"""3x3 convolution in 6x6 tiles by Toom-Cook interpolation: a quarter of the products, for wide networks on a CPU.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308): Y = A^T [(G w G^T) * (B^T x B)] A for
each tile of 4x4 outputs, the product of transforms being a matrix product over channels. The usual points (0, 1, -1,
2, -2) double the rounding error; those here, reciprocal pairs near one, leave a millionth of the signal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
OUT, TAPS = 4, 3
TILE = OUT + TAPS - 1
# Below these the transforms, which are passes over memory, take longer than the products they save.
MIN_CHANNELS = 192
MIN_PIXELS = 1024


def interpolation_matrices(points: tuple[float, ...] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """``(B^T, G, A^T)`` of ``(6, 6)``, ``(6, 3)`` and ``(4, 6)`` in float64, for five finite points and infinity."""
    roots = torch.tensor(points, dtype=torch.float64)
    powers = roots[:, None] ** torch.arange(TILE)

    def monic(zeros: Tensor) -> Tensor:
        """Coefficients, lowest first, of the polynomial with these zeros."""
        coefficients = torch.ones(1, dtype=torch.float64)
        for zero in zeros:
            coefficients = F.pad(coefficients, (1, 0)) - zero * F.pad(coefficients, (0, 1))
        return F.pad(coefficients, (0, TILE - coefficients.numel()))

    others = [torch.cat([roots[:i], roots[i + 1 :]]) for i in range(len(roots))]
    scale = torch.stack([(root - rest).prod() for root, rest in zip(roots, others, strict=True)])
    infinity = F.one_hot(torch.tensor([TAPS - 1, OUT - 1]), TILE).double()
    data = torch.stack([*map(monic, others), monic(roots)])
    kernel = torch.cat([powers[:, :TAPS] / scale[:, None], infinity[:1, :TAPS]])
    output = torch.cat([powers[:, :OUT], infinity[1:, :OUT]]).T
    return data, kernel, output


# Both axes at once: a tile is a vector of 36, and a transform of all tiles is one matrix product.
_DATA, _KERNEL, _OUTPUT = (torch.kron(matrix, matrix).float() for matrix in interpolation_matrices())


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether ``conv3x3`` can take ``x`` ``(B, C, H, W)`` and ``weight``, and is faster than the direct convolution."""
    batch, _, height, width = x.shape
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and weight.shape[2:] == (TAPS, TAPS)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and batch * height * width >= MIN_PIXELS
        and height % OUT == width % OUT == 0
    )


def _input_tiles(x: Tensor) -> Tensor:
    """Transforms of the overlapping tiles of ``(B, C, H, W)``, padded by one: ``(36, tiles, C)``."""
    rows = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    tiles = rows.unfold(1, TILE, OUT).unfold(2, TILE, OUT).permute(4, 5, 0, 1, 2, 3)
    return (_DATA @ tiles.reshape(TILE * TILE, -1)).view(TILE * TILE, -1, x.shape[1])


def _correlate(tiles: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Transformed tiles times the transformed ``weight`` ``(O, C, 3, 3)``, back as ``(B, O, H, W)``."""
    batch, _, height, width = shape
    out = weight.shape[0]
    kernel = (_KERNEL @ weight.permute(2, 3, 1, 0).reshape(TAPS * TAPS, -1)).view(TILE * TILE, -1, out)
    pixels = _OUTPUT @ torch.bmm(tiles, kernel).view(TILE * TILE, -1)
    pixels = pixels.view(OUT, OUT, batch, height // OUT, width // OUT, out).permute(2, 3, 0, 4, 1, 5)
    return pixels.reshape(batch, height, width, out).permute(0, 3, 1, 2)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Not in place: callers may change the output, which autograd forbids for a view made in here.
        return _correlate(_input_tiles(x), weight, x.shape) + bias.view(-1, 1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        batch, out, height, width = grad.shape
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _correlate(_input_tiles(grad), weight.flip(2, 3).transpose(0, 1), grad.shape)
        if ctx.needs_input_grad[1]:
            blocks = grad.permute(0, 2, 3, 1).reshape(batch, height // OUT, OUT, width // OUT, OUT, out)
            blocks = _OUTPUT.T @ blocks.permute(2, 4, 0, 1, 3, 5).reshape(OUT * OUT, -1)
            products = torch.bmm(_input_tiles(x).transpose(1, 2), blocks.view(TILE * TILE, -1, out))
            grad_weight = _KERNEL.T @ products.view(TILE * TILE, -1)
            grad_weight = grad_weight.view(TAPS, TAPS, -1, out).permute(3, 2, 0, 1)
        return grad_x, grad_weight, grad.sum((0, 2, 3))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` and its gradients, in float32.

    Args:
        x: ``(B, C, H, W)``, H and W multiples of 4; channels_last is fastest.
        weight: ``(O, C, 3, 3)``.
        bias: ``(O,)``.

    Returns:
        ``(B, O, H, W)`` in channels_last.
    """
    return _Conv3x3.apply(x, weight, bias)
