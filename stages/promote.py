"""Promote the better model: set an alias of the model registry to its version.

    python -m stages.promote --metric alpha_iou                  # the newest evaluated version against the champion
    python -m stages.promote --metric cost --version 3 --alias staging

A free alias is taken. Else the version must beat the alias's holder on the same images of the same data and split.
The 95 % bootstrap interval of the paired differences, image by image, must be above 0. Exit code 0: it holds the
alias; 1: it is not better; 2: the two cannot be compared. docs/registry.md shows how the alias is used.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

from config.params import Params
from stages.cli import stage_command
from tracking.sample_scores import paired_gain, read_scores
from tracking.versions import SCORES, Evaluation, Registry, RegistryError, Version


class NotBetter(Exception):
    """The version is not significantly better than the alias's holder; the message has the difference."""


def candidate(versions: Sequence[Version], number: int | None, name: str) -> Version:
    """Choose the version to promote.

    Args:
        versions: newest first.
        number: of the version; the newest evaluated one if ``None``.
        name: of the registered model, for messages.

    Raises:
        RegistryError: if there is none, or it is not evaluated.
    """
    if not versions:
        raise RegistryError(f"no version of {name} is registered; stages refine and evaluate register one")
    if number is None:
        for version in versions:
            if version.evaluations:
                return version
        raise RegistryError(f"none of the {len(versions)} versions of {name} is evaluated; stage evaluate does it")
    version = of_number(versions, number, name)
    if not version.evaluations:
        raise RegistryError(f"version {number} of {name} is not evaluated; stage evaluate does it")
    return version


def of_number(versions: Sequence[Version], number: int, name: str) -> Version:
    """Find a version by its number.

    Raises:
        RegistryError: if there is none.
    """
    for version in versions:
        if version.number == number:
            return version
    known = ", ".join(str(version.number) for version in reversed(versions))
    raise RegistryError(f"{name} has no version {number}; it has {known}")


def compare(registry: Registry, new: Version, old: Version, metric: str) -> str:
    """Describe how much better one version is than another, on the images of its latest evaluation.

    Args:
        registry: of both versions.
        new: version to promote.
        old: version that holds the alias.
        metric: a name of :data:`tracking.versions.SCORES`.

    Raises:
        NotBetter: if the interval of the paired differences does not lie above 0.
        RegistryError: if the two cannot be compared.
    """
    pairs = (
        (ours, theirs)
        for ours, theirs in itertools.product(new.evaluations, old.evaluations)
        if (ours.data_md5, ours.split) == (theirs.data_md5, theirs.split)
    )
    if (pair := next(pairs, None)) is None:
        newest = new.evaluations[0]
        raise RegistryError(
            f"version {old.number} is not evaluated on the data of version {new.number} (md5 {newest.data_md5}, split "
            f"{newest.split}); check its weights out and run stage evaluate"
        )
    ours, theirs = pair
    both = ((new, ours), (old, theirs))
    here, there = (_score(version, evaluation, metric) for version, evaluation in both)
    samples = (read_scores(registry, version, evaluation.runs[metric], metric) for version, evaluation in both)
    gain = paired_gain(*samples, SCORES[metric].higher)
    figures = f"{metric} {here:.4f} against {there:.4f} of version {old.number}: {gain}"
    if not gain.is_sure:
        raise NotBetter(f"version {new.number} is not better: {figures}, not above 0")
    return figures


def _score(version: Version, evaluation: Evaluation, metric: str) -> float:
    if metric not in evaluation.scores:
        raise RegistryError(f"version {version.number} has no {metric}; it has {', '.join(sorted(evaluation.scores))}")
    return evaluation.scores[metric]


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Choose and compare versions, set the alias, print the reason."""
    registry = Registry(params)
    versions, alias, metric = registry.versions(), arguments.alias, arguments.metric
    new = candidate(versions, arguments.version, registry.name)
    holder = registry.holder(alias)
    if holder == new.number:
        print(f"promote: version {holder} of {registry.name} is {alias} already")
        return
    if holder is None:
        why = f"the first; {metric} {_score(new, new.evaluations[0], metric):.4f}"
    else:
        why = compare(registry, new, of_number(versions, holder, registry.name), metric)
    registry.set_alias(alias, new.number)
    print(f"promote: version {new.number} of {registry.name} is {alias}: {why}")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", required=True, choices=tuple(SCORES), help="the metric to compare by")
    parser.add_argument("--version", type=int, help="default: the newest evaluated one")
    parser.add_argument("--alias", default="champion", help="default: champion")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        return stage_command(run, __doc__, argv, _add_arguments)
    except NotBetter as reason:
        print(f"promote: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
