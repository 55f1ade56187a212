"""Stages against real MLflow servers: one that is killed on the way, and one with PostgreSQL behind it."""

import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest

from layers.dataset.digest import digest
from tests.support.servers import Postgres, Server, postgres_binaries
from tests.support.workspace import make_workspace, run, stage

KILLING = """
import os, signal, sys
from tracking.run import Run
log = Run.metrics
def metrics(self, values, step=None):
    if step == 4 and any(key.startswith("train/") for key in values):
        os.killpg({group}, signal.SIGKILL)
    log(self, values, step)
Run.metrics = metrics
from stages.train_vae import main
sys.exit(main([]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.kill()


def only(client, name, stage="train_vae"):
    experiment = client.get_experiment_by_name(name)
    (found,) = client.search_runs([experiment.experiment_id], f"tags.stage = '{stage}'")
    return found


def curves(client, found):
    """Every number at every step, in the order of time."""
    names = [name for name in found.data.metrics if not name.startswith("system/")]
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)] for name in sorted(names)
    }


@pytest.fixture(scope="module")
def undisturbed(server, bucketed_root, tmp_path_factory):
    """train_vae at smoke scale, logged to the server."""
    root = make_workspace(tmp_path_factory.mktemp("undisturbed") / "work", bucketed_root)
    run(stage("train_vae"), root, MLFLOW_TRACKING_URI=server.uri)
    return root


def test_a_stage_runs_against_a_real_server(undisturbed, server, bucketed_root):
    client = mlflow.MlflowClient(server.uri)
    found = only(client, "smoke")
    assert found.info.run_name == "train_vae" and found.info.status == "FINISHED"
    assert found.data.params["train_vae.loss.kl"] == "1e-05"
    assert found.data.tags["input.data/rgba_layers.md5"] == digest(bucketed_root)
    assert [entry.dataset.digest for entry in found.inputs.dataset_inputs] == [digest(bucketed_root)]
    history = client.get_metric_history(found.info.run_id, "val/psnr_white")
    assert len(history) == 2 and all(np.isfinite(metric.value) for metric in history)
    names = [entry.path for entry in client.list_artifacts(found.info.run_id)]
    assert "train_vae.json" in names and "images" in names
    parent = only(client, "smoke", "pipeline")
    assert found.data.tags["mlflow.parentRunId"] == parent.info.run_id and parent.info.status == "FINISHED"
    assert parent.data.metrics["train_vae/psnr_white"] == found.data.metrics["train_vae/psnr_white"]
    assert not (undisturbed / "mlruns" / "mlflow.db").exists(), "the run went to the server and nowhere else"


def test_a_server_that_dies_costs_nothing_but_a_warning(undisturbed, server, bucketed_root, tmp_path):
    root = make_workspace(tmp_path / "work", bucketed_root, tracking={"experiment": "killed", "system_metrics": True})
    fast = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}
    ended = run([sys.executable, "-P", "-c", KILLING.format(group=server.group)], root, **fast)
    told = [line for line in ended.stderr.splitlines() if "warning" in line.lower() or "retry" in line.lower()]
    assert len(told) == 1 and told[0].startswith(f"warning: MLflow store {server.uri} does not answer"), ended.stderr
    assert len(list((root / "mlruns" / "spool").glob("*.jsonl"))) == 1

    refused = run(stage("train_vae"), root, check=False, **fast)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith(f"error: MLflow store {server.uri} does not answer")

    server.start()
    delivered = run([sys.executable, "-P", "-m", "tracking.spool"], root, **fast)
    assert "1 runs delivered" in delivered.stdout and not list((root / "mlruns" / "spool").iterdir())
    client = mlflow.MlflowClient(server.uri)
    found = only(client, "killed")
    assert found.info.status == only(client, "killed", "pipeline").info.status == "FINISHED"
    assert curves(client, found) == curves(client, only(client, "smoke")), "every number at every step, once"
    # Why tracking/ is no dependency of a stage in dvc.yaml.
    weights = Path("models") / "weights" / "vae"
    assert digest(root / weights) == digest(undisturbed / weights), "what is trained does not hang on the store"
    assert any(name.startswith("system/") for name in found.data.metrics)
    # Two epochs' images, each in full and reduced.
    assert len(client.list_artifacts(found.info.run_id, "images")) == 4
    assert [entry.path for entry in client.list_artifacts(found.info.run_id) if not entry.is_dir] == [
        "train_vae.csv",
        "train_vae.json",
    ]


@pytest.mark.skipif(postgres_binaries() is None, reason="no PostgreSQL here (Debian: apt-get install postgresql)")
def test_a_server_with_postgresql_behind_it(bucketed_root, tmp_path_factory):
    database = Postgres()
    try:
        database.start()
        server = Server(tmp_path_factory.mktemp("server"), database.uri)
        try:
            server.start()
            root = make_workspace(tmp_path_factory.mktemp("project") / "work", bucketed_root)
            run(stage("train_vae"), root, MLFLOW_TRACKING_URI=server.uri)
            client = mlflow.MlflowClient(server.uri)
            found, parent = only(client, "smoke"), only(client, "smoke", "pipeline")
            assert found.info.status == parent.info.status == "FINISHED"
            assert found.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 10
            assert "images" in [entry.path for entry in client.list_artifacts(found.info.run_id)]
        finally:
            server.kill()
    finally:
        database.stop()
