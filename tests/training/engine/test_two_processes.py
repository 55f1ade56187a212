"""The same stage module in two processes: one MLflow run, one set of weights, the gradients of the joint batch."""

import sys
from pathlib import Path

import mlflow
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from layers.files import locked
from tests.support.imports import ROOT
from tests.support.workspace import killed_at, make_workspace, run, run_together
from tests.training.engine.ddp_gradients import images, objective

TORCHRUN = str(Path(sys.executable).parent / "torchrun")


def test_gradients_of_two_processes_are_those_of_the_joint_batch(tmp_path):
    """Two ranks of two micro-batches against one pass over all four items, every parameter of the VAE."""
    run_together(2, "tests.training.engine.ddp_gradients", str(tmp_path / "gradients.safetensors"), root=tmp_path)
    theirs = load_file(tmp_path / "gradients.safetensors")
    single = objective()
    single({**images(), "seen": 0})["loss"].backward()
    ours = {name: p.grad for name, p in single.vae.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert ((theirs[name] - gradient).abs().max() / scale) < 1e-4, name


def test_two_processes_write_one_run(bucketed_root, tmp_path):
    root = make_workspace(
        tmp_path / "work", bucketed_root, train_vae={"optimisation": {"epochs": 1, "epoch_samples": 24}}
    )
    command = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "stages.train_vae"]
    run(command, root, OMP_NUM_THREADS="1")
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    (found,) = client.search_runs([experiment], "tags.stage = 'train_vae'")
    # 24 samples in steps of two processes with four items each.
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3]
    assert client.get_metric_history(found.info.run_id, "train/samples")[-1].value == 24
    assert (root / "models/weights/vae/vae/config.json").is_file()


def test_every_process_of_a_second_run_ends_with_the_sentence(bucketed_root, tmp_path):
    root = make_workspace(tmp_path / "work", bucketed_root)
    with locked(root / "models" / "weights" / ".vae.lock", "a run"):
        refused = run_together(2, "stages.train_vae", root=root, check=False)
    assert refused.returncode == 2
    sentence = "error: train_vae: a run into models/weights/vae is under way and holds models/weights/.vae.lock; wait"
    assert refused.stderr.count(sentence) == 2 and "Traceback" not in refused.stderr


def test_two_killed_processes_go_on_bit_equal_in_mid_epoch(bucketed_root, tmp_path):
    """Six steps straight equal five, of which four were saved, kill -9, two; all in one epoch."""
    optimisation = {"epochs": 1, "epoch_samples": 48, "checkpoint_every": 2, "log_every": 1, "ema_decay": 0.5}
    roots = [
        make_workspace(tmp_path / kind, bucketed_root, train_decompose={"optimisation": optimisation})
        for kind in ("straight", "killed")
    ]
    run([sys.executable, "-m", "stages.train_vae"], roots[0])
    (roots[1] / "models").mkdir()
    (roots[1] / "models" / "weights").symlink_to(roots[0] / "models" / "weights")
    weights = "models/weights/decompose/transformer/diffusion_pytorch_model.safetensors"
    run_together(2, "stages.train_decompose", root=roots[0])
    expected = load_file(roots[0] / weights)
    killed = run_together(2, "-c", killed_at(5, "train_decompose"), root=roots[1], check=False)
    assert killed.returncode != 0 and (roots[1] / ".checkpoints" / "train_decompose").is_dir(), killed.stderr
    resumed = run_together(2, "stages.train_decompose", root=roots[1])
    assert "going on from step 4 of 6" in resumed.stdout
    found = load_file(roots[1] / weights)
    assert all((expected[name] == found[name]).all() for name in expected)


def test_the_multi_node_config_is_one_that_accelerate_reads():
    config = load_config_from_file(str(ROOT / "presets" / "accelerate" / "multi_node.yaml"))
    assert (config.num_machines, config.num_processes, config.machine_rank) == (2, 16, 0)
    assert str(config.distributed_type).endswith("MULTI_GPU")
