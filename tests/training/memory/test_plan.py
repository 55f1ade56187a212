from dataclasses import replace

import pytest
import torch

from config.errors import UserError
from models.transformer.vld_mmdit import pack
from models.vae.config import VAEConfig
from training.memory.estimate import PlanError, Setup, estimate
from training.memory.networks import RELEASED, Networks, released
from training.memory.plan import (
    BUDGETS,
    GIB,
    RESERVE,
    describe_stages,
    describe_training,
    largest_first,
    recommend,
    setup_rows,
)
from training.memory.stages import Moment, Option, Stage, setups, words

SMALL = {
    "latent_channels": 16,
    "patch_size": 2,
    "num_layers": 4,
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "joint_attention_dim": 32,
}
KEY = (640, 640, 4)


@pytest.fixture(scope="module")
def networks():
    return released()


def step_alone(networks, key=KEY, rank=32):
    """A stage that is a step of the transformer and nothing else."""

    def option(setup):
        def moments(layers):
            memory = estimate(networks.net, networks.tokens((*key[:2], layers)), networks.text_tokens, 1, setup)
            return [Moment("step", memory.weights, memory.trained, memory.activations)]

        return Option(words(setup), moments)

    options = lambda gpus: (option(setup) for setup in setups(gpus, rank))  # noqa: E731
    floor = (2 * networks.net.parameters, "the weights")
    return Stage("alone", option(Setup(rank, "bfloat16", True)), options, floor, shards=True)


def test_tokens_are_those_of_the_network(networks):
    small = Networks(SMALL, VAEConfig(), "none", 1)
    slots_and_condition = torch.zeros(1, 3 + 2, 16, 64 // 8, 96 // 8)
    assert small.tokens((64, 96, 3)) == pack(slots_and_condition, 2).shape[1] == 120
    assert networks.tokens(KEY) == 9600


@pytest.mark.parametrize("key", [(64, 100, 3), (72, 64, 3), (64, 64, 0)])
def test_a_bucket_that_does_not_fit_is_one_sentence(key, networks):
    with pytest.raises(PlanError, match=rf"bucket {key[0]}x{key[1]} of {key[2]} layers: expected multiples of 16"):
        largest_first(networks, [KEY, key])
    assert issubclass(PlanError, UserError)


def test_no_bucket_is_one_sentence(networks):
    with pytest.raises(PlanError, match="no bucket"):
        largest_first(networks, [])


def test_the_largest_bucket_comes_first_and_each_once(networks):
    keys = largest_first(networks, [(640, 640, 2), (448, 896, 3), KEY] * 2)
    assert keys == [KEY, (448, 896, 3), (640, 640, 2)]
    assert [networks.tokens(key) for key in keys] == [9600, 7840, 6400]


def test_what_is_recommended_for_twenty_billion_parameters(networks):
    found = {budget: recommend(step_alone(networks), 4, *budget) for budget in BUDGETS}
    assert found[1, 24].label is None and found[1, 24].layers == 0 and found[1, 24].enough_gpus == 4
    assert found[1, 48].label == "lora.rank 8, gradient_checkpointing" and not found[1, 48].as_set
    assert found[1, 80].label == "lora.rank 32, gradient_checkpointing" and found[1, 80].as_set
    assert found[8, 80].label == "every weight, gradient_checkpointing, FSDP2 over 8"


def test_a_recommendation_fits_and_nothing_more_wanted_would(networks):
    stage = step_alone(networks)
    for gpus, gib in BUDGETS:
        advice, room = recommend(stage, 4, gpus, gib), gib * GIB - RESERVE
        options = list(stage.options(gpus))
        enough = [option.label for option in options if option.peak(4) <= room]
        assert enough[:1] == ([] if advice.label is None else [advice.label])


def test_where_nothing_fits_it_says_how_many_layers_and_gpus_would(networks):
    key = (1024, 1024, 20)
    stage, room = step_alone(networks, key), 80 * GIB - RESERVE
    advice = recommend(stage, 20, 1, 80)
    assert advice.label is None
    *_, least = stage.options(1)
    assert least.peak(advice.layers) <= room < least.peak(advice.layers + 1)
    assert any(option.fits(20, room) for option in stage.options(advice.enough_gpus))
    text = "\n".join(describe_stages([stage], key))
    assert f"(up to {advice.layers} layers of this size with lora.rank 4, gradient_checkpointing)" in text
    assert f"does not fit; FSDP2 over {advice.enough_gpus} GPUs would" in text
    assert "1 x 24 GB  alone           does not fit" in text and "(the weights alone are 38.1 GiB)" in text


def test_a_size_too_large_for_one_layer_says_what_to_change(networks):
    text = "\n".join(describe_stages([step_alone(networks, (4096, 4096, 1))], (4096, 4096, 1)))
    assert "not one layer of this size; prepare_buckets.max_pixels makes it smaller" in text


def test_what_is_known_to_be_too_much_is_not_probed():
    def probe(layers):
        raise AssertionError("probed")

    assert not Option("never", probe, lambda layers: 2 * GIB).fits(1, GIB)


def test_a_small_network_needs_nothing():
    stage = step_alone(Networks(SMALL, VAEConfig(), "none", 1), (96, 64, 6), 0)
    assert [recommend(stage, 6, *budget).label for budget in BUDGETS] == ["every weight"] * 3 + [
        "every weight, DDP over 8"
    ]
    assert stage.as_set.peak(6) < GIB


def test_the_table(networks):
    lines = list(describe_training(networks, [KEY, (640, 640, 2)], 1, 0))
    text = "\n".join([*lines, *describe_stages([step_alone(networks)], KEY)])
    assert "20,430,407,232 parameters in 60 blocks of width 3072" in text
    assert "235,929,600 parameters at rank 32 (1.15%)" in text
    assert "9600 + 512" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for setup, memory in setup_rows(networks, KEY, 1, 0):
        assert str(setup) in text
        assert memory == estimate(networks.net, 9600, 512, 1, setup)
    (row,) = (line for line in lines if line.startswith("full, float32, checkpointing  "))
    assert row.split()[3:7] == ["76.1", "76.1", "152.2", "76.1"]


def test_many_buckets_are_cut(networks):
    keys = largest_first(networks, [(64 * k, 64, 1) for k in range(1, 31)])
    assert "and 18 buckets of fewer tokens" in "\n".join(describe_training(networks, keys, 1, 32))


def test_setups_go_from_every_weight_to_the_lowest_rank():
    assert [setup.lora_rank for setup in setups(1, 32)] == [0, 0, 32, 32, 16, 16, 8, 8, 4, 4]
    assert [setup.lora_rank for setup in setups(1, 2)] == [0, 0, 2, 2]
    assert {setup.weights for setup in setups(8, 4, "float32")} == {"float32"}
    assert words(replace(Setup(8, "bfloat16", True), gpus=2)) == "lora.rank 8, gradient_checkpointing, DDP over 2"
    assert RELEASED["num_layers"] == 60
