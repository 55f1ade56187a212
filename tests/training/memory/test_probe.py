"""Pretended tensors: what is counted, and that autocast, checkpoints and fused kernels keep what they keep on a GPU."""

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from metrics.reconstruction.perceptual import SMALLEST_SIDE
from models.vae.blocks import RMSNorm
from training.decompose.alignment_loss import alignment_loss
from training.memory.probe import Meter, PretendedDistance, pretended
from training.memory.work import alignment_bytes

MIB = 2**20


def test_storages_count_once_and_until_they_are_let_go():
    with pretended(), Meter() as meter:
        x = torch.zeros(MIB, dtype=torch.uint8)
        view = x[: MIB // 2].view(2, -1)
        assert meter.now == MIB
        y = x + x
        assert (meter.now, meter.peak) == (2 * MIB, 2 * MIB)
        del x, y
        assert meter.now == MIB, "the view still holds it"
        del view
        assert (meter.now, meter.peak) == (0, 2 * MIB)


def test_networks_that_are_there_count_from_the_start():
    with pretended():
        network = nn.Linear(1024, 1024, bias=False)
        with Meter(network, network) as meter:
            assert meter.now == meter.peak == 4 * MIB
            network(torch.zeros(1024, 1024)).sum().backward()
        assert meter.now == 8 * MIB, "weight and gradient"


def test_nothing_is_allocated_or_left_behind():
    before, functions = psutil.Process().memory_info().rss, (F.linear, F.conv2d, torch.autocast, RMSNorm.forward)
    with pretended():
        held = torch.zeros(2**36)
        assert held.nbytes == 2**38
    assert psutil.Process().memory_info().rss - before < 50 * MIB
    assert functions == (F.linear, F.conv2d, torch.autocast, RMSNorm.forward)
    assert torch.zeros(2).device.type == "cpu"


def test_numbers_that_the_host_asks_for_are_zeros():
    with pretended(), Meter():
        x = torch.rand(3)
        assert float(x.sum()) == 0.0 and int(torch.randint(5, ())) == 0 and x.tolist() == [0.0] * 3
        assert x.cpu().double().is_meta, "what moves to the CPU stays pretended"


@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_computes_low_and_keeps_copies_of_what_is_trained_until_it_ends(enabled):
    with pretended():
        trained, frozen = nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 1024, bias=False).requires_grad_(False)
        x = torch.zeros(1, 1024)
        with torch.no_grad(), Meter(trained, frozen) as meter:
            held = meter.now
            with torch.autocast("meta", torch.bfloat16, enabled=enabled):
                for _ in range(2):
                    for layer in (trained, frozen):
                        assert layer(x).dtype == (torch.bfloat16 if enabled else torch.float32)
                assert F.layer_norm(x.bfloat16(), (1024,)).dtype == (torch.float32 if enabled else torch.bfloat16)
                assert meter.now - held == enabled * 2 * MIB
            assert meter.now == held


def test_a_checkpoint_is_computed_again_as_it_was():
    with pretended():
        layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(8))
        found = {}
        for keep in (True, False):
            x = torch.zeros(4096, 512)
            with Meter(layers) as meter:
                with torch.autocast("meta", torch.bfloat16):
                    for layer in layers:
                        run = lambda x, layer=layer: F.gelu(F.gelu(layer(x)))  # noqa: E731
                        x = run(x) if keep else checkpoint(run, x, use_reentrant=False)
                x.float().sum().backward()
            found[keep] = meter.peak
            layers.zero_grad()
    each = 4096 * 512 * 2
    # Input, and what both activations read.
    assert found[True] - found[False] == pytest.approx(8 * 2 * each, rel=0.2)


def test_attention_keeps_no_table_of_tokens():
    with pretended(), Meter() as meter:
        tokens = torch.zeros(1, 1, 4096, 64, requires_grad=True)
        F.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()
    assert meter.peak < 10 * tokens.nbytes < 4096**2


@pytest.mark.parametrize("trunk", SMALLEST_SIDE)
def test_lpips_needs_neither_file_nor_download(trunk, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    with pretended():
        assert PretendedDistance(trunk)(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)).shape == (2,)


@pytest.mark.parametrize(("layers", "merges"), [(3, 0), (3, 1), (6, 2)])
def test_what_the_alignment_loss_keeps(layers, merges):
    side, how = 128, {"gamma": 0.02, "max_merges": merges, "merge_penalty": 0.02, "merge_temperature": 0.02}
    with pretended():
        predicted = torch.zeros(1, layers, 4, side, side, requires_grad=True)
        true = torch.zeros(1, layers, 4, side, side)
        with Meter() as meter:
            meter.hold(predicted, true)
            held = meter.now
            loss = alignment_loss(predicted, true, **how)
            kept = meter.now - held
    assert 0.9 * kept <= alignment_bytes(layers * side**2, merges) <= 1.3 * kept
    del loss
