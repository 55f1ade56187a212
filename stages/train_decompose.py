"""Stage 3: VLD-MMDiT learns to take the flat picture apart (paper sec. 3.2).

    python -m stages.train_decompose

Reads the bucketed layers and the RGBA-VAE; writes ``models/weights/decompose`` with ``transformer/``, ``scheduler/``
and a copy of ``vae/``. Trained by flow matching on cached latents, any layer count in one run: batches share (H, W, L).
"""

from __future__ import annotations

import argparse
import shutil
import sys

import torch

from layers.batches import BucketBatches
from models.rgba_vae import RGBAVAE
from models.vld_mmdit import VLDMMDiT, build_transformer
from stages.cli import CACHE, WEIGHTS, stage_command, write_report, write_table
from training.flow_objective import FlowObjective
from training.heldout import held_out_velocity_error, preview
from training.latents import both_splits
from training.loop import fit, make_plan
from training.params import Params, TrainDecompose
from training.session import training_session

INPUT = WEIGHTS / "vae"
OUTPUT = WEIGHTS / "decompose"


def build_network(settings: TrainDecompose, latent_channels: int) -> VLDMMDiT:
    """A network of the configured size with weights drawn from the stage's seed."""
    torch.manual_seed(settings.seed)
    return VLDMMDiT(
        build_transformer(
            latent_channels=latent_channels,
            patch_size=settings.patch_size,
            num_layers=settings.num_layers,
            num_attention_heads=settings.num_attention_heads,
            attention_head_dim=settings.attention_head_dim,
            axes_dims_rope=tuple(settings.axes_dims_rope),
            joint_attention_dim=settings.joint_attention_dim,
        )
    )


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Encode the data, train, validate on fixed noise, write the network."""
    del arguments
    settings, root = params.train_decompose, params.prepare_buckets.output_root
    optimisation = settings.optimisation
    with training_session("train_decompose", params, [root, str(INPUT)]) as session:
        device = session.accelerator.device
        vae = RGBAVAE.from_pretrained(INPUT, "vae").to(device).eval()
        train, held_out = both_splits(vae, INPUT / "vae", root, CACHE / "latents", session.accelerator)
        network = build_network(settings, vae.config.z_dim)
        order = BucketBatches(
            train.keys, optimisation.batch_size, seed=settings.seed, rank=session.rank, world_size=session.world_size
        )

        def after_epoch(epoch: int) -> dict[str, float]:
            session.run.picture("val_layers", preview(network, vae, held_out, device), epoch)
            return held_out_velocity_error(network, held_out, device)

        progress = fit(
            FlowObjective(network, settings.timestep, settings.loss),
            network,
            batches=lambda start: (train.batch(indices, device) for indices in order.endless(start)),
            settings=optimisation,
            plan=make_plan(optimisation, len(order), session.world_size),
            seed=settings.seed,
            validate=after_epoch,
            select="velocity_layers",
            largest=False,
            accelerator=session.accelerator,
            run=session.run,
            store=session.store,
            title="train_decompose",
        )
        if session.accelerator.is_main_process:
            network.eval()
            shutil.rmtree(OUTPUT, ignore_errors=True)
            network.save_pretrained(OUTPUT)
            vae.save_pretrained(OUTPUT / "vae")
            final = held_out_velocity_error(network, held_out, device)
            parameters = sum(p.numel() for p in network.parameters())
            session.run.artifact(write_report("train_decompose", {**final, "parameters": parameters}))
            session.run.artifact(write_table("train_decompose", progress.history))
            session.run.metrics({f"final/{name}": value for name, value in final.items()})
            print(f"train_decompose: held-out velocity error of layers {final['velocity_layers']:.4f}; {OUTPUT}")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_command(run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
