"""dvc.yaml against the code: DVC does not follow imports, so a forgotten dep would leave stale results."""

import pytest
import yaml

from config.params import load_params
from config.paths import REPORTS
from tests.imports import ROOT, imported_files

SHIPPED = "models/pretrained/"
STAGES = ("prepare_buckets", "train_vae", "train_decompose", "refine", "evaluate")
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_the_five_stages_in_order():
    assert tuple(PIPELINE) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_file_is_a_dep_and_no_dep_is_idle(stage):
    listed = [dep for dep in PIPELINE[stage]["deps"] if not dep.startswith(("${", "models/weights"))]
    needed = {path for path in imported_files(f"stages.{stage}") if not path.endswith("__init__.py")}
    covered = {path for path in needed if any(path == dep or path.startswith(f"{dep}/") for dep in listed)}
    assert needed == covered, f"not in dvc.yaml: {sorted(needed - covered)}"
    # Not code: weights and tables that the code reads.
    listed = [dep for dep in listed if not ((ROOT / dep).is_file() and not dep.endswith(".py"))]
    listed = [dep for dep in listed if not (dep.startswith(SHIPPED) and (ROOT / dep).is_dir())]
    idle = [dep for dep in listed if not any(path == dep or path.startswith(f"{dep}/") for path in needed)]
    assert not idle, f"in dvc.yaml, but not imported: {idle}"


def test_weights_that_ship_are_a_dep_of_what_reads_them():
    for stage, block in PIPELINE.items():
        reads = "metrics/reconstruction/perceptual.py" in block["deps"]
        assert reads == (f"{SHIPPED}alexnet_features.safetensors" in block["deps"]), stage


def test_weights_that_the_default_starts_from_are_deps():
    default = load_params(ROOT / "params.yaml")
    named = {
        "train_vae": {default.train_vae.rgb_checkpoint},
        "train_decompose": {default.train_decompose.checkpoint},
        "evaluate": set(default.evaluate.baselines.values()),
    }
    for stage, block in PIPELINE.items():
        assert {dep for dep in block["deps"] if dep.startswith(f"{SHIPPED}model")} == named.get(stage, set()), stage


def test_published_figures_are_a_dep_of_what_reads_them():
    for stage, block in PIPELINE.items():
        assert ("evaluation/literature.py" in block["deps"]) == ("evaluation/literature.yaml" in block["deps"]), stage


@pytest.mark.parametrize("stage", STAGES)
def test_reports_are_for_git_and_weights_for_dvc(stage):
    block = PIPELINE[stage]
    assert block["params"] == [stage]
    for entry in [*block["metrics"], *(plot for plot in block["plots"] if isinstance(plot, dict))]:
        ((path, options),) = entry.items()
        assert path.startswith(f"{REPORTS}/") and options["cache"] is False
