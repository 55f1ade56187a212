import itertools

import pytest
import torch

from layers.errors import UserError
from models.vld_mmdit import pack
from training.memory import PlanError, Setup, estimate, meta_transformer, outline
from training.memory_plan import BUDGETS, GIB, RESERVE, count_tokens, describe, plan_memory, recommend

DEFAULT = {
    "latent_channels": 16,
    "patch_size": 2,
    "num_layers": 4,
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "joint_attention_dim": 32,
}
RELEASED = DEFAULT | {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "joint_attention_dim": 3584,
}


@pytest.fixture(scope="module")
def released():
    return outline(meta_transformer(**RELEASED))


@pytest.fixture(scope="module")
def plan(released):
    return plan_memory(released, [(640, 640, 4), (640, 640, 2), (448, 896, 3)] * 2, spatial_factor=8, text_tokens=512)


def peak(plan, setup, tokens=None):
    bucket = plan.buckets[0]
    tokens = bucket.image_tokens if tokens is None else tokens
    return estimate(plan.net, tokens, bucket.text_tokens, plan.batch_size, setup).peak


def test_tokens_are_those_of_the_network():
    bucket = count_tokens((64, 96, 3), spatial_factor=8, patch_size=2, text_tokens=7)
    slots_and_condition = torch.zeros(1, 3 + 2, 16, 64 // 8, 96 // 8)
    assert bucket.image_tokens == pack(slots_and_condition, 2).shape[1] == 120
    assert bucket.tokens == 127
    assert count_tokens((640, 640, 4), spatial_factor=8, patch_size=2).image_tokens == 9600


@pytest.mark.parametrize("key", [(64, 100, 3), (72, 64, 3), (64, 64, 0)])
def test_a_bucket_that_does_not_fit_is_one_sentence(key, released):
    for call in (
        lambda: count_tokens(key, spatial_factor=8, patch_size=2),
        lambda: plan_memory(released, [key], spatial_factor=8),
    ):
        with pytest.raises(PlanError, match=rf"bucket {key[0]}x{key[1]} of {key[2]} layers: expected multiples of 16"):
            call()
    assert issubclass(PlanError, UserError)


def test_no_bucket_is_one_sentence(released):
    with pytest.raises(PlanError, match="no bucket"):
        plan_memory(released, [], spatial_factor=8)


def test_the_largest_bucket_comes_first_and_each_once(plan):
    assert [bucket.key for bucket in plan.buckets] == [(640, 640, 4), (448, 896, 3), (640, 640, 2)]
    assert [bucket.image_tokens for bucket in plan.buckets] == [9600, 7840, 6400]
    for setup, memory in plan.rows:
        assert memory == estimate(plan.net, 9600, 512, 1, setup)


def test_what_is_recommended_for_twenty_billion_parameters(plan):
    found = {(advice.gpus, advice.gib): advice.setup for advice in plan.recommendations}
    assert list(found) == list(BUDGETS)
    assert found[1, 24] is None, "the bfloat16 weights alone are larger"
    assert found[1, 48].weights == found[1, 80].weights == "bfloat16"
    assert 0 < found[1, 48].lora_rank < found[1, 80].lora_rank == 32
    assert found[1, 48].gradient_checkpointing and found[1, 80].gradient_checkpointing
    assert found[8, 80] == Setup(0, "float32", True, 8, True)


def test_a_recommendation_fits_up_to_the_tokens_it_names(plan):
    for advice in plan.recommendations:
        room = advice.gib * GIB - RESERVE
        if advice.setup is None:
            assert advice.enough_gpus == 4
            assert (
                peak(plan, Setup(4, "bfloat16", True, 4, True))
                <= room
                < peak(plan, Setup(4, "bfloat16", True, 2, True))
            )
            continue
        assert peak(plan, advice.setup) <= room
        assert peak(plan, advice.setup, advice.tokens) <= room < peak(plan, advice.setup, advice.tokens + 1)


def test_nothing_more_wanted_would_fit(plan):
    advice = next(a for a in plan.recommendations if (a.gpus, a.gib) == (8, 80))
    room = advice.gib * GIB - RESERVE
    for fsdp, checkpointing in itertools.product((False, True), repeat=2):
        setup = Setup(0, "float32", checkpointing, 8, fsdp)
        assert setup == advice.setup or peak(plan, setup) > room


def test_a_small_network_needs_nothing():
    net = outline(meta_transformer(**DEFAULT))
    plan = plan_memory(net, [(96, 64, 6)], spatial_factor=4, batch_size=16, lora_rank=0)
    assert [a.setup for a in plan.recommendations] == [Setup(gpus=gpus) for gpus, _ in BUDGETS]
    assert plan.rows[0][1].peak < GIB
    assert "full, float32; up to" in describe(plan)


def test_a_bucket_too_large_for_any_number_says_what_to_change(released):
    advice = recommend(released, 36_000, 512, 1, 32, 1, 24)
    assert advice.setup is None and advice.enough_gpus is None
    plan = plan_memory(released, [(640, 640, 20)], spatial_factor=8, text_tokens=512)
    assert "prepare_buckets.max_pixels and max_layers make it smaller" in describe(plan)


def test_the_table(plan):
    text = describe(plan)
    assert "20,430,407,232 parameters in 60 blocks of width 3072" in text
    assert "235,929,600 parameters at rank 32 (1.15%)" in text
    assert "9600 + 512" in text
    assert "FSDP2 over 4 would do" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for setup, _ in plan.rows:
        assert str(setup) in text
    rows = [line for line in text.splitlines() if line.startswith("full, float32, checkpointing ")]
    assert rows[0].split()[3:7] == ["76.1", "76.1", "152.2", "76.1"]


def test_many_buckets_are_cut(released):
    keys = [(64 * k, 64, 1) for k in range(1, 31)]
    text = describe(plan_memory(released, keys, spatial_factor=8))
    assert "and 18 buckets of fewer tokens" in text
