"""Perceptual metrics: LPIPS, and the Fréchet distance between sets of images.

LPIPS is the ``lpips`` package's; its AlexNet trunk and heads come from a file in the repository, so nothing is
downloaded. Fréchet distances are torchmetrics'. Over Inception features they are rFID; over AlexNet features they are
called ``fid_alexnet``.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import lpips
import torch
from torch import Tensor, nn

from config.errors import UserError, first_line
from layers.weight_files import read_weights, what_is_wrong

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

ALEXNET_FILE = Path(__file__).resolve().parents[2] / "models" / "pretrained" / "alexnet_features.safetensors"
# sha256 of torch-fidelity's file weights-inception-2015-12-05-6726825d.pth, whose name ends with its first digits.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# Exceptions of weight readers for a truncated file or one of another kind.
BROKEN = (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, TypeError)
# First layer of each of the five slices of lpips' AlexNet, in torchvision's numbering.
ALEXNET_SLICES = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
Trunk = Literal["alex", "vgg", "squeeze"]
# Shortest side in pixels; below, the trunk's pooling layers get empty inputs.
SMALLEST_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}


class TrunkError(UserError):
    """Weights that have to be downloaded are not available."""


class TooSmallError(UserError, ValueError):
    """Images are too small for the trunk's pooling layers."""


class Perceptual(nn.Module):
    """LPIPS 0.1 (Zhang et al. 2018) as a frozen module, for both the loss and the metric.

    Args:
        trunk: ``alex`` from the repository's file; ``vgg`` and ``squeeze`` through torchvision, which downloads them.

    Raises:
        TrunkError: if the download of a trunk fails.
    """

    def __init__(self, trunk: Trunk = "alex") -> None:
        super().__init__()
        self.trunk = trunk
        self.lpips = (_packaged_alexnet() if trunk == "alex" else _downloaded(trunk)).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Perceptual:
        """Stay in evaluation mode whatever ``mode`` is: the heads have dropout."""
        del mode
        return super().train(False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair of images ``(B, 3, H, W)`` in [-1, 1]: ``(B,)``, 0 for equal ones.

        Raises:
            TooSmallError: if a side is below what the trunk can pool.
        """
        if min(predicted.shape[-2:]) < (least := SMALLEST_SIDE[self.trunk]):
            size = f"{predicted.shape[-1]}x{predicted.shape[-2]}"
            raise TooSmallError(
                f"LPIPS ({self.trunk}): got images of {size} px, expected sides of at least {least}; make "
                "prepare_buckets.min_side or decode_scale larger, or the weight lpips 0"
            )
        # Squared differences of unit vectors are too small for the mantissa of bfloat16.
        with torch.autocast(predicted.device.type, enabled=False):
            return self.lpips(predicted.float(), target.float()).flatten()


def _packaged_alexnet() -> lpips.LPIPS:
    # torchvision would first draw 61 million random weights, classifier included, which are then replaced.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    state = dict(model.scaling_layer.state_dict(prefix="scaling_layer."))
    for name, tensor in read_weights(ALEXNET_FILE).items():
        if name.startswith("features."):
            _, layer, kind = name.split(".")
            state[f"net.slice{ALEXNET_SLICES[layer]}.{layer}.{kind}"] = tensor
        else:
            head = name.removeprefix("lin")
            state[name] = state[f"lins.{head}"] = tensor
    model.load_state_dict(state, assign=True)
    return model


def _downloaded(trunk: str) -> lpips.LPIPS:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lpips.LPIPS(net=trunk, verbose=False)
    except OSError as error:
        raise TrunkError(
            f"LPIPS trunk {trunk} cannot be downloaded ({error}); expected internet access, or the local trunk alex"
        ) from error
    except BROKEN as error:
        # torchvision checks the hash of a new download, but not of a file that is already cached.
        kept = Path(torch.hub.get_dir()) / "checkpoints"
        raise TrunkError(f"LPIPS trunk {trunk} in {kept} is damaged ({first_line(error)}); delete it there") from error


class AlexNetFeatures(nn.Module):
    """AlexNet's last convolutional features, averaged over positions; for Fréchet distances without Inception.

    Args:
        perceptual: LPIPS whose trunk, ``alex``, is used.
    """

    num_features = 256
    side = 224

    def __init__(self, perceptual: Perceptual) -> None:
        super().__init__()
        self.perceptual = perceptual

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, 256)`` of images ``(B, 3, H, W)`` in [0, 1], resized to 224 px."""
        images = nn.functional.interpolate(
            images, (self.side, self.side), mode="bilinear", align_corners=False, antialias=True
        )
        model = self.perceptual.lpips
        return model.net(model.scaling_layer(images * 2.0 - 1.0)).relu5.mean((2, 3))


def alexnet_distance(perceptual: Perceptual) -> FrechetInceptionDistance:
    """Fréchet distance over :class:`AlexNetFeatures`; images in [0, 1]. It is not rFID and must not be named so."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(AlexNetFeatures(perceptual), normalize=True)


def inception_distance(weights: Path | None) -> FrechetInceptionDistance:
    """FID over Inception features of torch-fidelity; images in [0, 1].

    Args:
        weights: torch-fidelity's ``pt_inception-2015-12-05-6726825d.pth``, or the same as safetensors; None downloads
            it. A .pth is read as plain tensors: any code in it is refused, not run.

    Raises:
        TrunkError: if the file or the download is not available, or is something else.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchmetrics.image.fid import FrechetInceptionDistance

    if weights is None:
        weights = _downloaded_inception(URL_INCEPTION_V3)
    if not weights.is_file():
        raise TrunkError(f"{weights}: no such file; expected torch-fidelity's Inception weights")
    try:
        if weights.suffix == ".safetensors":
            state = read_weights(weights)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        # torch-fidelity unpickles the path it is given, so it gets a file written here.
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "inception.pth")
            return FrechetInceptionDistance(
                2048, normalize=True, feature_extractor_weights_path=str(Path(folder) / "inception.pth")
            )
    except BROKEN as error:
        said = what_is_wrong(weights, first_line(error), "torch-fidelity's Inception weights")
        raise TrunkError(said) from error


def _downloaded_inception(url: str) -> Path:
    """Path of the download in torch's cache; its sha256 is checked each time, whatever its origin."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    weights.parent.mkdir(parents=True, exist_ok=True)
    if not weights.is_file():
        try:
            torch.hub.download_url_to_file(url, str(weights), progress=False)
        except OSError as error:
            raise TrunkError(
                f"Inception weights cannot be downloaded ({error}); expected internet access, or a path to the file"
            ) from error
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != INCEPTION_SHA256:
        raise TrunkError(
            f"{weights} has the sha256 {sha256}, expected {INCEPTION_SHA256} of torch-fidelity's Inception weights; "
            "delete it, and it is downloaded anew"
        )
    return weights
