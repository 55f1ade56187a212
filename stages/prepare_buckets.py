"""Stage 1: designs become bucketed RGBA layers.

    python -m stages.prepare_buckets [--output-root DIR] [--train-count N] [--val-count N]

Reads the source that ``prepare_buckets`` in params.yaml names; writes ``<output_root>/<split>/<bucket>/`` and
``<output_root>/metadata/manifest.json``, where every sample is listed: in a bucket, or dropped with its reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from layers.buckets import BucketLimits
from layers.dataset import MANIFEST, StackDataset
from layers.prepare import Preparation, assign_splits, prepare_sample
from layers.sources.composer import compose as composing
from layers.sources.composer.writer import write_dataset
from layers.sources.rendered import RenderedSource
from layers.tensors import to_image
from layers.view import grid
from stages.cli import REPORTS, stage_command, write_report, write_table
from training.params import Params, ParamsError, PrepareBuckets, parse_params
from training.tracking import digest, stage_run

COMPOSED = Path("data") / "composed"
COMPOSER = Path(composing.__file__).parent
SHEET_SAMPLES = 8


def _overridden(params: Params, arguments: argparse.Namespace) -> Params:
    flags = {
        "output_root": arguments.output_root,
        "train_count": arguments.train_count,
        "val_count": arguments.val_count,
    }
    raw = params.model_dump()
    raw["prepare_buckets"] |= {key: value for key, value in flags.items() if value is not None}
    return parse_params(raw, "command line")


def _composer_digest() -> str:
    """md5 of the composer's code and assets; not of the whole folder, where Python may keep bytecode."""
    files = sorted(path for path in COMPOSER.rglob("*") if path.suffix in {".py", ".webp"})
    listed = "\n".join(f"{path.relative_to(COMPOSER)}:{digest(path)}" for path in files)
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()


def _open_source(settings: PrepareBuckets) -> tuple[RenderedSource, list[str]]:
    """The reader and the ids to take from it; the embedded default is composed to disk first."""
    if settings.source == "rendered":
        source = RenderedSource(settings.rendered_root, settings.layout_root)
        return source, source.sample_ids()
    composer, count = settings.composer, settings.train_count + settings.val_count
    # The folder's name knows the composer's code and assets, so that designs of an older composer are never reused.
    root = COMPOSED / _composer_digest()[:12]
    stream = {"seed": composer.seed, "size": composer.size, "pool": composer.assets}
    write_dataset(root, count=count, jobs=settings.jobs, **stream)
    ids = [composing.sample_id(index, **stream) for index in range(count)]
    return RenderedSource(root / "rendered", root / "layouts"), ids


def _inputs(settings: PrepareBuckets) -> dict[str, str]:
    """What the run is tagged with: the composer's code and assets, or the names of a dataset's samples.

    Names only: hashing the pictures of 250,000 samples would take longer than preparing them. What was made of them
    is in the manifest, sample by sample.
    """
    if settings.source == "composer":
        return {"layers/sources/composer": _composer_digest()}
    source = RenderedSource(settings.rendered_root, settings.layout_root)
    names = "\n".join(source.sample_ids()).encode()
    return {settings.rendered_root: hashlib.md5(names, usedforsecurity=False).hexdigest()}


def _validation_ids(settings: PrepareBuckets) -> list[str] | None:
    if settings.validation_list is None:
        return None
    path = Path(settings.validation_list)
    if not path.is_file():
        raise ParamsError(f"prepare_buckets.validation_list: {path} is no file; expected one sample id a line")
    return path.read_text(encoding="utf-8").split()


