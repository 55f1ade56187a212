"""LPIPS against the lpips package and its published figures; Fréchet distances against a closed form."""

import inspect
import pickle
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from metrics.reconstruction import perceptual as module
from metrics.reconstruction.perceptual import (
    ALEXNET_FILE,
    AlexNetFeatures,
    Perceptual,
    TooSmallError,
    TrunkError,
    alexnet_distance,
    inception_distance,
)

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "weights" / "lpips_reference"


@pytest.fixture(scope="module")
def perceptual():
    return Perceptual()


def drawn(count, size=64, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the LPIPS project's images are not beside this checkout")
def test_the_published_figures(perceptual):
    def read(name):
        pixels = np.asarray(Image.open(REFERENCE / f"{name}.png").convert("RGB"))
        return torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    assert perceptual(read("ex_ref"), read("ex_p0")).item() == pytest.approx(0.722, abs=5e-4)
    assert perceptual(read("ex_ref"), read("ex_p1")).item() == pytest.approx(0.138, abs=5e-4)


@pytest.mark.filterwarnings("ignore")
def test_it_equals_the_package_with_its_own_heads(perceptual):
    """Heads as lpips loads them, trunk by torchvision's names: nothing here goes through our loader."""
    reference = lpips.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False)
    trunk = {n.removeprefix("features."): t for n, t in load_file(ALEXNET_FILE).items() if n.startswith("features.")}
    with torch.no_grad():
        for name, parameter in reference.net.named_parameters():
            parameter.copy_(trunk[name.split(".", 1)[1]])
    x, y = drawn(2), drawn(2, seed=1)
    assert torch.allclose(perceptual(x, y), reference(x, y).flatten(), atol=1e-7)
    heads = torch.load(
        Path(inspect.getfile(lpips)).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True
    )
    ours = load_file(ALEXNET_FILE)
    assert all(torch.equal(ours[name], heads[name]) for name in heads)


def test_equal_images_and_growing_noise(perceptual):
    x = drawn(2) * 0.5
    assert perceptual(x, x).abs().max() == 0
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    distances = [perceptual(x + scale * noise, x).mean().item() for scale in (0.02, 0.1, 0.4)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_gradients_reach_the_image_and_nothing_else(perceptual):
    assert not any(p.requires_grad for p in perceptual.parameters())
    x = drawn(1).requires_grad_()
    perceptual.train()
    assert not any(m.training for m in perceptual.modules()), "dropout of the heads must stay off"
    perceptual(x, drawn(1, seed=1)).sum().backward()
    assert x.grad.abs().max() > 0


def test_too_small_images_are_named(perceptual):
    assert perceptual(drawn(1, 31), drawn(1, 31, seed=1)).isfinite().all()
    with pytest.raises(TooSmallError, match="got images of 30x30 px, expected sides of at least 31"):
        perceptual(drawn(1, 30), drawn(1, 30))


def test_a_trunk_that_cannot_be_downloaded(monkeypatch):
    def offline(**_):
        raise OSError("no route")

    monkeypatch.setattr(module.lpips, "LPIPS", offline)
    with pytest.raises(TrunkError, match=r"LPIPS trunk vgg cannot be downloaded \(no route\)"):
        Perceptual("vgg")


def test_the_frechet_distance_over_alexnet(perceptual):
    """With centred features A and B, Tr sqrt(cov_A cov_B) is the nuclear norm of A B^T / (n - 1)."""
    metric = alexnet_distance(perceptual)
    real, fake = (drawn(12, 64, seed) / 2 + 0.5 for seed in (0, 1))
    fake = fake.square()
    with torch.no_grad():
        for images, side in ((real, True), (fake, False)):
            metric.update(images[:5], real=side)
            metric.update(images[5:], real=side)
        features = [AlexNetFeatures(perceptual)(x).double() for x in (real, fake)]
    centred = [f - f.mean(0) for f in features]
    traces = sum(c.square().sum() / 11 for c in centred)
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T / 11).sum()
    expected = (features[0].mean(0) - features[1].mean(0)).square().sum() + traces - 2 * cross
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-2)


def test_inception_weights_by_path(tmp_path):
    """Random weights in torch-fidelity's own form, as .pth and as safetensors, give what its network gives."""
    torch.manual_seed(0)
    original = FeatureExtractorInceptionV3.load_state_dict
    try:
        FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
        torch.save({}, tmp_path / "empty.pth")
        network = FeatureExtractorInceptionV3("random", ["2048"], str(tmp_path / "empty.pth"))
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    state = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "inception.pth")
    save_file(state, tmp_path / "inception.safetensors")
    images = (drawn(2, 32) * 127.5 + 127.5).to(torch.uint8)
    for name in ("inception.pth", "inception.safetensors"):
        extractor = inception_distance(tmp_path / name).inception
        loaded = extractor.state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert extractor(images).shape == (2, 2048)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched_by_a_pickle"),))


def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"x": Evil()}, file)
    with pytest.raises(TrunkError, match="something else, expected torch-fidelity's Inception weights"):
        inception_distance(tmp_path / "evil.pth")
    assert not (tmp_path / "touched_by_a_pickle").exists()
    with pytest.raises(TrunkError, match="no such file"):
        inception_distance(tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(TrunkError, match="expected torch-fidelity's"):
        inception_distance(tmp_path / "other.pth")
