"""Stage 4: short fine-tuning in pixel space and under edits, on from stage 3.

    python -m stages.refine

Reads ``models/weights/decompose``; writes ``models/weights/refine`` in the same layout and, into its report, every loss
term on the validation split before and after.
"""

from __future__ import annotations

import argparse
import shutil
import sys

from layers.batches import BucketBatches
from layers.paths import in_workspace
from metrics.perceptual import Perceptual
from models.rgba_vae import RGBAVAE
from models.vld_mmdit import VLDMMDiT
from stages.cli import CACHE, WEIGHTS, stage_command, write_report, write_table
from training.captions import embed_captions, read_text_condition, save_text_condition
from training.heldout import preview
from training.latents import both_splits
from training.loop import fit
from training.params import Params
from training.progress import make_plan
from training.refine_objective import RefineObjective, held_out_terms
from training.registry import register_weights
from training.session import training_session
from training.trained_for import read_trained_for, save_trained_for

INPUT = WEIGHTS / "decompose"
OUTPUT = WEIGHTS / "refine"


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Fine-tune, compare before and after, write the network."""
    del arguments
    settings, root = params.refine, str(in_workspace(params.prepare_buckets.output_root))
    optimisation = settings.optimisation
    with training_session("refine", params, [root, str(INPUT)]) as session:
        device = session.accelerator.device
        vae = RGBAVAE.from_pretrained(INPUT, "vae").to(device).eval()
        train, held_out = both_splits(vae, INPUT / "vae", root, CACHE / "latents", session.accelerator)
        network = VLDMMDiT.from_pretrained(INPUT)
        condition = read_text_condition(INPUT)
        asked = [said[:1] for said in train.texts + held_out.texts]
        captions = embed_captions(condition, asked, CACHE / "texts", session.accelerator)
        distance = Perceptual("alex").to(device) if settings.loss.lpips > 0.0 else None
        objective = RefineObjective(network, vae, settings, captions, distance)
        order = BucketBatches(
            train.keys, optimisation.batch_size, seed=settings.seed, rank=session.rank, world_size=session.world_size
        )

        def after_epoch(epoch: int) -> dict[str, float]:
            session.run.picture("val_layers", preview(network, vae, held_out, device, captions), epoch)
            return held_out_terms(objective, held_out, device)

        progress, trained = fit(
            objective,
            network,
            batches=lambda start: (train.batch(indices, device) for indices in order.endless(start)),
            settings=optimisation,
            plan=make_plan(optimisation, len(order), session.world_size),
            seed=settings.seed,
            validate=after_epoch,
            select="layer_pixels",
            largest=False,
            accelerator=session.accelerator,
            run=session.run,
            store=session.store,
            title="refine",
            measure_start=True,
        )
        if session.accelerator.is_main_process:
            before, after = progress.start, progress.best
            shutil.rmtree(OUTPUT, ignore_errors=True)
            trained.save_pretrained(OUTPUT)
            save_text_condition(condition, OUTPUT)
            save_trained_for(read_trained_for(INPUT), OUTPUT)
            vae.save_pretrained(OUTPUT / "vae")
            session.run.report(write_report("refine", {"before": before, "after": after}))
            session.run.artifact(write_table("refine", progress.history))
            register_weights(session.run, params, OUTPUT)
            changes = ", ".join(f"{name} {before[name]:.4f} -> {after[name]:.4f}" for name in before)
            print(f"refine: held out: {changes}; {OUTPUT}")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_command(run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
