"""Versions in a SQLite store and on a real server; the weights stay where they are."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load_file

from layers.dataset.digest import digest
from stages.evaluate import main
from tests.support.servers import free_port, serving
from tests.support.workspace import environment, run, stage
from tests.tracking.registered import FOLDER, enter_project, evaluate, refine, save_tiny
from tracking import registry
from tracking.registry import count_parameters, register_weights
from tracking.run import Run, tracking_uri
from tracking.sample_scores import read_scores
from tracking.versions import SCORES, Registry, RegistryError

NAME = "smoke-decomposer"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    arguments = ["server", "--workers", "1", "--backend-store-uri", f"sqlite:///{root / 'server.db'}"]
    arguments += ["--artifacts-destination", str(root / "files")]
    with serving(arguments, "/health", root, environment(root)) as uri:
        yield uri


@pytest.fixture
def params(tmp_path, bucketed_root, monkeypatch):
    return enter_project(tmp_path / "project", bucketed_root, monkeypatch)


def test_hidden_files_are_no_part_of_a_model(tmp_path):
    save_tiny(tmp_path)
    before = digest(tmp_path), count_parameters(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "vae" / "._diffusion_pytorch_model.safetensors").write_bytes(b"\0\5\x16\7")
    assert (digest(tmp_path), count_parameters(tmp_path)) == before


def tags_of(number):
    return mlflow.MlflowClient(tracking_uri()).get_model_version(NAME, str(number)).tags


def test_the_stages_themselves_register(params, monkeypatch):
    shutil.copytree(FOLDER, FOLDER.with_name("decompose"))
    run(stage("refine"), Path.cwd())
    (version,) = Registry(params).versions()
    assert version.md5 == digest(FOLDER) != digest(FOLDER.with_name("decompose"))
    assert tags_of(1)["evaluated"] == "false"
    # Of what evaluate has read once, gigabytes of it, the registry knows the md5.
    monkeypatch.setattr(registry, "digest", None)
    assert main([]) == 0
    (version,) = Registry(params).versions()
    report = json.loads(Path("metrics/reports/evaluate.json").read_text())
    (found,) = version.evaluations
    assert found.scores["alpha_iou"] == pytest.approx(report["decomposition"]["model"][0]["alpha_iou"], abs=1e-6)
    assert found.scores["psnr"] == pytest.approx(report["recomposition"]["psnr_white"], abs=1e-6)
    for metric in SCORES:
        each = read_scores(Registry(params), version, found.runs[metric], metric)
        assert len(each) == report["setting"]["samples"]
        assert sum(each.values()) / len(each) == pytest.approx(found.scores[metric], abs=1e-5), metric
    client = mlflow.MlflowClient(tracking_uri())
    runs = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    stages = sorted(found.data.tags["stage"] for found in runs)
    assert stages == ["evaluate", "pipeline", "refine"], "a version opens no run of its own"


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_refine_makes_a_version_and_evaluate_gives_it_scores(params, store, monkeypatch, request, bucketed_root):
    if store == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server"))
    for command in (
        ["init", "-q"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "1", "--allow-empty"],
    ):
        subprocess.run(["git", *command], check=True)
    assert Registry(params).versions() == []
    refine(params)
    (version,) = Registry(params).versions()
    assert (version.number, version.path, version.md5) == (1, "models/weights/refine", digest(FOLDER))
    assert version.evaluations == ()
    assert tags_of(1)["evaluated"] == "false" and len(tags_of(1)["git.commit"]) == 40
    tensors = [load_file(path) for path in Path(FOLDER).rglob("*.safetensors")]
    assert tags_of(1)["parameters"] == str(sum(t.numel() for state in tensors for t in state.values()))
    evaluate(params, alpha_iou=0.7)
    (version,) = Registry(params).versions()
    (found,) = version.evaluations
    assert (found.data_md5, found.split) == (digest(bucketed_root), "val")
    assert found.scores.keys() == SCORES.keys()
    assert found.scores["alpha_iou"] == 0.7 and found.scores["psnr"] == 20.0 and found.scores["lpips"] == 0.1
    each = read_scores(Registry(params), version, found.runs["alpha_iou"], "alpha_iou")
    assert list(each.values()) == [0.68, 0.69, 0.7, 0.7, 0.71, 0.72]
    tags = tags_of(1)
    assert tags["evaluated"] == "true" and tags["data.split"] == "val" and tags["data.md5"] == digest(bucketed_root)


def test_the_same_weights_are_one_version_and_the_last_scores_stand(params):
    for alpha_iou in (0.5, 0.7):
        refine(params)
        evaluate(params, alpha_iou=alpha_iou)
    (version,) = Registry(params).versions()
    (found,) = version.evaluations
    assert found.scores["alpha_iou"] == 0.7
    save_tiny(Path(FOLDER), seed=2)
    evaluate(params)
    assert [entry.number for entry in Registry(params).versions()] == [2, 1], "evaluate registers what is not there"
    assert len(Registry(params).versions()[0].evaluations) == 1


def test_evaluations_on_other_data_stand_side_by_side(params, bucketed_root):
    evaluate(params, cost=0.1)
    data = Path("data/rgba_layers")
    data.unlink()
    (data / "metadata").mkdir(parents=True)
    shutil.copy(bucketed_root / "metadata" / "manifest.json", data / "metadata")
    with (data / "metadata" / "manifest.json").open("a") as file:
        file.write("\n")
    evaluate(params, cost=0.2)
    evaluate(params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"split": "train"})}), cost=0.3)
    (version,) = Registry(params).versions()
    assert [found.scores["cost"] for found in version.evaluations] == [0.3, 0.2, 0.1]
    assert [found.split for found in version.evaluations] == ["train", "val", "val"]
    assert tags_of(1)["data.split"] == "train"


def test_what_was_read_is_not_read_again_and_what_was_not_is(params, monkeypatch):
    read = []
    monkeypatch.setattr(registry, "digest", lambda path: read.append(str(path)) or digest(path))
    evaluate(params, {params.evaluate.model: digest(FOLDER), "data/rgba_layers": digest("data/rgba_layers")})
    assert read == []
    evaluate(params, {params.evaluate.model: digest(FOLDER)})
    assert read == ["data/rgba_layers"]
    (version,) = Registry(params).versions()
    assert version.md5 == digest(FOLDER) and len(version.evaluations) == 1


def test_how_a_version_is_served_is_how_it_was_evaluated(params):
    def registered(seed, text, **block):
        shutil.rmtree(FOLDER)
        save_tiny(Path(FOLDER), seed=seed, text=text)
        changed = params.evaluate.model_copy(update=block)
        refine(params.model_copy(update={"evaluate": changed}))
        number = Registry(params).versions()[0].number
        info = mlflow.models.get_model_info(f"models:/{NAME}/{number}")
        usual = {spec.name: spec.default for spec in info.signature.params.params}
        return usual["guidance"], {key: Registry(params).config(number)[key] for key in ("precision", "offload")}

    assert registered(3, True) == (1.0, {"precision": "auto", "offload": "none"})
    block = {"guidance": 4.0, "precision": "bf16", "offload": "models"}
    assert registered(4, True, **block) == (4.0, {"precision": "bf16", "offload": "models"})
    assert registered(5, False, **block)[0] == 1.0, "a network without text cannot be guided"


def test_no_weights_and_no_pickle_go_into_the_store(params):
    refine(params)
    files = [path for path in Path("mlruns").rglob("*") if path.is_file() and path.suffix not in (".db", ".lock")]
    assert {path.name for path in files} >= {"MLmodel", "served_model.py"}
    assert all(path.stat().st_size < 100_000 and path.suffix not in (".pkl", ".safetensors") for path in files)


def test_weights_that_the_project_does_not_keep_are_not_registered(params, tmp_path, monkeypatch):
    outside = save_tiny(tmp_path / "outside")
    for model in (str(outside), "../outside", "owner/name"):
        evaluate(params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"model": model})}))
    trial = tmp_path / "project" / ".tune" / "trial_0000"
    shutil.copytree(FOLDER, trial / FOLDER)
    monkeypatch.chdir(trial)
    refine(params)
    assert Registry(params).versions() == []
    # DVC's temporary folder is one that it keeps.
    monkeypatch.setenv("DVC_STAGE", "refine")
    refine(params)
    assert [version.path for version in Registry(params).versions()] == ["models/weights/refine"]


def test_a_registry_that_fails_is_a_warning(params, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise OSError("disk full\nand more")

    monkeypatch.setattr(registry, "_log_model", broken)
    refine(params)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("warning: run ") and line.endswith(" is not in the model registry: disk full and more")
    assert Registry(params).versions() == []


def test_a_server_that_is_gone_is_a_warning_and_soon(params, monkeypatch, capsys):
    gone = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gone)
    mlflow.set_tracking_uri(gone)
    start = time.monotonic()
    register_weights(Run("0" * 32), params, FOLDER)
    assert time.monotonic() - start < 30.0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    asked = f"API request to {gone}/api/2.0/mlflow/model-versions/search failed"
    assert line == f"warning: run {'0' * 32} is not in the model registry: {asked}"
    with pytest.raises(RegistryError, match=r"^the model registry in http://127\.0\.0\.1"):
        Registry(params).versions()


def test_parameters_are_counted_without_reading_weights(tmp_path):
    header = json.dumps({"__metadata__": {}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert count_parameters(tmp_path) == 6
