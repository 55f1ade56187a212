"""Timing of plain files against tars for a bucketed dataset of many samples: writing, listing, reading, DVC, deleting.

    python -m benchmarks.storage_at_scale [--samples 100000] [--no-dvc]

Each sample is two layers and their composite at 64 x 64, taken from composed designs, and goes through the project's
own writers, manifest and loader. Both storages hold the same images and take every step in turn; DVC works in a
repository of its own. Times are seconds, file caches warm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from inference.process_memory import process_peak
from layers.composer.compose import compose
from layers.dataset.buckets import BucketLimits
from layers.dataset.loaders import StackDataset
from layers.dataset.manifest import Ledger
from layers.dataset.storage import FileWriter, Writer, open_shard
from layers.preparation.sample import Fitted, Preparation, fit_to_bucket

SIDE, POOL, SHARD, READS = 64, 200, 256, 5000


def pool() -> list[Fitted]:
    """Compose designs at bucket size, of two layers each."""
    preparation = Preparation(BucketLimits(min_side=SIDE, max_side=SIDE, max_pixels=SIDE**2, max_aspect=2.3))
    fitted: list[Fitted] = []
    index = 0
    while len(fitted) < POOL:
        made = fit_to_bucket(compose(index, seed=0, size=96), preparation)
        index += 1
        if len(made.layers) == 2:
            fitted.append(made)
    return fitted


def _add(ledger: Ledger, writer: Writer, number: int, fitted: Fitted) -> None:
    record: dict[str, Any] = {
        "id": f"sample{number:09d}",
        "split": "train",
        "bucket": f"w{SIDE}-h{SIDE}",
        "height": SIDE,
        "width": SIDE,
        "caption": "",
        "layers": [{"kind": patch.kind, "description": patch.description} for patch in fitted.layers],
        "pixels": f"{number:032d}",
        "state": "",
    }
    images = [patch.on_canvas((SIDE, SIDE)) for patch in fitted.layers]
    places, composite = writer.write(record, images, fitted.composite)
    layers = [place | words for place, words in zip(places, record["layers"], strict=True)]
    ledger.add({**record, "layers": layers, "composite": composite})


def write(root: Path, samples: int, storage: str, designs: list[Fitted]) -> None:
    """Write a dataset as prepare_buckets does."""
    ledger = Ledger(root, storage)
    with tqdm(total=samples, desc=f"write {storage}", mininterval=5.0) as bar:
        for first in range(0, samples, SHARD):
            numbers = range(first, min(first + SHARD, samples))
            if storage == "files":
                writer = FileWriter(root)
                for number in numbers:
                    _add(ledger, writer, number, designs[number % POOL])
            else:
                with open_shard(root, "train", first // SHARD) as writer:
                    for number in numbers:
                        _add(ledger, writer, number, designs[number % POOL])
            bar.update(len(numbers))
    ledger.finish({"settings": {}, "counts": {}})


def read(root: Path) -> float:
    """Samples a second when read at random over the whole set, through the loader's dataset."""
    dataset = StackDataset(root, "train")
    numbers = random.Random(0).sample(range(len(dataset)), min(READS, len(dataset)))
    start = time.perf_counter()
    for number in numbers:
        dataset[number]
    return len(numbers) / (time.perf_counter() - start)


def sizes(root: Path) -> tuple[int, int]:
    """Number of files, and their bytes on disk."""
    files = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    return len(files), sum(path.stat().st_blocks for path in files) * 512


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 2)


def dvc(root: Path, *arguments: str) -> float:
    """Seconds of a DVC command in the folder above ``root``."""
    command = [str(Path(sys.executable).parent / "dvc"), *arguments]
    return timed(lambda: subprocess.run(command, cwd=root.parent, check=True, capture_output=True))


def measure(folder: Path, storage: str, samples: int, designs: list[Fitted], with_dvc: bool) -> dict[str, Any]:
    """Measure one storage."""
    root = folder / storage
    row: dict[str, Any] = {"write": timed(lambda: write(root, samples, storage, designs))}
    files, taken = sizes(root)
    row |= {"files": files, "megabytes_on_disk": round(taken / 1e6)}
    row["list"] = timed(lambda: sizes(root))
    row["open_dataset"] = timed(lambda: StackDataset(root, "train"))
    row["random_reads_per_second"] = round(read(root))
    if with_dvc:
        row["dvc_add"] = dvc(root, "add", storage)
        row["dvc_status"] = dvc(root, "status", f"{storage}.dvc")
        shutil.rmtree(root)
        row["dvc_checkout"] = dvc(root, "checkout", f"{storage}.dvc")
    row["delete"] = timed(lambda: shutil.rmtree(root))
    return row


def main() -> None:
    """Measure both storages and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--no-dvc", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="storage_at_scale_"))
    try:
        if not arguments.no_dvc:
            dvc(folder / "any", "init", "--no-scm", "--quiet")
            dvc(folder / "any", "config", "core.analytics", "false")
        designs = pool()
        rows = {
            storage: measure(folder, storage, arguments.samples, designs, not arguments.no_dvc)
            for storage in ("files", "shards")
        }
        peak = process_peak()
        print(
            json.dumps({"samples": arguments.samples, **rows, "peak_memory_megabytes": round(peak / 2**20)}, indent=2)
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
