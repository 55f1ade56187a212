"""Photoshop documents, by psd-tools."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from psd_tools import PSDImage

from config.errors import UserError
from layers.export.crop import crop

MAX_SIDE = 30_000  # limit of the format in pixels; larger documents are PSB


def encode_psd(layers: Sequence[np.ndarray], names: Sequence[str]) -> bytes:
    """Make a PSD with one pixel layer per layer, each in place, and the flat image for viewers.

    Args:
        layers: bottom to top, ``(H, W, 4)`` uint8.
        names: names of the layers.

    Raises:
        UserError: if a side is beyond :data:`MAX_SIDE`.
    """
    height, width = layers[0].shape[:2]
    if max(height, width) > MAX_SIDE:
        raise UserError(f"psd: {width}x{height} pixels; the format ends at {MAX_SIDE} a side")
    document = PSDImage.new("RGBA", (width, height))
    for layer, name in zip(layers, names, strict=True):
        cut = crop(layer)
        document.create_pixel_layer(Image.fromarray(cut.image), name=name, top=cut.top, left=cut.left)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()
