"""Throughput of prepare_buckets against a plain Pillow loop over the same files, and by processes.

    python -m benchmarks.prepare_throughput [--samples 128] [--size 1080] [--side 640] [--rounds 3]

The loop opens each layer, resizes it to the bucket as straight RGBA and saves it with default compression, without
grouping or checks. It runs with and without the flat image that every sample needs. Each side has a process of its own
for all rounds; all sides run in every round, and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from joblib.externals.loky import get_reusable_executor
from PIL import Image

from layers.composer.writer import write_dataset
from layers.dataset.buckets import BucketLimits, place
from layers.imaging.codec import opened
from layers.preparation.dataset import prepare_dataset
from layers.preparation.sample import Preparation
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource


def pillow_loop(rendered: Path, limits: BucketLimits, out: Path, composite: bool) -> None:
    """Open, resize and save all layers with plain Pillow; with ``composite`` also the flat image."""
    for folder in sorted(rendered.iterdir()):
        flat = None
        for path in sorted(folder.glob("*.png")):
            with opened(path.read_bytes(), path.name) as image:
                height, width = place((image.height, image.width), limits).size
                small = image.convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)
            small.save(out / f"{folder.name}_{path.name}")
            if composite:
                flat = small if flat is None else Image.alpha_composite(flat, small)
        if composite:
            flat.save(out / f"{folder.name}_composite.png")


def theirs(root: Path, limits: BucketLimits, composite: bool) -> float:
    """Seconds of :func:`pillow_loop`."""
    out = root / f"theirs{composite}"
    out.mkdir()
    start = time.perf_counter()
    pillow_loop(root / "rendered", limits, out, composite)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def ours(root: Path, limits: BucketLimits, jobs: int) -> float:
    """Seconds of :func:`prepare_dataset`."""
    source = RenderedSource(Location(root / "rendered", "benchmark"), Location(root / "layouts", "benchmark"))
    splits = dict.fromkeys(source.sample_ids(), "train")
    out = root / f"ours{jobs}"
    start = time.perf_counter()
    prepare_dataset(source, splits, Preparation(limits), out, jobs=jobs)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def end_workers() -> None:
    """End the worker processes of this process."""
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def main() -> None:
    """Compose designs, time all sides in turn, print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--size", type=int, default=1080, help="long side of the designs, a multiple of 6")
    parser.add_argument("--side", type=int, default=640, help="longest side of a bucket")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="prepare_throughput_"))
    limits = BucketLimits(
        min_side=min(64, arguments.side), max_side=arguments.side, max_pixels=arguments.side**2, max_aspect=2.3
    )
    sides = {
        "pillow": (theirs, root, limits, False),
        "pillow_with_composite": (theirs, root, limits, True),
        "ours_1_process": (ours, root, limits, 1),
        "ours_2_processes": (ours, root, limits, 2),
    }
    spawn = multiprocessing.get_context("spawn")
    homes = {name: ProcessPoolExecutor(1, mp_context=spawn) for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    try:
        write_dataset(root, range(arguments.samples), seed=0, size=arguments.size, jobs=-1)
        # The first round, which starts processes and warms the file cache, is not counted: 250,000 samples pay it once.
        for number in range(arguments.rounds + 1):
            for name, call in sides.items():
                seconds = homes[name].submit(*call).result()
                if number:
                    times[name].append(seconds)
        layers = len(list((root / "rendered").glob("*/*.png")))
    finally:
        # Otherwise a side's process waits five minutes until its idle workers end by themselves.
        homes["ours_2_processes"].submit(end_workers).result()
        for home in homes.values():
            home.shutdown()
        shutil.rmtree(root, ignore_errors=True)

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 2)

    print(
        json.dumps(
            {
                "samples": arguments.samples,
                "layers": layers,
                "seconds": {name: [round(value, 2) for value in values] for name, values in times.items()},
                "samples_per_second_per_core": round(arguments.samples / statistics.median(times["ours_1_process"]), 2),
                "faster_than_pillow": ratio("pillow", "ours_1_process"),
                "faster_than_pillow_with_composite": ratio("pillow_with_composite", "ours_1_process"),
                "two_processes_over_one": ratio("ours_1_process", "ours_2_processes"),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
