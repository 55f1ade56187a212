"""Stage 1: turn layered designs into bucketed RGBA layers.

    python -m stages.prepare_buckets [--output-root DIR] [--train-count N] [--val-count N]

Reads the source that ``prepare_buckets`` in params.yaml names; writes the layers below ``<output_root>``. There
``metadata/manifest.json`` lists every sample, with its bucket or the reason why it was dropped. When run again, only
missing samples are prepared.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from config.errors import ParamsError
from config.params import Params, PrepareBuckets, parse_params
from config.paths import REPORTS, find_input, in_workspace
from layers.composer import compose as composing
from layers.composer.writer import write_dataset
from layers.dataset.digest import digest
from layers.dataset.manifest import MANIFEST
from layers.dataset.splits import assign_splits, until_filled
from layers.preparation.cleaning import Cleaning
from layers.preparation.dataset import prepare_dataset
from layers.preparation.report import bucket_rows, contact_sheet, counts_of, report
from layers.preparation.sample import Preparation
from layers.sources.base import Source
from layers.sources.catalogue import bucket_limits, open_source
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource
from stages.cli import stage_command
from stages.reports import write_report, write_table
from tracking.run import stage_run

COMPOSED = Path("data") / "composed"
COMPOSER = Path(composing.__file__).parent
LISTS = {"val": "validation_list", "test": "test_list"}


def _overridden(params: Params, arguments: argparse.Namespace) -> Params:
    flags = {
        "output_root": arguments.output_root and str(arguments.output_root),
        "train_count": arguments.train_count,
        "val_count": arguments.val_count,
        "test_count": arguments.test_count,
    }
    raw = params.model_dump()
    raw["prepare_buckets"] |= {key: value for key, value in flags.items() if value is not None}
    return parse_params(raw, "command line")


def _composer_digest() -> str:
    """Return the md5 of the composer's code and assets, without Python's bytecode in the same folder."""
    files = sorted(path for path in COMPOSER.rglob("*") if path.suffix in {".py", ".webp"})
    listed = "\n".join(f"{path.relative_to(COMPOSER)}:{digest(path)}" for path in files)
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()


def _compose(settings: PrepareBuckets) -> tuple[Source, list[tuple[str, str]], list[str]]:
    """Compose the designs of the splits; returns their reader, (id, split key) pairs and ids of the test split.

    Test designs have a seed of their own; every second one shows assets that nothing else uses.
    """
    composer = settings.composer
    # The folder is named by the composer's code and assets, so designs of an older composer are never reused.
    root = COMPOSED / _composer_digest()[:12]
    stream = {"seed": composer.seed, "size": composer.size, "pool": composer.assets}
    numbers: dict[str, int] = {}

    def names() -> Iterable[tuple[str, str]]:
        for index in itertools.count():
            name = composing.sample_id(index, **stream)
            numbers[name] = index
            yield name, name

    taken = until_filled(
        iter(names()),
        seed=settings.seed,
        val_share=settings.val_share,
        train_count=settings.train_count,
        val_count=settings.val_count,
    )
    how = {"jobs": settings.jobs, "cluster": settings.cluster}
    write_dataset(root, [numbers[name] for name, _ in taken], **how, **stream)
    tests: list[str] = []
    for first, pool in enumerate((composer.assets, "test")):
        stream = {"seed": composer.test_seed, "size": composer.size, "pool": pool}
        indices = range(first, settings.test_count, 2)
        write_dataset(root, indices, **how, **stream)
        tests += [composing.sample_id(index, **stream) for index in indices]
    reader = RenderedSource(
        Location(root / "rendered", "prepare_buckets.composer"), Location(root / "layouts", "prepare_buckets.composer")
    )
    return reader, [*taken, *((name, name) for name in tests)], tests


def _samples(settings: PrepareBuckets) -> tuple[Source, list[tuple[str, str]], dict[str, list[str]]]:
    """Return the reader, (id, split key) pairs, and ids that are assigned to a split by name."""
    named = {split: _listed(key, settings) for split, key in LISTS.items()}
    named = {split: ids for split, ids in named.items() if ids is not None}
    if settings.source == "composer":
        source, samples, tests = _compose(settings)
        return source, samples, named | {"test": tests}
    source = open_source(settings)
    return source, [(name, source.split_key(name)) for name in source.sample_ids()], named


def _inputs(settings: PrepareBuckets, samples: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Inputs that tag the run: the composer's code and assets, or the names of a dataset's samples.

    Only names are hashed: hashing the images of 250,000 samples would take longer than preparing them. The manifest
    lists the result for each sample.
    """
    if settings.source == "composer":
        return {"layers/composer": _composer_digest()}
    names = "\n".join(name for name, _ in samples).encode(errors="surrogatepass")
    where = settings.rendered_root if settings.source == "rendered" else settings.location
    return {where: hashlib.md5(names, usedforsecurity=False).hexdigest()}


