"""Stage 2: train the RGBA-VAE on layers and flat images in one latent space (paper sec. 3.1).

    python -m stages.train_vae

Reads the bucketed layers; writes ``models/weights/vae/vae`` in the diffusers format. After every epoch it writes
the validation metrics over nine backgrounds and the grid ``val_recon_epoch_<epoch>.png``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from config.params import Params
from config.paths import REPORTS, WEIGHTS, in_workspace
from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import RgbaComponentDataset, StackDataset, endless_batches
from layers.imaging.codec import write_png
from metrics.reconstruction.perceptual import Perceptual
from models.vae.autoencoder import RGBAVAE
from models.vae.opaque import as_rgba
from stages.cli import training_command
from stages.reports import write_report, write_table
from training.engine.loop import fit
from training.engine.progress import make_plan
from training.engine.session import Session, training_session, with_checkpoint
from training.engine.task import Task
from training.vae.build import build_vae, start
from training.vae.objective import VAEObjective
from training.vae.statistics import latent_statistics
from training.vae.validation import reconstruction_grid, validate

OUTPUT = WEIGHTS / "vae"
GRIDS = REPORTS / "val_recon"
# Training items for the statistics of the latents; more with large batches.
STATISTICS_ITEMS, STATISTICS_BATCHES = 512, 128


def images(
    dataset: RgbaComponentDataset, order: BucketBatches, channels: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Training batches for the statistics of the latents: composites, and layers too if the network has alpha."""
    names = ("component", "composite") if channels == 4 else ("composite",)
    count = max(STATISTICS_BATCHES, -(-STATISTICS_ITEMS // order.batch_size))
    for indices in islice(order.batches(0), count):
        items = [dataset[index] for index in indices]
        yield torch.stack([item[name][:channels] for item in items for name in names]).to(device)


def validation(
    vae: RGBAVAE, held_out: StackDataset, perceptual: Perceptual, session: Session
) -> Callable[[int], dict[str, float]]:
    """Make the validation of an epoch: draw the grid of reconstructions, then score the whole split."""
    if session.accelerator.is_main_process:
        if session.store.read_state() is None:
            shutil.rmtree(GRIDS, ignore_errors=True)
        # DVC expects the folder, even if a resumed run has no epoch left to draw.
        GRIDS.mkdir(parents=True, exist_ok=True)

    def after_epoch(epoch: int) -> dict[str, float]:
        if session.accelerator.is_main_process:
            image = reconstruction_grid(vae, held_out, session.accelerator.device)
            write_png(GRIDS / f"val_recon_epoch_{epoch}.png", image)
            session.run.image("val_recon", image, epoch)
        return validate(vae, held_out, perceptual, session.accelerator)

    return after_epoch


def run(params: Params) -> None:
    """Train, validate, measure the latents, write the network."""
    settings, root = params.train_vae, str(in_workspace(params.prepare_buckets.output_root))
    optimisation = settings.optimisation
    dataset, held_out = RgbaComponentDataset(root, "train"), StackDataset(root, "val")
    inputs = with_checkpoint([root], settings.rgb_checkpoint, "train_vae.rgb_checkpoint")
    vae = build_vae(settings)
    # Not sharded: the network is small, and FSDP does not see calls by encode and decode.
    with training_session("train_vae", params, inputs, OUTPUT, shard=False) as session:
        device = session.accelerator.device
        start(vae, dataset, settings, session)
        vae.enable_gradient_checkpointing(settings.gradient_checkpointing)
        vae.compute_dtype = session.compute_dtype
        perceptual = Perceptual().to(device)
        order = BucketBatches(
            dataset.keys,
            optimisation.batch_size,
            seed=settings.seed,
            rank=session.rank,
            world_size=session.world_size,
        )
        task = Task(
            title="train_vae",
            objective=VAEObjective(as_rgba(vae), settings),
            network=vae,
            batches=lambda start: endless_batches(dataset, order, start, optimisation.num_workers),
            validate=validation(vae, held_out, perceptual, session),
            select=settings.select,
            largest=settings.select != "lpips",
        )
        plan = make_plan(optimisation, len(order), session.world_size)
        progress, _ = fit(task, optimisation, plan, seed=settings.seed, session=session)
        vae.eval()
        # The final validation is in the precision in which the VAE will be used.
        vae.compute_dtype = None
        final = validate(vae, held_out, perceptual, session.accelerator)
        if session.accelerator.is_main_process:
            if settings.trained == "all":
                vae.set_latent_statistics(*latent_statistics(vae, images(dataset, order, settings.channels, device)))
            shutil.rmtree(OUTPUT, ignore_errors=True)
            vae.save_pretrained(OUTPUT / "vae")
            session.run.report(
                write_report("train_vae", {**final, "parameters": sum(p.numel() for p in vae.parameters())})
            )
            session.run.artifact(write_table("train_vae", progress.history))
            print(f"train_vae: PSNR over white {final['psnr_white']:.2f} dB on unseen composites; {OUTPUT}")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return training_command(run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
