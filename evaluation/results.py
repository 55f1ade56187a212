"""Results table of the README, generated from the committed reports.

    python -m evaluation.results            # print it
    python -m evaluation.results --write    # and write it into README.md
    python -m evaluation.results --check    # exit code 1 if README.md holds another one

Columns are the test split, its parts, and the parts of every further dataset that has a report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config.errors import UserError
from metrics.intervals import FEWEST

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "metrics" / "reports"
BEGIN, END = "<!-- results: python -m evaluation.results --write -->", "<!-- end of results -->"
ROWS = {
    "model": "the model",
    "model_told_captions": "the model, told each caption",
    "model_as_predicted": "the model, layers as predicted",
    "pretrained": "the weights that ship",
    "composite_only": "the input as the only layer",
    "true_layers_through_vae": "true layers through the VAE",
}
# Settings that must be equal in all reports of the table.
SAME = ("model", "weights_md5", "text", "steps", "sampling_shift", "tries", "seed", "guidance", "restored", "precision")
FIGURES = {"alpha_iou": "alpha soft IoU, higher is better", "cost": "cost, lower is better"}


class ResultsError(UserError):
    """A report, or the place in the README, is missing; the message says which."""


class Column(NamedTuple):
    """Column of the table, a set or a part of one; ``rows`` has mean, low and high of each row and metric."""

    heading: str
    count: int
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]]


def columns_of(report: Mapping[str, Any], name: str) -> Iterator[Column]:
    """Columns of a report: the whole set and its parts; for a further dataset, whose parts differ, only these.

    Args:
        report: content of an ``evaluate*.json``.
        name: heading of the whole, for the pipeline's own split; "" for a further dataset.
    """
    if name or not report.get("strata"):
        rows = {
            row: {key: (levels[0][key], *report["intervals"][row][key]) for key in FIGURES}
            for row, levels in report["decomposition"].items()
        }
        yield Column(name or "all", report["setting"]["samples"], rows)
    for stratum, part in report.get("strata", {}).items():
        rows = {
            row: {key: (figures[key]["mean"], figures[key]["low"], figures[key]["high"]) for key in FIGURES}
            for row, figures in part["rows"].items()
        }
        # Names from a dataset must not break the line or the cell.
        heading = " ".join(stratum.replace("_", " ").split()).replace("|", "\\|")
        yield Column(heading, part["samples"], rows)


def read_columns(folder: Path) -> list[Column]:
    """Read the columns of all reports in a folder, the pipeline's own first.

    A report of another model or with other settings is left out, with a message on standard error.

    Raises:
        ResultsError: if the pipeline's own report is missing.
    """
    own = folder / "evaluate.json"
    if not own.is_file():
        raise ResultsError(f"{own}: not there; expected the report of stage evaluate (dvc repro evaluate)")
    report = read_report(own)
    found = list(columns_of(report, f"{report['setting']['split']} split"))
    for path in sorted(folder.glob("evaluate_*.json")):
        other, name = read_report(path), path.stem.removeprefix("evaluate_")
        if said := _difference(other["setting"], report["setting"]):
            print(
                f"{path.name} is left out: {said} in {own.name}; for a column, score the dataset with the model of the "
                f"pipeline: python -m stages.evaluate --dataset {name}=DIR",
                file=sys.stderr,
            )
            continue
        found += [column._replace(heading=f"{name}: {column.heading}") for column in columns_of(other, "")]
    return found


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """First setting in which two reports differ, in words; empty if there is none."""
    pairs = {key: (theirs.get(key), ours.get(key)) for key in SAME}
    rows = [setting.get("rows", {}) for setting in (theirs, ours)]
    pairs |= {row: tuple(entry[row] for entry in rows) for row in ROWS if all(row in entry for entry in rows)}
    return next((f"{key} is {left!r}, {right!r}" for key, (left, right) in pairs.items() if left != right), "")


def read_report(path: Path) -> dict[str, Any]:
    """Read a report of stage evaluate.

    Raises:
        ResultsError: if it is no such report, or of an earlier format.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if {"split", "weights_md5"} <= report["setting"].keys() and {"decomposition", "intervals"} <= report.keys():
            return report
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ResultsError(f"{path}: no report of stage evaluate as it is now; run the stage again")


def table(columns: Sequence[Column], key: str) -> Iterator[str]:
    """Lines of one metric's table in Markdown."""
    yield f"| {FIGURES[key]} | " + " | ".join(f"{column.heading} ({column.count})" for column in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for row, words in ROWS.items():
        if any(row in column.rows for column in columns):
            shown = (_cell(column, column.rows.get(row, {}).get(key)) for column in columns)
            yield f"| {words} | " + " | ".join(shown) + " |"


def _cell(column: Column, figure: tuple[float, float, float] | None) -> str:
    """Cell with a mean and its interval, without the interval if designs are few; a dash if missing."""
    if figure is None:
        return "–"
    mean, low, high = figure
    return f"{mean:.3f}" if column.count < FEWEST else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def edits(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table of edits, on the pipeline's own split."""
    kinds = [kind for kind in report["edits"]["model"] if kind != "all"]
    yield "| PSNR after an edit, dB | " + " | ".join(kinds) + " |"
    yield "|---|" + "---|" * len(kinds)
    for row, words in ROWS.items():
        if row in report["edits"]:
            yield f"| {words} | " + " | ".join(f"{report['edits'][row][kind]['psnr']:.1f}" for kind in kinds) + " |"


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on the gain over the input alone and over the weights that ship, on the pipeline's own split."""
    count = report["setting"]["samples"]
    better = round(report["better_than_nothing"] * count)
    split = report["setting"]["split"]
    yield f"On {better} of the {count} designs of the {split} split the model's cost is below that of the input alone."
    if "pretrained" in report["difference"]:
        parts = (
            f"{words} {entry['mean']:+.3f} ({entry['low']:+.3f} to {entry['high']:+.3f})"
            for key, words in (("cost", "cost"), ("alpha_iou", "alpha soft IoU"))
            for entry in [report["difference"]["pretrained"][key]]
        )
        yield f"Against the weights that ship, design by design: {', '.join(parts)}."


def lines(folder: Path = REPORTS) -> list[str]:
    """Generated part of the README, markers included.

    Raises:
        ResultsError: if a report is missing or incomplete.
    """
    found = [BEGIN]
    try:
        columns = read_columns(folder)
        report = read_report(folder / "evaluate.json")
        for key in FIGURES:
            found += ["", *table(columns, key)]
        return [*found, "", *edits(report), "", *sentences(report), "", END]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ResultsError(f"{folder}: a report lacks {error}; run stage evaluate again") from None


def replaced(text: str, block: Sequence[str]) -> str:
    """Replace the part of a text between the markers.

    Raises:
        ResultsError: if the markers are not there exactly once, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest:
        raise ResultsError(f"README.md: expected {BEGIN} and {END} once each, in that order")
    return before + "\n".join(block) + after


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    parser.add_argument("--check", action="store_true", help="exit code 1 if README.md holds another one")
    arguments = parser.parse_args(argv)
    readme = ROOT / "README.md"
    try:
        block = lines()
        print("\n".join(block))
        if not (arguments.write or arguments.check):
            return 0
        text = readme.read_text(encoding="utf-8")
        new = replaced(text, block)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.write:
        readme.write_text(new, encoding="utf-8")
        return 0
    if new == text:
        print(f"{readme.name} holds this table", file=sys.stderr)
        return 0
    print(f"{readme.name} holds another table: python -m evaluation.results --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
