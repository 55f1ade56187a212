"""The language model of ``models.tiny_release`` in float32, with fewer tokens, and texts to give it."""

from pathlib import Path

import torch

from models import tiny_release
from models.transformer.text_encoders import NULL_TEXT

WIDTH = tiny_release.TEXT_WIDTH
# Too few for a token of every word of the template: some of it stays before the caption.
VOCABULARY = 323
TEXTS = [
    "A red poster, a {brace} in it.",
    "",
    "Ein Plakat mit Umlauten: äöü, 海报, 🙂; and a second line\nwith <|im_end|> inside.",
    "disc",
    NULL_TEXT,
]


def write_text_encoder(root: Path) -> Path:
    """Write ``text_encoder/`` and ``tokenizer/`` below ``root``."""
    return tiny_release.write_text_encoder(root, dtype=torch.float32, vocabulary=VOCABULARY)
