"""Model cards of the weights that ship, in the Hugging Face format: text from the recipe, figures from a record.

The record (:data:`FAMILY_RECORD`) is committed beside the recipe. It holds the data, time and scores of every step.
Cards are generated from it, so no figure is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from experiments.pretraining.recipe import About, Recipe

CARD, FAMILY_RECORD = "README.md", "record.json"
DIGITS = 4
# Figures of a step's report that are recorded.
FIGURES = {
    "train_vae": ("psnr_white", "layer_psnr_white", "lpips"),
    "train_decompose": ("velocity_layers", "velocity_composite", "cost", "alpha_iou", "rgb_l1"),
}
EVALUATED = ("rgb_l1", "alpha_iou", "cost")
# Metrics in a card's front matter, and their names on the hub.
METRICS = {
    "alpha_iou": "alpha soft IoU at 0 merges, higher is better",
    "rgb_l1": "RGB L1 at 0 merges, lower is better",
    "cost": "cost at 0 merges, lower is better",
    "psnr_white": "PSNR of composites over white in dB, higher is better",
    "layer_psnr_white": "PSNR of layers over white in dB, higher is better",
    "lpips": "LPIPS of composites, lower is better",
}
DATA = """Designs of the project's composer (`layers/composer`), training split. `docs/data_card.md` says what they are,
`NOTICE` whose objects, photographs and fonts they are made of."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def samples_of(params: Mapping[str, Any]) -> str:
    """Number of samples that a step was trained on, in words."""
    optimisation = params.get("optimisation")
    if optimisation is None:
        return f"{params['train_count']:,} designs" if params.get("train_count") else ""
    return f"{optimisation['epochs'] * (optimisation['epoch_samples'] or 0):,} samples, seed {params['seed']}"


def machine_of(step: Mapping[str, Any]) -> str:
    """Hardware of a step, in words."""
    hardware = step["hardware"]
    return f"{hardware['processors']} processor cores ({hardware['machine']}), {hardware.get('gpu') or 'no GPU'}"


def figures_of(step: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a step's report: numbers by name, or for each row numbers by name."""
    report, stage = step["report"], step["stage"]
    if stage == "refine":
        after = {name: value for name, value in sorted(report["after"].items()) if name in report["before"]}
        kept = {"kept": report["kept"]} if "kept" in report else {}
        return {**kept, "before": _rounded(report["before"], after), "after": _rounded(report["after"], after)}
    if stage == "evaluate":
        return {name: _rounded(row[0], EVALUATED) for name, row in report["decomposition"].items()}
    return _rounded(report, FIGURES.get(stage, ()))


def record_of_family(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Record of a family of weights.

    Args:
        steps: records saved by :func:`experiments.pretraining.recipe.keep`, by step name, in order.
    """
    dates = sorted(step["date"] for step in steps.values())
    rows = []
    for name, step in steps.items():
        row = {"name": name, "stage": step["stage"], "seen": samples_of(step["params"]), "seconds": step["seconds"]}
        split = {"split": SPLITS[step["params"]["split"]]} if step["stage"] == "evaluate" else {}
        rows.append(row | split | {"figures": figures_of(step)})
    return {
        "dates": [dates[0], dates[-1]],
        "machines": list(dict.fromkeys(map(machine_of, steps.values()))),
        "steps": rows,
    }


def card_of(name: str, recipe: Recipe, record: Mapping[str, Any], place: str) -> str:
    """Model card of a shipped folder, in Markdown.

    Args:
        name: of the folder.
        recipe: the steps, and the texts about each shipped folder.
        record: figures of the steps, see :func:`record_of_family`.
        place: of the recipe, relative to the project.
    """
    about = recipe.about.get(name) or About(title=name, what="", use="", limits="")
    said = {"": about.what, "## Intended use": about.use, "## Limits": about.limits, "## Training data": DATA}
    rows = []
    for step in record["steps"]:
        cells = (step["name"], f"`{step['stage']}`", step["seen"], step["seconds"], _in_words(step))
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(
        [
            "---",
            _metadata(about.title, list(_results(recipe, recipe.shipped[name], record))),
            "---",
            f"# {about.title}",
            "",
            *(
                line
                for head, text in said.items()
                if text
                for line in (*([head, ""] if head else []), text.strip(), "")
            ),
            "## How it was made",
            "",
            f"Made by `python -m stages.pretrain`, which goes through `{place}`; all parameters are there and in",
            "the preset it names. Weights in bfloat16.",
            "",
            f"{' to '.join(record['dates'])}, on {'; '.join(record['machines'])}.",
            "",
            _split_in_words(record),
            "",
            "| step | stage | seen | seconds | held out |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def write_cards(folder: Path, recipe: Recipe, place: str) -> None:
    """Write the cards of a family from its record.

    Args:
        folder: holds the record and the shipped folders.
        recipe: see :func:`card_of`; so is ``place``.
        place: of the recipe.
    """
    record = json.loads((folder / FAMILY_RECORD).read_text(encoding="utf-8"))
    for name in recipe.shipped:
        (folder / name / CARD).write_text(card_of(name, recipe, record, place), encoding="utf-8")


def _rounded(values: Mapping[str, float], names: Mapping[str, Any] | tuple[str, ...]) -> dict[str, float]:
    return {name: round(values[name], DIGITS) for name in names if name in values}


def _in_words(step: Mapping[str, Any]) -> str:
    """Figures of a step, in words."""
    figures = step["figures"]
    if step["stage"] == "refine":
        before, after = figures["before"], figures["after"]
        changes = ", ".join(f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in after)
        return f"{figures['kept']} was kept: {changes}" if "kept" in figures else changes
    if step["stage"] == "evaluate":
        return "; ".join(
            f"{name.replace('_', ' ')}: RGB L1 {row['rgb_l1']:.4f}, alpha soft IoU {row['alpha_iou']:.4f}, "
            f"cost {row['cost']:.4f}"
            for name, row in figures.items()
        )
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _split_in_words(record: Mapping[str, Any]) -> str:
    others = [step for step in record["steps"] if step.get("split", SPLITS["val"]) != SPLITS["val"]]
    tail = "".join(f" Those of `{step['name']}` are of the {step['split']} split." for step in others)
    return (
        "Figures are of the validation split, by which weights and settings are chosen, at 0 merges where layers are\n"
        f"scored (`docs/evaluation.md`).{tail}"
    )


def _metadata(title: str, results: list[EvalResult]) -> str:
    """Front matter of a card, which the hub reads."""
    scored = {"model_name": title, "eval_results": results} if results else {}
    tags = ["image-layer-decomposition", "rgba"]
    data = ModelCardData(
        license="apache-2.0", library_name="diffusers", pipeline_tag="image-to-image", tags=tags, **scored
    )
    return data.to_yaml()


def _results(recipe: Recipe, shipped: str, record: Mapping[str, Any]) -> Iterator[EvalResult]:
    """Scores of a shipped step: from an evaluation that starts from it, else from its own report."""
    steps = {step["name"]: step for step in record["steps"]}
    evaluations = [step.name for step in recipe.steps if step.stage == "evaluate" and step.start == shipped]
    step = steps[evaluations[-1] if evaluations else shipped]
    figures = step["figures"]
    figures = figures.get("model") or figures.get("after") or figures
    split = step.get("split", SPLITS["val"])
    for metric, label in METRICS.items():
        if metric in figures:
            yield EvalResult(
                task_type="image-to-image",
                dataset_type="composed-designs",
                dataset_name=f"Designs of the project's composer, {split} split",
                dataset_split=split,
                metric_type=metric,
                metric_name=label,
                metric_value=figures[metric],
            )