def _emptied(root: Path) -> Path:
    """Clear what an earlier run wrote, and only that; returns where the manifest goes.

    Raises:
        ParamsError: if the folder holds what is not ours.
    """
    manifest = root / MANIFEST
    if root.is_dir() and any(root.iterdir()) and not manifest.is_file():
        raise ParamsError(
            f"prepare_buckets.output_root: {root} is not empty and has no {MANIFEST}; expected a new folder or our own"
        )
    for split in ("train", "val"):
        shutil.rmtree(root / split, ignore_errors=True)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    # Written first, so that what a killed run leaves is known as ours.
    manifest.write_text(json.dumps({"format": 1, "samples": [], "dropped": []}), encoding="utf-8")
    return manifest


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Prepare the dataset and report what went where."""
    params = _overridden(params, arguments)
    settings = params.prepare_buckets
    root = Path(settings.output_root)
    with stage_run("prepare_buckets", params, inputs=_inputs(settings)) as mlflow_run:
        source, ids = _open_source(settings)
        splits = assign_splits(
            ids,
            seed=settings.seed,
            train_count=settings.train_count,
            val_count=settings.val_count,
            validation_ids=_validation_ids(settings),
        )
        preparation = Preparation(
            BucketLimits(
                min_side=settings.min_side,
                max_side=settings.max_side,
                max_pixels=settings.max_pixels,
                max_aspect=settings.max_aspect,
                upscale=settings.upscale,
            ),
            settings.group,
            settings.overlap_alpha,
            settings.max_layers,
        )
        manifest = _emptied(root)
        work = Parallel(n_jobs=settings.jobs, return_as="generator")(
            delayed(prepare_sample)(source, name, split, preparation, root) for name, split in splits.items()
        )
        records = list(tqdm(work, total=len(splits), desc="prepare_buckets", unit="sample", mininterval=1.0))
        samples = sorted((r for r in records if "bucket" in r), key=lambda r: (r["split"], r["id"]))
        dropped = sorted((r for r in records if "reason" in r), key=lambda r: r["id"])
        manifest.write_text(
            json.dumps(
                {"format": 1, "settings": settings.model_dump(), "samples": samples, "dropped": dropped}, indent=1
            ),
            encoding="utf-8",
        )
        if not any(r["split"] == "train" for r in samples):
            reasons = "; ".join(
                f"{count} x {why}" for why, count in Counter(r["reason"] for r in dropped).most_common(3)
            )
            raise ParamsError(f"prepare_buckets: no sample is left for training ({reasons or 'the source is empty'})")

        report = {
            "samples": dict(Counter(r["split"] for r in samples)),
            "layers": sum(len(r["layers"]) for r in samples),
            "dropped": dict(Counter(r["reason"] for r in dropped)),
            "buckets": dict(sorted(Counter(f"{r['bucket']}-l{len(r['layers'])}" for r in samples).items())),
            "mean_crop_share": sum(r["crop_share"] for r in samples) / len(samples),
            "mean_scale": sum(r["scale"] for r in samples) / len(samples),
        }
        mlflow_run.artifact(write_report("prepare_buckets", report))
        rows = [{"bucket": name, "samples": count} for name, count in report["buckets"].items()]
        mlflow_run.artifact(write_table("buckets", rows))
        mlflow_run.artifact(manifest, "metadata")
        mlflow_run.metrics(
            {f"samples_{split}": count for split, count in report["samples"].items()}
            | {"layers": report["layers"], "dropped": len(dropped), "mean_crop_share": report["mean_crop_share"]}
        )
        stacks = StackDataset(root, "train")
        items = [stacks[i] for i in range(min(SHEET_SAMPLES, len(stacks)))]
        sheet = grid([[to_image(item["composite"]), *to_image(item["layers"])] for item in items], scale=2)
        mlflow_run.picture("contact_sheet", sheet, 0)
    print(
        f"prepare_buckets: {len(samples)} samples in {len(report['buckets'])} buckets, {len(dropped)} dropped; "
        f"{manifest}, {REPORTS / 'prepare_buckets.json'}"
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-root", help="overrides prepare_buckets.output_root")
    parser.add_argument("--train-count", type=int, help="overrides prepare_buckets.train_count")
    parser.add_argument("--val-count", type=int, help="overrides prepare_buckets.val_count")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
