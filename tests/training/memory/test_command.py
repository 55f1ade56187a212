"""``--plan`` of every stage, and of decompose."""

import argparse
import importlib
import json
from types import SimpleNamespace

import pytest

import stages.plan as planning
from config.params import load_params
from layers.dataset.manifest import MANIFEST
from stages import decompose
from tests.support.imports import ROOT
from training.memory.estimate import PlanError
from training.memory.plan import BUDGETS

PRESET = ROOT / "presets" / "qwen.yaml"
STAGES = ("train_vae", "train_decompose", "refine", "evaluate")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A workspace without data."""
    monkeypatch.setattr(planning, "in_workspace", lambda folder: tmp_path / folder)
    return tmp_path


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_plans_all_of_them_and_does_nothing_else(stage, monkeypatch):
    planned = []
    monkeypatch.setattr(planning, "print_plan", planned.append)
    assert importlib.import_module(f"stages.{stage}").main(["--plan", "--params", str(PRESET)]) == 0
    assert planned == [load_params(PRESET)]


def test_the_plan_of_the_preset(nowhere, capsys):
    planning.print_plan(load_params(PRESET))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("no data in ") and lines[0].endswith("the largest bucket that prepare_buckets allows")
    assert "    640x640     20    35712   = 35200 + 512" in lines
    assert all(len(line) <= 120 for line in lines[1:])
    for stage in (*STAGES, "decompose"):
        for gpus, gib in BUDGETS:
            assert f"{gpus} x {gib} GB  {stage} " in text
    assert "1 x 24 GB  refine          does not fit" in text
    assert "(the bfloat16 weights of the transformer alone are 38.1 GiB)" in text
    assert "1 x 80 GB  train_decompose lora.rank 32, gradient_checkpointing, as set" in lines
    assert "1 x 80 GB  evaluate        offload models, as set" in lines


def test_buckets_are_those_of_the_data_where_there_is_some(nowhere, monkeypatch):
    params = load_params(PRESET)
    assert planning.keys_of(params)[0] == [(640, 640, 20)]
    path = nowhere / params.prepare_buckets.output_root / MANIFEST
    path.parent.mkdir(parents=True)
    made = params.prepare_buckets.model_dump()
    path.write_text(json.dumps({"settings": made | {"max_side": 96}})[:-1] + ",\n")
    found, which = planning.keys_of(params)
    assert found == [(640, 640, 20)] and "was prepared with other parameters: the largest bucket" in which
    path.write_text(json.dumps({"settings": made | {"train_count": 7}})[:-1] + ",\n")
    keys = [(64, 96, 3), (96, 64, 2)]
    monkeypatch.setattr(planning, "StackDataset", lambda root, split: SimpleNamespace(keys=keys))
    found, which = planning.keys_of(params)
    assert found == keys and which.startswith("prepared data in ")


def test_the_largest_size():
    assert planning.largest_size(32, 256, 1024, 409600, 2.3) == (640, 640)
    assert planning.largest_size(32, 32, 96, 6144) == (64, 96)
    assert planning.largest_size(32, 256, 1024, 300000, 1.0) == (544, 544)
    with pytest.raises(PlanError, match="no size with sides of 256 to 512 px and at most 100 pixels"):
        planning.largest_size(32, 256, 512, 100)


def test_decompose_plans_the_model_it_is_given(capsys):
    assert decompose.main(["--plan"]) == 0
    assert "64x96, 6 layers" in capsys.readouterr().out, "what the model that ships was trained for"
    command = ["--plan", "--model", "Qwen/Qwen-Image-Layered", "--layers", "10", "--batch-size", "1"]
    assert decompose.main([*command, "--offload", "blocks"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("taken for the released model; images at once: 1\n")
    assert "640x640, 10 layers" in text and "1 x 24 GB  decompose       offload blocks, as set" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "--model", "./nowhere"], "./nowhere: neither a folder nor the name owner/name of a repository"),
        (["--plan", "--layers", "40"], "--layers: got '40', expected auto or 1 to 20"),
        (["--plan", "--batch-size", "0"], "--batch-size: got 0, expected more"),
        ([], "got no images and no --layers and no --out; expected images, --layers and --out, or --plan"),
        (["a.png", "--layers", "3"], "got no --out; expected images, --layers and --out, or --plan"),
    ],
)
def test_what_decompose_refuses_is_one_line(arguments, message, capsys):
    assert decompose.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_folder_that_is_no_model_is_one_line(tmp_path, capsys):
    assert decompose.main(["--plan", "--model", str(tmp_path)]) == 2
    assert "config.json: not found; expected a model folder" in capsys.readouterr().err
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    assert decompose.main(["--plan", "--model", str(tmp_path)]) == 2
    assert "no configs of a transformer and a VAE in it" in capsys.readouterr().err


def test_images_at_once_are_those_of_decompose():
    parser = argparse.ArgumentParser()
    decompose.add_arguments(parser)
    assert parser.get_default("batch_size") == planning.IMAGES_AT_ONCE
