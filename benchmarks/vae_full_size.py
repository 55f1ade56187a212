"""Timing of the full-size RGBA-VAE's training step, with and without gradient checkpointing: images/s, peak memory.

    python -m benchmarks.vae_full_size [--size 640] [--batch 1] [--steps 5] [--device cuda|cpu]

The loss is that of presets/qwen.yaml with every term, the discriminator included; an item is two images. Precision is
that of the stage: bf16 autocast on a GPU, float32 on a CPU. Each side runs in a process of its own, because peak memory
never falls.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time

import torch

from config.params import load_params
from inference.process_memory import process_peak
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from training.vae.objective import VAEObjective

PRESET = "presets/qwen.yaml"


def measure(arguments: argparse.Namespace) -> None:
    """Train for some steps and print speed and peak memory."""
    settings = load_params(PRESET).train_vae
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    vae = RGBAVAE(VAEConfig(settings.base_dim, settings.z_dim, tuple(settings.dim_mult), settings.num_res_blocks))
    vae.enable_gradient_checkpointing(arguments.checkpointing)
    objective = VAEObjective(vae, settings).to(device)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-5)
    shape = (arguments.batch, 4, arguments.size, arguments.size)
    batch = {name: torch.rand(shape, device=device) * 2 - 1 for name in ("component", "composite")}
    cuda = device.type == "cuda"
    autocast = torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()
    times = []
    for _ in range(arguments.steps + 1):
        start = time.perf_counter()
        with autocast:
            loss = objective({**batch, "seen": settings.discriminator.start_samples})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else process_peak()
    seconds = statistics.median(times[1:])
    print(
        f"checkpointing {'on' if arguments.checkpointing else 'off'}: {seconds:.2f} s a step, "
        f"{2 * arguments.batch / seconds:.2f} images/s, peak {peak / 2**30:.1f} GiB",
        flush=True,
    )


def main() -> None:
    """Start a process for each side, or run one side in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpointing", type=int, choices=(0, 1), help="only this side, in this process")
    arguments = parser.parse_args()
    if arguments.checkpointing is not None:
        measure(arguments)
        return
    print(f"{vars(arguments)}, torch {torch.__version__}", flush=True)
    for side in ("0", "1"):
        command = [sys.executable, "-m", "benchmarks.vae_full_size", *sys.argv[1:], "--checkpointing", side]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
