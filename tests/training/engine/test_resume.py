"""Resume: ten steps straight equal five, kill -9, five."""

import sys

import mlflow
import pytest
from safetensors.torch import load_file

from tests.support.workspace import killed_at, make_workspace, run, stage

TEN_STEPS = {"optimisation": {"epochs": 1, "epoch_samples": 40, "checkpoint_every": 5, "ema_decay": 0.5}}


def losses(client, run_id):
    history = {}
    for metric in client.get_metric_history(run_id, "train/loss"):
        history.setdefault(metric.step, set()).add(metric.value)
    return history


@pytest.mark.parametrize("name", ["train_vae", "train_decompose"])
def test_a_killed_run_goes_on_bit_equal(name, bucketed_root, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    roots = [
        make_workspace(tmp_path / kind, bucketed_root, **{name: TEN_STEPS, "tracking": {"experiment": kind}})
        for kind in ("straight", "killed")
    ]
    if name == "train_decompose":
        run(stage("train_vae"), roots[0], MLFLOW_TRACKING_URI=uri)
        (roots[1] / "models").mkdir()
        (roots[1] / "models" / "weights").symlink_to(roots[0] / "models" / "weights")
    run(stage(name), roots[0], MLFLOW_TRACKING_URI=uri)
    output = {"train_vae": "vae/vae", "train_decompose": "decompose/transformer"}[name]
    weights = f"models/weights/{output}/diffusion_pytorch_model.safetensors"
    expected = load_file(roots[0] / weights)

    killed = run([sys.executable, "-P", "-c", killed_at(7, name)], roots[1], check=False, MLFLOW_TRACKING_URI=uri)
    assert killed.returncode == -9, killed.stderr
    assert (roots[1] / ".checkpoints" / name).is_dir()
    resumed = run(stage(name), roots[1], MLFLOW_TRACKING_URI=uri)
    assert "going on from step 5 of 10" in resumed.stdout
    got = load_file(roots[1] / weights)
    assert all((expected[key] == got[key]).all() for key in expected), "the weights differ"
    assert not (roots[1] / ".checkpoints" / name).exists()

    client = mlflow.MlflowClient(uri)
    runs = {}
    for kind in ("straight", "killed"):
        experiment = client.get_experiment_by_name(kind)
        found = client.search_runs([experiment.experiment_id], f"tags.stage = '{name}'")
        assert len(found) == 1, "a resumed run goes on in the run it began"
        assert found[0].info.status == "FINISHED"
        runs[kind] = losses(client, found[0].info.run_id)
    assert sorted(runs["killed"]) == list(range(1, 11))
    assert runs["killed"] == runs["straight"], "steps 6 and 7 were done twice and must agree with themselves too"
