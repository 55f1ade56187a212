"""A project with a tiny model in it, and stages that stand in for refine and evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config.params import Params, load_params
from config.paths import WEIGHTS
from stages.reports import write_table
from tests.support.networks import save_tiny
from tests.support.workspace import make_workspace
from tracking.registry import register_evaluation, register_weights
from tracking.run import stage_run

FOLDER = WEIGHTS / "refine"


def enter_project(root: Path, bucketed: Path, monkeypatch, **blocks) -> Params:
    """Make a project around a tiny model and go there."""
    make_workspace(root, bucketed, tracking={"system_metrics": False}, **blocks)
    save_tiny(root / FOLDER)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    for name in ("MLFLOW_TRACKING_URI", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    return load_params(root / "params.yaml")


def refine(params: Params) -> None:
    """What stage refine does when it has trained."""
    with stage_run("refine", params, inputs={}) as run:
        register_weights(run, params, FOLDER)


def sample_rows(spread: Sequence[float] = (-0.02, -0.01, 0.0, 0.0, 0.01, 0.02), **means: float) -> list[dict[str, Any]]:
    """Rows of ``evaluate_samples.csv``: images whose scores are the means and, each, one of ``spread`` more."""
    usual = {"rgb_l1": 0.2, "alpha_iou": 0.6, "cost": 0.3, "composite_only_cost": 0.4}
    usual |= {"psnr_white": 20.0, "ssim_white": 0.8, "lpips_white": 0.1, "seconds": 1.0}
    return [
        {"id": f"image{index}"} | {name: round(mean + more, 6) for name, mean in (usual | means).items()}
        for index, more in enumerate(spread)
    ]


def evaluate(
    params: Params,
    known: Mapping[str, str] | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
    **scores: float,
) -> None:
    """What stage evaluate does when it has scored; without samples there are six, of an empty sequence no table."""
    level = {"merges": 0, "rgb_l1": 0.2, "alpha_iou": 0.6, "cost": 0.3}
    recomposition = {"psnr_white": 20.0, "ssim_white": 0.8, "lpips_white": 0.1, "alpha_l1": 0.0}
    report = {
        "decomposition": {"model": [level | {key: value for key, value in scores.items() if key in level}]},
        "recomposition": recomposition | {key: value for key, value in scores.items() if key in recomposition},
        "better_than_nothing": 0.5,
        "seconds_per_picture": 1.0,
    }
    samples = sample_rows(**scores) if samples is None else samples
    with stage_run("evaluate", params, inputs={}) as run:
        if samples:
            run.artifact(write_table("evaluate_samples", samples))
        register_evaluation(run, params, report, known or {})
