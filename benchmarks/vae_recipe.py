"""Validation PSNR of the RGBA-VAE over time and images, trained from nothing by today's and the first recipe.

    python -m benchmarks.vae_recipe [--recipe default|first|both] [--seconds 360] [KEY=VALUE ...]

``default`` is the block train_vae of presets/from_nothing.yaml, initialised as in ``stages.train_vae``;
``KEY=VALUE`` changes it, as in ``init=random optimisation.learning_rate=1.0e-3``. ``first`` is the project's first
recipe: width 24, 16 images a step, AdamW 3e-4, squared error and 0.2 times absolute error of RGBA and over white,
KL 1e-5, cosine over 19,200 images. Both train on the bucketed data (``dvc repro prepare_buckets``), held in memory.
Training and initialisation are timed; validation, with EMA weights, is not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from benchmarks.changes import changed_params
from config.vae import TrainVAE
from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import RgbaComponentDataset, StackDataset
from layers.imaging import tensors
from metrics.reconstruction.rgba import BACKGROUNDS, over_background, psnr
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from training.engine.ema import ema_weights, update_ema
from training.engine.schedule import learning_rate
from training.engine.state import BETAS
from training.losses import kl_to_unit
from training.vae.build import build_vae
from training.vae.linear_start import start_as_linear_code
from training.vae.objective import VAEObjective

FIRST_IMAGES = 19_200


class FirstObjective(nn.Module):
    """Loss of the project's first recipe."""

    def __init__(self, vae: RGBAVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Loss of a batch with ``component`` and ``composite`` ``(B, 4, H, W)``."""
        images = torch.cat([batch["component"], batch["composite"]])
        posterior = self.vae.encode(images)
        out = self.vae.decode(posterior.sample())
        errors = [out - images, tensors.over_background(out, 1.0) - tensors.over_background(images, 1.0)]
        fidelity = sum(error.square().mean() + 0.2 * error.abs().mean() for error in errors)
        return {"loss": fidelity + 1e-5 * kl_to_unit(posterior.mean, posterior.logvar)}


def endless(pool: list[dict], order: BucketBatches) -> Iterator[dict]:
    """Yield batches of items in memory without end."""
    for indices in order.endless(0):
        yield default_collate([pool[index] for index in indices])


@torch.no_grad()
def held_out(vae: RGBAVAE, stacks: list[dict]) -> tuple[float, float]:
    """Mean PSNR over white of composites and of layers."""
    white = BACKGROUNDS["white"]
    flat, single = [], []
    for stack in stacks:
        images = torch.cat([stack["composite"][None], stack["layers"]])
        values = psnr(over_background(vae(images), white), over_background(images, white))
        flat, single = [*flat, float(values[0])], single + values[1:].tolist()
    return sum(flat) / len(flat), sum(single) / len(single)


def train(
    title: str,
    vae: RGBAVAE,
    objective: nn.Module,
    stream: Iterator[dict],
    rate: Callable[[int], float],
    stacks: list[dict],
    *,
    seconds: float,
    items: int,
    decay: float,
    every: float,
    spent: float,
    clip: float,
) -> None:
    """Train for a time or a number of items; print a row every ``every`` seconds."""
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate(0), betas=BETAS, weight_decay=0.0)
    average, seen, step, due = [p.detach().clone() for p in parameters], 0, 0, spent
    while True:
        if spent >= due or spent >= seconds or seen >= items:
            due += every
            with ema_weights(average, parameters):
                flat, single = held_out(vae, stacks)
            print(
                f"{title}: {spent:5.0f} s, {2 * seen:6d} images: {flat:.2f} dB composites, {single:.2f} dB layers",
                flush=True,
            )
            if spent >= seconds or seen >= items:
                return
        start = time.perf_counter()
        batch = next(stream)
        optimizer.param_groups[0]["lr"] = rate(seen)
        objective({**batch, "seen": seen})["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + len(batch["component"])
        update_ema(average, parameters, decay, step)
        spent += time.perf_counter() - start


def run_default(settings: TrainVAE, dataset, pool: list[dict], stacks: list[dict], seconds: float, every: float):
    """Train by today's recipe."""
    block = settings.optimisation
    order = BucketBatches(dataset.keys, block.batch_size, seed=settings.seed)
    vae = build_vae(settings)
    objective = VAEObjective(vae, settings)
    start = time.perf_counter()
    if settings.init == "linear_code":
        start_as_linear_code(vae, settings, lambda: endless(pool, order), torch.device("cpu"), False)
    spent = time.perf_counter() - start
    items = block.epochs * block.epoch_samples
    train(
        "default",
        vae,
        objective,
        endless(pool, order),
        lambda seen: learning_rate(
            seen, base=block.learning_rate, total=items, warmup=block.warmup_samples, kind=block.schedule
        ),
        stacks,
        seconds=seconds,
        items=items,
        decay=block.ema_decay,
        every=every,
        spent=spent,
        clip=block.grad_clip,
    )


def run_first(dataset, pool: list[dict], stacks: list[dict], seconds: float, every: float) -> None:
    """Train by the first recipe."""
    torch.manual_seed(0)
    vae = RGBAVAE(VAEConfig(base_dim=24, dim_mult=(1, 2, 4)))
    for name, parameter in vae.named_parameters():
        if ".conv2." in name:
            nn.init.zeros_(parameter)
    items = FIRST_IMAGES // 2
    train(
        "first",
        vae,
        FirstObjective(vae),
        endless(pool, BucketBatches(dataset.keys, 8, seed=0)),
        lambda seen: learning_rate(seen, base=3e-4, total=items, warmup=0, kind="cosine"),
        stacks,
        seconds=seconds,
        items=items,
        decay=0.99,
        every=every,
        spent=0.0,
        clip=1.0,
    )


def main() -> None:
    """Train by the chosen recipes and print validation PSNR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of train_vae, for the recipe default")
    parser.add_argument("--recipe", choices=("default", "first", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=360.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between rows")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    params = changed_params("train_vae", arguments.changes)
    settings, root = params.train_vae, params.prepare_buckets.output_root
    dataset, validation = RgbaComponentDataset(root, "train"), StackDataset(root, "val")
    pool = [
        {name: item[name] for name in ("component", "composite")} for item in (dataset[i] for i in range(len(dataset)))
    ]
    stacks = [validation[i] for i in range(len(validation))]
    print(f"{vars(arguments)}, {len(pool)} items, torch {torch.__version__}", flush=True)
    if arguments.recipe != "first":
        run_default(settings, dataset, pool, stacks, arguments.seconds, arguments.every)
    if arguments.recipe != "default":
        run_first(dataset, pool, stacks, arguments.seconds, arguments.every)


if __name__ == "__main__":
    main()
