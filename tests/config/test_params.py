import re

import pytest
import yaml

from config.errors import ParamsError
from config.params import flatten, load_params, parse_params
from tests.support.imports import ROOT
from training.vae.build import build_vae


def from_nothing(raw):
    raw["train_vae"].update(rgb_checkpoint=None, trained="all")
    raw["train_decompose"].update(checkpoint=None)


def baseline(raw, given):
    raw["evaluate"]["baselines"] = {"a": given}


def broken(change) -> str:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(raw)
    with pytest.raises(ParamsError) as caught:
        parse_params(raw)
    return str(caught.value)


CASES = [
    (lambda p: p["train_vae"]["loss"].update(klx=1.0), r"train_vae\.loss\.klx: unknown key"),
    (lambda p: p["refine"].pop("seed"), r"refine\.seed: missing"),
    (
        lambda p: p["train_vae"]["loss"].update(kl="1e-5"),
        r"train_vae\.loss\.kl: got '1e-5', expected a valid number \(write floats with a point, as in 1\.0e-4\)",
    ),
    (lambda p: p["prepare_buckets"].update(max_side=100), r"max_side: got 100, expected a multiple of 32"),
    (
        lambda p: p["prepare_buckets"].update(min_side=128),
        r"expected min_side at most max_side \(96\), got min_side 128",
    ),
    (lambda p: p["prepare_buckets"].update(max_pixels=100), r"max_pixels at least min_side squared"),
    (lambda p: p["prepare_buckets"].update(train_count=None), "the composer's stream has no end"),
    (lambda p: p["train_vae"].update(dim_mult=[1]), r"dim_mult: got \[1\], expected .*at least 2 items"),
    (lambda p: p["train_decompose"].update(attention_head_dim=30), r"add up to attention_head_dim \(30\)"),
    (lambda p: p["train_vae"]["optimisation"].update(ema_decay=1.0), r"ema_decay: got 1\.0, expected less than 1"),
    (lambda p: p["train_vae"]["optimisation"].update(learning_rate=float("nan")), r"learning_rate: got nan"),
    (
        lambda p: p["train_vae"]["optimisation"].update(batch_size=2.5),
        r"batch_size: got 2\.5, expected a valid integer",
    ),
    (lambda p: p["train_vae"]["optimisation"].update(schedule="linear"), r"'cosine' or 'constant'"),
    (lambda p: p["tune"]["space"].update(x={"low": 2.0, "high": 1.0}), r"tune\.space\.x: expected either low < high"),
    (
        lambda p: p["train_decompose"].update(select="cost", validation={"samples": 0, "steps": 8}),
        r"validation\.samples above 0 where select is cost, got 0",
    ),
    (lambda p: p.update(extra={}), r"extra: unknown key"),
    (lambda p: p["evaluate"].update(precision="fp16"), r"evaluate\.precision: got 'fp16', expected 'auto', 'fp32' or"),
    (lambda p: p["evaluate"].update(offload="disk"), r"evaluate\.offload: got 'disk', expected 'none', 'models' or"),
    (
        lambda p: p["evaluate"].update(guidance=-1.0),
        r"evaluate\.guidance: got -1\.0, expected greater than or equal to 0",
    ),
    (
        lambda p: p["evaluate"].update(guidance=4.0, captions="none"),
        r"evaluate: expected captions told or both where guidance, which needs captions, is not 1\.0; got none",
    ),
    (
        lambda p: p["evaluate"].update(captions="both", baselines={"a": {"model": "b", "guidance": 4.0}}),
        r"evaluate: expected captions told where a baseline has guidance of its own; got both",
    ),
    (
        lambda p: baseline(p, 3),
        r"evaluate\.baselines\.a: got 3, expected a folder or repository, or a mapping of model",
    ),
    (lambda p: baseline(p, {"steps": 3}), r"evaluate\.baselines\.a\.model: missing"),
    (lambda p: baseline(p, {"model": "b", "step": 3}), r"evaluate\.baselines\.a\.step: unknown key"),
    (lambda p: baseline(p, {"model": 3}), r"evaluate\.baselines\.a\.model: got 3, expected a valid string"),
    (lambda p: baseline(p, {"model": "b", "steps": 0}), r"evaluate\.baselines\.a\.steps: got 0, expected greater than"),
    (lambda p: baseline(p, {"model": "b", "precision": "fp16"}), r"evaluate\.baselines\.a\.precision: got 'fp16'"),
    (
        lambda p: p["evaluate"].update(baselines={"model": "b"}),
        r"evaluate\.baselines: expected names that no other row",
    ),
    (lambda p: p["train_decompose"].update(patch_size=3) or from_nothing(p), r"patch_size 3 make tokens of 12 pixels"),
]


@pytest.mark.parametrize(("change", "message"), CASES)
def test_a_bad_parameter_names_key_value_and_expectation(change, message):
    text = broken(change)
    assert re.search(message, text), text
    assert "\n" not in text


def test_a_baseline_has_what_is_its_own_and_the_rest_of_the_block():
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    own = {"model": "owner/name", "steps": 50, "precision": "bf16"}
    raw["evaluate"].update(steps=2, tries=8, offload="models", baselines={"own": own, "place": "folder"})
    params = parse_params(raw)
    used = params.evaluate.of_baseline("own")
    assert (used.model, used.steps, used.precision) == ("owner/name", 50, "bf16")
    assert (used.tries, used.offload, used.guidance, used.seed) == (8, "models", 1.0, params.evaluate.seed)
    place = params.evaluate.of_baseline("place")
    assert place == params.evaluate.model_copy(update={"model": "folder"})
    # What is written out again is what was written: commands merge their flags into it.
    assert params.model_dump()["evaluate"]["baselines"] == {"own": own, "place": "folder"}
    assert parse_params(params.model_dump()) == params
    assert flatten(params.evaluate)["baselines.own.steps"] == 50 and "baselines.own.tries" not in flatten(
        params.evaluate
    )


def test_every_fault_is_named_at_once():
    def two(p):
        p["refine"]["seed"] = -1
        p["evaluate"]["steps"] = 0

    assert len(broken(two).splitlines()) == 2


def test_files_that_are_no_parameters(tmp_path):
    with pytest.raises(ParamsError, match="no such file"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load_params(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ParamsError, match="expected a mapping"):
        load_params(tmp_path / "list.yaml")


def test_flatten_uses_dotted_paths():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_every_float_in_the_files_is_one_for_every_yaml_reader():
    for path in [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]:
        bare = [line for line in path.read_text().splitlines() if re.search(r":\s*\d+e-?\d+", line)]
        assert not bare, f"{path.name}: {bare}: a float without a point is a word to YAML 1.1"


def test_the_linear_code_needs_room_and_the_reference_a_checkpoint():
    text = broken(lambda p: p["train_vae"]["loss"].update(reference_kl=0.1) or from_nothing(p))
    assert "train_vae: expected loss.reference_kl 0 where rgb_checkpoint is null" in text
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["train_vae"]["base_dim"] = 8
    from_nothing(raw)
    with pytest.raises(ParamsError, match=r"train_vae\.init: linear_code needs.*level 0 has 8 channels"):
        build_vae(parse_params(raw).train_vae)
