"""Estimates against tensors that torch really keeps: on the CPU, and with fake tensors as on a GPU under autocast."""

import contextlib
import time

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from models.transformer.lora import TARGETS, add_lora
from models.transformer.vld_mmdit import build_transformer
from training.memory.estimate import (
    TRAINED,
    PlanError,
    Setup,
    activation_bytes,
    block_bytes,
    estimate,
    meta_transformer,
    outline,
)

SMALL = {
    "latent_channels": 4,
    "patch_size": 2,
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "joint_attention_dim": 24,
}
RELEASED = {
    "latent_channels": 16,
    "patch_size": 2,
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "joint_attention_dim": 3584,
}
TEXT = 40


def forward(transformer, batch, side, slots, text, device="cpu", dtype=torch.float32):
    config = transformer.config
    return transformer(
        hidden_states=torch.randn(batch, slots * side**2, config.in_channels, device=device, dtype=dtype),
        encoder_hidden_states=torch.randn(batch, text, config.joint_attention_dim, device=device, dtype=dtype),
        timestep=torch.rand(batch, device=device, dtype=dtype),
        img_shapes=[[(1, side, side)] * slots] * batch,
        additional_t_cond=torch.zeros(batch, dtype=torch.long, device=device),
        return_dict=False,
    )[0]


@contextlib.contextmanager
def kept_tensors(transformer):
    """Bytes by storage of what autograd saves inside the block; neither parameters nor their casts are counted."""
    own = {p.untyped_storage()._cdata for p in transformer.parameters()}
    shapes = {tuple(p.shape) for p in transformer.parameters() if p.ndim == 2}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not {tuple(tensor.shape), tuple(tensor.shape[::-1])} & shapes:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # or its address would be given to another
        return tensor

    def rotations(module, args, result):
        # Checkpointed blocks get them in a tuple, which autograd does not look into.
        for table in result:
            pack(table)

    hook = transformer.pos_embed.register_forward_hook(rotations)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
    hook.remove()


def test_parameters_are_those_of_a_real_network():
    real, counted = build_transformer(**SMALL), outline(meta_transformer(**SMALL))
    assert counted == outline(real)
    assert counted.parameters == sum(p.numel() for p in real.parameters())
    assert counted.block_parameters == sum(p.numel() for p in real.transformer_blocks[1].parameters())


@pytest.mark.parametrize(
    ("rank", "targets"),
    [(4, TARGETS), (3, ["to_q", "img_mlp.net.0.proj"]), (2, ["img_in", "proj_out", "norm_out.linear"])],
)
def test_lora_parameters_are_those_of_peft(rank, targets):
    counted = rank * outline(meta_transformer(**SMALL), targets).lora_width
    assert counted == add_lora(build_transformer(**SMALL), rank, targets=targets)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", [None, TARGETS, ["to_q"], ["to_out.0", "img_mlp.net.0.proj", "txt_mod.1"]])
def test_activations_are_what_torch_keeps(batch, checkpointing, targets):
    torch.manual_seed(0)
    transformer = build_transformer(**SMALL)
    net, setup = outline(transformer, targets or TARGETS), Setup(4 * (targets is not None), "float32", checkpointing)
    if targets:
        add_lora(transformer, 4, targets=targets)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    with kept_tensors(transformer) as kept:
        forward(transformer, batch, side=16, slots=4, text=TEXT)
    estimated = activation_bytes(net, 4 * 16**2, TEXT, batch, setup, autocast=False)
    # The first block of a LoRA keeps less than the others: nothing before it is trained.
    tolerance = 0.01 if targets is None or checkpointing else 0.02 if targets is TARGETS else 0.1
    assert estimated == pytest.approx(sum(kept.values()), rel=tolerance)


def fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """What a GPU runs; fake tensors would be sent to the unfused form."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (t.to(torch.bfloat16) for t in (query, key, value))
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]


@contextlib.contextmanager
def gpu_autocast():
    """Autocast to bfloat16, also where torch.autocast finds no GPU and does nothing."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def fake_transformer(blocks, dtype, rank, monkeypatch, device="cuda"):
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = build_transformer(**{**RELEASED, "num_layers": blocks})
    finally:
        torch.set_default_dtype(torch.float32)
    if rank:
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "to", lambda self, *args, **kwargs: self)  # fake parameters cannot be moved
            with torch.device(device):
                add_lora(transformer, rank)
    return transformer


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rank", [0, 32])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_full_size_block_under_gpu_autocast(batch, rank, weights, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused_attention)
    dtype, side, slots, text = getattr(torch, weights), 40, 6, 512
    sums = {}
    for blocks in (2, 3):
        with FakeTensorMode():
            transformer = fake_transformer(blocks, dtype, rank, monkeypatch)
            with gpu_autocast(), kept_tensors(transformer) as kept:
                forward(transformer, batch, side, slots, text, "cuda", dtype)
        sums[blocks] = sum(kept.values())
    net = outline(meta_transformer(**RELEASED))
    measured = sums[3] - sums[2]
    estimated = block_bytes(net, slots * side**2, text, batch, Setup(rank, weights))
    assert estimated == pytest.approx(measured, rel=0.001)


