"""Stage 5: decompose images of the test split and score the layers by the Crello-style protocol.

    python -m stages.evaluate                                            # the bucketed test split
    python -m stages.evaluate --dataset real=DIR                         # other designs, in a report of their own
    python -m stages.evaluate --source crello --location DIR             # the published setting on Crello
    python -m stages.evaluate --model FOLDER|owner/name --baseline NAME=MODEL --other layerd=DIR

Writes ``metrics/reports/evaluate.json``, ``evaluate_samples.csv``, ``decomposition.csv``, ``panels/`` and the page
``report.html``; for another dataset or source ``evaluate_<name>.json`` and so on. The requested number of layers is
the true one. The input as the only layer is the composite baseline, the true layers through the VAE are the upper
bound. Further rows are the model before alpha and colour refinement, the model with captions, and other models.
docs/evaluation.md explains every row and metric.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from config.errors import UserError
from config.evaluate import MODEL, NOTHING, ROW_NAME, Evaluate
from config.params import Params, parse_params
from config.paths import REPORTS, find_input, in_workspace
from evaluation.page import Panel, write_page
from evaluation.panels import panels_of
from evaluation.samples import evaluated
from evaluation.sets import NamedSet, check_datasets, sets_of, with_source
from evaluation.settings import of_baselines, setting_of
from evaluation.summary import CURVES, curve_rows, sample_rows, summarise
from inference.decomposer import Decomposer, GuidanceError
from inference.process_memory import process_peak
from layers.dataset.digest import digests
from layers.imaging.codec import write_png
from metrics.reconstruction.perceptual import Perceptual
from models.precision import weights_dtype
from stages.cli import place, stage_command
from stages.reports import write_report, write_table
from tracking.registry import register_evaluation
from tracking.run import Run, stage_run

ROWS = (("--other", "DIR", "a row of layers in a folder"), ("--baseline", "MODEL", "a row of another model"))


def named(flag: str, what: str) -> Callable[[str], tuple[str, Path | str]]:
    """Make the parser of a flag ``NAME=PLACE``, which adds a row to the report."""

    def parse(text: str) -> tuple[str, Path | str]:
        name, _, given = text.partition("=")
        if not (name and given):
            raise UserError(f"{flag}: got {text!r}, expected NAME={what}")
        return name, place(given)

    return parse


def dataset(text: str) -> tuple[str, Path | str]:
    """Parse the value of ``--dataset``."""
    name, folder = named("--dataset", "DIR")(text)
    if not re.fullmatch(ROW_NAME, name):
        raise UserError(f"--dataset: got the name {name!r}, expected lower-case letters, digits, _ and -")
    return name, folder


def with_arguments(params: Params, arguments: argparse.Namespace) -> Params:
    """Parameters with the flags of the command line applied.

    Raises:
        ParamsError: if one of them does not fit.
    """
    raw = params.model_dump()
    if arguments.model is not None:
        raw["evaluate"]["model"] = str(arguments.model)
        # A baseline that is the model itself shows nothing.
        baselines = raw["evaluate"]["baselines"]
        raw["evaluate"]["baselines"] = {name: how for name, how in baselines.items() if how != str(arguments.model)}
    for option in ("other", "baseline"):
        raw["evaluate"][f"{option}s"] |= {name: str(given) for name, given in getattr(arguments, option)}
    return with_source(parse_params(raw, "command line"), arguments)


def others_of(settings: Evaluate) -> dict[str, Path]:
    """Folders with layers of other methods, by the name of their row.

    Raises:
        FileNotFoundError: if one is missing.
    """
    others = {name: find_input(folder) for name, folder in settings.others.items()}
    for name, folder in others.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"evaluate.others.{name}: no folder at {folder}; expected <id>/*.png in it")
    return others


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB, of the GPU if there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return process_peak() / 2**20


def open_models(settings: Evaluate, device: torch.device) -> tuple[Decomposer, dict[str, Decomposer]]:
    """Load the model and its baselines, by name, each with its own precision and offloading.

    Raises:
        FileNotFoundError: if one is missing.
        GuidanceError: if guidance is requested of one without text; the message names it.
    """
    found = {}
    for name, how in {MODEL: settings, **of_baselines(settings)}.items():
        dtype = weights_dtype(how.precision, device)
        try:
            found[name] = Decomposer.from_pretrained(how.model, device, dtype, how.offload)
        except FileNotFoundError as error:
            key = "evaluate.model" if name == MODEL else f"evaluate.baselines.{name}"
            raise FileNotFoundError(f"{key}: got {how.model!r}: {error}") from None
        # With "both", baselines get neither captions nor guidance.
        if name == MODEL or settings.captions == "told":
            try:
                found[name].check_guidance(how.guidance)
            except GuidanceError as error:
                where = "evaluate" if name == MODEL else f"evaluate.baselines.{name}"
                raise GuidanceError(f"{where}.{error}") from None
    return found.pop(MODEL), found


def write_panels(folder: Path, panels: Sequence[Panel]) -> None:
    """Write the panels as PNG, numbered from the best to the worst."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, panel in enumerate(panels, 1):
        write_png(folder / f"{number:02d}_{panel.title.split(':')[0].replace(' ', '_')}.png", panel.image)


