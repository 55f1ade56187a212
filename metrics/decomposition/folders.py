"""Decomposition scores of folders: RGB L1 and alpha soft IoU of predicted stacks against true ones, 0 to 5 merges.

Qwen-Image-Layered (sec. 4.3.1) uses LayerD's protocol; this module follows LayerD's code (commit 6b95bc59). Group
layers that do not overlap, align by order-aware DTW, merge neighbours greedily on either side, average over the path.
Deviations are options, off by default and named in the report. Numbers equal LayerD's to rounding.

    python -m metrics.decomposition --pred DIR --gt DIR --out FILE

DIR holds one folder per sample with its layers as PNG, bottom to top in the order of their names.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from joblib import Parallel, delayed
from tqdm import tqdm

from config.paths import check_place, visible, visible_files
from layers.imaging.codec import ImageError, opened
from metrics.decomposition.alignment import MIN_LAYERS
from metrics.decomposition.pairs import EPSILON
from metrics.decomposition.scores import MAX_MERGES, MergeLevel, aggregate, level_entry, score_sample

MIN_FILES = 2  # the reference's command line skips samples with fewer layers on either side


def _by_number(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", path.stem)]


def read_stack(folder: Path) -> list[np.ndarray]:
    """Read ``*.png`` of a folder as ``(H, W, 4)`` uint8 with straight alpha.

    Files are sorted by name from bottom to top, numbers in names by their value: ``layer_2`` is below ``layer_10``.
    The reference sorts by characters, which is the same where numbers have equally many digits.

    Raises:
        ValueError: if a file cannot be read as an image; names the file.
    """
    layers = []
    for path in sorted(visible_files(folder, {".png"}, deep=False), key=_by_number):
        try:
            with opened(path.read_bytes(), path.name) as image:
                layers.append(np.asarray(image.convert("RGBA")))
        except (OSError, ImageError) as error:
            raise ValueError(f"cannot read {folder.name}/{path.name}: {error}") from error
    return layers


def evaluate_folders(
    pred_root: Path,
    gt_root: Path,
    max_merges: int = MAX_MERGES,
    *,
    jobs: int = 1,
    missing_as_worst: bool = False,
    soft_alpha_weight: bool = False,
    merge_gt: bool = True,
    alpha_threshold: int = 0,
) -> dict:
    """Score all samples of a folder (LayerD protocol).

    Args:
        pred_root: predictions, ``<id>/*.png``.
        gt_root: true layers, likewise.
        max_merges: see :func:`score_sample`.
        jobs: processes; results do not depend on it.
        missing_as_worst: count true samples without a prediction as RGB L1 1, alpha IoU 0, cost 1 in the mean; the
            reference ignores them.
        soft_alpha_weight: see :func:`score_sample`.
        merge_gt: see :func:`score_sample`.
        alpha_threshold: see :func:`score_sample`.

    Returns:
        The report of the command line: ``protocol``, ``samples``, ``skipped``, ``missing``, ``mean``; ``mean`` is
        empty if no sample counts.

    Raises:
        NotADirectoryError: if a root is not a folder.
        ValueError: if there are no true samples.
    """
    for root in (pred_root, gt_root):
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is not a folder")
    pred_ids, gt_ids = _sample_ids(pred_root), _sample_ids(gt_root)
    if not gt_ids:
        raise ValueError(f"{gt_root} has no sample folders")
    options = {
        "soft_alpha_weight": soft_alpha_weight,
        "merge_gt": merge_gt,
        "alpha_threshold": alpha_threshold,
    }
    tasks = (delayed(_score_folder)(pred_root / name, gt_root / name, max_merges, options) for name in pred_ids)
    outcomes = tqdm(Parallel(n_jobs=jobs, return_as="generator")(tasks), total=len(pred_ids), unit="sample")
    scored, skipped = _parted(dict(zip(pred_ids, outcomes, strict=True)))
    missing = sorted(set(gt_ids) - set(pred_ids))
    counted = list(scored.values())
    if missing_as_worst:
        worst = [MergeLevel(merges, 1.0, 0.0, 1.0, 0, ()) for merges in range(max_merges + 1)]
        counted += [worst] * len(missing)
    return {
        "protocol": _describe_protocol(max_merges, missing_as_worst, len(counted), **options),
        "samples": {name: [level_entry(level) for level in levels] for name, levels in scored.items()},
        "skipped": skipped,
        "missing": missing,
        "mean": [level_entry(level) for level in aggregate(counted)],
    }


def _sample_ids(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and visible(path.name))


def _score_folder(pred: Path, gt: Path, max_merges: int, options: dict) -> list[MergeLevel] | str:
    """Score one sample, or return the reason why not: a bad sample never ends the run."""
    if not gt.is_dir():
        return "no ground truth folder"
    try:
        stacks = [read_stack(pred), read_stack(gt)]
        for side, layers in zip(("prediction", "ground truth"), stacks, strict=True):
            if len(layers) < MIN_FILES:
                return f"fewer than {MIN_FILES} layers in the {side}: {len(layers)}"
        return score_sample(*stacks, max_merges, **options)
    except ValueError as error:
        return str(error)


def _parted(outcomes: dict[str, list[MergeLevel] | str]) -> tuple[dict[str, list[MergeLevel]], dict[str, str]]:
    """Split the outcomes by sample id into the levels of scored samples and the reasons of the others."""
    scored = {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, str)}
    return scored, {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}


def _describe_protocol(
    max_merges: int,
    missing_as_worst: bool,
    count: int,
    *,
    soft_alpha_weight: bool,
    merge_gt: bool,
    alpha_threshold: int,
) -> dict:
    """List every choice of the protocol, for the report."""
    return {
        "source": "LayerD evaluation code, github.com/CyberAgentAILab/LayerD at 6b95bc59",
        "max_merges": max_merges,
        "merge_sides": ["pred", "gt"] if merge_gt else ["pred"],
        "merge_rule": "greedy by gain in summed similarity to the aligned layers; ties: gt, then lower index",
        "ties_up_to_rounding": "as the reference's float64 sums fall"
        if not soft_alpha_weight
        else "as the integer sums fall",
        "min_layers_to_merge": MIN_LAYERS + 1,
        "rgb_l1_weight": "ground-truth alpha" if soft_alpha_weight else "ground-truth alpha > 0",
        "rgb_l1_epsilon": EPSILON,
        "rgb_under_alpha_0": "compared as stored where the ground-truth alpha is above 0",
        "alpha_iou_of_two_empty_layers": 0.0,
        "cost": "(rgb_l1 + 1 - alpha_iou) / 2",
        "alpha_threshold": alpha_threshold,
        "grouping": "peels of layers without overlap (alpha > 0), each side separately, before anything else",
        "compositing": "8-bit straight alpha, Pillow alpha_composite",
        "alignment": "DTW with steps (1,1), (1,0), (0,1), ties in this order; mean over the path",
        "resizing": "none; samples with different sizes are skipped",
        "min_files_per_side": MIN_FILES,
        "missing_as_worst": missing_as_worst,
        "mean": "unweighted over samples; the last level reached is carried forward",
        "mean_over_samples": count,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__},
    }


def nothing_counts(report: dict) -> str:
    """Describe in one sentence a report without any scored sample."""
    name, why = next(iter(report["skipped"].items()), (None, None))
    if name is None:
        return f"--pred holds no sample folder; expected those of --gt, {report['missing'][0]} among them"
    return f"none of {len(report['skipped'])} samples can be scored; the first, {name}: {why}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metrics.decomposition", description="Score predicted layer stacks against true ones."
    )
    parser.add_argument("--pred", type=Path, required=True, help="predictions: <id>/*.png, sorted bottom to top")
    parser.add_argument("--gt", type=Path, required=True, help="true layers: <id>/*.png")
    parser.add_argument("--out", type=Path, required=True, help="JSON report to write")
    parser.add_argument("--max-merges", type=int, default=MAX_MERGES, help="last merge level (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, -1 for one per core (default %(default)s)")
    parser.add_argument("--missing-as-worst", action="store_true", help="missing predictions: L1 1, IoU 0, cost 1")
    parser.add_argument("--soft-alpha-weight", action="store_true", help="weigh colours by alpha, not by alpha > 0")
    parser.add_argument("--pred-merges-only", action="store_true", help="never merge true layers")
    parser.add_argument(
        "--snap-alpha", type=int, default=0, metavar="T", help="set predicted alpha below T (1 to 255) to 0"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if something was scored, 2 and one line on stderr if the user has to act."""
    args = _parser().parse_args(arguments)
    try:
        if args.max_merges < 0:
            raise ValueError(f"--max-merges must be at least 0, got {args.max_merges}")
        if args.jobs < 1 and args.jobs != -1:
            raise ValueError(f"--jobs must be at least 1, or -1, got {args.jobs}")
        if not 0 <= args.snap_alpha <= 255:
            raise ValueError(f"--snap-alpha must be within 1..255 (0: off), got {args.snap_alpha}")
        check_place(args.out, "--out", folder=False)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = evaluate_folders(
            args.pred,
            args.gt,
            args.max_merges,
            jobs=args.jobs,
            missing_as_worst=args.missing_as_worst,
            soft_alpha_weight=args.soft_alpha_weight,
            merge_gt=not args.pred_merges_only,
            alpha_threshold=args.snap_alpha,
        )
        args.out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if not report["mean"]:
            raise ValueError(f"{nothing_counts(report)}; {args.out} says so of each")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{len(report['samples'])} scored, {len(report['skipped'])} skipped, {len(report['missing'])} missing"
        f" -> {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
