"""ZIP archives of full-canvas PNGs, with a list of the layers and their places."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence

import numpy as np

from layers.export.crop import crop
from layers.imaging.codec import encode_png
from layers.imaging.compositing import composite_8bit


def entry(path: str) -> zipfile.ZipInfo:
    """An entry with a constant time, so that equal layers give equal files."""
    info = zipfile.ZipInfo(path)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def png_name(index: int, name: str) -> str:
    """File name of a layer; names sort bottom to top, and of ``name`` only letters and digits stay."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40]
    return f"{index:02d}_{word}.png" if word else f"{index:02d}.png"


def encode_zip(layers: Sequence[np.ndarray], names: Sequence[str]) -> bytes:
    """Make a ZIP of full-canvas ``<k>_<name>.png``, ``composite.png`` and ``layers.json``.

    Args:
        layers: bottom to top, ``(H, W, 4)`` uint8.
        names: names of the layers.
    """
    height, width = layers[0].shape[:2]
    listed = []
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for index, (layer, name) in enumerate(zip(layers, names, strict=True)):
            cut, path = crop(layer), png_name(index, name)
            archive.writestr(entry(path), encode_png(layer))
            box = [cut.left, cut.top, cut.left + cut.image.shape[1], cut.top + cut.image.shape[0]]
            listed.append({"file": path, "name": name, "visible": box if layer[..., 3].any() else None})
        archive.writestr(entry("composite.png"), encode_png(composite_8bit(list(layers))))
        described = {"width": width, "height": height, "layers": listed}
        archive.writestr(entry("layers.json"), json.dumps(described, indent=2) + "\n")
    return file.getvalue()
