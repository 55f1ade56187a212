"""Parameters that are paths mean the same in a trial, a pretraining step and a stage started from another folder."""

import types
from pathlib import Path
from typing import Annotated, Union, get_args, get_origin

import mlflow
import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from config.evaluate import EvaluationData
from config.params import Params, load_params
from config.paths import WORKSPACE
from evaluation.sets import designs_of
from experiments.launch import launch_command
from inference.decomposer import Decomposer
from layers.sources.catalogue import open_source
from layers.sources.lica.reader import LicaSource
from layers.sources.location import Location
from models.diffusers_folder import locate
from models.transformer.trained_for import RELEASED
from stages.evaluate import others_of
from stages.prepare_buckets import _listed
from tests.conftest import write_rendered
from tests.support.networks import save_tiny
from tests.support.workspace import make_workspace, run, stage
from training.vae.build import build_vae

KINDS = {"find_input", "in_workspace", "in_project"}
# Texts of the schema that are no path: names, commands, addresses.
NO_PATHS = {
    "preset",  # a name, for people
    "launcher",  # its words that are files: test_the_launchers_files_are_found
    "tracking.experiment",
    "prepare_buckets.cluster",
    "prepare_buckets.prism_layers.split",
    "prepare_buckets.diffsynth.metadata",  # a name below location
    "tune.study",
    "tune.budget",
    "tune.objectives",
    "tune.space.choices",
    "tune.space.disabled",
    "tune.space.when",
}


def _kinds(annotation, metadata=()) -> set:
    """What an annotation says of its texts: kinds of paths, or ``text`` for one that says nothing."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _kinds(inner, (*metadata, *more))
    if origin in (Union, types.UnionType, list, tuple):
        return set().union(*(_kinds(part, metadata) for part in get_args(annotation)))
    if origin is dict:
        return _kinds(get_args(annotation)[1], metadata)
    if annotation is str:
        return KINDS.intersection(part for part in metadata if isinstance(part, str)) or {"text"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set()


def texts(block: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Dotted path of every text of the schema: its kind."""
    found = {}
    for name, field in block.model_fields.items():
        for kind in _kinds(field.annotation, tuple(field.metadata)):
            path = f"{prefix}{name}"
            if isinstance(kind, type):
                found |= texts(kind, f"{path}.")
            else:
                found[path] = kind
    return found


def test_every_text_of_the_schema_is_a_path_of_a_kind_or_none():
    found = texts(Params)
    assert {path for path, kind in found.items() if kind == "text"} <= NO_PATHS, "say what a new text is"
    assert {path for path, kind in found.items() if kind == "find_input"} == set(READERS), "and show that it is found"
    assert {path: kind for path, kind in found.items() if kind not in ("text", "find_input")} == {
        "prepare_buckets.output_root": "in_workspace",
        "evaluate.predictions": "in_project",
        "tune.storage": "in_project",
    }


def _read_source(params: Params, **changes) -> Location:
    settings = params.prepare_buckets.model_copy(update=changes)
    source = open_source(settings)
    return getattr(source, "root", None) or source.rendered_root


def _read_dataset(params: Params, **data):
    return designs_of(params, "theirs", EvaluationData(**data), None, types.SimpleNamespace(trained_for=RELEASED))


