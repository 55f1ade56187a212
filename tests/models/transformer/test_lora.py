import json
import sys

import pytest
import torch
from diffusers import QwenImageLayeredPipeline
from safetensors.torch import load_file, safe_open, save_file

from config.errors import UserError
from models.transformer.lora import (
    LORA_FILE,
    TARGETS,
    LoRAError,
    adapted_base,
    add_lora,
    load_lora,
    merge_lora,
    save_lora,
    target_modules,
)
from models.transformer.vld_mmdit import VLDMMDiT, released_scheduler
from tests.support.networks import tiny_transformer

RANK = 3


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 3, 4, 4, 6), torch.randn(2, 4, 4, 6), torch.rand(2)


def plain():
    """The same weights every time, as diffusers builds it."""
    return tiny_transformer(num_layers=2)


def predict(transformer):
    positions = transformer.pos_embed
    out = VLDMMDiT(transformer)(*inputs())
    transformer.pos_embed = positions
    return out


@torch.no_grad()
def output(transformer):
    return predict(transformer)


def trained(alpha=None, dtype=torch.float32):
    """A transformer whose LoRA is no longer zero."""
    transformer = plain().to(dtype)
    add_lora(transformer, RANK, alpha)
    torch.manual_seed(2)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return transformer


def rewritten(folder, change, metadata=None):
    """Write a changed copy of a LoRA file over it."""
    path = folder / LORA_FILE
    with safe_open(path, framework="pt") as file:
        metadata = metadata or file.metadata()
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    save_file({k: v.contiguous() for k, v in change(tensors).items()}, path, metadata=metadata)


def test_a_fresh_lora_changes_nothing():
    transformer = plain()
    before = output(transformer)
    count = add_lora(transformer, RANK)
    assert torch.equal(output(transformer), before)
    trainable = {n: p for n, p in transformer.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trainable.values()) == count
    assert len(trainable) == 2 * len(TARGETS) * 2 and all(".lora_" in name for name in trainable)


