"""Overhead of train_decompose's training loop over its bare network: latents, noise, losses, EMA, logging.

    python -m benchmarks.loop_overhead [--steps 30] [--rounds 5]

``fit`` with the settings of presets/from_nothing.yaml alternates with a bare loop over the same batches. That is the
network on tensors made before, a mean square, backward, clipping and AdamW. Latents are read from the cache of
``models/weights/vae`` (``dvc repro train_vae``). Medians of seconds a step and of the paired ratios are printed.
Resume points and validations, which have intervals of their own, are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.changes import RECIPE
from config.params import load_params
from config.paths import CACHE, WEIGHTS
from layers.dataset.batches import BucketBatches
from models.vae.autoencoder import RGBAVAE
from tracking.run import Run
from training.decompose.build import build_network, build_objective
from training.decompose.latents import both_splits
from training.engine.checkpoint import CheckpointStore
from training.engine.loop import fit
from training.engine.progress import Plan
from training.engine.session import Session
from training.engine.state import BETAS
from training.engine.task import Task


class Forgetful(CheckpointStore):
    """Checkpoint store that writes no resume point."""

    def save(self, **_) -> None:
        """Skip the resume point."""


def main() -> None:
    """Time both loops and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    params = load_params(RECIPE)
    settings = params.train_decompose
    block = settings.optimisation.model_copy(update={"checkpoint_every": 10**9})
    accelerator = Accelerator(cpu=True)
    vae = RGBAVAE.from_pretrained(WEIGHTS / "vae", "vae").eval()
    root, cache = params.prepare_buckets.output_root, CACHE / "latents"
    train, _ = both_splits(vae, WEIGHTS / "vae", root, cache_dir=cache, accelerator=accelerator)
    order = BucketBatches(train.keys, block.batch_size, seed=settings.seed)
    network = build_network(settings, vae.config.z_dim)
    objective = build_objective(network, vae, settings, None)

    def whole(start: int) -> float:
        began = time.perf_counter()
        task = Task(
            title="fit",
            objective=objective,
            network=network,
            batches=lambda _: (train.batch(indices) for indices in order.endless(start)),
            validate=lambda _: {"none": 0.0},
            select="none",
        )
        store = Forgetful(Path("nowhere"), "benchmark", "key", accelerator)
        session = Session(accelerator, None, Run(None), store, {})
        fit(task, block, Plan(1, arguments.steps, block.batch_size), seed=settings.seed, session=session)
        return (time.perf_counter() - began) / arguments.steps

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, betas=BETAS, weight_decay=0.0)

    def bare(start: int) -> float:
        stream = order.endless(start)
        batches = [train.batch(next(stream))["latents"] for _ in range(arguments.steps)]
        made = [(torch.randn_like(x), x, x[:, 0].clone(), torch.rand(len(x))) for x in batches]
        began = time.perf_counter()
        for noisy, clean, condition, sigma in made:
            (network(noisy, condition, sigma) - clean).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), block.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return (time.perf_counter() - began) / arguments.steps

    print(f"{vars(arguments)}, batch {block.batch_size}, torch {torch.__version__}", flush=True)
    whole(0), bare(0)
    pairs = [(whole(k * arguments.steps), bare(k * arguments.steps)) for k in range(arguments.rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"loop {ours:.4f} s a step, network alone {theirs:.4f} s, median ratio {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f} in {len(ratios)} pairs)"
    )


if __name__ == "__main__":
    main()
