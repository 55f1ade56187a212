import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from models.transformer.flow import (
    draw_sigmas,
    inference_shift,
    inference_sigmas,
    interpolate,
    predict_clean,
    sample,
    shift_sigmas,
    velocity,
)
from models.transformer.vld_mmdit import released_scheduler


def test_signs_follow_diffusers():
    clean, noise = torch.full((2, 3), 2.0), torch.full((2, 3), -1.0)
    assert torch.equal(interpolate(clean, noise, torch.tensor([0.0, 1.0])), torch.stack([clean[0], noise[1]]))
    assert torch.equal(velocity(clean, noise), noise - clean)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    theirs = scheduler.scale_noise(clean, scheduler.timesteps[1:2].expand(2), noise)
    assert torch.allclose(interpolate(clean, noise, scheduler.sigmas[1:2].expand(2)), theirs)


def test_the_velocity_is_the_derivative_and_gives_the_clean_image_back():
    clean, noise = torch.randn(3, 4, dtype=torch.double), torch.randn(3, 4, dtype=torch.double)
    sigma, step = torch.tensor([0.2, 0.5, 0.9], dtype=torch.double), 1e-6
    slope = (interpolate(clean, noise, sigma + step) - interpolate(clean, noise, sigma - step)) / (2 * step)
    assert torch.allclose(slope, velocity(clean, noise), atol=1e-8)
    noisy = interpolate(clean, noise, sigma)
    assert torch.allclose(predict_clean(noisy, velocity(clean, noise), sigma), clean)


@pytest.mark.parametrize(("steps", "tokens"), [(50, 1600), (50, 4096), (12, 64), (4, 96)])
def test_sigmas_equal_the_released_pipelines(steps, tokens):
    scheduler = released_scheduler()
    mu = math.sqrt(tokens / 256)  # pipeline_qwenimage_layered.py: base_seqlen = 256 * 256 / 16 / 16
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0, steps + 1)[:-1], mu=mu)
    assert torch.allclose(torch.tensor(inference_sigmas(steps, tokens)), scheduler.sigmas, atol=1e-6)


def test_a_shift_that_is_said_takes_the_place_of_the_images():
    """sigma' = s / (s + 1/sigma - 1), in closed form at 1/2: s / (s + 1)."""
    assert inference_sigmas(2, 1600, 3.0) == inference_sigmas(2, 64, 3.0) == [1.0, 0.75, 0.0]
    assert inference_sigmas(2, 1600, 1.0) == [1.0, 0.5, 0.0]


def test_known_sigmas_at_640_pixels():
    sigmas = inference_sigmas(50, 1600)
    assert inference_shift(1600) == 2.5
    assert [round(sigmas[i], 4) for i in (0, 1, 10, 25, 40, 49, 50)] == [
        1.0,
        0.9919,
        0.9091,
        0.7143,
        0.3846,
        0.0485,
        0.0,
    ]


def test_euler_steps_equal_the_schedulers():
    scheduler = released_scheduler()
    sigmas = inference_sigmas(6, 400)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0, 7)[:-1], mu=inference_shift(400))
    start = torch.randn(2, 3, 4)
    field = lambda x, sigma: torch.sin(x) + sigma.view(-1, 1, 1)  # noqa: E731
    theirs = start
    for timestep in scheduler.timesteps:
        model_output = field(theirs, torch.full((2,), float(timestep) / 1000))
        theirs = scheduler.step(model_output, timestep, theirs, return_dict=False)[0]
    assert torch.allclose(sample(field, start, sigmas), theirs, atol=1e-4)


def test_a_perfect_predictor_reaches_the_clean_image_in_any_number_of_steps():
    clean, noise = torch.randn(2, 5), torch.randn(2, 5)
    for steps in (1, 3, 10):
        got = sample(lambda x, sigma: velocity(clean, noise), noise, inference_sigmas(steps, 64))
        assert torch.allclose(got, clean, atol=1e-5)


@pytest.mark.parametrize("stratified", [False, True])
def test_densities(stratified):
    torch.manual_seed(0)
    sigma = draw_sigmas(200_000, density="logit_normal", mean=0.7, std=1.2, stratified=stratified, shift=1.0)
    logits = torch.logit(sigma.double())
    assert logits.mean() == pytest.approx(0.7, abs=0.01) and logits.std() == pytest.approx(1.2, abs=0.01)
    uniform = draw_sigmas(200_000, density="uniform", mean=0.0, std=1.0, stratified=stratified, shift=1.0)
    assert torch.quantile(uniform, torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.01)
    with pytest.raises(ValueError, match="unknown timestep density"):
        draw_sigmas(1, density="beta", mean=0.0, std=1.0, stratified=stratified, shift=1.0)


def test_stratified_sigmas_cover_the_density_in_every_batch():
    torch.manual_seed(0)
    draws = torch.stack(
        [draw_sigmas(4, density="logit_normal", mean=2.0, std=1.2, stratified=True, shift=1.0) for _ in range(500)]
    )
    quantiles = torch.special.ndtr((torch.logit(draws.double()) - 2.0) / 1.2)
    assert torch.equal((quantiles * 4).long().sort(dim=1).values, torch.arange(4).expand(500, 4))
    assert torch.corrcoef(quantiles.T)[0, 1].abs() > 0.2, "samples of a batch are not independent, and should not be"
    assert quantiles.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.05), "no place in the batch has its own part"


def test_the_shift_adds_to_the_logit():
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.double)
    assert torch.allclose(torch.logit(shift_sigmas(sigma, 3.0)), torch.logit(sigma) + math.log(3.0))
    assert torch.equal(shift_sigmas(sigma, 1.0), sigma)
