"""What refine starts from: every weight, the adapters of stage 3, or new ones on its merged weights."""

import pytest
import torch

from config.decompose import Refine
from models.transformer.lora import add_lora, merge_lora, save_lora
from stages import refine
from stages.refine import build_network
from tests.support.networks import tiny_network
from tests.training.test_devices import settings


@pytest.fixture
def stage_three(tmp_path, monkeypatch):
    """A base, and what stage 3 writes after training adapters of rank 2 and alpha 4 on it."""
    base = tiny_network()
    base.save_pretrained(tmp_path / "base")
    network = tiny_network()
    add_lora(network.transformer, 2, 4.0)
    torch.manual_seed(5)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    output = tmp_path / "decompose"
    save_lora(network.transformer, output, str(tmp_path / "base"))
    merge_lora(network.transformer)
    network.save_pretrained(output)
    monkeypatch.setattr(refine, "INPUT", output)
    return base, network


def answer(network):
    torch.manual_seed(0)
    noisy = torch.randn(1, 3, 4, 4, 4)
    with torch.no_grad():
        return network(noisy, noisy[:, 0], torch.full((1,), 0.5))


def chosen(**changes):
    return settings("refine", Refine, **changes)


def test_the_adapters_of_stage_three_go_on(stage_three, tmp_path):
    base, merged = stage_three
    network, place = build_network(chosen(lora__rank=2, lora__alpha=4.0), None)
    assert place == str(tmp_path / "base")
    assert torch.allclose(answer(network), answer(merged), atol=1e-5)
    assert not torch.allclose(answer(network), answer(base), atol=1e-2)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    frozen = dict(network.transformer.named_parameters())
    name = "transformer_blocks.0.attn.to_q.base_layer.weight"
    assert torch.equal(frozen[name], base.transformer.transformer_blocks[0].attn.to_q.weight)


@pytest.mark.parametrize(("rank", "alpha"), [(3, 4.0), (2, 8.0)])
def test_others_are_put_on_the_merged_weights(stage_three, rank, alpha):
    _, merged = stage_three
    network, place = build_network(chosen(lora__rank=rank, lora__alpha=alpha), None)
    assert place == str(refine.INPUT)
    assert torch.allclose(answer(network), answer(merged), atol=1e-5), "new adapters change nothing yet"
    assert any(".lora_" in name for name, p in network.named_parameters() if p.requires_grad)


def test_without_adapters_every_weight_is_trained(stage_three):
    network, _ = build_network(chosen(), torch.bfloat16)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    assert network.compute_dtype == torch.bfloat16


def test_what_adapters_freeze_is_kept_in_half(stage_three):
    network, _ = build_network(chosen(lora__rank=2, lora__alpha=4.0, gradient_checkpointing=True), torch.bfloat16)
    assert {p.dtype for p in network.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    assert network.transformer.gradient_checkpointing