def cpu_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)[0]


def test_the_peak_of_a_step_is_that_of_torchs_memory_tracker(monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", cpu_attention)
    dtype, blocks, side, slots, text = torch.bfloat16, 6, 40, 6, 512
    with FakeTensorMode():
        transformer = fake_transformer(blocks, dtype, 0, monkeypatch, "cpu")
        transformer.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(transformer.parameters(), fused=True)  # as training.engine.loop
        tracker = MemTracker()
        tracker.track_external(transformer, optimizer)
        with tracker:
            forward(transformer, 1, side, slots, text, dtype=dtype).float().square().mean().backward()
            backward = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
            optimizer.step()
            step = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    net = outline(meta_transformer(**{**RELEASED, "num_layers": blocks}))
    memory = estimate(net, slots * side**2, text, 1, Setup(0, "bfloat16", True), autocast=False)
    # Before the first step there are no moments. Some gradients come only when the activations are nearly gone.
    before = memory.weights + memory.gradients + memory.activations
    assert backward <= before <= 1.12 * backward
    # Where activations were, there are moments: nothing else is made in the step.
    after = memory.weights + memory.gradients + memory.moments
    assert max(backward, after) == pytest.approx(step, rel=0.03)


def test_the_released_size_takes_neither_memory_nor_time():
    process, start = psutil.Process(), time.perf_counter()
    before = process.memory_info().rss
    net = outline(meta_transformer(**RELEASED))
    memory = estimate(net, 9600, 512, 1, Setup())
    assert process.memory_info().rss - before < 500e6
    assert time.perf_counter() - start < 20
    assert net.parameters == 20_430_407_232 == memory.weights // 4
    assert 32 * net.lora_width == 235_929_600


def test_bytes_of_trained_parameters():
    net = outline(meta_transformer(**SMALL))
    for weights, (weight, gradient, moments, average) in TRAINED.items():
        memory = estimate(net, 64, 1, 1, Setup(0, weights))
        found = (memory.weights, memory.gradients, memory.moments, memory.average)
        assert found == tuple(n * net.parameters for n in (weight, gradient, moments, average))
    memory = estimate(net, 64, 1, 1, Setup(8, "bfloat16"))
    assert memory.weights == 2 * net.parameters + 4 * 8 * net.lora_width
    assert (memory.gradients, memory.moments, memory.average) == tuple(n * 8 * net.lora_width for n in (4, 8, 4))


def test_moments_have_the_dtype_of_the_weights():
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        weight = nn.Parameter(torch.ones(10, dtype=dtype))
        weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.AdamW([weight])
        optimizer.step()
        state = optimizer.state[weight]
        moments = sum(state[name].nbytes for name in ("exp_avg", "exp_avg_sq"))
        assert moments == 2 * size * 10 == TRAINED[str(dtype).removeprefix("torch.")][2] * 10


def test_sharding_divides_what_is_trained():
    net = outline(meta_transformer(**SMALL))
    one, ddp, fsdp = (
        estimate(net, 64, 1, 1, Setup(gradient_checkpointing=True, gpus=gpus, fsdp=sharded))
        for gpus, sharded in ((1, False), (4, False), (4, True))
    )
    assert (ddp.weights, ddp.gradients) == (one.weights, 2 * one.gradients)
    for name in ("weights", "gradients", "moments", "average"):
        assert getattr(fsdp, name) == getattr(one, name) // 4
    gathered = 2 * 2 * net.block_parameters + 4 * net.block_parameters
    assert fsdp.activations - gathered == one.activations - 2 * net.block_parameters


def test_dtypes_that_do_not_exist_are_one_sentence():
    net = outline(meta_transformer(**SMALL))
    for setup in (Setup(weights="int8"), Setup(4, "bfloat16+master")):
        with pytest.raises(PlanError, match=f"'{setup.weights.replace('+', '.')}': expected one of"):
            estimate(net, 64, 1, 1, setup)
