"""Stage 4: fine-tune the decomposition network of stage 3 on decoded layers and on edits.

    python -m stages.refine

Reads ``models/weights/decompose``; writes ``models/weights/refine`` in the same layout. Its report has every loss term
on the validation split before and after. If no epoch improves on the start, the start's weights are saved, which the
report states under ``kept``. With LoRA, ``pytorch_lora_weights.safetensors`` has the adapters for diffusers and
``transformer/`` the network with them merged, as in stage 3.
"""

from __future__ import annotations

import shutil
import sys

import torch

from config.decompose import Refine
from config.params import Params
from config.paths import CACHE, WEIGHTS, in_workspace
from layers.dataset.batches import BucketBatches
from metrics.reconstruction.perceptual import Perceptual
from models.transformer.lora import adapted_base, add_lora, load_lora, merge_lora, save_lora
from models.transformer.text_condition import read_text_condition, save_text_condition
from models.transformer.trained_for import read_trained_for, save_trained_for
from models.transformer.vld_mmdit import VLDMMDiT
from models.vae.autoencoder import RGBAVAE
from stages.cli import training_command
from stages.reports import write_report, write_table
from tracking.registry import register_weights
from training.decompose.captions import embed_captions
from training.decompose.latents import both_splits
from training.decompose.refine_objective import RefineObjective, held_out_terms
from training.decompose.validation import preview
from training.engine.loop import fit
from training.engine.progress import make_plan
from training.engine.session import training_session
from training.engine.task import Task

INPUT = WEIGHTS / "decompose"
OUTPUT = WEIGHTS / "refine"


def build_network(settings: Refine, compute_dtype: torch.dtype | None) -> tuple[VLDMMDiT, str]:
    """Load the network of stage 3 for training, and return the name of its adapters' base model.

    With LoRA, the adapters of stage 3 are trained on if they have the same rank and alpha and their base is known. So
    one file of adapters has both stages. Otherwise new ones are added to its merged weights.
    """
    lora = settings.lora
    frozen = compute_dtype or torch.float32 if lora.rank else torch.float32
    base = adapted_base(INPUT, lora.rank, lora.alpha) if lora.rank else None
    network = VLDMMDiT.from_pretrained(INPUT if base is None else base, frozen)
    if base is not None:
        load_lora(network.transformer, INPUT)
    elif lora.rank:
        torch.manual_seed(settings.seed)
        add_lora(network.transformer, lora.rank, lora.alpha)
    if settings.gradient_checkpointing:
        network.transformer.enable_gradient_checkpointing()
    network.compute_dtype = compute_dtype
    return network, base or str(INPUT)


def run(params: Params) -> None:
    """Fine-tune, compare before and after, write the network."""
    settings, root = params.refine, str(in_workspace(params.prepare_buckets.output_root))
    optimisation = settings.optimisation
    with training_session("refine", params, [root, str(INPUT)], OUTPUT) as session:
        accelerator, kept = session.accelerator, getattr(torch, settings.cache_dtype)
        vae = RGBAVAE.from_pretrained(INPUT, "vae").to(accelerator.device).eval()
        train, held_out = both_splits(
            vae, INPUT / "vae", root, cache_dir=CACHE / "latents", accelerator=accelerator, dtype=kept
        )
        condition = read_text_condition(INPUT)
        asked = [said[:1] for said in train.texts + held_out.texts]
        captions = embed_captions(condition, asked, CACHE / "texts", accelerator, kept)
        network, base = build_network(settings, session.compute_dtype)
        vae.compute_dtype = session.compute_dtype
        vae.enable_gradient_checkpointing(settings.gradient_checkpointing)
        distance = Perceptual("alex").to(accelerator.device) if settings.loss.lpips > 0.0 else None
        objective = RefineObjective(network, vae, settings, captions, distance)
        order = BucketBatches(
            train.keys, optimisation.batch_size, seed=settings.seed, rank=session.rank, world_size=session.world_size
        )

        def after_epoch(epoch: int) -> dict[str, float]:
            session.run.image("val_layers", preview(network, vae, held_out, accelerator, captions), epoch)
            return held_out_terms(objective, held_out, accelerator)

        task = Task(
            title="refine",
            objective=objective,
            network=network,
            batches=lambda start: train.endless(order, start, optimisation.num_workers),
            validate=after_epoch,
            select="layer_pixels",
            measure_start=True,
        )
        plan = make_plan(optimisation, len(order), session.world_size)
        progress, trained = fit(task, optimisation, plan, seed=settings.seed, session=session)
        if accelerator.is_main_process:
            before, after = progress.start, progress.best
            shutil.rmtree(OUTPUT, ignore_errors=True)
            if settings.lora.rank:
                save_lora(trained.transformer, OUTPUT, base)
                merge_lora(trained.transformer)
            trained.save_pretrained(OUTPUT)
            save_text_condition(condition, OUTPUT)
            save_trained_for(read_trained_for(INPUT), OUTPUT)
            vae.save_pretrained(OUTPUT / "vae")
            session.run.report(write_report("refine", {"before": before, "after": after, **progress.kept}))
            session.run.artifact(write_table("refine", progress.history))
            register_weights(session.run, params, OUTPUT)
            changes = ", ".join(f"{name} {before[name]:.4f} -> {after[name]:.4f}" for name in before)
            told = f"{progress.kept['kept']} was kept: " if progress.kept else ""
            print(f"refine: held out: {told}{changes}; {OUTPUT}")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return training_command(run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
