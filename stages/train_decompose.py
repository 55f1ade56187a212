"""Stage 3: train VLD-MMDiT to decompose flat images (paper sec. 3.2 and 3.3).

    python -m stages.train_decompose [--plan]    # --plan prints the estimated memory, and trains nothing

Reads the bucketed layers and the RGBA-VAE; writes ``models/weights/decompose`` with ``transformer/``, ``scheduler/``
and a copy of ``vae/``. Training is flow matching on cached latents. One run trains all numbers of layers, because
a batch shares (H, W, L). With LoRA, ``pytorch_lora_weights.safetensors`` has the adapters and ``transformer/`` has them
merged. The curriculum's text-to-RGBA, text-to-layers and image-to-layers are phases of this run.
"""

from __future__ import annotations

import shutil
import sys

import torch

from config.decompose import TrainDecompose
from config.params import Params
from config.paths import CACHE, WEIGHTS, in_workspace
from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import StackDataset
from models.transformer.lora import merge_lora, save_lora
from models.transformer.text_condition import save_text_condition
from models.transformer.trained_for import of_buckets, save_trained_for
from models.transformer.vld_mmdit import VLDMMDiT
from models.vae.autoencoder import RGBAVAE
from stages.cli import training_command
from stages.reports import write_report, write_table
from training.decompose.build import build_network, build_objective, texts_asked_for
from training.decompose.captions import embed_captions
from training.decompose.latents import LatentStacks, both_splits
from training.decompose.validation import held_out_velocity_error, preview, sampled_scores
from training.engine.loop import fit
from training.engine.progress import make_plan
from training.engine.session import training_session, with_checkpoint
from training.engine.task import Task

INPUT = WEIGHTS / "vae"
OUTPUT = WEIGHTS / "decompose"


def save(trained: VLDMMDiT, vae: RGBAVAE, settings: TrainDecompose, train: LatentStacks) -> None:
    """Write the network, its LoRA adapters if any, the sizes and layer counts it was trained for, and its VAE."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    if settings.lora.rank:
        save_lora(trained.transformer, OUTPUT, settings.checkpoint)
        merge_lora(trained.transformer)
    trained.save_pretrained(OUTPUT)
    save_text_condition(settings.text, OUTPUT)
    surplus = settings.surplus.max_layers if settings.surplus.share else None
    save_trained_for(of_buckets(train.keys, surplus, settings.sampling_shift), OUTPUT)
    vae.save_pretrained(OUTPUT / "vae")


def run(params: Params) -> None:
    """Encode images and captions, train, validate on fixed noise, write the network."""
    settings, root = params.train_decompose, str(in_workspace(params.prepare_buckets.output_root))
    optimisation = settings.optimisation
    inputs = with_checkpoint([root, str(INPUT)], settings.checkpoint, "train_decompose.checkpoint")
    with training_session("train_decompose", params, inputs, OUTPUT) as session:
        accelerator, kept = session.accelerator, getattr(torch, settings.cache_dtype)
        vae = RGBAVAE.from_pretrained(INPUT, "vae").to(accelerator.device).eval()
        train, held_out = both_splits(
            vae, INPUT / "vae", root, cache_dir=CACHE / "latents", accelerator=accelerator, dtype=kept
        )
        asked = texts_asked_for(train, held_out, settings, session.world_size)
        captions = embed_captions(settings.text, asked, CACHE / "texts", accelerator, kept)
        network = build_network(settings, vae.config.z_dim, captions, session.compute_dtype)
        vae.compute_dtype = session.compute_dtype
        vae.enable_gradient_checkpointing(settings.gradient_checkpointing)
        truth = StackDataset(root, "val")
        order = BucketBatches(
            train.keys, optimisation.batch_size, seed=settings.seed, rank=session.rank, world_size=session.world_size
        )

        def after_epoch(epoch: int) -> dict[str, float]:
            session.run.image("val_layers", preview(network, vae, held_out, accelerator, captions), epoch)
            errors = held_out_velocity_error(network, held_out, accelerator, captions)
            sampler = settings.validation.model_dump() | {"shift": settings.sampling_shift}
            return errors | sampled_scores(network, vae, held_out, truth, accelerator, captions=captions, **sampler)

        task = Task(
            title="train_decompose",
            objective=build_objective(network, vae, settings, captions),
            network=network,
            batches=lambda start: train.endless(order, start, optimisation.num_workers),
            validate=after_epoch,
            validate_raw=lambda: held_out_velocity_error(network, held_out, accelerator, captions),
            select=settings.select,
        )
        plan = make_plan(optimisation, len(order), session.world_size)
        progress, trained = fit(task, optimisation, plan, seed=settings.seed, session=session)
        if accelerator.is_main_process:
            save(trained, vae, settings, train)
            final = progress.best
            parameters = sum(p.numel() for p in trained.parameters())
            session.run.report(write_report("train_decompose", {**final, "parameters": parameters}))
            session.run.artifact(write_table("train_decompose", progress.history))
            cost = f", cost of their alignment {final['cost']:.4f}" if "cost" in final else ""
            print(f"train_decompose: held-out velocity error of layers {final['velocity_layers']:.4f}{cost}; {OUTPUT}")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return training_command(run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
