"""Text condition of a decomposition network: the encoder it was trained with, in a file beside its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from config.decompose import TextCondition
from models.transformer.text_encoders import TextEncoder, load_text_encoder

TEXT_FILE = "text.json"


def open_text_encoder(
    settings: TextCondition, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> TextEncoder | None:
    """Load the text encoder of a network; ``None`` for a network without text."""
    return load_text_encoder(
        settings.encoder, settings.source, device=device, dtype=dtype, max_sequence_length=settings.max_tokens
    )


def save_text_condition(settings: TextCondition, folder: str | Path) -> None:
    """Write ``text.json`` beside a network's weights: the text encoder it was trained with."""
    (Path(folder) / TEXT_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_text_condition(folder: str | Path) -> TextCondition:
    """Read the text encoder settings that the network of ``folder`` was trained with.

    Without ``text.json``, a folder with ``text_encoder/`` or a hub repository counts as the released layout, and any
    other folder as a network without text.
    """
    path = Path(folder) / TEXT_FILE
    if path.is_file():
        return TextCondition.model_validate_json(path.read_text(encoding="utf-8"))
    released = not Path(folder).is_dir() or (Path(folder) / "text_encoder").is_dir()
    return TextCondition(
        encoder="qwen" if released else "none", source=str(folder) if released else None, max_tokens=512, dropout=0.0
    )
