"""Stage 2: the RGBA-VAE learns layers and flat pictures in one latent space (paper sec. 3.1).

    python -m stages.train_vae

Reads the bucketed layers; writes ``models/weights/vae/vae`` in the diffusers format and, after every epoch, the PSNR of
the validation composites over white and the grid ``val_recon_epoch_<epoch>.png``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from itertools import islice
from pathlib import Path

import torch

from layers.batches import BucketBatches
from layers.dataset import RgbaComponentDataset, StackDataset, endless_component_batches
from layers.images import write_png
from layers.tensors import to_image
from layers.view import grid
from metrics.reconstruction import mean_metrics, reconstruction_metrics
from models.rgba_vae import RGBAVAE, VAEConfig, widen_to_rgba
from stages.cli import REPORTS, WEIGHTS, stage_command, write_report, write_table
from training.latents import latent_statistics
from training.loop import fit, make_plan
from training.params import Params, TrainVAE
from training.session import training_session
from training.vae_objective import VAEObjective

OUTPUT = WEIGHTS / "vae"
GRIDS = REPORTS / "val_recon"
GRID_SAMPLES = 8
STATISTICS_BATCHES = 64


def build_vae(settings: TrainVAE) -> RGBAVAE:
    """The start of training: random weights, or an RGB or RGBA checkpoint widened to four channels."""
    if settings.rgb_checkpoint is not None:
        return widen_to_rgba(RGBAVAE.from_pretrained(settings.rgb_checkpoint), settings.alpha_bias_init)
    torch.manual_seed(settings.seed)
    config = VAEConfig(
        base_dim=settings.base_dim,
        z_dim=settings.z_dim,
        dim_mult=tuple(settings.dim_mult),
        num_res_blocks=settings.num_res_blocks,
        temperal_downsample=(False,) * (len(settings.dim_mult) - 1),
        input_channels=4,
        latents_mean=(0.0,) * settings.z_dim,
        latents_std=(1.0,) * settings.z_dim,
    )
    return RGBAVAE(config).init_from_scratch()


@torch.no_grad()
def validate(vae: RGBAVAE, dataset: StackDataset, device: torch.device) -> dict[str, float]:
    """Mean metrics of reconstructed composites (``psnr_white``, ``ssim_white``) and of layers (``layer_*``)."""
    flat_rows, layer_rows = [], []
    for index in range(len(dataset)):
        item = dataset[index]
        images = torch.cat([item["composite"][None], item["layers"]]).to(device)
        rows = reconstruction_metrics(vae(images).float(), images, ("white",))
        flat_rows.append(rows[0])
        layer_rows += rows[1:]
    flat, single = mean_metrics(flat_rows), mean_metrics(layer_rows)
    return {
        "psnr_white": flat["psnr_white"],
        "ssim_white": flat["ssim"],
        "layer_psnr_white": single["psnr_white"],
        "layer_ssim_white": single["ssim"],
        "alpha_l1": single["alpha_l1"],
    }


@torch.no_grad()
def reconstruction_grid(vae: RGBAVAE, dataset: StackDataset, device: torch.device):
    """Rows of composite, its reconstruction, top layer, its reconstruction; ``(H, W, 3)`` uint8."""
    rows = []
    for index in range(min(GRID_SAMPLES, len(dataset))):
        item = dataset[index]
        images = torch.stack([item["composite"], item["layers"][-1]]).to(device)
        true, ours = to_image(images), to_image(vae(images))
        rows.append([true[0], ours[0], true[1], ours[1]])
    return grid(rows, scale=2)


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Train, validate, measure the latents, write the network."""
    del arguments
    settings, root = params.train_vae, params.prepare_buckets.output_root
    optimisation = settings.optimisation
    dataset, held_out = RgbaComponentDataset(root, "train"), StackDataset(root, "val")
    # A checkpoint on the hub has no content here to stand for it; its name is in the parameters.
    inputs = [root, *(path for path in [settings.rgb_checkpoint] if path and Path(path).exists())]
    with training_session("train_vae", params, inputs) as session:
        device = session.accelerator.device
        vae = build_vae(settings)
        objective = VAEObjective(vae, settings.loss)
        order = BucketBatches(
            dataset.keys,
            optimisation.batch_size,
            seed=settings.seed,
            rank=session.rank,
            world_size=session.world_size,
        )

        def after_epoch(epoch: int) -> dict[str, float]:
            picture = reconstruction_grid(vae, held_out, device)
            write_png(GRIDS / f"val_recon_epoch_{epoch}.png", picture)
            session.run.picture("val_recon", picture, epoch)
            return validate(vae, held_out, device)

        if session.accelerator.is_main_process:
            if session.store.read_state() is None:
                shutil.rmtree(GRIDS, ignore_errors=True)
            # Even if a resumed run has no epoch left to draw: DVC expects the folder.
            GRIDS.mkdir(parents=True, exist_ok=True)
        progress = fit(
            objective,
            vae,
            batches=lambda start: endless_component_batches(dataset, order, start, optimisation.num_workers),
            settings=optimisation,
            plan=make_plan(optimisation, len(order), session.world_size),
            seed=settings.seed,
            validate=after_epoch,
            select="psnr_white",
            largest=True,
            accelerator=session.accelerator,
            run=session.run,
            store=session.store,
            title="train_vae",
        )
        if session.accelerator.is_main_process:
            vae.eval()
            sample = (
                torch.stack([image for i in indices for image in (dataset[i]["component"], dataset[i]["composite"])])
                for indices in islice(order.batches(0), STATISTICS_BATCHES)
            )
            vae.set_latent_statistics(*latent_statistics(vae, (images.to(device) for images in sample)))
            shutil.rmtree(OUTPUT, ignore_errors=True)
            vae.save_pretrained(OUTPUT / "vae")
            final = validate(vae, held_out, device)
            session.run.artifact(
                write_report("train_vae", {**final, "parameters": sum(p.numel() for p in vae.parameters())})
            )
            session.run.artifact(write_table("train_vae", progress.history))
            session.run.metrics({f"final/{name}": value for name, value in final.items()})
            print(f"train_vae: PSNR over white {final['psnr_white']:.2f} dB on unseen composites; {OUTPUT}")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_command(run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
