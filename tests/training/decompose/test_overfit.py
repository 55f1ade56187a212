"""The gate: eight designs, a few hundred steps, and sampling from fresh noise gives their layers back."""

import numpy as np
import torch

from config.params import load_params
from layers.composer.compose import compose
from layers.dataset.buckets import BucketLimits
from layers.imaging.tensors import to_image, to_tensor
from layers.preparation.sample import Preparation, fit_to_bucket
from metrics.decomposition.scores import aggregate, score_sample
from models.transformer.condition_start import start_at_condition
from models.transformer.sampling import decompose_latents, slots_noise
from models.transformer.vld_mmdit import VLDMMDiT
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from models.vae.latents import decode_layers, encode_stack
from models.vae.linear_code import init_as_linear_code, patch_axes
from tests.support.imports import ROOT
from tests.support.networks import tiny_transformer
from training.decompose.flow_objective import FlowObjective
from training.losses import abmse, alpha_aware_l1
from training.vae.statistics import latent_statistics

SAMPLES, LAYERS, SIDE = 8, 3, 32
VAE_STEPS, STEPS = 200, 600


def designs():
    """Eight square designs of three layers: composites ``(8, 4, S, S)`` and layers ``(8, 3, 4, S, S)``."""
    preparation = Preparation(BucketLimits(max_side=SIDE, min_side=SIDE, max_pixels=SIDE * SIDE, max_aspect=1.2))
    composites, stacks, index = [], [], 0
    while len(stacks) < SAMPLES:
        sample, index = compose(index, seed=11, size=96), index + 1
        if sample.size[0] != sample.size[1]:
            continue
        fitted = fit_to_bucket(sample, preparation)
        if len(fitted.layers) == LAYERS:
            composites.append(to_tensor(fitted.composite))
            stacks.append(torch.stack([to_tensor(patch.on_canvas((SIDE, SIDE))) for patch in fitted.layers]))
    return torch.stack(composites), torch.stack(stacks)


def fitted_vae(images):
    """A VAE that knows these images: started as a linear code of their patches, then trained on them."""
    torch.manual_seed(0)
    vae = RGBAVAE(VAEConfig(base_dim=16, z_dim=16, dim_mult=(1, 2, 4)))
    init_as_linear_code(vae, patch_axes([images], 2, 16))
    for linear, rate in ((True, 3e-3), (False, 1e-3)):
        vae.enable_residual_branches(not linear)

        def loss(vae=vae):
            batch = images[torch.randperm(len(images))[:8]]
            out = vae.decode(vae.encode(batch).mode())
            return abmse(out, batch) + 0.2 * alpha_aware_l1(out, batch)

        descend(vae, loss, VAE_STEPS, rate)
    vae.set_latent_statistics(*latent_statistics(vae, [images]))
    return vae.eval()


def descend(network, loss, steps, rate):
    """AdamW with warm-up and a linear fall to 0."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 30, 2 * (steps - step) / steps)
        torch.manual_seed(step)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def scores(predicted, layers):
    pairs = zip(to_image(predicted), to_image(layers), strict=True)
    mean = aggregate([score_sample(list(mine), list(true), 0) for mine, true in pairs])[0]
    return np.array([mean.rgb_l1, mean.alpha_iou])


def test_eight_samples_are_learnt_by_heart():
    composites, layers = designs()
    vae = fitted_vae(torch.cat([composites, layers.flatten(0, 1)]))
    clean = encode_stack(vae, composites, layers)
    settings = load_params(ROOT / "params.yaml").train_decompose
    # What is known by heart needs no noise to find it in; edges are drawn where there is less of it.
    settings = settings.model_copy(update={"timestep": settings.timestep.model_copy(update={"mean": 1.0})})
    transformer = tiny_transformer(
        latent_channels=16,
        num_layers=4,
        num_attention_heads=6,
        attention_head_dim=32,
        axes_dims_rope=(8, 12, 12),
        joint_attention_dim=32,
    )
    start_at_condition(transformer)
    network = VLDMMDiT(transformer)
    objective = FlowObjective(network, settings)
    batch = {"latents": clean, "seen": 0}
    descend(network, lambda: objective(batch)["loss"], STEPS, 2e-3)
    noise = slots_noise(clean[:, 0], LAYERS, [str(k) for k in range(8)], seed=7)
    found = decompose_latents(network.eval(), clean[:, 0], noise, steps=12)
    l1, iou = scores(decode_layers(vae, found[:, 1:]), layers)
    best_l1, best_iou = scores(decode_layers(vae, clean[:, 1:]), layers)
    assert best_iou > 0.8, "the VAE says nothing about the network otherwise"
    assert l1 < best_l1 + 0.03 and iou > best_iou - 0.05
