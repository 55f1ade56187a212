"""The committed cards are what the code writes from the committed record, and the hub can read them."""

import json

import pytest
from huggingface_hub import ModelCard

from config.params import load_params
from experiments.pretraining.card import CARD, FAMILY_RECORD, METRICS, card_of, record_of_family, samples_of
from experiments.pretraining.recipe import RECIPE, Recipe, params_of, read_recipe
from tests.support.imports import ROOT

PLACE = ROOT / RECIPE
PROJECT = read_recipe(PLACE)
RECORD = json.loads((PLACE.parent / FAMILY_RECORD).read_text())
CORES = {"machine": "x86_64", "processors": 2, "gpu": None}


@pytest.mark.parametrize("name", PROJECT.shipped)
def test_the_committed_card_is_what_the_record_gives(name):
    assert (PLACE.parent / name / CARD).read_text() == card_of(name, PROJECT, RECORD, RECIPE.as_posix())


@pytest.mark.parametrize(("name", "step", "row"), [("model", "evaluated", "model"), ("rgb_vae", "rgb_vae", None)])
def test_the_hub_reads_licence_and_figures(name, step, row):
    data = ModelCard.load(PLACE.parent / name / CARD).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "image-to-image")
    assert data.tags == ["image-layer-decomposition", "rgba"] and data.model_name == PROJECT.about[name].title
    (figures,) = (entry["figures"] for entry in RECORD["steps"] if entry["name"] == step)
    figures = figures[row] if row else figures
    assert {r.metric_type: r.metric_value for r in data.eval_results} == figures
    assert {(r.dataset_type, r.dataset_split) for r in data.eval_results} == {("composed-designs", "validation")}


def test_the_record_is_of_the_recipe():
    """Which steps, and what each has seen; its parameters are in the recipe and the preset."""
    assert [(entry["name"], entry["stage"]) for entry in RECORD["steps"]] == [(s.name, s.stage) for s in PROJECT.steps]
    preset, before = load_params(str(ROOT / PROJECT.preset)), {}
    for step, entry in zip(PROJECT.steps, RECORD["steps"], strict=True):
        assert entry["seen"] == samples_of(params_of(step, preset, before).model_dump()[step.stage])
        before[step.name] = step.name


def test_every_shipped_folder_has_words_and_no_figure_in_them():
    for name in PROJECT.shipped:
        about = PROJECT.about[name]
        assert about.what and about.use and about.limits
        assert not any(char == "." and about.limits[i + 1 : i + 2].isdigit() for i, char in enumerate(about.limits))


def step(stage, report, **params):
    return {"stage": stage, "params": params, "seconds": 7, "date": "2026-01-02", "hardware": CORES, "report": report}


def refined(**more):
    """Steps of a family whose last but one refines, and whose last is of the test split."""
    report = {"before": {"cost": 0.3, "lpips": 0.2}, "after": {"cost": 0.123456, "lpips": 0.1, "new": 1.0}, **more}
    rows = {name: [{"merges": 0, "rgb_l1": 0.1, "alpha_iou": 0.8, "cost": value}] for name, value in
            {"model": 0.15, "composite_only": 0.4}.items()}  # fmt: skip
    scored = step("evaluate", {"decomposition": rows}, split="test")
    return record_of_family({"refined": step("refine", report, seed=0), "scored": scored})


def recipe(*, start):
    steps = [{"name": "refined", "stage": "refine"}, {"name": "scored", "stage": "evaluate", "start": start}]
    return Recipe.model_validate({"preset": "params.yaml", "steps": steps, "shipped": {"small": "refined"}})


def test_a_card_without_words_has_its_name_and_what_is_known():
    card = card_of("small", recipe(start="refined"), refined(kept="after"), "r.yaml")
    assert "\n# small\n\n## Training data\n" in card and "## Limits" not in card
    assert "| refined | `refine` |  | 7 | after was kept: cost 0.3000 to 0.1235, lpips 0.2000 to 0.1000 |" in card
    assert "model: RGB L1 0.1000, alpha soft IoU 0.8000, cost 0.1500; composite only: RGB L1" in card
    assert "Those of `scored` are of the test split." in card


@pytest.mark.parametrize(("start", "cost", "split"), [("refined", 0.15, "test"), (None, 0.1235, "validation")])
def test_an_evaluation_speaks_for_what_it_started_from(start, cost, split):
    results = ModelCard(card_of("small", recipe(start=start), refined(), "r.yaml")).data.eval_results
    told = {result.metric_type: result.metric_value for result in results}
    assert told["cost"] == cost and set(told) <= set(METRICS)
    assert {result.dataset_split for result in results} == {split}
