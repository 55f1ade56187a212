"""The same stage module under torchrun: one MLflow run, one set of weights."""

import sys
from pathlib import Path

import mlflow

from tests.stages.workspace import make_workspace, run


def test_two_processes_write_one_run(bucketed_root, tmp_path):
    root = make_workspace(
        tmp_path / "work", bucketed_root, train_vae={"optimisation": {"epochs": 1, "epoch_samples": 24}}
    )
    torchrun = str(Path(sys.executable).parent / "torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node", "2", "-m", "stages.train_vae"]
    run(command, root, OMP_NUM_THREADS="1")
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlruns' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    # 24 samples in steps of two processes with four items each.
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3]
    assert client.get_metric_history(found.info.run_id, "train/samples")[-1].value == 24
    assert (root / "models/weights/vae/vae/config.json").is_file()
