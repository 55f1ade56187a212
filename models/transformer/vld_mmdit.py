"""VLD-MMDiT, the decomposition network (paper sec. 3.2), around ``diffusers.QwenImageTransformer2DModel``.

Only this module defines the order of slots, their packing into tokens and their layer indices:

    tokens = [composite | layer 1 (bottom) | ... | layer L (top) | condition image]
    layer index  0            1                       L              -1

The composite and the layers are noisy; the condition is the clean latent of the flat image. Without a condition, as in
the first two phases of the curriculum, its tokens are left out. Rotary positions for the layer axis come from
``use_layer3d_rope``, which gives the last entry of ``img_shapes`` index -1. It reads only the layout of the first
sample, so a batch is homogeneous in (H, W, L).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from einops import rearrange
from torch import Tensor, nn

from layers.weight_files import WeightsFileError, read_json
from models.diffusers_folder import CONFIG_FILE, locate, weight_files
from models.precision import MixedPrecision, at_least_float32

# The released pipeline always passes 0; its name `is_rgb` suggests that 1 meant RGB output in stage 1.
RGBA_TASK = 0

# Token states (B, T, D) and their mask (B, T), true where a token is not padding; None without padding.
Text = tuple[Tensor, Tensor | None]


def as_text(states: Tensor, mask: Tensor) -> Text:
    """States and mask as :class:`VLDMMDiT` reads them; called once per text, because the host reads the mask.

    A mask without padding is dropped: it has no effect but would disable attention's fastest kernel.
    """
    return states, None if mask.all() else mask


def build_transformer(
    *,
    latent_channels: int,
    patch_size: int,
    num_layers: int,
    num_attention_heads: int,
    attention_head_dim: int,
    axes_dims_rope: tuple[int, int, int],
    joint_attention_dim: int,
) -> QwenImageTransformer2DModel:
    """Build a transformer of the released architecture with random weights, at any size.

    Args:
        latent_channels: latent channels of the VAE.
        patch_size: latents per token side.
        num_layers: number of blocks.
        num_attention_heads: width divided by ``attention_head_dim``.
        attention_head_dim: channels of one head.
        axes_dims_rope: rotary channels for layer, row, column; they add up to ``attention_head_dim``.
        joint_attention_dim: width of text tokens.
    """
    return QwenImageTransformer2DModel(
        patch_size=patch_size,
        in_channels=latent_channels * patch_size**2,
        out_channels=latent_channels,
        num_layers=num_layers,
        attention_head_dim=attention_head_dim,
        num_attention_heads=num_attention_heads,
        joint_attention_dim=joint_attention_dim,
        axes_dims_rope=tuple(axes_dims_rope),
        use_additional_t_cond=True,
        use_layer3d_rope=True,
    )


def pack(latents: Tensor, patch_size: int) -> Tensor:
    """Pack ``(B, S, C, h, w)`` to tokens ``(B, S h/p w/p, C p p)``; order (slot, row, column), features (C, p, p).

    Raises:
        ValueError: if ``h`` or ``w`` is no multiple of the patch size.
    """
    height, width = latents.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"latents of {height}x{width} do not split into patches of {patch_size}x{patch_size}")
    return rearrange(latents, "b s c (h p) (w q) -> b (s h w) (c p q)", p=patch_size, q=patch_size)


def unpack(tokens: Tensor, slots: int, size: tuple[int, int], patch_size: int) -> Tensor:
    """Inverse of :func:`pack` for ``slots`` slots of (h, w) = ``size`` latents."""
    return rearrange(
        tokens,
        "b (s h w) (c p q) -> b s c (h p) (w q)",
        s=slots,
        h=size[0] // patch_size,
        w=size[1] // patch_size,
        p=patch_size,
        q=patch_size,
    )


class SlotPositions(nn.Module):
    """Rotary positions of diffusers, for sequences with and without a condition image.

    diffusers always takes the last entry of ``img_shapes`` for the condition. Here it may be ``None`` for no condition:
    slots and text then have the same positions as with a condition.
    """

    def __init__(self, positions: nn.Module) -> None:
        super().__init__()
        self.positions = positions

    def forward(
        self, img_shapes: list[list[tuple[int, int, int] | None]], max_txt_seq_len: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Complex rotations of image tokens and of text tokens."""
        *slots, condition = img_shapes[0]
        image, text = self.positions([[*slots, condition or slots[0]]], max_txt_seq_len=max_txt_seq_len, device=device)
        return (image if condition else image[: len(image) * len(slots) // (len(slots) + 1)]), text


class VLDMMDiT(MixedPrecision):
    """Network that predicts the velocity of all slots from the flat image and the caption; either may be missing.

    Args:
        transformer: transformer from :func:`build_transformer`, or the released one.
    """

    def __init__(self, transformer: QwenImageTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.pos_embed = SlotPositions(transformer.pos_embed)

    @property
    def patch_size(self) -> int:
        """Latents per token side."""
        return self.transformer.config.patch_size

    def condition_tokens(self, size: tuple[int, int]) -> int:
        """Number of condition tokens for (h, w) latents, on which the inference shift depends."""
        return (size[0] // self.patch_size) * (size[1] // self.patch_size)

    def forward(
        self,
        noisy: Tensor,
        condition: Tensor | None,
        sigma: Tensor,
        text: Text | None = None,
    ) -> Tensor:
        """Predict v = noise - x_0 of every slot.

        Args:
            noisy: ``(B, L + 1, C, h, w)`` normalised latents, slot 0 the composite, then layers bottom to top.
            condition: ``(B, C, h, w)`` clean normalised latents of the flat image; ``None`` leaves its tokens out.
            sigma: ``(B,)`` in [0, 1], 1 is noise.
            text: token states ``(B, T, D)`` and a mask ``(B, T)``, true where a token is not padding, see
                :func:`as_text`; ``None`` is one zero token, the prompt of a network without text.

        Returns:
            ``(B, L + 1, C, h, w)`` in float32.

        Raises:
            ValueError: if the shapes of slots and condition do not match.
        """
        batch, slots, channels, height, width = noisy.shape
        if condition is not None and condition.shape != (batch, channels, height, width):
            raise ValueError(
                f"condition of shape {tuple(condition.shape)} does not fit slots of shape {tuple(noisy.shape)}; "
                f"expected {(batch, channels, height, width)}"
            )
        if text is None:
            states, mask = noisy.new_zeros(batch, 1, self.transformer.config.joint_attention_dim), None
        else:
            states, mask = text[0].to(noisy.dtype), text[1]
        images = noisy if condition is None else torch.cat([noisy, condition[:, None]], dim=1)
        tokens = pack(images, self.patch_size)
        shape = (1, height // self.patch_size, width // self.patch_size)
        with self.autocast(noisy.device):
            predicted = self.transformer(
                hidden_states=tokens,
                encoder_hidden_states=states,
                encoder_hidden_states_mask=mask,
                timestep=sigma,
                img_shapes=[[shape] * slots + [None if condition is None else shape]] * batch,
                additional_t_cond=torch.full((batch,), RGBA_TASK, dtype=torch.long, device=noisy.device),
                return_dict=False,
            )[0]
        noisy_tokens = slots * shape[1] * shape[2]
        return unpack(at_least_float32(predicted[:, :noisy_tokens]), slots, (height, width), self.patch_size)

    @classmethod
    def from_pretrained(cls, source: str | Path, dtype: torch.dtype = torch.float32) -> VLDMMDiT:
        """Load ``transformer/`` of a folder, or of a hub repository ``owner/name``, in the diffusers format.

        Args:
            source: folder or repository.
            dtype: dtype of the weights in memory, whatever the file has; if not float32, also of computation.

        Raises:
            FileNotFoundError: if there is no such folder, or no safetensors in it.
            WeightsFileError: if a file is truncated or not safetensors, or of another model.
        """
        path = locate(source, "transformer")
        if not (path / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{path}: no config.json; expected a transformer in the diffusers format")
        read_json(path / CONFIG_FILE)
        variant, _ = weight_files(path)
        how = {"torch_dtype": dtype, "use_safetensors": True, "variant": variant, "output_loading_info": True}
        try:
            transformer, report = QwenImageTransformer2DModel.from_pretrained(path, **how)
            # Diffusers fills missing tensors with random weights and only warns.
            if missing := sorted(report["missing_keys"]):
                raise ValueError(f"{len(missing)} tensors are missing, as {missing[0]}")
            network = cls(transformer)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())[:300]
            raise WeightsFileError(f"{path}: no transformer of this kind in the diffusers format ({said})") from error
        network.compute_dtype = None if dtype == torch.float32 else dtype
        return network

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``transformer/`` and the released model's ``scheduler/`` below ``folder``."""
        folder = Path(folder)
        self.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
        released_scheduler().save_pretrained(folder / "scheduler")


def released_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Scheduler of Qwen-Image-Layered: dynamic linear shift, no terminal shift."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        time_shift_type="linear",
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
    )
