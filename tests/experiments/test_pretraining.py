"""A recipe at smoke scale: from an RGB VAE to shipped weights; what is done is not done again."""

import copy
import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

from config.errors import ParamsError
from config.params import load_params
from experiments.pretraining.card import machine_of
from experiments.pretraining.recipe import RecipeError, is_done, params_of, read_recipe, record_of, uncommitted_below
from experiments.pretraining.ship import without_origin
from inference.decomposer import Decomposer
from models.vae.autoencoder import RGBAVAE
from tests.support.imports import ROOT
from tests.support.workspace import SMOKE, make_clone, make_workspace, run, stage

QUICK = {
    "train_decompose.optimisation.epochs": 1,
    "train_decompose.optimisation.epoch_samples": 4,
    "train_decompose.surplus.share": 0.5,
}
RECIPE = {
    "preset": "params.yaml",
    "steps": [
        {
            "name": "rgb",
            "stage": "train_vae",
            "change": {"train_vae.channels": 3, "train_vae.opaque_share": 1.0, "train_vae.init": "random"},
        },
        {"name": "rgba", "stage": "train_vae", "change": {"train_vae.rgb_checkpoint": "{rgb}/vae"}},
        {"name": "layers", "stage": "train_decompose", "start": "rgba", "change": QUICK},
    ],
    "shipped": {"rgb_vae": "rgb", "model": "layers"},
}


def write(root, recipe):
    path = root / "family" / "recipe.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


def pretrain(root, *arguments, **options):
    return run(stage("pretrain", "--recipe", "family/recipe.yaml", "--home", "work", *arguments), root, **options)


@pytest.fixture(scope="module")
def root(bucketed_root, tmp_path_factory):
    """A project that has gone through the recipe, in two goes."""
    root = make_workspace(tmp_path_factory.mktemp("pretrain") / "project")
    (root / "work" / "data").mkdir(parents=True)
    (root / "work" / "data" / "rgba_layers").symlink_to(bucketed_root)
    write(root, RECIPE)
    first = pretrain(root, "--until", "rgb")
    assert "step 1 of 3, rgb (train_vae)\n" in first.stdout and not (root / "family" / "rgb_vae").exists()
    second = pretrain(root)
    assert "rgb (train_vae): done" in second.stdout and "MB in family/model, family/rgb_vae" in second.stdout
    return root


def test_what_is_shipped_is_the_last_step_in_half_the_bytes(root):
    folder, kept = root / "family" / "model", root / "work" / "kept" / "layers"
    for part, name in (("vae", "diffusion_pytorch_model"), ("transformer", "diffusion_pytorch_model")):
        with safe_open(folder / part / f"{name}.safetensors", "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    ours, theirs = (Decomposer.from_pretrained(str(place), "cpu") for place in (folder, kept))
    assert ours.trained_for == theirs.trained_for and ours.trained_for.surplus_layers == 6
    for shipped, full in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        assert shipped.dtype == torch.float32 and torch.allclose(shipped, full, rtol=2**-8, atol=1e-30)
    assert RGBAVAE.from_pretrained(root / "family" / "rgb_vae", "vae").config.input_channels == 3
    assert not list((root / "family").rglob("step.json"))


def test_a_shipped_configuration_does_not_say_where_it_lay(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 2, "_name_or_path": "kept/layers/transformer"}))
    without_origin(tmp_path / "config.json", tmp_path / "shipped.json")
    assert json.loads((tmp_path / "shipped.json").read_text()) == {"num_layers": 2}


def test_the_card_says_what_a_step_ran_on():
    cores = {"machine": "x86_64", "processors": 2}
    assert machine_of({"hardware": cores}) == "2 processor cores (x86_64), no GPU"
    assert machine_of({"hardware": cores | {"gpu": "H100"}}) == "2 processor cores (x86_64), H100"


def test_a_step_starts_from_what_it_names(root):
    records = {path.parent.name: json.loads(path.read_text()) for path in (root / "work" / "kept").glob("*/step.json")}
    assert records["rgba"]["params"]["rgb_checkpoint"] == "kept/rgb/vae"
    ours, theirs = (RGBAVAE.from_pretrained(root / "work" / "kept" / step, "vae") for step in ("rgba", "layers"))
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_the_card_says_how_it_was_made_and_what_it_scores(root):
    path = root / "family" / "model" / "README.md"
    card = path.read_text()
    assert card.startswith("---\nlibrary_name: diffusers") and str(root) not in card
    assert "| rgb | `train_vae` |" in card and "psnr_white" in card
    assert "| layers | `train_decompose` | 4 samples, seed 0 |" in card and "alpha_iou" in card
    report = json.loads((root / "work" / "kept" / "layers" / "step.json").read_text())["report"]
    told = {result.metric_type: result.metric_value for result in ModelCard.load(path).data.eval_results}
    assert told == {name: round(report[name], 4) for name in ("alpha_iou", "rgb_l1", "cost")}


