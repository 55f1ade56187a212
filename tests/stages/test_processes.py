"""The same stage module under torchrun: one MLflow run, one set of weights, the gradients of the joint batch."""

import sys
from pathlib import Path

import mlflow
from safetensors.torch import load_file

from tests.stages.workspace import make_workspace, run
from tests.training.ddp_gradients import objective, pictures

TORCHRUN = str(Path(sys.executable).parent / "torchrun")


def test_gradients_of_two_processes_are_those_of_the_joint_batch(tmp_path):
    """Two ranks of two micro-batches against one pass over all four items, every parameter of the VAE."""
    command = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "tests.training.ddp_gradients"]
    run([*command, str(tmp_path / "gradients.safetensors")], tmp_path, OMP_NUM_THREADS="1")
    theirs = load_file(tmp_path / "gradients.safetensors")
    single = objective()
    single({**pictures(), "seen": 0})["loss"].backward()
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
    (found,) = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    # 24 samples in steps of two processes with four items each.
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3]
    assert client.get_metric_history(found.info.run_id, "train/samples")[-1].value == 24
    assert (root / "models/weights/vae/vae/config.json").is_file()
