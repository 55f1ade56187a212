"""Export of the weights that ship: bfloat16 files, with a model card that says how they were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from experiments.pretraining.card import CARD, FAMILY_RECORD, card_of, record_of_family
from experiments.pretraining.recipe import RECORD, Recipe
from layers.files import put_folder


def to_bfloat16(source: Path, target: Path) -> None:
    """Copy a safetensors file with float32 tensors in bfloat16; other types stay."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        metadata = file.metadata()
    halved = {name: t.to(torch.bfloat16) if t.dtype == torch.float32 else t for name, t in tensors.items()}
    save_file(halved, target, metadata=metadata)


def without_origin(source: Path, target: Path) -> None:
    """Copy a network's configuration without the path that diffusers last read it from."""
    config = json.loads(source.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    target.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def ship(recipe: Recipe, kept: Path, place: Path) -> None:
    """Write the shipped folders beside the recipe, each atomically, with the record and the cards.

    Args:
        recipe: one whose steps are done.
        kept: folder with the output and ``step.json`` of every step.
        place: of the recipe.
    """
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in kept.glob(f"*/{RECORD}")}
    record = record_of_family(dict(sorted(found.items(), key=lambda item: item[1]["order"])))
    total = 0
    for name, step in recipe.shipped.items():
        source, target = kept / step, place.parent / name
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.name != RECORD:
                copy = part / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".safetensors":
                    to_bfloat16(path, copy)
                elif path.name == "config.json":
                    without_origin(path, copy)
                else:
                    shutil.copyfile(path, copy)
                total += copy.stat().st_size
        (part / CARD).write_text(card_of(name, recipe, record, place.as_posix()), encoding="utf-8")
        put_folder(part, target)
    (place.parent / FAMILY_RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"pretrain: {total / 1e6:.1f} MB in {', '.join(str(place.parent / name) for name in recipe.shipped)}")
