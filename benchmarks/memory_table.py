"""Memory tables of docs/scale.md: peaks of a preset's stages on one GPU by size, and which card fits what.

    python -m benchmarks.memory_table --params presets/qwen.yaml

Estimates; nothing is allocated. One minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from config.params import Params, load_params
from stages.plan import planned_stages
from training.memory.networks import networks_of
from training.memory.plan import BUDGETS, GIB, Recommendation, recommend
from training.memory.work import Key

KEYS = [(side, side, layers) for side in (640, 1024) for layers in (4, 10, 20)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def words(advice: Recommendation) -> str:
    """Table cell with the options to switch on."""
    if advice.label is not None:
        return advice.label.replace("gradient_checkpointing", "checkpointing") + (", as set" if advice.as_set else "")
    fewer = f"up to {advice.layers} layers with {advice.last.split(',')[0]}" if advice.layers else "no"
    return fewer + (f"; FSDP2 over {advice.enough_gpus}" if advice.enough_gpus else "")


def lines(params: Params, keys: Sequence[Key] = KEYS) -> Iterator[str]:
    """Lines of the tables: peaks by stage and size, then the options that each GPU budget needs."""
    networks = networks_of(params)
    planned = {key: planned_stages(params, networks, key) for key in keys}
    names = [stage.name for stage in planned[keys[0]]]
    titles = [f"{key[0]} px, {key[2]}" for key in keys]
    by_name = {name: [stages[place] for stages in planned.values()] for place, name in enumerate(names)}
    peaks = [
        [f"{stage.as_set.peak(key[2]) / GIB:.1f}" for stage, key in zip(by_name[n], keys, strict=True)] for n in names
    ]
    yield from table(["GiB", *titles], [[f"`{name}`", *row] for name, row in zip(names, peaks, strict=True)])
    for name in names:
        yield ""
        budgets = [f"{gpus} x {gib} GB" for gpus, gib in BUDGETS]
        rows = []
        for title, key, stage in zip(titles, keys, by_name[name], strict=True):
            rows.append([title, *(words(recommend(stage, key[2], *budget)) for budget in BUDGETS)])
        yield from table([f"`{name}`", *budgets], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("presets/qwen.yaml"))
    for line in lines(load_params(parser.parse_args().params)):
        print(line, flush=True)
