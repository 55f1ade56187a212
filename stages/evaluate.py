"""Stage 5: decompose held-out pictures and say how well, by the Crello-style protocol.

    python -m stages.evaluate

Reads ``evaluate.model`` and the bucketed split; writes ``metrics/reports/evaluate.json``, ``decomposition.csv`` and
``panels/``. The number of layers asked of the model is the true one. Two rows stand beside the model's: the composite
as the only layer (what doing nothing scores) and the true layers through the VAE (what the VAE allows at best).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from layers.batches import BucketBatches
from layers.compositing import composite, to_float, to_uint8
from layers.dataset import StackDataset
from layers.images import write_png
from layers.tensors import to_image, to_tensor
from layers.view import grid
from metrics.rgba_scores import mean_metrics, reconstruction_metrics
from metrics.stack_scores import MergeLevel, aggregate, level_entry, score_sample
from models.rgba_vae import RGBAVAE
from models.text_encoders import TextEncoder, load_text_encoder
from models.vld_mmdit import VLDMMDiT
from stages.cli import REPORTS, stage_command, write_report, write_table
from training.captions import read_text_condition
from training.params import Evaluate, Params
from training.sampling import decompose_pictures
from training.tracking import digest, stage_run

PANELS = REPORTS / "panels"
CURVES = ("rgb_l1", "alpha_iou", "cost")


@dataclass(frozen=True)
class Decomposed:
    """One evaluated sample, pictures as ``(H, W, 4)`` uint8, stacks bottom to top.

    Attributes:
        sample_id: of the sample.
        picture: the flat input.
        true: its layers.
        predicted: the model's layers.
        through_vae: the true layers, encoded and decoded.
        seconds: wall time of the model for this picture, its share of a batch.
    """

    sample_id: str
    picture: np.ndarray
    true: list[np.ndarray]
    predicted: list[np.ndarray]
    through_vae: list[np.ndarray]
    seconds: float

    @property
    def recomposition(self) -> np.ndarray:
        """The predicted layers flattened."""
        return to_uint8(composite([to_float(layer) for layer in self.predicted]))


@torch.no_grad()
def decompose_split(
    network: VLDMMDiT,
    vae: RGBAVAE,
    encoder: TextEncoder | None,
    dataset: StackDataset,
    settings: Evaluate,
    device: torch.device,
) -> list[Decomposed]:
    """Decompose every sample of a split into as many layers as it truly has; a network with text reads its caption."""
    results = []
    bar = tqdm(total=len(dataset), desc="evaluate", unit="img", mininterval=1.0)
    for indices in BucketBatches(dataset.keys, settings.batch_size, fill="partial", shuffle=False):
        items = [dataset[i] for i in indices]
        ids = [item["id"] for item in items]
        layers = torch.stack([item["layers"] for item in items])
        pictures = torch.stack([item["composite"] for item in items])
        start = time.perf_counter()
        text = None if encoder is None else encoder.encode([item["caption"] for item in items])
        predicted = to_image(
            decompose_pictures(
                network,
                vae,
                pictures.to(device),
                layers.shape[1],
                ids,
                steps=settings.steps,
                seed=settings.seed,
                text=text,
            )
        )
        seconds = (time.perf_counter() - start) / len(items)
        through_vae = to_image(vae(layers.flatten(0, 1).to(device)).unflatten(0, layers.shape[:2]))
        true, flat = to_image(layers), to_image(pictures)
        for k, name in enumerate(ids):
            results.append(Decomposed(name, flat[k], list(true[k]), list(predicted[k]), list(through_vae[k]), seconds))
        bar.update(len(items))
    bar.close()
    return results


def score_all(results: Sequence[Decomposed], settings: Evaluate) -> dict[str, list[list[MergeLevel]]]:
    """Protocol scores of the model and of the two reference rows, per sample."""
    stacks = {
        "model": [r.predicted for r in results],
        "composite_only": [[r.picture] for r in results],
        "true_layers_through_vae": [r.through_vae for r in results],
    }
    scores = {}
    for name, predictions in stacks.items():
        work = Parallel(n_jobs=settings.jobs, return_as="generator")(
            delayed(score_sample)(predicted, result.true, settings.max_merges)
            for predicted, result in zip(predictions, results, strict=True)
        )
        scores[name] = list(tqdm(work, total=len(results), desc=f"score {name}", unit="img", mininterval=1.0))
    return scores


def write_panels(results: Sequence[Decomposed], scores: Sequence[Sequence[MergeLevel]], count: int) -> list[Path]:
    """Write ``count`` pictures spread evenly from the best cost to the worst, named by rank; returns their paths.

    Each has two rows: input and true layers; recomposition and predicted layers.
    """
    shutil.rmtree(PANELS, ignore_errors=True)
    PANELS.mkdir(parents=True)
    ranked = sorted(range(len(results)), key=lambda i: scores[i][0].cost)
    picked = sorted({round(k * (len(ranked) - 1) / max(count - 1, 1)) for k in range(count)})
    paths = []
    for rank in picked:
        result, score = results[ranked[rank]], scores[ranked[rank]][0]
        panel = grid(
            [[result.picture, *result.true], [result.recomposition, *result.predicted]],
            [
                f"{result.sample_id}: input, true layers bottom to top",
                f"cost {score.cost:.3f}, L1 {score.rgb_l1:.3f}, IoU {score.alpha_iou:.3f}: recomposed, predicted",
            ],
            scale=2,
        )
        paths.append(PANELS / f"rank_{rank + 1:03d}_of_{len(results):03d}.png")
        write_png(paths[-1], panel)
    return paths


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Decompose, score, report, draw."""
    del arguments
    settings, root = params.evaluate, params.prepare_buckets.output_root
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = RGBAVAE.from_pretrained(Path(settings.model), "vae").to(device).eval()
    network = VLDMMDiT.from_pretrained(settings.model).to(device).eval()
    condition = read_text_condition(settings.model)
    encoder = load_text_encoder(
        condition.encoder, condition.source, device=device, max_sequence_length=condition.max_tokens
    )
    dataset = StackDataset(root, settings.split)
    inputs = {path: digest(path) for path in (root, settings.model)}
    with stage_run("evaluate", params, inputs=inputs) as mlflow_run:
        results = decompose_split(network, vae, encoder, dataset, settings, device)
        scores = score_all(results, settings)
        decomposition = {name: [level_entry(level) for level in aggregate(rows)] for name, rows in scores.items()}
        recomposed = mean_metrics(
            [
                reconstruction_metrics(to_tensor(r.recomposition)[None], to_tensor(r.picture)[None], ("white",))[0]
                for r in results
            ]
        )
        through_vae = [
            row
            for r in results
            for row in reconstruction_metrics(
                torch.stack([to_tensor(x) for x in r.through_vae]), torch.stack([to_tensor(x) for x in r.true])
            )
        ]
        report = {
            "setting": {
                "samples": len(results),
                "split": settings.split,
                "layers_asked": "as many as the sample has",
                "text": condition.encoder,
                "steps": settings.steps,
                "seed": settings.seed,
                "buckets": sorted({f"{key[1]}x{key[0]}" for key in dataset.keys}),
            },
            "decomposition": decomposition,
            "recomposition": {
                "psnr_white": recomposed["psnr_white"],
                "ssim_white": recomposed["ssim"],
                "alpha_l1": recomposed["alpha_l1"],
            },
            "vae_layers_nine_backgrounds": mean_metrics(through_vae),
            "empty_layer_share": float(np.mean([not x[..., 3].any() for r in results for x in r.predicted])),
            "seconds_per_picture": float(np.mean([r.seconds for r in results])),
        }
        rows = [
            {"merges": merges}
            | {f"{name}_{key}": levels[merges][key] for name, levels in decomposition.items() for key in CURVES}
            for merges in range(settings.max_merges + 1)
        ]
        panels = write_panels(results, scores["model"], settings.panels)
        mlflow_run.artifact(write_report("evaluate", report))
        mlflow_run.artifact(write_table("decomposition", rows))
        mlflow_run.artifact(PANELS, "panels")
        for level in decomposition["model"]:
            merges = int(level["merges"])
            mlflow_run.metrics({f"merges/{k}": level[k] for k in CURVES}, merges)
        for name, levels in decomposition.items():
            prefix = "" if name == "model" else f"{name}/"
            mlflow_run.metrics({f"{prefix}{k}": levels[0][k] for k in CURVES})
        mlflow_run.metrics({f"recomposition/{k}": v for k, v in report["recomposition"].items()})
        mlflow_run.metrics({f"vae_layers/{k}": v for k, v in report["vae_layers_nine_backgrounds"].items()})
    first, nothing = decomposition["model"][0], decomposition["composite_only"][0]
    print(
        f"evaluate: {len(results)} samples, 0 merges: RGB L1 {first['rgb_l1']:.4f}, alpha soft IoU "
        f"{first['alpha_iou']:.4f} (composite alone: {nothing['rgb_l1']:.4f}, {nothing['alpha_iou']:.4f}); "
        f"{len(panels)} panels in {PANELS}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_command(run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
