"""Kill stages at random moments, give the same command again, and compare every byte with an undisturbed run.

    python -m tests.kill_anywhere [--stage NAME ...] [--kills N] [--seed N] [--home DIR]

The pipeline is that of presets/smoke.yaml, a minute on a CPU. Each kill (SIGKILL) is one trial in a fresh copy of what
the stage starts from; its moment is drawn between the first file that the stage writes and its end. Compared is what
dvc.yaml lists for the stage. Exit code 1 if a byte differs or a second run fails.
"""

import argparse
import hashlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.support.imports import ROOT
from tests.support.workspace import environment, make_workspace, stage

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STEPS = {
    "train_vae": {"epochs": 2, "epoch_samples": 48},
    "train_decompose": {"epochs": 2, "epoch_samples": 48},
    "refine": {"epochs": 2, "epoch_samples": 24},
}


# What differs between two undisturbed runs too: clocks and memory of evaluate's figures, and the page drawn from them.
CLOCK = re.compile(rb'"(seconds_per_picture|peak_memory_mib)": [\d.]+|(?<=,)[\d.]+$', re.MULTILINE)
MEASURED = ("evaluate.json", "evaluate_samples.csv")
LEFT_OUT = "report.html"


class Trial(NamedTuple):
    """One kill: of which stage, after how many seconds of how many, and what came of it."""

    stage: str
    moment: float
    whole: float
    outcome: str


def outputs(name: str, home: Path) -> dict[str, str]:
    """Digest of every file that dvc.yaml lists for a stage, without what a clock decides."""
    block = PIPELINE[name]
    listed = [entry for kind in ("outs", "metrics", "plots") for entry in block.get(kind, ())]
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed]
    found = {}
    for path in paths:
        top = home / path.replace("${prepare_buckets.output_root}", "data/rgba_layers")
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file() and file.name != LEFT_OUT:
                data = CLOCK.sub(b"", file.read_bytes()) if file.name in MEASURED else file.read_bytes()
                found[str(file.relative_to(home))] = hashlib.sha256(data).hexdigest()
    return found


def start(name: str, home: Path) -> subprocess.Popen:
    """Give a stage's command; what it says goes to a file."""
    with (home / "said.txt").open("ab") as said:
        return subprocess.Popen(stage(name), cwd=home, env=environment(home), stdout=said, stderr=said)


def undisturbed(name: str, home: Path) -> tuple[float, float]:
    """Run a stage; gives the seconds until its first file, and until its end."""
    before, began = set(home.rglob("*")), time.time()
    if code := start(name, home).wait():
        raise SystemExit(f"{name}: the undisturbed run ended with {code}; {home / 'said.txt'} says why")
    ended = time.time()
    times = [path.stat().st_mtime for path in home.rglob("*") if path.is_file() and path not in before]
    return max(0.0, min(times, default=began) - began), ended - began


def trial(name: str, ready: Path, home: Path, moment: float, whole: float, expected: dict[str, str]) -> Trial:
    """Kill one run at a moment, give its command again, compare."""
    shutil.copytree(ready, home, symlinks=True)
    process = start(name, home)
    try:
        process.wait(moment)
        when = "ended before, "
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        when = ""
    if code := start(name, home).wait():
        return Trial(name, moment, whole, f"{when}FAILED with {code}: {home / 'said.txt'}")
    found = outputs(name, home)
    different = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    if different:
        return Trial(name, moment, whole, f"{when}DIFFERS: {', '.join(different[:3])} in {home}")
    shutil.rmtree(home)
    return Trial(name, moment, whole, f"{when}equal")


def trials_of(name: str, straight: Path, home: Path, kills: int, seed: int) -> list[Trial]:
    """Run a stage undisturbed in ``straight``, then kill it ``kills`` times in copies of what it started from."""
    ready = home / f"before_{name}"
    if kills:
        shutil.copytree(straight, ready, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "said.txt"))
    first, whole = undisturbed(name, straight)
    expected, draw, found = outputs(name, straight), random.Random(f"{seed}:{name}"), []
    for number in range(kills):
        found.append(trial(name, ready, home / f"{name}_{number}", draw.uniform(first, whole), whole, expected))
        print(f"| {name} | {found[-1].moment:.1f} of {whole:.1f} s | {found[-1].outcome} |", flush=True)
    return found


def main() -> int:
    """Parse arguments, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", action="append", choices=PIPELINE, help="several may be given; all by default")
    parser.add_argument("--kills", type=int, default=20, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--storage", choices=("files", "shards"), default="files", help="of prepare_buckets")
    parser.add_argument("--home", type=Path, help="an empty folder to work in; a temporary one by default")
    arguments = parser.parse_args()
    home = (arguments.home or Path(tempfile.mkdtemp(prefix="kill_anywhere_"))).absolute()
    blocks = {name: {"optimisation": {**sizes, "checkpoint_every": 2}} for name, sizes in STEPS.items()}
    prepare = {"storage": arguments.storage, "shard_samples": 4, "train_count": 40}
    straight = make_workspace(home / "straight", prepare_buckets=prepare, **blocks)
    wanted, found = arguments.stage or list(PIPELINE), []
    print("| stage | killed after | then the same command |\n|---|---|---|")
    for name in PIPELINE:
        found += trials_of(name, straight, home, arguments.kills if name in wanted else 0, arguments.seed)
        if name == list(PIPELINE)[max(map(list(PIPELINE).index, wanted))]:
            break
    print("\n| stage | kills | equal | ended before the kill | other |\n|---|---|---|---|---|")
    for name in wanted:
        outcomes = [entry.outcome for entry in found if entry.stage == name]
        equal, late = sum("equal" in text for text in outcomes), sum("ended before" in text for text in outcomes)
        print(f"| {name} | {len(outcomes)} | {equal} | {late} | {len(outcomes) - equal} |")
    bad = [entry for entry in found if "equal" not in entry.outcome]
    if not bad:
        shutil.rmtree(home)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
