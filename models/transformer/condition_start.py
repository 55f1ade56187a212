"""Initialisation of VLD-MMDiT that attends to the condition: every slot is predicted to be the flat image.

From random weights, most of a short training is spent on learning that a token depends on the same position of the
condition image. Here the first block starts with this. Attention with constant queries and keys, rotated by the rotary
positions, selects the condition's token at the same row and column. The output is v = (x_sigma - condition) / sigma_0,
which is right for slot 0 and the best guess for a background. All other branches start at zero (adaLN-Zero, Peebles and
Xie 2022, arXiv 2212.09748, sec. 3.2).
"""

from __future__ import annotations

import math

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from config.errors import UserError

# Amplitudes, in nats, of the cosines whose sum is the attention score.
ROW_COLUMN_AMPLITUDES = (8.0, 12.0)  # of an axis' two highest frequencies; the second resolves the first one's period
LAYER_AMPLITUDE = 24.0  # of a sine over layer indices, steepest at 0; favours the condition, of lowest index -1
LAYER_FREQUENCY = 0.1  # monotonic over all offsets of up to 15 layers
THETA = 10000.0  # of diffusers' rotary positions
# Two features of this size and opposite sign keep the LayerNorm's divisor nearly constant, so that a token's magnitude
# is preserved.
CARRIER = 12.0
# Sigma at which training samples are densest; the time embedding learns the rest.
MEAN_SIGMA = 0.8
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


class NarrowNetworkError(UserError, ValueError):
    """The network is too narrow for this initialisation."""


def _positions(axes: tuple[int, int, int], offset: tuple[int, int]) -> tuple[Tensor, Tensor, float]:
    """Query and key ``(head_dim,)`` of unit RMS whose score peaks at a (row, column) offset, and their scale."""
    amplitude, phase = [], []
    for axis, dim in enumerate(axes):
        frequency = THETA ** (-torch.arange(0, dim, 2) / dim)
        level, turn = torch.zeros(dim // 2), torch.zeros(dim // 2)
        if axis == 0:
            index = int((frequency - LAYER_FREQUENCY).abs().argmin())
            level[index], turn[index] = LAYER_AMPLITUDE, math.pi / 2
        else:
            count = min(len(ROW_COLUMN_AMPLITUDES), dim // 2)
            level[:count] = torch.tensor(ROW_COLUMN_AMPLITUDES[:count])
            turn = -frequency * offset[axis - 1]
        amplitude.append(level)
        phase.append(turn)
    level, turn = torch.cat(amplitude), torch.cat(phase)
    dim = 2 * len(level)
    root = (level / level.sum() * dim).sqrt()
    query = torch.stack([root, torch.zeros_like(root)], dim=1).flatten()
    key = torch.stack([root * turn.cos(), root * turn.sin()], dim=1).flatten()
    # Both are normalised to `scale` by the attention's RMS norms, and their product is divided by sqrt(dim).
    return query, key, math.sqrt(level.sum() / math.sqrt(dim))


@torch.no_grad()
def start_at_condition(transformer: QwenImageTransformer2DModel) -> None:
    """Rewrite the weights of a newly built transformer; see the module docstring.

    Raises:
        NarrowNetworkError: if it cannot hold a noisy token, the condition's token and the two constant features.
    """
    config = transformer.config
    features, head_dim = config.in_channels, config.attention_head_dim
    width, copying = transformer.inner_dim, math.ceil(features / head_dim)
    if width < 2 * features + 2 or copying > config.num_attention_heads:
        raise NarrowNetworkError(
            f"tokens of {features} numbers need a width of {2 * features + 2} and {copying} heads to start at the "
            f"condition; the network has {width} and {config.num_attention_heads}"
        )
    noisy, copied = slice(0, features), slice(features, 2 * features)
    for block in transformer.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)
    embed = transformer.img_in
    embed.weight[noisy] = torch.eye(features)
    embed.weight[features:] *= 0.1
    embed.bias.zero_()
    embed.weight[-2:] = 0.0
    embed.bias[-2:] = torch.tensor([CARRIER, -CARRIER])
    embed.weight[copied] = 0.0
    divisor = math.sqrt((features + 2.0 * CARRIER**2) / width)

    block = transformer.transformer_blocks[0]
    block.img_mod[1].bias.view(6, width)[2] = 1.0
    attention = block.attn
    for head in range(config.num_attention_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        offset = (0, 0) if head < copying else NEIGHBOURS[(head - copying) % len(NEIGHBOURS)]
        query, key, scale = _positions(tuple(config.axes_dims_rope), offset)
        for projection, value in ((attention.to_q, query), (attention.to_k, key)):
            projection.weight[rows] *= 0.1
            projection.bias[rows] = value
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(scale)
    copy = copying * head_dim
    attention.to_v.weight[:copy] = 0.0
    attention.to_v.weight[:features, noisy] = torch.eye(features) * divisor
    attention.to_v.bias.zero_()
    attention.to_out[0].weight.zero_()
    attention.to_out[0].bias.zero_()
    attention.to_out[0].weight[copied, :features] = torch.eye(features)
    # Tokens of neighbours are written to unused features.
    free = slice(2 * features, width - 2)
    nn.init.xavier_uniform_(attention.to_out[0].weight[free, copy:])

    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.norm_out.linear.bias)
    out = transformer.proj_out
    out.weight.mul_(0.1)
    out.bias.zero_()
    out.weight[:, -2:] = 0.0
    out.weight[:, noisy] = torch.eye(features) * divisor / MEAN_SIGMA
    out.weight[:, copied] = -torch.eye(features) * divisor / MEAN_SIGMA
