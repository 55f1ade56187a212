"""FSDP2 by presets/accelerate/fsdp2.yaml, two processes: out comes what DDP gives, and a kill loses nothing."""

import json

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from tests.support.workspace import make_workspace, run, run_together, stage

SHARDED = (2, "tests.training.engine.fsdp_on_cpu")
WEIGHTS = "models/weights/decompose/transformer/diffusion_pytorch_model.safetensors"
DECOMPOSE = {
    "optimisation": {
        "epochs": 2,
        "epoch_samples": 48,
        "gradient_accumulation": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "ema_decay": 0.5,
    },
    "loss": {"alpha_colour": 0.1},
}


def workspace(path, bucketed, vae=None, **blocks):
    root = make_workspace(path, bucketed, **blocks)
    if vae is not None:
        (root / "models" / "weights").mkdir(parents=True)
        (root / "models" / "weights" / "vae").symlink_to(vae / "models" / "weights" / "vae")
    return root


@pytest.fixture(scope="module")
def replicated(bucketed_root, tmp_path_factory):
    root = workspace(tmp_path_factory.mktemp("ddp") / "p", bucketed_root, train_decompose=DECOMPOSE)
    run(stage("train_vae"), root)
    run_together(2, "stages.train_decompose", root=root)
    return root


@pytest.fixture(scope="module")
def sharded(bucketed_root, replicated, tmp_path_factory):
    root = workspace(tmp_path_factory.mktemp("fsdp") / "p", bucketed_root, replicated, train_decompose=DECOMPOSE)
    run_together(*SHARDED, "train_decompose", root=root)
    return root


def test_sharded_training_gives_the_weights_of_ddp(replicated, sharded):
    expected, found = load_file(replicated / WEIGHTS), load_file(sharded / WEIGHTS)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(value, found[name], atol=2e-5), (name, (value - found[name]).abs().max())
    reports = [
        json.loads((root / "metrics" / "reports" / "train_decompose.json").read_text())
        for root in (replicated, sharded)
    ]
    assert reports[0] == pytest.approx(reports[1], rel=1e-3)


def test_each_process_saves_its_part_and_a_killed_run_goes_on_bit_equal(bucketed_root, replicated, sharded, tmp_path):
    root = workspace(tmp_path / "p", bucketed_root, replicated, train_decompose=DECOMPOSE)
    killed = run_together(*SHARDED, "train_decompose", "3", root=root, check=False)
    (point,) = (path for path in (root / ".checkpoints" / "train_decompose").iterdir() if not path.suffix)
    assert killed.returncode != 0, killed.stderr
    parts = [load_file(point / f"tensors_{rank}.safetensors") for rank in range(2)]
    held = [sum(v.numel() for name, v in part.items() if name.startswith("network.")) for part in parts]
    assert sum(held) == sum(v.numel() for v in load_file(sharded / WEIGHTS).values()), "each weight is somewhere, once"
    assert held[0] == pytest.approx(held[1], rel=0.05)
    ours = parts[0]["ema.0"].shape
    assert any(parts[0][name].shape == ours for name in parts[0] if name.endswith(".exp_avg")), "moments in parts too"
    resumed = run_together(*SHARDED, "train_decompose", root=root)
    assert "going on from step 2 of 6" in resumed.stdout
    expected, found = load_file(sharded / WEIGHTS), load_file(root / WEIGHTS)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_refinement_is_sharded_too_and_stage_two_is_replicated(bucketed_root, sharded, tmp_path):
    # With checkpointing the network is asked once more within the backward pass, where its shards have to be together.
    refine = {"gradient_checkpointing": True}
    root = workspace(tmp_path / "fsdp", bucketed_root, refine=refine)
    run_together(*SHARDED, "train_vae", root=root)
    other = workspace(tmp_path / "ddp", bucketed_root, root, refine=refine)
    for place in (root, other):
        (place / "models" / "weights" / "decompose").symlink_to(sharded / "models" / "weights" / "decompose")
    run_together(*SHARDED, "refine", root=root)
    run_together(2, "stages.refine", root=other)
    report = json.loads((root / "metrics" / "reports" / "refine.json").read_text())
    assert report["before"].keys() == report["after"].keys() and report["before"] != report["after"]
    expected, found = (load_file(place / WEIGHTS.replace("decompose", "refine")) for place in (other, root))
    for name, value in expected.items():
        assert torch.allclose(value, found[name], atol=2e-5), (name, (value - found[name]).abs().max())


def test_a_start_that_no_epoch_beats_outlives_a_kill_and_shards(bucketed_root, sharded, tmp_path):
    """At a rate that harms, refine writes what it read, to the last bit, and says so."""
    block = {"epochs": 2, "epoch_samples": 8, "batch_size": 2, "learning_rate": 0.5, "schedule": "constant"}
    block |= {"warmup_samples": 0, "checkpoint_every": 1, "log_every": 1, "ema_decay": 0.5}
    root = workspace(tmp_path / "p", bucketed_root, sharded, refine={"optimisation": block})
    (root / "models" / "weights" / "decompose").symlink_to(sharded / "models" / "weights" / "decompose")
    killed = run_together(*SHARDED, "refine", "2", root=root, check=False)
    assert killed.returncode != 0, killed.stderr
    resumed = run_together(*SHARDED, "refine", root=root)
    assert "refine: going on from step 1 of 4" in resumed.stdout
    assert "refine: epoch 0 (the start) was kept: layer_pixels" in resumed.stdout
    assert "refine: held out: epoch 0 (the start) was kept: loss" in resumed.stdout
    expected, found = (load_file(root / WEIGHTS.replace("decompose", stage)) for stage in ("decompose", "refine"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    report = json.loads((root / "metrics" / "reports" / "refine.json").read_text())
    assert report["kept"] == "epoch 0 (the start)" and report["after"] == report["before"]
    rows = (root / "metrics" / "reports" / "refine.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlruns' / 'mlflow.db'}")
    (logged,) = client.search_runs([client.get_experiment_by_name("smoke").experiment_id], "tags.stage = 'refine'")
    assert logged.data.metrics["best_epoch"] == 0.0


def test_adapters_in_half_precision_train_over_shards(bucketed_root, replicated, tmp_path):
    changes = {"lora": {"rank": 2}, "optimisation": {"epochs": 1, "epoch_samples": 24, "mixed_precision": "bf16"}}
    root = workspace(tmp_path / "p", bucketed_root, replicated, train_decompose=changes)
    run_together(*SHARDED, "train_decompose", root=root)
    adapters = load_file(root / "models/weights/decompose/pytorch_lora_weights.safetensors")
    learnt = [value.abs().max() for name, value in adapters.items() if "lora_B" in name]
    assert max(learnt) > 0.0
