import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from metrics.reconstruction.rgba import (
    BACKGROUNDS,
    PSNR_CEILING,
    mean_metrics,
    over_background,
    psnr,
    reconstruction_metrics,
    ssim,
)


def images():
    torch.manual_seed(0)
    target = torch.rand(3, 4, 32, 48) * 2 - 1
    return (target + 0.1 * torch.randn_like(target)).clamp(-1, 1), target


def test_psnr_and_ssim_equal_torchmetrics():
    predicted, target = images()
    a, b = over_background(predicted, BACKGROUNDS["white"]), over_background(target, BACKGROUNDS["white"])
    for k in range(3):
        one = slice(k, k + 1)
        assert float(psnr(a, b)[k]) == pytest.approx(
            float(PeakSignalNoiseRatio(data_range=1.0)(a[one], b[one])), abs=1e-5
        )
        theirs = StructuralSimilarityIndexMeasure(data_range=1.0)(a[one], b[one])
        assert float(ssim(a, b)[k]) == pytest.approx(float(theirs), abs=1e-5)


def test_psnr_closed_form_and_ceiling():
    target = torch.zeros(1, 3, 8, 8)
    assert float(psnr(target + 0.1, target)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(target, target)) == PSNR_CEILING


def test_blending():
    half = torch.full((1, 4, 2, 2), 1.0)
    half[:, 3] = 0.0
    assert torch.allclose(over_background(half, (0.0, 1.0, 0.0))[0, :, 0, 0], torch.tensor([0.5, 1.0, 0.5]))


def test_the_nine_backgrounds_are_averaged():
    assert len(BACKGROUNDS) == 9
    predicted, target = images()
    whole = reconstruction_metrics(predicted, target)
    single = [reconstruction_metrics(predicted, target, (name,)) for name in BACKGROUNDS]
    for k in range(3):
        assert whole[k]["psnr"] == pytest.approx(sum(rows[k]["psnr"] for rows in single) / 9, abs=1e-4)
    assert mean_metrics(whole)["ssim"] == pytest.approx(sum(row["ssim"] for row in whole) / 3)


def test_hidden_colour_does_not_count_and_alpha_does():
    target = torch.rand(1, 4, 16, 16) * 2 - 1
    target[:, 3] = -1.0
    predicted = target.clone()
    predicted[:, :3] *= -1.0
    (row,) = reconstruction_metrics(predicted, target)
    assert row["psnr"] == PSNR_CEILING and row["alpha_l1"] == 0.0
    predicted[:, 3] = 1.0
    assert reconstruction_metrics(predicted, target)[0]["alpha_l1"] == 1.0