def test_a_training_step_moves_the_lora_alone():
    transformer = plain()
    add_lora(transformer, RANK)
    before = {n: p.detach().clone() for n, p in transformer.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in transformer.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # A gets no gradient while B is zero
        predict(transformer).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    # The last block's text stream ends there: its adapters behind attention never get a gradient.
    idle = ("1.txt_mlp", "1.attn.to_add_out", "1.attn.add_q_proj")
    for name, parameter in transformer.named_parameters():
        moved = not torch.equal(parameter, before[name])
        if ".lora_" not in name:
            assert not moved, name
        elif not any(part in name for part in idle):
            assert moved, name


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_diffusers_loads_it(tmp_path, alpha):
    ours = trained(alpha)
    save_lora(ours, tmp_path)
    pipeline = QwenImageLayeredPipeline(
        scheduler=released_scheduler(), vae=None, text_encoder=None, tokenizer=None, processor=None, transformer=plain()
    )
    base = output(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)
    theirs = output(pipeline.transformer)
    assert (theirs - output(ours)).abs().max() < 1e-5
    assert (theirs - base).abs().max() > 1e-3
    assert [p.name for p in tmp_path.iterdir()] == [LORA_FILE]


def test_a_file_without_metadata_has_the_rank_for_alpha(tmp_path):
    ours = trained()
    save_lora(ours, tmp_path)
    rewritten(tmp_path, lambda tensors: tensors, {"format": "pt"})
    again = plain()
    load_lora(again, tmp_path)
    assert torch.equal(output(again), output(ours))


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_save_load_merge(tmp_path, alpha):
    ours = trained(alpha)
    expected = output(ours)
    save_lora(ours, tmp_path)
    again = plain()
    names = set(again.state_dict())
    count = load_lora(again, tmp_path)
    assert torch.equal(output(again), expected)
    assert count == sum(p.numel() for n, p in ours.named_parameters() if p.requires_grad)
    assert all(p.requires_grad == (".lora_" in n) for n, p in again.named_parameters())
    merge_lora(again)
    assert set(again.state_dict()) == names, "a plain transformer again"
    assert (output(again) - expected).abs().max() < 1e-5
    add_lora(again, 1)


def test_adapters_of_bfloat16_weights_are_float32(tmp_path):
    transformer = trained(dtype=torch.bfloat16)
    save_lora(transformer, tmp_path)
    again = plain().to(torch.bfloat16)
    load_lora(again, tmp_path)
    for t in (transformer, again):
        assert {p.dtype for p in t.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in t.parameters() if not p.requires_grad} == {torch.bfloat16}
    saved = load_file(tmp_path / LORA_FILE)
    assert len(saved) == 48
    assert all(
        torch.equal(p, saved[f"transformer.{n.replace('.default', '')}"])
        for n, p in again.named_parameters()
        if p.requires_grad
    )


def test_metadata_are_what_every_peft_knows(tmp_path):
    save_lora(trained(alpha=6.0), tmp_path)
    with safe_open(tmp_path / LORA_FILE, framework="pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata == {
        "transformer.r": RANK,
        "transformer.lora_alpha": 6.0,
        "transformer.target_modules": sorted(TARGETS),
        "transformer.rank_pattern": {},
        "transformer.alpha_pattern": {},
        "transformer.use_rslora": False,
    }


def test_layers_of_different_rank_survive(tmp_path):
    save_lora(trained(), tmp_path)
    rewritten(
        tmp_path,
        lambda t: {n: v[:, :2] if "to_q.lora_B" in n else v[:2] if "to_q.lora_A" in n else v for n, v in t.items()},
        {"format": "pt"},
    )
    first, second = plain(), plain()
    load_lora(first, tmp_path)
    save_lora(first, tmp_path)
    load_lora(second, tmp_path)
    assert torch.equal(output(second), output(first))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v[:, :-1] if "lora_A" in n else v for n, v in t.items()}, r"24 of its 48 tensors do not fit"),
        (lambda t: {n: v for n, v in t.items() if "lora_B" not in n}, r"lora_B\.weight is None, expected \(32, 3\)"),
        (
            lambda t: {**t, "transformer.blocks.9.to_q.lora_A.weight": torch.zeros(3, 32)},
            r"1 of its 49 .*expected None",
        ),
        (lambda t: {n.removeprefix("transformer."): v for n, v in t.items()}, r"48 of its 48 tensors"),
        (lambda t: {n: torch.zeros(()) for n in t}, r"48 of its 48 tensors"),
        (lambda t: {}, r"0 of its 0 tensors"),
    ],
)
def test_a_foreign_file_is_one_sentence(tmp_path, change, message):
    save_lora(trained(), tmp_path)
    rewritten(tmp_path, change)
    transformer = plain()
    before = output(transformer)
    with pytest.raises(LoRAError, match=message) as caught:
        load_lora(transformer, tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert torch.equal(output(transformer), before)


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_a_file_may_hold_fewer_layers_than_its_metadata_name(tmp_path):
    save_lora(trained(), tmp_path)
    rewritten(tmp_path, lambda t: {n: v for n, v in t.items() if "mlp" not in n})
    transformer = plain()
    count = load_lora(transformer, tmp_path)
    assert count == sum(v.numel() for v in load_file(tmp_path / LORA_FILE).values())


def test_metadata_of_another_rank_are_one_sentence(tmp_path):
    save_lora(trained(), tmp_path)
    described = {"transformer.r": 5, "transformer.lora_alpha": 5, "transformer.target_modules": list(TARGETS)}
    rewritten(tmp_path, lambda t: t, {"lora_adapter_metadata": json.dumps(described)})
    with pytest.raises(LoRAError, match="metadata do not fit") as caught:
        load_lora(plain(), tmp_path)
    assert "\n" not in str(caught.value)


def test_only_safetensors_are_read(tmp_path):
    torch.save({}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(FileNotFoundError, match=LORA_FILE):
        load_lora(plain(), tmp_path)
    torch.save({}, tmp_path / LORA_FILE)
    with pytest.raises(LoRAError, match="expected safetensors"):
        load_lora(plain(), tmp_path)


def test_wrong_uses_are_one_sentence(tmp_path):
    assert issubclass(LoRAError, UserError)
    transformer = plain()
    for target in ("to_x", "norm_q", "to_out", ""):
        with pytest.raises(LoRAError, match=f"LoRA target '{target}': expected a name of linear layers"):
            add_lora(transformer, 1, targets=["to_q", target])
    for rank, alpha in ((0, None), (1, 0.0)):
        with pytest.raises(LoRAError, match="rank of at least 1 and an alpha above 0"):
            add_lora(transformer, rank, alpha)
    for call in (lambda: save_lora(transformer, tmp_path), lambda: merge_lora(transformer)):
        with pytest.raises(LoRAError, match="expected a transformer with a LoRA"):
            call()
    assert all(p.requires_grad for p in transformer.parameters()), "nothing happened to it"
    add_lora(transformer, 1)
    with pytest.raises(LoRAError, match="expected a transformer without a LoRA"):
        add_lora(transformer, 1)


def test_without_peft(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    transformer = plain()
    for call in (lambda: add_lora(transformer, 1), lambda: load_lora(transformer, tmp_path)):
        with pytest.raises(LoRAError, match="package peft, which is not installed"):
            call()


def test_targets_are_linear_layers_of_every_block():
    found = target_modules(plain(), TARGETS)
    assert len(found) == 2 * len(TARGETS)
    assert set(target_modules(plain(), ["transformer_blocks.1.attn.to_q"])) == {"transformer_blocks.1.attn.to_q"}


def test_a_file_says_what_it_is_added_to(tmp_path):
    """Those who go on with it need the same base, rank and alpha."""
    assert adapted_base(tmp_path, 4, 6.0) is None
    save_lora(trained(alpha=6.0), tmp_path, "owner/name")
    rank = trained(alpha=6.0).peft_config["default"].r
    assert adapted_base(tmp_path, rank, 6.0) == "owner/name"
    assert adapted_base(tmp_path, rank + 1, 6.0) is None and adapted_base(tmp_path, rank, 5.0) is None
    load_lora(plain(), tmp_path)
    save_lora(trained(alpha=6.0), tmp_path)
    assert adapted_base(tmp_path, rank, 6.0) is None
