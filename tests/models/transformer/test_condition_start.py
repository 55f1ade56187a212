"""A network started at its condition says v = (x_sigma - condition) / sigma_0, whatever the size and layer count."""

import pytest
import torch

from models.transformer.condition_start import MEAN_SIGMA, start_at_condition
from models.transformer.vld_mmdit import VLDMMDiT
from tests.support.networks import tiny_transformer


def network(heads=6, head_dim=32, axes=(8, 12, 12), channels=16, started=True):
    transformer = tiny_transformer(
        latent_channels=channels,
        num_layers=3,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        axes_dims_rope=axes,
        joint_attention_dim=32,
    )
    if started:
        start_at_condition(transformer)
    return VLDMMDiT(transformer).eval()


def explained(net, layers, size, text=None):
    """Share of the wanted velocity's variance, slot by slot, that the network's answer explains."""
    torch.manual_seed(1)
    noisy, condition = torch.randn(2, layers + 1, 16, *size), torch.randn(2, 16, *size)
    with torch.no_grad():
        found = net(noisy, condition, torch.tensor([0.5, 0.9]), text)
    wanted = (noisy - condition[:, None]) / MEAN_SIGMA
    return 1.0 - (found - wanted).square().mean((0, 2, 3, 4)) / wanted.square().mean((0, 2, 3, 4))


@pytest.mark.parametrize(("layers", "size"), [(1, (8, 8)), (2, (16, 24)), (6, (16, 16)), (10, (24, 8))])
def test_every_slot_is_taken_for_the_flat_image(layers, size):
    assert explained(network(), layers, size).min() > 0.9
    assert explained(network(started=False), layers, size).max() < 0.3


def test_a_caption_does_not_get_in_the_way():
    text = (torch.randn(2, 40, 32), torch.ones(2, 40, dtype=torch.bool))
    assert explained(network(), 3, (16, 16), text).min() > 0.9


def test_another_place_of_the_condition_is_not_looked_at():
    net, condition = network(), torch.randn(1, 16, 16, 16)
    noisy = torch.randn(1, 3, 16, 16, 16)
    changed = condition.clone()
    changed[..., 8:10, 8:10] += 3.0
    with torch.no_grad():
        moved = (net(noisy, changed, torch.tensor([0.8])) - net(noisy, condition, torch.tensor([0.8]))).abs()
    moved = moved.mean((0, 1, 2))
    inside = moved[8:10, 8:10].mean()
    moved[6:12, 6:12] = 0.0
    assert moved.max() < 0.05 * inside


def test_all_parameters_can_learn():
    net = network().train()
    out = net(torch.randn(2, 3, 16, 8, 8), torch.randn(2, 16, 8, 8), torch.rand(2))
    out.square().mean().backward()
    first = net.transformer.transformer_blocks[0]
    for parameter in (first.attn.to_q.weight, first.attn.to_v.weight, first.attn.to_out[0].weight):
        assert parameter.grad.abs().max() > 0
    for block in net.transformer.transformer_blocks:
        assert block.img_mod[1].bias.grad.view(6, -1)[[2, 5]].abs().max() > 0, "closed gates open"


def test_too_narrow_a_network_is_one_sentence():
    with pytest.raises(ValueError, match=r"tokens of 64 numbers need a width of 130 and 4 heads .* has 96 and 6"):
        network(heads=6, head_dim=16, axes=(4, 6, 6))
