import socket
import subprocess
import sys
import time
import urllib.request

import mlflow
import numpy as np
import pytest

from tests.stages.workspace import environment, make_workspace, run, stage
from training.tracking import digest, project_root, tracking_uri


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real MLflow server on loopback."""
    root = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{root / 'server.db'}",
        "--artifacts-destination",
        str(root / "files"),
    ]
    with (root / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=root, env=environment(root), stdout=log, stderr=log)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None, (root / "log.txt").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        process.terminate()
        process.wait(30)


def test_a_stage_runs_against_a_real_server(server, bucketed_root, tmp_path):
    root = make_workspace(tmp_path / "work", bucketed_root)
    run(stage("train_vae"), root, MLFLOW_TRACKING_URI=server)
    client = mlflow.MlflowClient(server)
    (found,) = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    assert found.info.run_name == "train_vae" and found.info.status == "FINISHED"
    assert found.data.params["train_vae.loss.kl"] == "1e-05"
    assert found.data.tags["stage"] == "train_vae"
    assert found.data.tags["input.data/rgba_layers.md5"] == digest(bucketed_root)
    assert [entry.dataset.digest for entry in found.inputs.dataset_inputs] == [digest(bucketed_root)]
    history = client.get_metric_history(found.info.run_id, "val/psnr_white")
    assert len(history) == 2 and all(np.isfinite(metric.value) for metric in history)
    names = [entry.path for entry in client.list_artifacts(found.info.run_id)]
    assert "train_vae.json" in names and "images" in names
    assert not (root / "mlruns" / "mlflow.db").exists(), "the run went to the server and nowhere else"


def test_the_store_follows_dvc_and_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert project_root() == tmp_path
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri() == "http://127.0.0.1:1"


def test_digests_follow_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = digest(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path / "b") == first, "the folder's name does not matter"
    (tmp_path / "b" / "x").write_text("2")
    assert digest(tmp_path / "b") != first
