"""Training step of the 2-D RGBA-VAE against ``diffusers.AutoencoderKLQwenImage`` with the same weights.

    python -m benchmarks.rgba_vae_step [--base-dim 16] [--size 64] [--batch 8] [--runs 7] [--threads 2]

One step is encode, decode of the mode, mean square, backward. Both sides take turns in one process; printed are
medians, the median of their ratios, and the largest difference of the outputs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from diffusers import AutoencoderKLQwenImage

from models.rgba_vae import RGBAVAE, VAEConfig


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-dim", type=int, default=16)
    parser.add_argument("--dim-mult", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ours = RGBAVAE(VAEConfig(base_dim=arguments.base_dim, dim_mult=tuple(arguments.dim_mult)))
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = AutoencoderKLQwenImage.from_pretrained(folder)
    images = torch.rand(arguments.batch, 4, arguments.size, arguments.size) * 2 - 1

    def two_d() -> torch.Tensor:
        return ours.decode(ours.encode(images).mode(), clamp=True)

    def three_d() -> torch.Tensor:
        return theirs.decode(theirs.encode(images[:, :, None]).latent_dist.mode()).sample[:, :, 0]

    def step(reconstruct, network) -> float:
        network.zero_grad()
        start = time.perf_counter()
        reconstruct().square().mean().backward()
        return time.perf_counter() - start

    with torch.no_grad():
        difference = (two_d() - three_d()).abs().max().item()
    step(two_d, ours), step(three_d, theirs)
    times = [(step(two_d, ours), step(three_d, theirs)) for _ in range(arguments.runs)]
    mine, reference = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(f"2-D {mine:.4f} s, 3-D {reference:.4f} s, median ratio {ratio:.2f}, largest difference {difference:.1e}")
    print(f"{vars(arguments)}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
