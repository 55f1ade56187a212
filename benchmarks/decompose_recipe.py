"""Validation metrics of the decomposition network over samples and time, for a recipe with changes.

    python -m benchmarks.decompose_recipe [--samples 8000] [--every 2000] [--without SWITCH] [KEY=VALUE ...]

The recipe is the block train_decompose of presets/from_nothing.yaml; ``KEY=VALUE`` changes it, as in
``optimisation.batch_size=4``. ``--without`` removes a part as in the paper's ablation (table 2). Without
``layer_rope`` all slots and the condition have the same index. Without ``rgba_condition`` the flat image is in another
latent space than the layers, here a linear code of RGB patches. The network is trained on the cached latents of
``models/weights/vae`` (``dvc repro train_vae``), held in memory. Validation of the EMA weights is not timed. It is the
velocity error at fixed noise and sigmas, and scores of sampled images by the protocol at 0 merges.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from benchmarks.changes import changed_params
from config.paths import CACHE, WEIGHTS
from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import StackDataset
from models.transformer.vld_mmdit import VLDMMDiT
from models.vae.autoencoder import RGBAVAE
from training.decompose.build import build_network, build_objective
from training.decompose.captions import embed_captions
from training.decompose.latents import both_splits
from training.decompose.validation import held_out_velocity_error, sampled_scores
from training.engine.ema import ema_weights, update_ema
from training.engine.schedule import learning_rate
from training.engine.state import BETAS

SWITCHES = ("layer_rope", "rgba_condition")


class RGBCondition(nn.Module):
    """Network whose input image is a normalised linear code of its RGB patches.

    Args:
        network: the network.
        vae: of the layers' latents.
        latents: ``(N, C, h, w)`` of images to which the code is fitted.
    """

    def __init__(self, network: VLDMMDiT, vae: RGBAVAE, latents: torch.Tensor) -> None:
        super().__init__()
        self.network, self.transformer, self.patch_size = network, network.transformer, network.patch_size
        self.condition_tokens = network.condition_tokens
        self.show = lambda latents: vae.decode(vae.denormalise(latents), clamp=True)[:, :3]
        with torch.no_grad():
            rows = torch.cat([self._patches(chunk).movedim(1, -1).flatten(0, 2) for chunk in latents.split(16)])
        self.mean = rows.mean(0)
        axes = torch.linalg.svd(rows - self.mean, full_matrices=False).Vh[: latents.shape[1]]
        self.axes = axes / ((rows - self.mean) @ axes.T).std(0)[:, None]

    def _patches(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = self.show(latents)
        return F.pixel_unshuffle(pixels, pixels.shape[-1] // latents.shape[-1])

    def forward(self, noisy, condition, sigma, text=None):
        """Predict velocities, as :class:`models.transformer.vld_mmdit.VLDMMDiT` does."""
        with torch.no_grad():
            rows = self._patches(condition).movedim(1, -1) - self.mean
            code = (rows @ self.axes.T).movedim(-1, 1)
        return self.network(noisy, code, sigma, text)


def flatten_layer_axis(network: VLDMMDiT) -> None:
    """Remove the layer axis from the rotary positions: only row and column remain."""
    positions = network.transformer.pos_embed.positions
    rotations = network.transformer.config.axes_dims_rope[0] // 2
    positions.pos_freqs[:, :rotations] = 1.0
    positions.neg_freqs[:, :rotations] = 1.0


def main() -> None:
    """Train and print validation metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of train_decompose")
    parser.add_argument("--samples", type=int, default=8000, help="the cosine's length")
    parser.add_argument("--stop", type=int, default=None, help="samples after which to stop")
    parser.add_argument("--every", type=int, default=2000, help="samples between rows")
    parser.add_argument("--steps", type=int, default=12, help="of the sampler")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", choices=SWITCHES, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    params = changed_params("train_decompose", arguments.changes)
    settings, root = params.train_decompose, params.prepare_buckets.output_root
    block = settings.optimisation
    vae = RGBAVAE.from_pretrained(WEIGHTS / "vae", "vae").eval()
    accelerator = Accelerator(cpu=True)
    train, held_out = both_splits(vae, WEIGHTS / "vae", root, cache_dir=CACHE / "latents", accelerator=accelerator)
    truth = StackDataset(root, "val")
    pool = [train.stack(i) for i in tqdm(range(len(train.ids)))]
    captions = embed_captions(settings.text, train.texts + held_out.texts, CACHE / "texts", accelerator)
    network = build_network(settings, vae.config.z_dim, captions)
    if arguments.without == "layer_rope":
        flatten_layer_axis(network)
    elif arguments.without == "rgba_condition":
        same_size = [i for i, key in enumerate(train.keys) if key[:2] == train.keys[0][:2]][:256]
        network = RGBCondition(network, vae, torch.stack([pool[i][0] for i in same_size]).float())
    objective = build_objective(network, vae, settings, captions)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, weight_decay=0.0)
    average, step, seen, spent = [p.detach().clone() for p in parameters], 0, 0, 0.0
    print(f"{vars(arguments)}, {sum(p.numel() for p in parameters)} parameters, {len(pool)} samples", flush=True)
    order = BucketBatches(train.keys, block.batch_size, seed=settings.seed)
    due, running = 0, []
    stop = arguments.stop or arguments.samples
    for indices in order.endless(0):
        if seen >= due or seen >= stop:
            due += arguments.every
            with ema_weights(average, parameters):
                network.eval()
                errors = held_out_velocity_error(network, held_out, accelerator, captions)
                sampler = {"samples": len(held_out.ids), "steps": arguments.steps}
                sampled = sampled_scores(network, vae, held_out, truth, accelerator, captions=captions, **sampler)
                network.train()
            recent = sum(running) / max(len(running), 1)
            running = []
            print(
                f"{seen:6d} samples, {spent:5.0f} s: train {recent:.4f}, composite {errors['velocity_composite']:.4f}, "
                f"layers {errors['velocity_layers']:.4f} "
                f"({', '.join(f'{v:.3f}' for k, v in errors.items() if 'sigma' in k)}); "
                + ", ".join(f"{k} {v:.4f}" for k, v in sampled.items()),
                flush=True,
            )
            if seen >= stop:
                break
        start = time.perf_counter()
        rate = learning_rate(
            seen, base=block.learning_rate, total=arguments.samples, warmup=block.warmup_samples, kind=block.schedule
        )
        optimizer.param_groups[0]["lr"] = rate
        torch.manual_seed(step)
        latents = torch.stack([pool[i] for i in indices]).float()
        texts = [train.texts[i] for i in indices]
        loss = objective({"latents": latents, "seen": seen, "texts": texts})["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, block.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running.append(loss.item())
        step, seen = step + 1, seen + len(indices)
        update_ema(average, parameters, block.ema_decay, step)
        spent += time.perf_counter() - start


if __name__ == "__main__":
    main()
