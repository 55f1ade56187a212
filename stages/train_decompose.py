"""Stage 3: train VLD-MMDiT to decompose flat images (paper sec. 3.2 and 3.3).

    python -m stages.train_decompose            # python -m stages.train_decompose --plan says what it would take

Reads the bucketed layers and the RGBA-VAE; writes ``models/weights/decompose`` with ``transformer/``, ``scheduler/``
and a copy of ``vae/``. Trained by flow matching on cached latents, any layer count in one run: batches share
(H, W, L). With LoRA there is ``pytorch_lora_weights.safetensors`` beside them, and ``transformer/`` has it merged. The
phases of the curriculum, text-to-RGBA, text-to-layers and image-to-layers, are phases of
this run.
"""

from __future__ import annotations

import functools
import shutil
import sys
from itertools import chain, islice

import torch
from torch import nn

from config.decompose import TrainDecompose
from config.errors import ParamsError
from config.params import Params
from config.paths import CACHE, WEIGHTS, in_workspace
from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import StackDataset
from models.transformer.condition_start import start_at_condition
from models.transformer.lora import add_lora, merge_lora, save_lora
from models.transformer.text_condition import save_text_condition
from models.transformer.trained_for import of_buckets, save_trained_for
from models.transformer.vld_mmdit import VLDMMDiT, build_transformer
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import empty_latents
from stages.cli import training_command
from stages.reports import write_report, write_table
from training.decompose.captions import Captions, embed_captions
from training.decompose.flow_objective import FlowObjective
from training.decompose.latents import LatentStacks, both_splits
from training.decompose.pixel_terms import PixelTerms
from training.decompose.validation import held_out_velocity_error, preview, sampled_scores
from training.engine.loop import fit
from training.engine.progress import make_plan
from training.engine.session import training_session, with_checkpoint
from training.engine.task import Task

INPUT = WEIGHTS / "vae"
OUTPUT = WEIGHTS / "decompose"
SHAPE = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "axes_dims_rope",
    "patch_size",
    "joint_attention_dim",
)


def build_network(
    settings: TrainDecompose,
    latent_channels: int,
    captions: Captions | None = None,
    compute_dtype: torch.dtype | None = None,
) -> VLDMMDiT:
    """The network to start from: other weights, or the configured size drawn from the stage's seed.

    Args:
        settings: of the stage.
        latent_channels: of the VAE.
        captions: of a network with text.
        compute_dtype: of training, where it is not float32; weights that LoRA freezes are then kept in it.

    Raises:
        ParamsError: if VAE, text encoder and network do not fit each other.
    """
    torch.manual_seed(settings.seed)
    frozen = compute_dtype or torch.float32 if settings.lora.rank else torch.float32
    if settings.checkpoint is not None:
        network = VLDMMDiT.from_pretrained(settings.checkpoint, frozen)
    else:
        transformer = build_transformer(latent_channels=latent_channels, **settings.model_dump(include=set(SHAPE)))
        if settings.init == "condition":
            start_at_condition(transformer)
        network = VLDMMDiT(transformer)
    config = network.transformer.config
    if config.out_channels != latent_channels:
        raise ParamsError(
            f"the transformer of {settings.checkpoint} has {config.out_channels} latent channels; the VAE of {INPUT} "
            f"has {latent_channels}"
        )
    if captions is not None and captions.width != config.joint_attention_dim:
        raise ParamsError(
            f"train_decompose: text.encoder {settings.text.encoder} gives tokens of {captions.width} numbers; expected "
            f"joint_attention_dim {config.joint_attention_dim}"
        )
    if settings.lora.rank:
        network.transformer.to(frozen)
        add_lora(network.transformer, settings.lora.rank, settings.lora.alpha)
    if settings.gradient_checkpointing:
        network.transformer.enable_gradient_checkpointing()
    if settings.compile:
        network.transformer.compile_repeated_blocks()
    network.compute_dtype = compute_dtype
    return network


def build_objective(network: VLDMMDiT, vae: RGBAVAE, settings: TrainDecompose, captions: Captions | None) -> nn.Module:
    """What the network is trained by; images are compared where a term of them has a weight."""
    weights, scale = settings.loss.model_dump(), settings.decode_scale
    pixels = PixelTerms(vae, weights, settings.alignment, decode_scale=scale, trust=settings.trust)
    empty = functools.lru_cache(functools.partial(empty_latents, vae)) if settings.surplus.share else None
    return FlowObjective(network, settings, captions, pixels if pixels.names else None, empty)


def texts_asked_for(
    train: LatentStacks, held_out: LatentStacks, settings: TrainDecompose, world_size: int
) -> list[list[str]]:
    """What has to be encoded: every caption, and of the samples of the first phase what is said of each layer."""
    optimisation = settings.optimisation
    joint = optimisation.batch_size * world_size
    steps = -(-settings.curriculum.text_to_rgba // (joint * optimisation.gradient_accumulation))
    order = BucketBatches(train.keys, joint, seed=settings.seed)
    first = set(chain.from_iterable(islice(order.endless(), steps * optimisation.gradient_accumulation)))
    said = [texts if index in first else texts[:1] for index, texts in enumerate(train.texts)]
    return said + [texts[:1] for texts in held_out.texts]


def save(trained: VLDMMDiT, vae: RGBAVAE, settings: TrainDecompose, train: LatentStacks) -> None:
    """Write the stage's output: the network, with LoRA its adapters too, what it was trained for, and its VAE."""
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
