"""Caption token states by text, from the cache, with caption dropout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from torch import Tensor

from config.decompose import TextCondition
from layers.dataset.digest import text_digest
from models.transformer.text_encoders import NULL_TEXT, find_text_encoder, pad_texts
from models.transformer.vld_mmdit import Text, as_text
from training.engine.cache import TensorCache, embed_texts
from training.engine.processes import done_once, share, wait


class Captions:
    """Token states of captions, as the network reads them.

    Args:
        cache: holds an entry for every text that will be requested, and for the null text.
        width: channels D of the token states.
    """

    def __init__(self, cache: TensorCache, width: int) -> None:
        self.cache, self.width = cache, width

    def __call__(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Text:
        """Token states ``(B, T, D)`` in float32 and mask ``(B, T)`` of a batch of texts, padded on the right."""
        entries = [self.cache.get(text_digest(text)) for text in texts]
        states, mask = as_text(*pad_texts([(entry["embedding"].float(), entry["mask"]) for entry in entries]))
        return _sent(states, device), None if mask is None else _sent(mask, device)

    def dropped(self, texts: Sequence[str], share: float) -> list[str]:
        """Replace each text by the null text with probability ``share``, drawn from torch's global generator."""
        keep = (torch.rand(len(texts)) >= share).tolist()
        return [text if kept else NULL_TEXT for text, kept in zip(texts, keep, strict=True)]


def embed_captions(
    settings: TextCondition,
    texts: Iterable[Sequence[str]],
    cache_dir: str | Path,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
) -> Captions | None:
    """Encode captions missing from the cache, then release the encoder; ``None`` for a network without text.

    Args:
        settings: the text encoder.
        texts: all texts of each sample that will be requested; the null text is added.
        cache_dir: folder with the caches of all encoders.
        accelerator: device and processes, each of which encodes its part; the encoder is loaded only for that.
        dtype: dtype of the encoder and of the cached states.
    """
    source = find_text_encoder(settings.encoder, settings.source, dtype=dtype, max_sequence_length=settings.max_tokens)
    if source is None:
        return None
    identity = done_once(lambda: source.identity, accelerator)
    cache = TensorCache(cache_dir, identity)
    by_key = {text_digest(text): text for text in [NULL_TEXT, *sorted(set(chain.from_iterable(texts)))]}
    missing = [by_key[key] for key in cache.missing(by_key)]
    # No process may write before all have listed what is missing, or they would split different lists.
    wait(accelerator)
    if mine := share(missing, accelerator):
        encoder = source.load(accelerator.device)
        embed_texts(encoder.encode, mine, cache, progress=accelerator.is_main_process)
        del encoder
        release_memory()
    wait(accelerator)
    return Captions(TensorCache(cache_dir, identity), source.width)


def _sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; to a GPU asynchronously."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def caption_text(captions: Captions | None, batch: Mapping[str, Any], device: torch.device | str) -> Text | None:
    """Token states of the composites' captions of a batch with ``texts``; ``None`` for a network without text."""
    return None if captions is None else captions([said[0] for said in batch["texts"]], device)
