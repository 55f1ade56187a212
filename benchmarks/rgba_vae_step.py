"""Timing of a training step of the 2-D RGBA-VAE against ``diffusers.AutoencoderKLQwenImage`` of equal weights.

    python -m benchmarks.rgba_vae_step [--runs 5] [--threads 2] [--device cpu|cuda] [--bf16]

One step is encode, decode of the mode, mean square, backward. The cases are the full width at 128 and 256 px and the
default's width at its image size. Both sides take turns in one process. Medians, the median of their ratios and the
largest difference of the outputs (float32 only) are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLQwenImage

from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig


@dataclass(frozen=True)
class Case:
    """One network and batch to time.

    Attributes:
        name: as printed.
        config: of the network.
        shape: of the images, (B, H, W).
        rounds: factor on the requested number of runs; small cases are noisier.
    """

    name: str
    config: VAEConfig
    shape: tuple[int, int, int]
    rounds: int = 1


CASES = (
    Case("width 96, 1 x 128 px", VAEConfig(), (1, 128, 128)),
    Case("width 96, 1 x 256 px", VAEConfig(), (1, 256, 256)),
    Case("width 16, 8 x 64x96 px", VAEConfig(base_dim=16, dim_mult=(1, 2, 4)), (8, 64, 96), rounds=5),
    Case("width 24, 8 x 64 px", VAEConfig(base_dim=24, dim_mult=(1, 2, 4)), (8, 64, 64), rounds=5),
)


def measure(case: Case, runs: int, device: torch.device, bf16: bool) -> None:
    """Time both sides of a case in turn and print a row."""
    torch.manual_seed(0)
    ours = RGBAVAE(case.config)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = AutoencoderKLQwenImage.from_pretrained(folder).to(device)
    ours.to(device)
    images = torch.rand(case.shape[0], 4, *case.shape[1:], device=device) * 2 - 1
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def two_d() -> torch.Tensor:
        return ours.decode(ours.encode(images).mode(), clamp=True)

    def three_d() -> torch.Tensor:
        return theirs.decode(theirs.encode(images[:, :, None]).latent_dist.mode()).sample[:, :, 0]

    def step(reconstruct, network) -> float:
        network.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with autocast:
            loss = reconstruct().float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.no_grad(), autocast:
        difference = (two_d() - three_d()).abs().max().item()
    for _ in range(2):
        step(two_d, ours), step(three_d, theirs)
    times = [(step(two_d, ours), step(three_d, theirs)) for _ in range(runs * case.rounds)]
    mine, reference = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    print(
        f"{case.name}: 2-D {mine:.4f} s, 3-D {reference:.4f} s, median ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs), largest difference {difference:.1e}",
        flush=True,
    )


def main() -> None:
    """Time all cases and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{vars(arguments)}, torch {torch.__version__}")
    for case in CASES:
        measure(case, arguments.runs, torch.device(arguments.device), arguments.bf16)


if __name__ == "__main__":
    main()