def test_cards_are_written_again_from_the_record(root):
    cards = [root / "family" / name / "README.md" for name in ("model", "rgb_vae")]
    before = [card.read_text() for card in cards]
    for card in cards:
        card.write_text("")
    pretrain(root, "--cards")
    assert [card.read_text() for card in cards] == before


def keys(recipe, preset):
    found, places, key = [], {}, ""
    for step in recipe.steps:
        key = record_of(step, params_of(step, preset, places), key)["key"]
        places[step.name] = f"kept/{step.name}"
        found.append(key)
    return found


def test_a_changed_step_and_those_after_it_are_no_longer_done(root, tmp_path):
    preset, done = load_params(str(root / "params.yaml")), [root / "work" / "kept" / s["name"] for s in RECIPE["steps"]]
    assert all(map(is_done, done, keys(read_recipe(write(tmp_path, RECIPE)), preset)))
    other = copy.deepcopy(RECIPE)
    other["steps"][1]["change"]["train_vae.seed"] = 1
    again = list(map(is_done, done, keys(read_recipe(write(tmp_path, other)), preset)))
    assert again == [True, False, False]
    assert not is_done(tmp_path, "anything"), "nor is what was never begun"


def test_a_stage_that_fails_is_named_and_nothing_is_shipped(tmp_path):
    bare = make_workspace(tmp_path / "project")
    write(bare, RECIPE)
    failed = pretrain(bare, check=False)
    assert failed.returncode == 2 and "step rgb: the stage train_vae ended with code 2" in failed.stderr
    unfinished = pretrain(bare, "--cards", check=False)
    assert unfinished.returncode == 2 and "--cards: there is no family/record.json" in unfinished.stderr
    assert [path.name for path in (bare / "family").iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r["steps"].append(r["steps"][0]), "there are two steps rgb"),
        (
            lambda r: r["steps"][2].update(start="later"),
            "step layers starts from later, which does not come before it",
        ),
        (lambda r: r["shipped"].update(model="none"), "shipped: there is no step none"),
        (lambda r: r["steps"][0].update(stage="bake"), "no recipe"),
        (
            lambda r: r.update(about={"x": dict.fromkeys(("title", "what", "use", "limits"), "")}),
            "about: x is not ship",
        ),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_one_sentence(tmp_path, change, sentence):
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    change(recipe)
    with pytest.raises(RecipeError, match=sentence) as caught:
        read_recipe(write(tmp_path, recipe))
    assert "\n" not in str(caught.value)


def test_a_step_changes_only_what_there_is(tmp_path):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(SMOKE))
    preset = load_params(str(tmp_path / "p.yaml"))
    step = read_recipe(write(tmp_path, RECIPE)).steps[1]
    with pytest.raises(RecipeError, match="step rgba: there is no step 'rgb' before it"):
        params_of(step, preset, {})
    with pytest.raises(ParamsError, match=r"train_vae\.wings"):
        params_of(step.model_copy(update={"change": {"train_vae.wings": 2}}), preset, {})


def test_the_projects_recipe_can_be_followed():
    recipe = read_recipe(ROOT / "models" / "pretrained" / "recipe.yaml")
    preset = load_params(str(ROOT / recipe.preset))
    places = {}
    for step in recipe.steps:
        params_of(step, preset, places)
        places[step.name] = step.name


def test_what_a_preset_takes_from_params_yaml_and_no_commit_has_is_named(tmp_path):
    root = make_clone(tmp_path / "clone")
    recipe = read_recipe(root / "models" / "pretrained" / "recipe.yaml")
    assert uncommitted_below(recipe, root / recipe.preset) == []
    path = root / "params.yaml"
    text = path.read_text()
    # Below the preset; replaced by it; of no stage.
    for old, new in (
        ("source: composer ", "source: rendered "),
        ("steps: 2 ", "steps: 3 "),
        ("trials: 1 ", "trials: 5 "),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    assert uncommitted_below(recipe, root / recipe.preset) == ["prepare_buckets.source"]
    assert uncommitted_below(recipe, path) == [], "a complete file builds on nothing"
