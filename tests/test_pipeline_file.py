"""dvc.yaml against the code: DVC does not follow imports, so a forgotten dep would leave stale results."""

import pytest
import yaml

from benchmarks.structure import pipeline_lines
from config.params import load_params, parse_params, read_params
from config.paths import REPORTS
from tests.support.imports import ROOT, imported_files

SHIPPED = "models/pretrained/"
# config/ checks parameters, tracking/ only writes to MLflow, the command line is parsed, files are written whole.
CANNOT_CHANGE_AN_OUTPUT = ("config/", "tracking/", "stages/cli.py", "layers/files.py")
STAGES = ("prepare_buckets", "train_vae", "train_decompose", "refine", "evaluate")
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def is_part(path, dep):
    return path == dep or path.startswith(f"{dep}/")


def code_deps(stage):
    """Folders and modules of ours; weights and data are not code."""
    listed = [dep for dep in PIPELINE[stage]["deps"] if not dep.startswith(("${", "models/weights", SHIPPED))]
    return [dep for dep in listed if (ROOT / dep).is_dir() or dep.endswith(".py")]


def test_the_five_stages_in_order():
    assert tuple(PIPELINE) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_file_is_a_dep_and_no_dep_is_idle(stage):
    listed = code_deps(stage)
    needed = {path for path in imported_files(f"stages.{stage}") if not path.endswith("__init__.py")}
    needed = {path for path in needed if not path.startswith(CANNOT_CHANGE_AN_OUTPUT)}
    covered = {path for path in needed if any(is_part(path, dep) for dep in listed)}
    assert needed == covered, f"not in dvc.yaml: {sorted(needed - covered)}"
    idle = [dep for dep in listed if not any(is_part(path, dep) for path in needed)]
    assert not idle, f"in dvc.yaml, but not imported: {idle}"


def test_the_file_is_short():
    deps, lines = pipeline_lines(ROOT)
    assert deps <= 80 and lines < 220


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))], ids=lambda p: p.name
)
def test_checking_parameters_changes_no_value(path):
    """Why config/ is no dep: stages compute with what the file says, which DVC watches by itself."""
    raw = read_params(path)
    parsed = parse_params(raw).model_dump()
    # A range of a study may leave keys out: they are filled in.
    assert {name: block for name, block in parsed.items() if name != "tune"} == {
        name: block for name, block in raw.items() if name != "tune"
    }


def test_weights_that_ship_are_a_dep_of_what_reads_them():
    for stage, block in PIPELINE.items():
        reads = "metrics/reconstruction" in block["deps"]
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


@pytest.mark.parametrize("stage", STAGES)
def test_reports_are_for_git_and_weights_for_dvc(stage):
    block = PIPELINE[stage]
    assert block["params"] == [stage]
    for entry in [*block["metrics"], *(plot for plot in block["plots"] if isinstance(plot, dict))]:
        ((path, options),) = entry.items()
        assert path.startswith(f"{REPORTS}/") and options["cache"] is False
