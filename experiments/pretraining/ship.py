"""Weights as they are shipped: in bfloat16, with a card that says how they were made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from layers.files import put_folder

CARD = "README.md"
# Of a step's report, what its line of the card says.
FIGURES = {
    "train_vae": ("psnr_white", "layer_psnr_white", "lpips"),
    "train_decompose": ("velocity_layers", "velocity_composite", "cost", "alpha_iou", "rgb_l1"),
}


def to_bfloat16(source: Path, target: Path) -> None:
    """Write a safetensors file again with half the bytes; what is not float32 stays."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        metadata = file.metadata()
    halved = {name: t.to(torch.bfloat16) if t.dtype == torch.float32 else t for name, t in tensors.items()}
    save_file(halved, target, metadata=metadata)


def without_origin(source: Path, target: Path) -> None:
    """Copy a network's configuration without the folder that diffusers last read it from."""
    config = json.loads(source.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    target.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def samples_of(params: Mapping[str, Any]) -> str:
    """How much a step has seen, for people."""
    optimisation = params.get("optimisation")
    if optimisation is None:
        return f"{params['train_count']:,} designs" if params.get("train_count") else ""
    return f"{optimisation['epochs'] * (optimisation['epoch_samples'] or 0):,} samples, seed {params['seed']}"


def figures_of(record: Mapping[str, Any]) -> str:
    """What a step's report says, for people."""
    report, stage = record["report"], record["stage"]
    if stage == "refine":
        before, after = report["before"], report["after"]
        changes = ", ".join(
            f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in sorted(after) if name in before
        )
        return f"{report['kept']} was kept: {changes}" if "kept" in report else changes
    if stage == "evaluate":
        rows = report["decomposition"]
        return "; ".join(
            f"{name.replace('_', ' ')}: RGB L1 {row[0]['rgb_l1']:.4f}, alpha soft IoU {row[0]['alpha_iou']:.4f}, "
            f"cost {row[0]['cost']:.4f}"
            for name, row in rows.items()
        )
    return ", ".join(f"{name} {report[name]:.4f}" for name in FIGURES.get(stage, ()) if name in report)


def machine_of(record: Mapping[str, Any]) -> str:
    """What a step ran on, for people."""
    hardware = record["hardware"]
    return f"{hardware['processors']} processor cores ({hardware['machine']}), {hardware.get('gpu') or 'no GPU'}"


def card_of(name: str, records: Mapping[str, Mapping[str, Any]], recipe: str) -> str:
    """The card of a shipped folder, in the hub's form.

    Args:
        name: of the folder.
        records: of all steps, by name, in their order.
        recipe: place of the recipe, relative to the project.
    """
    rows = []
    for step, record in records.items():
        cells = (step, f"`{record['stage']}`", samples_of(record["params"]), record["seconds"], figures_of(record))
        rows.append(f"| {' | '.join(map(str, cells))} |")
    dates = sorted(record["date"] for record in records.values())
    return "\n".join(
        [
            "---",
            "library_name: diffusers",
            "tags: [image-layer-decomposition, rgba]",
            "---",
            f"# {name}",
            "",
            f"Made by `python -m stages.pretrain`, which goes through `{recipe}`; all parameters are there and in",
            "the preset it names. Data: designs of the project's composer (layers/composer), training split;",
            "figures are of its validation split, at 0 merges where layers are scored (docs/evaluation.md). Weights in",
            "bfloat16.",
            "",
            f"{dates[0]} to {dates[-1]}, on {'; '.join(dict.fromkeys(map(machine_of, records.values())))}.",
            "",
            "| step | stage | seen | seconds | held out |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def ship(folders: Mapping[str, Path], kept: Path, recipe: Path) -> None:
    """Write shipped folders beside a recipe, each whole or not at all.

    Args:
        folders: what is shipped, by the name it gets.
        kept: folder with the output and ``step.json`` of every step.
        recipe: whose folder they go to.
    """
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in kept.glob("*/step.json")}
    records = dict(sorted(found.items(), key=lambda item: item[1]["order"]))
    total = 0
    for name, source in folders.items():
        target = recipe.parent / name
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.name != "step.json":
                place = part / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".safetensors":
                    to_bfloat16(path, place)
                elif path.name == "config.json":
                    without_origin(path, place)
                else:
                    shutil.copyfile(path, place)
                total += place.stat().st_size
        (part / CARD).write_text(card_of(name, records, recipe.as_posix()), encoding="utf-8")
        put_folder(part, target)
    print(f"pretrain: {total / 1e6:.1f} MB in {', '.join(str(recipe.parent / name) for name in folders)}")