# What reads each input, given the parameters and a path; raises if there is nothing.
READERS = {
    "prepare_buckets.location": lambda params, path: _read_source(params, source="psd", location=path),
    "prepare_buckets.rendered_root": lambda params, path: _read_source(
        params, source="rendered", rendered_root=path, layout_root=None
    ),
    "prepare_buckets.layout_root": lambda params, path: _read_source(
        params, source="rendered", rendered_root=path, layout_root=path
    ),
    "prepare_buckets.lica.fonts": lambda params, path: LicaSource(
        Location(path, "location"), fonts=path, download=False
    ),
    **{
        f"prepare_buckets.{key}": lambda params, path, key=key: _listed(
            key, params.prepare_buckets.model_copy(update={key: f"{path}/list.txt"})
        )
        for key in ("validation_list", "test_list")
    },
    "train_vae.rgb_checkpoint": lambda params, path: build_vae(
        params.train_vae.model_copy(update={"rgb_checkpoint": f"{path}/vae"})
    ),
    "train_decompose.checkpoint": lambda params, path: locate(path, "transformer"),
    "train_decompose.text.source": lambda params, path: locate(f"{path}/text", "text_encoder"),
    "evaluate.model": lambda params, path: Decomposer.from_pretrained(path, "cpu"),
    "evaluate.baselines": lambda params, path: Decomposer.from_pretrained(path, "cpu"),
    "evaluate.baselines.model": lambda params, path: Decomposer.from_pretrained(path, "cpu"),
    "evaluate.datasets.location": lambda params, path: _read_dataset(params, source="psd", location=path),
    "evaluate.datasets.layout_root": lambda params, path: _read_dataset(
        params, source="rendered", location=path, layout_root=path
    ),
    "evaluate.others": lambda params, path: others_of(params.evaluate.model_copy(update={"others": {"theirs": path}})),
}


@pytest.fixture(scope="module")
def project(bucketed_root, tmp_path_factory) -> Path:
    """A project with a model that neither git nor DVC knows, and one beside the project."""
    root = make_workspace(tmp_path_factory.mktemp("elsewhere") / "project", bucketed_root)
    (root / "dvc.yaml").touch()
    for folder in (root / "kept" / "model", root.parent / "beside" / "model"):
        save_tiny(folder)
        for name in ("layouts", "images", "text/text_encoder", "text/tokenizer"):
            (folder / name).mkdir(parents=True)
        (folder / "list.txt").write_text("a\n")
        (folder / "a.psd").touch()
    save_tiny(root / "models" / "weights" / "decompose")
    return root