def _listed(key: str, settings: PrepareBuckets) -> list[str] | None:
    given = getattr(settings, key)
    if given is None:
        return None
    path = find_input(given)
    if not path.is_file():
        raise ParamsError(f"prepare_buckets.{key}: {given} is no file; expected one sample id a line")
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _preparation(settings: PrepareBuckets) -> Preparation:
    return Preparation(
        limits=bucket_limits(settings),
        cleaning=Cleaning(
            settings.drop_empty, settings.drop_hidden, settings.drop_unchanging, min_change=settings.min_change
        ),
        group=settings.group,
        overlap_alpha=settings.overlap_alpha,
        max_layers=settings.max_layers,
        preview_tolerance=settings.preview_tolerance,
        drop_mismatched=settings.drop_mismatched,
    )


def _bound(split: str, settings: PrepareBuckets) -> str:
    """Name and value of the parameter that limits the number of samples of a split."""
    if split == "train":
        return "the source"
    named = LISTS[split]
    if getattr(settings, named) is not None:
        return f"{named} {getattr(settings, named)}"
    return f"{split}_share {getattr(settings, f'{split}_share')}"


def _check_held_out(params: Params, found: set[str], samples: int) -> None:
    """Refuse an empty split on which a later stage would fail, with a :class:`ParamsError`."""
    settings = params.prepare_buckets
    asks = {"val": "training", "test": "evaluate.split"}
    # A share of 0 means that no validation is wanted, as when data is only prepared.
    wanted = settings.val_count != 0 and (settings.val_share > 0.0 or settings.validation_list is not None)
    needed = {"val": wanted, "test": params.evaluate.split == "test"}
    for split, stage in asks.items():
        if needed[split] and split not in found:
            other = ", or set evaluate.split val" if split == "test" else ""
            raise ParamsError(
                f"prepare_buckets: of {samples} samples none is for {split}, which {stage} asks for: got "
                f"{_bound(split, settings)} and {split}_count {getattr(settings, f'{split}_count')}; raise "
                f"{split}_share, or name some in {LISTS[split]}{other}"
            )


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Prepare the dataset and report its splits and buckets."""
    params = _overridden(params, arguments)
    settings = params.prepare_buckets
    root = in_workspace(settings.output_root)
    source, samples, named = _samples(settings)
    shares = {"val_share": settings.val_share, "test_share": settings.test_share}
    try:
        splits = assign_splits(samples, seed=settings.seed, **shares, counts=counts_of(settings), named=named)
    except ValueError as error:
        raise ParamsError(f"prepare_buckets.validation_list, test_list: {error}") from None
    _check_held_out(params, set(splits.values()), len(samples))
    with stage_run("prepare_buckets", params, inputs=_inputs(settings, samples)) as mlflow_run:
        with tqdm(total=len(splits), desc="prepare_buckets", unit="sample", mininterval=1.0) as bar:
            summary = prepare_dataset(
                source,
                # In the source's order, in which rows of a table are neighbours.
                {name: splits[name] for name, _ in samples if name in splits},
                _preparation(settings),
                root,
                shard_samples=settings.shard_samples if settings.storage == "shards" else None,
                jobs=settings.jobs,
                cluster=settings.cluster,
                # Without parameters that change no result, so that equal datasets have equal manifests.
                # Whether images are downloaded is in the samples' signatures.
                settings=settings.model_dump(
                    exclude={"jobs": True, "cluster": True, "follow_links": True, "lica": {"download"}}
                ),
                progress=bar.update,
            )
        if not summary.samples["train"]:
            reasons = "; ".join(f"{count} x {why}" for why, count in summary.reasons.most_common(3))
            raise ParamsError(f"prepare_buckets: no sample is left for training ({reasons or 'the source is empty'})")
        rows = bucket_rows(summary)
        content = report(summary, rows, settings)
        mlflow_run.report(write_report("prepare_buckets", content))
        mlflow_run.artifact(write_table("buckets", rows))
        mlflow_run.artifact(root / MANIFEST, "metadata")
        mlflow_run.image("contact_sheet", contact_sheet(root), 0)
    for split, asked in content["asked_for"].items():
        if summary.samples[split] < asked:
            print(
                f"prepare_buckets: samples for {split}: {summary.samples[split]}, {asked} were asked for; "
                f"{_bound(split, settings)} and what was dropped leave no more"
            )
    if summary.shared:
        print(
            f"prepare_buckets: {summary.shared} designs are in more than one split, pixel by pixel the same under "
            "different ids; what is reported of them was trained on"
        )
    print(
        f"prepare_buckets: {sum(summary.samples.values())} samples in {len(rows)} buckets, {summary.dropped} dropped, "
        f"{summary.reused} were there; {root / MANIFEST}, {REPORTS / 'prepare_buckets.json'}"
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-root", type=Path, help="overrides prepare_buckets.output_root")
    parser.add_argument("--train-count", type=int, help="overrides prepare_buckets.train_count")
    parser.add_argument("--val-count", type=int, help="overrides prepare_buckets.val_count")
    parser.add_argument("--test-count", type=int, help="overrides prepare_buckets.test_count")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
