import copy

import torch
from accelerate import Accelerator

from config.vae import TrainVAE
from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import RgbaComponentDataset, StackDataset, endless_batches
from metrics.reconstruction.perceptual import Perceptual
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from tests.support.workspace import SMOKE
from training.vae.linear_start import start_as_linear_code
from training.vae.statistics import LatentMoments
from training.vae.validation import reconstruction_grid, validate

CPU = torch.device("cpu")


def started(root, fit_samples):
    raw = copy.deepcopy(SMOKE["train_vae"])
    raw["opaque_share"] = 0.0
    raw["linear_start"] |= {"fit_samples": fit_samples, "learning_rate": 1.0e-3}
    settings = TrainVAE.model_validate(raw)
    dataset = RgbaComponentDataset(root, "train")
    order = BucketBatches(dataset.keys, 4, seed=0)
    torch.manual_seed(0)
    vae = RGBAVAE(VAEConfig(base_dim=16, z_dim=8, dim_mult=(1, 2, 4), num_res_blocks=1))
    start_as_linear_code(vae, settings, lambda: endless_batches(dataset, order, 0, 0), CPU, False)
    return vae.eval()


def test_the_fit_improves_on_the_closed_form_and_leaves_the_branches_silent(bucketed_root):
    held_out, perceptual = StackDataset(bucketed_root, "val"), Perceptual()
    process = Accelerator(cpu=True)
    closed, fitted = (validate(started(bucketed_root, n), held_out, perceptual, process) for n in (0, 1200))
    assert closed["psnr_white"] > 18.0, "nothing was trained yet"
    assert fitted["psnr_white"] > closed["psnr_white"] + 0.5
    vae = started(bucketed_root, 8)
    images = held_out[0]["layers"]
    with torch.no_grad():
        full = vae(images)
        vae.enable_residual_branches(False)
        assert torch.equal(vae(images), full)


def test_every_process_starts_from_the_same_weights(bucketed_root):
    first, second = (started(bucketed_root, 16).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_validation_names_what_it_measures(bucketed_root):
    vae, held_out = started(bucketed_root, 0), StackDataset(bucketed_root, "val")
    found = validate(vae, held_out, Perceptual(), Accelerator(cpu=True))
    metrics = {"psnr", "ssim", "lpips", "psnr_white"}
    latents = {"latent_std_least", "latent_std_most", "latent_mean_most", "posterior_std"}
    assert set(found) == metrics | {f"layer_{name}" for name in metrics} | {"alpha_l1"} | latents
    # Mean square 1 by construction, and a posterior as narrow as it was set.
    assert 0.05 < found["latent_std_least"] <= found["latent_std_most"] < 3.0
    assert 0.005 < found["posterior_std"] < 0.2
    assert reconstruction_grid(vae, held_out, CPU).shape[2] == 3


def test_moments_equal_those_of_torch():
    moments, latents = LatentMoments(3), torch.randn(4, 3, 5, 6) * 2 + 1
    moments.add(latents[:1])
    moments.add(latents[1:])
    mean, std = moments.result()
    rows = latents.transpose(0, 1).flatten(1).double()
    assert torch.allclose(mean, rows.mean(1)) and torch.allclose(std, rows.std(1, unbiased=False))
