"""Presets say what differs from params.yaml, and can be written into it."""

import shutil

import pytest
import yaml

from config.committed import uncommitted
from config.errors import UserError
from config.overlays import layers_of, merged, written_into
from config.params import Params, flatten, load_params, parse_params, read_params
from stages.use_preset import main
from tests.support.imports import ROOT
from tests.support.workspace import run

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the project's params.yaml and presets."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_is_valid_and_says_only_what_differs(path):
    assert load_params(path).prepare_buckets.max_side % 32 == 0
    *below, (_, overlay) = layers_of(path)
    base = below[0][1]
    for _, other in below[1:]:
        base = merged(base, other, Params)
    before, after = flatten(base), flatten(overlay)
    # A searched range or a list stands as a whole.
    whole = ("tune.space.", "tune.budget.", "tune.pruner.", "evaluate.baselines.")
    assert not [
        key for key, value in after.items() if key in before and before[key] == value and not key.startswith(whole)
    ]
    assert not [key for key in after if key not in before and not key.startswith((*whole, "evaluate.baselines"))]
    head = path.read_text().partition("\nbase:")[0]
    assert all(word in head for word in ("# Command:", "# Time:", "# Figures:")), "its header says how to use it"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_written_into_params_yaml_is_what_it_means(project, path, capsys):
    name = f"presets/{path.name}"
    comments = (project / "params.yaml").read_text().count("#")
    assert main([name]) == 0
    assert f"params.yaml: {name} is written in" in capsys.readouterr().out
    text = (project / "params.yaml").read_text()
    found = load_params("params.yaml").model_dump()
    assert found | {"preset": None} == load_params(path).model_dump() and found["preset"] == name
    assert text.count("#") >= comments - 12, "comments stay, but for those inside a list or a range that is replaced"


def test_what_a_user_has_set_stays(project):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("rendered_root: data/designs/rendered", "rendered_root: mine/rendered"))
    assert load_params("presets/qwen.yaml").prepare_buckets.rendered_root == "mine/rendered"
    assert main(["presets/qwen.yaml"]) == 0
    assert load_params().prepare_buckets.rendered_root == "mine/rendered" and load_params().train_vae.base_dim == 96


def test_values_that_no_commit_has_are_lost_only_by_force(project, capsys):
    path, default = project / "params.yaml", (project / "params.yaml").read_text()
    run(["git", "init", "--quiet"], project)
    run(["git", *IDENTITY, "commit", "--quiet", "--allow-empty", "--message", "no params.yaml yet"], project)
    assert uncommitted(path, yaml.safe_load(default)) == set(), "git knows no values"
    run(["git", "add", "params.yaml"], project)
    run(["git", *IDENTITY, "commit", "--quiet", "--message", "default"], project)
    mine = default.replace("base_dim: 16 ", "base_dim: 24 ").replace("rendered_root: data", "rendered_root: mine")
    path.write_text(mine)
    assert uncommitted(path, yaml.safe_load(mine)) == {"train_vae.base_dim", "prepare_buckets.rendered_root"}
    assert main(["presets/qwen.yaml"]) == 2
    assert (
        "params.yaml: train_vae.base_dim: presets/qwen.yaml would replace what is in no commit"
        in capsys.readouterr().err
    )
    assert path.read_text() == mine
    assert main(["presets/from_nothing.yaml"]) == 0, "it sets neither"
    path.write_text(mine)
    assert main(["presets/qwen.yaml", "--force"]) == 0
    assert load_params().train_vae.base_dim == 96
    assert load_params().prepare_buckets.rendered_root == "mine/designs/rendered"


def test_a_preset_that_is_written_in_already_says_that_no_flag_is_needed(project, capsys):
    assert main(["presets/qwen.yaml"]) == 0
    assert main(["presets/qwen.yaml"]) == 2
    assert "params.yaml has it written in already; expected params.yaml itself" in capsys.readouterr().err


def test_one_preset_is_no_base_of_another(project, capsys):
    assert main(["presets/qwen.yaml"]) == 0
    before = (project / "params.yaml").read_text()
    assert main(["presets/smoke.yaml"]) == 2
    assert "params.yaml has presets/qwen.yaml written in" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"expected the default, which git checkout params\.yaml gives"):
        load_params("presets/smoke.yaml")
    assert (project / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: none.yaml\n", "a.yaml: base: presets/none.yaml: no such file"),
        ("base: a.yaml\n", "builds on itself"),
        ("base: ../params.yaml\ntrain_vae: {wings: 2}\n", "train_vae.wings: unknown key"),
        ("base: ../params.yaml\ntrain_vae: {base_dim: x}\n", "train_vae.base_dim: got 'x'"),
        ("base: ../params.yaml\ntrain_vae: 3\n", "train_vae: got 3, expected"),
        ("base: 3\n", "a.yaml: base: got 3, expected the file that it changes"),
        ("base:\n", "a.yaml: base: got None, expected the file that it changes"),
        ("base: ../presets\n", "a.yaml: base: presets: no such file"),
        ("train_vae: {}\n", "a.yaml: builds on nothing"),
        (": :", "a.yaml: not valid YAML"),
    ],
)
def test_a_wrong_overlay_is_one_sentence_and_changes_nothing(project, text, said, capsys):
    (project / "presets" / "a.yaml").write_text(text)
    before = (project / "params.yaml").read_text()
    assert main(["presets/a.yaml"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert (project / "params.yaml").read_text() == before


def test_nothing_changes_where_nothing_differs():
    text = (ROOT / "params.yaml").read_text()
    assert written_into(text, {}, Params) == text
    assert written_into(text, yaml.safe_load(text), Params) == text


def test_blocks_are_merged_and_everything_else_replaced():
    base = read_params(ROOT / "params.yaml")
    overlay = {"train_vae": {"loss": {"l1": 0.5}}, "evaluate": {"baselines": {}}, "tune": {"pruner": None}}
    found = parse_params(merged(base, overlay, Params))
    assert (found.train_vae.loss.l1, found.train_vae.loss.abmse) == (0.5, base["train_vae"]["loss"]["abmse"])
    assert found.evaluate.baselines == {} and found.tune.pruner is None