class Models(NamedTuple):
    """Models to compare: the model, baselines by name, folders of other layers; and the LPIPS network."""

    model: Decomposer
    baselines: Mapping[str, Decomposer]
    others: Mapping[str, Path]
    distance: Perceptual


def score(one: NamedSet, models: Models, settings: Evaluate, run: Run, md5: Mapping[str, str]) -> dict[str, Any]:
    """Decompose a set, score it, write and log its report; returns the report.

    Raises:
        FileNotFoundError: if there is no image in it.
    """
    model, baselines, images, suffix = models.model, models.baselines, one.images, one.suffix
    measured = []
    with tqdm(total=len(images), desc=f"evaluate{suffix}", unit="img", mininterval=1.0) as bar:
        batches = images.batches(settings.batch_size)
        where = settings.predictions and str(Path(settings.predictions) / one.name)
        chosen = settings.model_copy(update={"predictions": where})
        for sample in evaluated(
            model, batches, others=models.others, distance=models.distance, settings=chosen, baselines=baselines
        ):
            measured.append(sample)
            bar.update()
    if not measured:
        raise FileNotFoundError(f"{images.description}: no image to evaluate; skipped: {images.skipped}")
    setting = setting_of(one, measured, model, settings=settings, baselines=baselines, md5=md5)
    report = summarise(measured, setting, settings.max_merges) | {"peak_memory_mib": peak_memory(model.device)}
    curves, rows = curve_rows(report), sample_rows(measured)
    panels = panels_of(model, images, measured, settings, baselines)
    write_panels(REPORTS / f"panels{suffix}", panels)
    run.report(write_report(f"evaluate{suffix}", report))
    run.artifact(write_table(f"decomposition{suffix}", curves))
    run.artifact(write_table(f"evaluate_samples{suffix}", rows))
    run.artifact(write_page(REPORTS / f"report{suffix}.html", report, curves, rows, panels))
    run.artifact(REPORTS / f"panels{suffix}", f"panels{suffix}")
    for level in report["decomposition"][MODEL]:
        run.metrics({f"merges{suffix}/{key}": level[key] for key in CURVES}, int(level["merges"]))
    best, nothing = report["decomposition"][MODEL][0], report["decomposition"][NOTHING][0]
    print(
        f"evaluate: {one.name or settings.split}: {len(measured)} images"
        + (f" ({len(images.skipped)} skipped, the report says why)" if images.skipped else "")
        + f", 0 merges: RGB L1 {best['rgb_l1']:.4f}, "
        f"alpha soft IoU {best['alpha_iou']:.4f}, cost {best['cost']:.4f} (composite alone {nothing['cost']:.4f}); "
        f"{REPORTS / f'report{suffix}.html'}"
    )
    return report


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Decompose and score all sets, and write their reports."""
    params = with_arguments(params, arguments)
    if arguments.plan:
        # Imported by name, because dvc.yaml lists what is imported and a plan changes no result.
        importlib.import_module("stages.plan").print_plan(params)
        return
    settings = params.evaluate
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    others = others_of(settings)
    check_datasets(arguments)
    model, baselines = open_models(settings, device)
    sets = sets_of(params, arguments, model)
    own = arguments.source is None and not arguments.dataset
    read = [
        settings.model,
        *(how.model for how in of_baselines(settings).values()),
        *([str(in_workspace(params.prepare_buckets.output_root))] if own else []),
    ]
    inputs = digests([path for path in read if find_input(path).exists()])
    models = Models(model, baselines, others, Perceptual().to(device))
    with stage_run("evaluate", params, inputs=inputs) as stage:
        for one in sets:
            # Folders of other layers belong to the split, or to the one set that is requested.
            chosen = models._replace(others={}) if one.name and own else models
            report = score(one, chosen, settings, stage, inputs)
            if not one.name:
                register_evaluation(stage, params, report, inputs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that override params.yaml."""
    parser.add_argument("--model", type=place, help="folder or owner/name instead of evaluate.model")
    for flag, what, text in ROWS:
        parser.add_argument(
            flag, type=named(flag, what), action="append", default=[], metavar=f"NAME={what}", help=text
        )
    parser.add_argument(
        "--dataset",
        type=dataset,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="score only the designs of rendered/ and layouts/ in DIR, in a report of their own",
    )
    parser.add_argument("--source", help="designs of a source of prepare_buckets at their own size, such as crello")
    parser.add_argument("--location", type=place, help="folder or URL of the source")
    parser.add_argument("--count", type=int, help="largest number of designs")
    parser.add_argument("--short-side", type=int, help="pixels that Crello is rendered at (default: 512)")
    parser.add_argument("--plan", action="store_true", help="print estimated memory of every stage, and do nothing")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_command(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
