"""Decomposer: a trained model loaded for inference, flat image in, layers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config.decompose import TextCondition
from config.errors import UserError
from config.paths import find_input
from inference.consensus import most_agreed
from inference.offloading import Offload, place
from models.transformer.sampling import Guidance, decompose_images, slots_noise
from models.transformer.text_condition import open_text_encoder, read_text_condition
from models.transformer.text_encoders import NULL_TEXT, TextEncoder
from models.transformer.trained_for import TrainedFor, read_trained_for
from models.transformer.vld_mmdit import Text, VLDMMDiT, as_text
from models.vae.autoencoder import RGBAVAE
from models.vae.latents import at_once, encode_images


class GuidanceError(UserError):
    """Guidance was requested of a network without text."""


def names_of_tries(ids: Sequence[str], tries: int) -> list[list[str]]:
    """Names that seed the noise of each candidate; those of the first candidate are the images' ids."""
    return [list(ids), *([f"{name}#{number}" for name in ids] for number in range(1, tries))]


@dataclass(frozen=True)
class Decomposer:
    """Networks of one folder, in evaluation mode on one device.

    Attributes:
        network: VLD-MMDiT.
        vae: RGBA-VAE, in float32.
        encoder: text encoder of captions; ``None`` for a network without text.
        condition: text encoder settings that the network was trained with.
        trained_for: sizes and layers that it was trained with, and the shift of its sampler.
        device: device of computation.
        dtype: dtype of the network's and the encoder's weights; latents between steps are float32.
    """

    network: VLDMMDiT
    vae: RGBAVAE
    encoder: TextEncoder | None
    condition: TextCondition
    trained_for: TrainedFor
    device: torch.device
    dtype: torch.dtype = torch.float32

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        offload: Offload = "none",
    ) -> Decomposer:
        """Load a model folder of the stages or of the released layout: ``vae/``, ``transformer/`` and a text encoder.

        Args:
            source: folder, here or in the project (:mod:`config.paths`), or a hub repository ``owner/name``.
            device: device of computation; ``None`` takes a GPU if there is one.
            dtype: float32 or bfloat16, of network and text encoder; the released network is 38 GiB in bfloat16.
            offload: for GPUs smaller than the networks, see :func:`inference.offloading.place`; the VAE stays there.

        Raises:
            FileNotFoundError: if something is missing.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = find_input(source)
        source = folder if folder.is_dir() else source
        vae = RGBAVAE.from_pretrained(source, "vae").to(device).eval()
        network = VLDMMDiT.from_pretrained(source, dtype).eval()
        condition = read_text_condition(source)
        encoder = open_text_encoder(condition, "cpu", dtype)
        modules = [network.transformer] if encoder is None else [encoder.model, network.transformer]
        place(modules, device, offload, [vae.encoder, vae.decoder])
        return cls(network, vae, encoder, condition, read_trained_for(source), device, dtype)

    @property
    def multiple(self) -> int:
        """Number of pixels of which both sides of an image must be a multiple."""
        return self.vae.spatial_factor * self.network.patch_size

    def check_guidance(self, scale: float) -> None:
        """Raise :class:`GuidanceError` if guidance is requested of a network without text."""
        if scale != 1.0 and self.encoder is None:
            raise GuidanceError(f"guidance: got {scale:g}, expected 1: this network was trained without captions")

    @staticmethod
    def guides(scale: float, captions: Sequence[str] | None) -> bool:
        """True if guidance has an effect, which takes twice the network calls.

        If all captions are empty, both branches read the null text, and their difference is 0.
        """
        return scale != 1.0 and any((caption or NULL_TEXT) != NULL_TEXT for caption in captions or ())

    @torch.no_grad()
    def decompose(
        self,
        images: Tensor,
        layer_count: int,
        ids: Sequence[str],
        captions: Sequence[str] | None,
        *,
        steps: int,
        seed: int,
        guidance: float = 1.0,
        tries: int = 1,
    ) -> Tensor:
        """Decompose ``(B, 4, H, W)`` images in [-1, 1] into ``(B, L, 4, H, W)`` layers, bottom to top, in [-1, 1].

        Args:
            images: sides are multiples of :attr:`multiple`.
            layer_count: number of layers L.
            ids: names of the images: the noise of each depends only on its name and the seed, not on the batch.
            captions: descriptions of the images; "" is the null text, as for captions dropped in training; ``None`` for
                none. Ignored by a network without text.
            steps: steps of the Euler sampler.
            seed: seed of the noise.
            guidance: scale of classifier-free guidance by the caption; 1 is none. It has no effect without captions.
            tries: candidates from different noise, of which :func:`inference.consensus.most_agreed` chooses one.

        Raises:
            GuidanceError: for guidance of a network without text.
        """
        self.check_guidance(guidance)
        text = self._text(captions or [""] * len(images))
        guide = Guidance(guidance, self._text([""] * len(images))) if self.guides(guidance, captions) else None
        images = images.to(self.device)
        condition = encode_images(self.vae, images)
        candidates = [
            decompose_images(
                self.network,
                self.vae,
                condition,
                slots_noise(condition, layer_count, names, seed),
                steps=steps,
                shift=self.trained_for.sampling_shift,
                text=text,
                guidance=guide,
            )
            for names in names_of_tries(ids, tries)
        ]
        layers = torch.stack(candidates)
        chosen = most_agreed(layers, images)
        return layers[chosen, torch.arange(len(ids))].cpu()

    def _text(self, captions: Sequence[str]) -> Text | None:
        if self.encoder is None:
            return None
        states, mask = self.encoder.encode([caption or NULL_TEXT for caption in captions])
        return as_text(states.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def reconstruct(self, layers: Tensor) -> Tensor:
        """Reconstruct layers ``(L, 4, H, W)`` in [-1, 1] by the VAE: posterior mode, decoded, clipped to [-1, 1]."""
        parts = layers.split(at_once(layers.shape[-2] * layers.shape[-1]))
        # Latents are not normalised and denormalised, which would round them.
        posteriors = (self.vae.encode(part.to(self.device)) for part in parts)
        return torch.cat([self.vae.decode(posterior.mode(), clamp=True).cpu() for posterior in posteriors])
