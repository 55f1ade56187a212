"""Blocks of the single-frame RGBA-VAE: norm, convolution, residual, attention, resampling, encoder, decoder.

Modules have the names of diffusers' ``autoencoder_kl_qwenimage.py``, so that weights differ only by a tap slice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from models.vae.config import VAEConfig


class NormSiLU(torch.autograd.Function):
    """``silu(gamma * n)`` with n = sqrt(C) x / |x| over channels, and its gradient in few passes over memory.

    Autograd takes about three times as long on CPU, where memory passes dominate a narrow network, not products. With r
    = sqrt(C)/|x|, u = gamma n and du = silu'(u) dy: dgamma = sum n du, and dx = r gamma du - r^2 x mean_C(gamma n du).
    """

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor) -> Tensor:
        """Forward of ``(B, C, H, W)`` with ``gamma`` ``(C,)``."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        inverse = norm.clamp_min_(1e-12).reciprocal_().mul_(math.sqrt(x.shape[1]))
        ctx.save_for_backward(x, inverse, gamma)
        return F.silu((x * inverse).mul_(gamma.view(-1, 1, 1)), inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of input and gamma."""
        x, inverse, gamma = ctx.saved_tensors
        channel = gamma.view(-1, 1, 1)
        work = (x * inverse).mul_(channel)
        scaled = torch.ops.aten.silu_backward(grad, work).mul_(inverse)
        rows = torch.mul(x, scaled, out=work).permute(0, 2, 3, 1).reshape(-1, gamma.numel())
        mean = (rows @ (gamma / gamma.numel())).view_as(inverse)
        grad_gamma = rows.sum(0)
        return scaled.mul_(channel).addcmul_(x, mean.mul_(inverse).mul_(inverse), value=-1.0), grad_gamma


class RMSNorm(nn.Module):
    """RMS normalisation over channels; ``silu`` applies the activation in the same pass."""

    def __init__(self, dim: int, frame_axis: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.shape_3d = (dim, 1, 1, 1) if frame_axis else (dim, 1, 1)

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """Normalise ``(B, C, H, W)`` over C."""
        if silu and x.device.type == "cpu" and x.dtype == self.gamma.dtype == torch.float32:
            return NormSiLU.apply(x, self.gamma)
        # Under autocast gamma stays float32, and mixed dtypes would miss the fused kernel. The eps is that of
        # F.normalize, 1e-12 on the norm, converted to the mean square.
        gamma = self.gamma.to(x.dtype)
        y = F.rms_norm(x.movedim(1, -1), gamma.shape, gamma, eps=1e-24 / gamma.numel()).movedim(-1, 1)
        return F.silu(y) if silu else y


class FrameConv(nn.Conv2d):
    """Last temporal tap of a causal 3-D convolution: ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``.

    On disk its kernel is a cube, zero before that tap.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class ResidualBlock(nn.Module):
    """Residual block: twice norm, SiLU, convolution, plus a shortcut."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(in_dim)
        self.conv1 = FrameConv(in_dim, out_dim)
        self.norm2 = RMSNorm(out_dim)
        self.conv2 = FrameConv(out_dim, out_dim)
        self.conv_shortcut = FrameConv(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()
        self.gradient_checkpointing = False
        self.bypassed = False

    def _forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, silu=True))
        # No backward pass needs the output of a convolution, so adding in place is safe.
        return self.conv2(self.norm2(h, silu=True)).add_(self.conv_shortcut(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_dim, H, W)`` to ``(B, out_dim, H, W)``."""
        if self.bypassed:
            return self.conv_shortcut(x)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False, preserve_rng_state=False)
        return self._forward(x)


class AttentionBlock(nn.Module):
    """Self-attention of one head over the pixels of a frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, frame_axis=False)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.bypassed = False

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the pixels of ``(B, C, H, W)``."""
        if self.bypassed:
            return x
        batch, channels, height, width = x.shape
        tokens = self.to_qkv(self.norm(x)).movedim(1, -1).reshape(batch, 1, height * width, 3 * channels)
        out = F.scaled_dot_product_attention(*tokens.chunk(3, dim=-1))
        return self.proj(out.reshape(batch, height, width, channels).movedim(-1, 1)).add_(x)


