"""Sets of stage evaluate: the split of the pipeline, and further datasets with a report each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from config.base import MOST_LAYERS
from config.errors import ParamsError, UserError
from config.evaluate import EvaluationData
from config.params import Params, parse_params
from config.paths import find_input, in_workspace
from evaluation.designs import BucketedSplit, EvaluationSet, SourceDesigns
from inference.decomposer import Decomposer
from layers.sources.catalogue import open_source

# LayerD's evaluation as its code states it; the paper names neither size nor revision.
PUBLISHED = {"crello": {"split": "test", "short_side": 512, "layerd_filters": True}}


class NamedSet(NamedTuple):
    """A set and the name of its report, "" for the pipeline's own split."""

    name: str
    images: EvaluationSet

    @property
    def suffix(self) -> str:
        """Suffix of its report's file names."""
        return f"_{self.name}" if self.name else ""


def with_source(params: Params, arguments: argparse.Namespace) -> Params:
    """Parameters with ``--source`` and its options applied.

    Raises:
        ParamsError: if one of them is invalid.
    """
    if arguments.source is None:
        return params
    raw = params.model_dump()
    block = raw["prepare_buckets"]
    block["source"] = arguments.source
    if arguments.location is None:
        raise ParamsError(f"--source {arguments.source}: no --location; expected the folder or URL it lies at")
    block["location"] = block["rendered_root"] = str(arguments.location)
    block["layout_root"] = None
    block.get(arguments.source, {}).update(PUBLISHED.get(arguments.source, {}))
    if arguments.short_side is not None:
        block["crello"]["short_side"] = arguments.short_side
    return parse_params(raw, "command line")


def sets_of(params: Params, arguments: argparse.Namespace, model: Decomposer) -> list[NamedSet]:
    """Open the sets to score, all before the first one is scored.

    They are the split and the datasets of ``evaluate.datasets``, or only those of ``--source`` or ``--dataset``. A
    dataset of the parameters whose folder is absent is left out with a message.

    Raises:
        UserError: if one cannot be opened.
    """
    settings, block, limits = params.evaluate, params.prepare_buckets, model.trained_for.limits
    if arguments.count is not None and arguments.count < 1:
        raise ParamsError(f"--count: got {arguments.count}, expected a number of designs above 0")
    if arguments.source is not None:
        options = getattr(block, arguments.source, None)
        described = f"{arguments.source}: {arguments.location}" + (f", {options.model_dump()}" if options else "")
        designs = SourceDesigns(open_source(block), limits, MOST_LAYERS, count=arguments.count, description=described)
        return [NamedSet(arguments.source, designs)]
    asked = {name: folder_data(Path(folder)) for name, folder in arguments.dataset}
    found = []
    if not asked:
        split = BucketedSplit(in_workspace(block.output_root), settings.split, limits, MOST_LAYERS)
        found.append(NamedSet("", split))
    for name, data in (asked or settings.datasets).items():
        place = data.location
        if "://" not in place and not find_input(place).is_dir():
            print(f"evaluate: evaluate.datasets.{name}: no folder at {place}; left out", flush=True)
            continue
        found.append(designs_of(params, name, data, arguments.count, model))
    return found


def check_datasets(arguments: argparse.Namespace) -> None:
    """Refuse wrong flags and missing folders of ``--dataset`` before models are loaded.

    Raises:
        UserError: if something is wrong.
    """
    check_flags(arguments)
    for name, folder in arguments.dataset:
        place = folder_data(Path(folder)).location
        if not find_input(place).is_dir():
            raise UserError(
                f"--dataset {name}: no folder at {place}; expected rendered/ and layouts/ beside each other"
            )


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that would be ignored silently, with a :class:`ParamsError`."""
    names = [name for name, _ in arguments.dataset]
    if len(set(names)) < len(names):
        raise ParamsError(f"--dataset: got one name twice in {', '.join(names)}, expected a name for each")
    if names and arguments.source is not None:
        raise ParamsError("--dataset and --source: expected one of them")
    if arguments.source is None and (arguments.location is not None or arguments.short_side is not None):
        raise ParamsError("--location, --short-side: got no --source, to which they belong")
    if arguments.count is not None and arguments.source is None and not names:
        raise ParamsError("--count: got neither --source nor --dataset, whose designs it counts")


def designs_of(params: Params, name: str, data: EvaluationData, count: int | None, model: Decomposer) -> NamedSet:
    """Designs of a dataset of ``evaluate.datasets``."""
    where = {"source": data.source, "location": data.location, "rendered_root": data.location}
    block = params.prepare_buckets.model_copy(update=where | {"layout_root": data.layout_root})
    most, count = data.max_layers or MOST_LAYERS, data.count if count is None else count
    size = "their own size" if data.long_side is None else f"{data.long_side} px"
    described = f"{name}: {data.source} at {data.location}, designs of {size}"
    described += f", the first {count}" if count else ""
    limits = model.trained_for.limits
    designs = SourceDesigns(
        open_source(block), limits, most, count=count, description=described, long_side=data.long_side
    )
    return NamedSet(name, designs)


def folder_data(folder: Path) -> EvaluationData:
    """Parameters of a ``--dataset`` in the project's own format: a folder with ``rendered/`` and ``layouts/``.

    Designs are scored at 256 px: at full size the metric takes minutes a design, and a 96 px network sees no more.
    """
    layouts = folder / "layouts"
    there = str(layouts) if find_input(str(layouts)).is_dir() else None
    return EvaluationData(source="rendered", location=str(folder / "rendered"), layout_root=there, long_side=256)
