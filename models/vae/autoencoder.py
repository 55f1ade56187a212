"""RGBA-VAE: the Qwen-Image VAE for single frames, as a 2-D network.

An image is one frame. Causal padding puts zero frames before it, so of every 3-D kernel only the last temporal tap
``[:, :, -1]`` sees data. ``time_conv`` of the temporal resamplings never runs on a first frame (diffusers 0.42.1,
``autoencoder_kl_qwenimage.py``). The network here consists of those taps alone. Modules have the names of
``diffusers.AutoencoderKLQwenImage``; files are written and read in its 3-D form.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from layers.files import whole_file, write_whole
from layers.weight_files import WeightsFileError, read_json
from models.diffusers_folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, load_safetensors, locate, locate_model
from models.precision import MixedPrecision, at_least_float32
from models.vae.blocks import AttentionBlock, Decoder, Encoder, FrameConv, Resample, ResidualBlock, RMSNorm
from models.vae.config import CLASS_NAME, VAEConfig

# On CPU a training step takes 6 to 20 % less time than in the contiguous layout (channel sums read neighbours, oneDNN
# does not reorder); GPUs need it for fast half precision.
MEMORY_FORMAT = torch.channels_last

INITIAL_LOGVAR = -6.0

# fmt: on


class DiagonalGaussian:
    """Posterior of the latent: independent normals with ``mean`` and ``logvar``, both ``(B, z, h, w)``.

    ``logvar`` is clamped to [-30, 20], as in diffusers.
    """

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean = mean
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        """Return the mean, which the released pipeline uses as the latent."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw a sample; with a generator on another device the noise is drawn there and moved."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """KL divergence to the standard normal, summed over the elements of each sample: ``(B,)``."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class RGBAVAE(MixedPrecision):
    """Variational autoencoder of single RGBA images, equal to ``AutoencoderKLQwenImage`` on ``(B, C, 1, H, W)``.

    Images are float in [-1, 1], straight alpha, alpha +1 opaque. Latents are unnormalised; :meth:`normalise` brings
    them to the scale of the transformer.
    """

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VAEConfig()
        self.encoder = Encoder(config)
        self.quant_conv = FrameConv(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = FrameConv(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        self.gradient_checkpointing = False
        for name in ("latents_mean", "latents_std"):
            self.register_buffer(name, torch.zeros(config.z_dim, 1, 1), persistent=False)
        self.set_latent_statistics(config.latents_mean, config.latents_std)
        self.to(memory_format=MEMORY_FORMAT)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel along H and along W."""
        return 2 ** (len(self.config.dim_mult) - 1)

    def init_from_scratch(self) -> RGBAVAE:
        """Initialise for fast training from scratch; return self.

        Every residual block starts as its shortcut (its last convolution is 0). The posterior starts narrow
        (log-variance :data:`INITIAL_LOGVAR`): at the usual 0 the noise is as large as the signal, and the decoder first
        learns to ignore its input.
        """
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
        with torch.no_grad():
            self.quant_conv.bias[self.config.z_dim :] = INITIAL_LOGVAR
        return self

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Save only the inputs of residual blocks for the backward pass, and recompute the rest."""
        self.gradient_checkpointing = enabled
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.gradient_checkpointing = enabled

    def enable_residual_branches(self, enabled: bool = True) -> None:
        """Switch residual branches; without them only shortcuts, resampling and end convolutions run (linear code)."""
        for module in self.modules():
            if isinstance(module, ResidualBlock | AttentionBlock):
                module.bypassed = not enabled

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Encode images ``(B, input_channels, H, W)`` in [-1, 1]; unnormalised posterior ``(B, z_dim, H/f, W/f)``.

        Raises:
            ValueError: if the shape does not fit, or H or W is not a multiple of f = ``spatial_factor``.
        """
        channels, factor = self.config.input_channels, self.spatial_factor
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"expected (B, {channels}, H, W) with H, W multiples of {factor}, got {tuple(x.shape)}")
        with self.autocast(x.device):
            moments = self.quant_conv(self.encoder(x.contiguous(memory_format=MEMORY_FORMAT)))
        mean, logvar = at_least_float32(moments).contiguous().chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)

    def decode(self, z: Tensor, clamp: bool = False) -> Tensor:
        """Decode unnormalised latents ``(B, z_dim, h, w)`` to images ``(B, input_channels, f h, f w)``.

        Args:
            z: latents as :meth:`encode` gives them.
            clamp: clip to [-1, 1], as diffusers always does; in training this would also cut the gradient.

        Raises:
            ValueError: if the shape does not fit.
        """
        if z.ndim != 4 or z.shape[1] != self.config.z_dim:
            raise ValueError(f"expected latents (B, {self.config.z_dim}, h, w), got {tuple(z.shape)}")
        z = z.to(self.post_quant_conv.weight.dtype)  # encode returns float32, whatever the dtype of the weights
        with self.autocast(z.device):
            x = self.decoder(self.post_quant_conv(z.contiguous(memory_format=MEMORY_FORMAT)))
        x = at_least_float32(x).contiguous()
        return x.clamp(-1.0, 1.0) if clamp else x

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct ``(B, input_channels, H, W)`` from the mode of the posterior, unclamped."""
        return self.decode(self.encode(x).mode())

    def normalise(self, z: Tensor) -> Tensor:
        """Bring latents ``(..., z_dim, h, w)`` to mean 0 and std 1 per channel."""
        return (z - self.latents_mean) / self.latents_std

    def denormalise(self, z: Tensor) -> Tensor:
        """Undo :meth:`normalise`."""
        return z * self.latents_std + self.latents_mean

    def set_latent_statistics(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Set the statistics of :meth:`normalise`, which ``config.json`` records: ``z_dim`` numbers each.

        Raises:
            ValueError: if the lengths do not fit or a std is not above 0.
        """
        mean, std = [float(m) for m in mean], [float(s) for s in std]
        self.config = replace(self.config, latents_mean=tuple(mean), latents_std=tuple(std))
        self.latents_mean.copy_(torch.tensor(mean).view(-1, 1, 1))
        self.latents_std.copy_(torch.tensor(std).view(-1, 1, 1))

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, subfolder: str | None = None) -> RGBAVAE:
        """Read a diffusers folder, sharded or not; parameters are float32, whatever the dtype of the files.

        Args:
            source: local folder; a string ``owner/name`` that is no folder is a Hugging Face repository, a Path never.
            subfolder: folder inside it, such as ``vae``; ``None`` for the folder itself, or else its ``vae``.

        Raises:
            FileNotFoundError: if folder, repository, config or safetensors are missing; a ``.bin`` is never read.
            WeightsFileError: if a file is truncated or not safetensors, or of another model.
        """
        folder = locate(source, subfolder) if subfolder else locate_model(source, "vae", CLASS_NAME)
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"no {CONFIG_FILE} in {folder}" + ("" if subfolder else ", nor in its folder vae"))
        config = read_json(folder / CONFIG_FILE)
        try:
            vae = cls(VAEConfig.from_diffusers(config))
        except (ValueError, TypeError) as error:
            raise WeightsFileError(f"{folder / CONFIG_FILE}: {error}") from error
        own = vae.state_dict()
        state = {}
        for name, tensor in load_safetensors(folder).items():
            if ".time_conv." not in name:
                frame = tensor[:, :, -1] if tensor.ndim == 5 else tensor
                state[name] = frame.flatten() if name.endswith(".gamma") else frame
        wrong = sorted(
            {n for n, t in state.items() if n not in own or t.shape != own[n].shape} | (own.keys() - state.keys())
        )
        if wrong:
            raise WeightsFileError(
                f"weights and {CONFIG_FILE} in {folder} do not fit: {len(wrong)} tensors, as {wrong[0]}"
            )
        vae.load_state_dict(state)
        return vae

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the folder for ``diffusers.AutoencoderKLQwenImage.from_pretrained``, each file in one rename.

        Weights that a single frame never uses (earlier taps, ``time_conv``) are written as zeros.
        """
        folder = Path(folder)
        with whole_file(folder / WEIGHTS_FILE, alone=True) as weights:
            save_file(self._state_dict_3d(), weights, metadata={"format": "pt"})
        config = json.dumps(self.config.to_diffusers(), indent=2) + "\n"
        write_whole(folder / CONFIG_FILE, config.encode(), alone=True)
        # This reader and diffusers' prefer an index to a single file: a stale index would load old weights.
        (folder / INDEX_FILE).unlink(missing_ok=True)

    def _state_dict_3d(self) -> dict[str, Tensor]:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        for name, module in self.named_modules():
            if isinstance(module, FrameConv):
                tap = state[f"{name}.weight"]
                cube = tap.new_zeros(*tap.shape[:2], module.kernel_size[0], *tap.shape[2:])
                cube[:, :, -1] = tap
                state[f"{name}.weight"] = cube
            elif isinstance(module, RMSNorm):
                state[f"{name}.gamma"] = state[f"{name}.gamma"].view(module.shape_3d)
            elif isinstance(module, Resample) and module.time_shape:
                like = module.resample[1].weight
                state[f"{name}.time_conv.weight"] = torch.zeros(module.time_shape, dtype=like.dtype)
                state[f"{name}.time_conv.bias"] = torch.zeros(module.time_shape[0], dtype=like.dtype)
        return state


def widen_to_rgba(vae: RGBAVAE, alpha_bias_init: float = 1.0) -> RGBAVAE:
    """Copy an RGB VAE and give the copy a fourth channel, as in the paper (sec. 3).

    First encoder and last decoder convolution are widened, with alpha weights 0 and alpha bias ``alpha_bias_init`` (+1
    is opaque). So latents and colours are at first those of the RGB model, whatever the input's alpha.

    Args:
        vae: VAE of 3 channels; one of 4 is copied unchanged.
        alpha_bias_init: initial alpha of every pixel, in [-1, 1].

    Raises:
        ValueError: if the VAE has neither 3 nor 4 channels.
    """
    wide = copy.deepcopy(vae)
    if vae.config.input_channels == 4:
        return wide
    if vae.config.input_channels != 3:
        raise ValueError(f"expected a VAE of 3 channels, got {vae.config.input_channels}")
    wide.config = replace(vae.config, input_channels=4)
    first, last = wide.encoder.conv_in, wide.decoder.conv_out
    first.in_channels = last.out_channels = 4
    first.weight = nn.Parameter(F.pad(first.weight.detach(), (0, 0, 0, 0, 0, 1)))
    last.weight = nn.Parameter(F.pad(last.weight.detach(), (0, 0, 0, 0, 0, 0, 0, 1)))
    last.bias = nn.Parameter(F.pad(last.bias.detach(), (0, 1), value=alpha_bias_init))
    return wide.to(memory_format=MEMORY_FORMAT)