@pytest.mark.parametrize("path", ["kept/model", "../beside/model"])
@pytest.mark.parametrize("name", READERS)
def test_inputs_are_found_where_a_stage_runs_elsewhere(project, tmp_path, monkeypatch, name, path):
    params = load_params(project / "params.yaml")
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv(WORKSPACE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    READERS[name](params, path)
    with pytest.raises(Exception, match="nowhere"):
        READERS[name](params, path.replace("model", "nowhere"))


def test_the_launchers_files_are_found(project, tmp_path, monkeypatch):
    (project / "cluster.yaml").touch()
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(tmp_path)
    for words in ("--config_file cluster.yaml", "--config_file=cluster.yaml"):
        command = launch_command(f"accelerate launch {words} -n 2", "refine")
        found = words.replace("cluster", f"{project}/cluster")
        assert " ".join(command[1:]) == f"launch {found} -n 2 -m stages.refine"


def quick(project: Path, name: str, **blocks) -> Path:
    """A parameter file with a few samples a stage."""
    raw = yaml.safe_load((project / "params.yaml").read_text())
    for block in ("train_vae", "train_decompose", "refine"):
        raw[block]["optimisation"] |= {"epochs": 1, "epoch_samples": 4}
    raw["tune"] |= {"study": name, "budget": {}, "pruner": None}
    for block, changes in blocks.items():
        raw[block] |= changes
    path = project / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_trial_starts_from_weights_of_the_project(project):
    params = quick(project, "trial", train_vae={"rgb_checkpoint": "kept/model/vae"})
    found = run(stage("tune", "--params", params.name, "--trials", "1"), project)
    assert "trial 0: complete" in found.stdout


def test_a_trial_of_refine_leaves_no_version_in_the_registry(project):
    """Its weights are gone when it ends."""
    params = quick(project, "registry")
    found = run(stage("tune", "--stage", "refine", "--params", params.name, "--trials", "1"), project)
    assert "trial 0: complete" in found.stdout
    assert not mlflow.MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db").search_model_versions()
    assert not list(project.glob(".tune/refine-registry/*/mlruns"))


def test_a_pretraining_step_starts_from_weights_of_the_project(project):
    raw = yaml.safe_load(quick(project, "small").read_text())
    (project / "family").mkdir()
    step = {"name": "vae", "stage": "train_vae", "change": {"train_vae.rgb_checkpoint": "kept/model/vae"}}
    recipe = {"preset": "small.yaml", "steps": [step], "shipped": {"vae": "vae"}}
    (project / "family" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    home = project / "home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "rgba_layers").symlink_to(project / raw["prepare_buckets"]["output_root"])
    run(stage("pretrain", "--recipe", "family/recipe.yaml", "--home", "home"), project)
    assert (project / "family" / "vae" / "vae" / "config.json").is_file()
    assert not (home / "mlruns").exists() and not (home / ".checkpoints" / "train_vae").exists()


@pytest.mark.parametrize("folder", ["notebooks", "../another"])
def test_a_stage_started_from_another_folder_works_in_the_project(project, folder):
    here = project / folder
    here.mkdir()
    params = quick(project, "from_" + here.name, train_vae={"rgb_checkpoint": "kept/model/vae"})
    where = f"../{params.name}" if folder == "notebooks" else str(params)
    run(stage("train_vae", "--params", where), here, DVC_ROOT=None)
    assert (project / "metrics" / "reports" / "train_vae.json").is_file()
    (project / "metrics" / "reports" / "train_vae.json").unlink()
    assert not list(here.iterdir()), "nothing is written where it was started"


def test_flags_are_relative_to_where_a_command_is_given(project, tmp_path):
    write_rendered(tmp_path, "one")
    params = quick(project, "flags", prepare_buckets={"source": "rendered", "rendered_root": str(tmp_path / "rendered"),
                   "layout_root": None, "val_share": 0.0})  # fmt: skip
    run(stage("prepare_buckets", "--params", str(params), "--output-root", "here"), tmp_path, DVC_ROOT=None)
    assert (tmp_path / "here" / "metadata" / "manifest.json").is_file()


def test_decompose_needs_no_project(tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    model = save_tiny(tmp_path / "model")
    run(stage("decompose", "a.png", "--layers", "2", "--out", "out", "--model", model.name), tmp_path, DVC_ROOT=None)
    assert len(list((tmp_path / "out" / "a").glob("*.png"))) == 2


def test_a_flags_default_is_the_projects_wherever_a_command_is_given(project):
    """The recipe of a pretraining: an unknown step is refused by its name, not for want of a recipe."""
    (project / "models" / "pretrained").mkdir(parents=True)
    recipe = {"preset": "params.yaml", "steps": [{"name": "a", "stage": "train_vae"}], "shipped": {}}
    (project / "models" / "pretrained" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (project / "sub").mkdir()
    found = run(stage("pretrain", "--until", "b"), project / "sub", DVC_ROOT=None, check=False)
    assert found.returncode == 2 and "--until: models/pretrained/recipe.yaml has no step b" in found.stderr


@pytest.mark.parametrize("params", [".", "params.yaml/x", "x" * 300])
def test_a_parameter_file_that_is_none_is_one_sentence(project, params):
    found = run(stage("train_vae", "--params", params), project, check=False)
    assert found.returncode == 2 and found.stderr.strip().startswith("error: "), found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_a_flag_that_leads_out_starts_where_the_command_is_given(project):
    """Also in a folder that has parameters of its own within the project."""
    (project / "exp1").mkdir()
    (project / "exp1" / "params.yaml").write_text((project / "params.yaml").read_text())
    found = run(stage("evaluate", "--model", "../m1"), project / "exp1", DVC_ROOT=None, check=False)
    assert f"no folder at {project}/m1" in found.stderr


def test_a_launcher_of_the_project_is_found(project, tmp_path, monkeypatch):
    launcher = project / "bin" / "launch"
    launcher.parent.mkdir()
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.chdir(project)
    assert launch_command("bin/launch --x", "refine") == [str(launcher), "--x", "-m", "stages.refine"]