class UpsampleConv(nn.Conv2d):
    """Nearest doubling of H and W followed by a 3x3 convolution, as one transposed convolution.

    A doubled row repeats each pixel, so two of the three taps always see the same pixel. Doubling and convolution are
    one transposed convolution of stride 2 whose 4 taps are sums of neighbouring ones, with 4/9 of the products.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, 2 H, 2 W)``."""
        kernel = self.weight.flip(2, 3).transpose(0, 1)
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class Resample(nn.Module):
    """Halve or double H and W; ``temporal`` only says that the 3-D form has a ``time_conv`` of ``time_shape``."""

    def __init__(self, dim: int, up: bool, temporal: bool) -> None:
        super().__init__()
        self.time_shape = (dim * 2 if up else dim, dim, 3, 1, 1) if temporal else None
        # Padding and convolution have the same positions as in diffusers, whose weight names depend on them.
        if up:
            self.resample = nn.Sequential(nn.Identity(), UpsampleConv(dim, dim // 2))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Halve or double H and W of ``(B, C, H, W)``."""
        return self.resample(x)


class MidBlock(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(dim)])
        self.resnets = nn.ModuleList([ResidualBlock(dim, dim), ResidualBlock(dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape ``(B, C, h, w)``."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class UpBlock(nn.Module):
    """Residual blocks at one resolution, followed by upsampling except at the last."""

    def __init__(self, in_dim: int, out_dim: int, count: int, upsampler: Resample | None) -> None:
        super().__init__()
        self.resnets = nn.Sequential(*(ResidualBlock(out_dim if i else in_dim, out_dim) for i in range(count)))
        self.upsamplers = nn.Sequential(*([] if upsampler is None else [upsampler]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_dim, h, w)`` to the next resolution."""
        return self.upsamplers(self.resnets(x))


class Encoder(nn.Module):
    """Encoder from ``(B, input_channels, H, W)`` to the ``(B, 2 z_dim, H/f, W/f)`` moments before ``quant_conv``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.base_dim * factor for factor in config.dim_mult]
        self.conv_in = FrameConv(config.input_channels, config.base_dim)
        self.down_blocks = nn.Sequential()
        dim = config.base_dim
        for level, out_dim in enumerate(dims):
            for _ in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(dim, out_dim))
                dim = out_dim
                if 0.5**level in config.attn_scales:
                    self.down_blocks.append(AttentionBlock(dim))
            if level < len(dims) - 1:
                self.down_blocks.append(Resample(dim, up=False, temporal=config.temperal_downsample[level]))
        self.mid_block = MidBlock(dim)
        self.norm_out = RMSNorm(dim)
        self.conv_out = FrameConv(dim, 2 * config.z_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to moments ``(B, 2 z_dim, h, w)``."""
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(self.norm_out(x, silu=True))


class Decoder(nn.Module):
    """Decoder from ``(B, z_dim, h, w)`` to ``(B, input_channels, f h, f w)``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.base_dim * factor for factor in reversed(config.dim_mult)]
        temporal = config.temperal_downsample[::-1]
        self.conv_in = FrameConv(config.z_dim, dims[0])
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = nn.Sequential()
        dim = dims[0]
        for level, out_dim in enumerate(dims):
            last = level == len(dims) - 1
            upsampler = None if last else Resample(out_dim, up=True, temporal=temporal[level])
            self.up_blocks.append(UpBlock(dim, out_dim, config.num_res_blocks + 1, upsampler))
            dim = out_dim // 2
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = FrameConv(dims[-1], config.input_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents ``(B, z_dim, h, w)`` to unclamped images."""
        x = self.up_blocks(self.mid_block(self.conv_in(z)))
        return self.conv_out(self.norm_out(x, silu=True))
