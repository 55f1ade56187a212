"""Export of layers to files that editors open: PNG, PSD, PPTX, ORA (OpenRaster) and ZIP.

A stack is a list of ``(H, W, 4)`` uint8 arrays with straight alpha, bottom to top, all of one size. Every file is made
in memory and gets its name by one rename, so a failure leaves no partial file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from config.errors import UserError
from layers.export.archive import encode_zip, png_name
from layers.export.ora import encode_ora
from layers.export.pptx import encode_pptx
from layers.export.psd import encode_psd
from layers.files import write_whole
from layers.imaging.codec import encode_png

ENCODERS: dict[str, Callable[[Sequence[np.ndarray], Sequence[str]], bytes]] = {
    "psd": encode_psd,
    "pptx": encode_pptx,
    "ora": encode_ora,
    "zip": encode_zip,
}
FORMATS = ("png", *ENCODERS)
# Names of files that this module writes: those of :func:`layer_names`, and parts of a layer that was split again.
OURS = re.compile(r"[0-9]{2,}_(background|layer(_[0-9]+)+)\.png")


def layer_names(count: int) -> list[str]:
    """Default names of layers: the lowest is the background."""
    return ["background", *(f"layer {index}" for index in range(1, count))]


def export(
    layers: Sequence[np.ndarray], target: Path, formats: Sequence[str], names: Sequence[str] | None = None
) -> list[Path]:
    """Write a stack in several formats.

    Args:
        layers: at least one, bottom to top.
        target: path without a suffix; ``png`` makes a folder of that name, with one full-canvas file per layer.
        formats: some of :data:`FORMATS`. Layers of an earlier export are removed from the folder of ``png``.
        names: names of the layers; ``None`` for those of :func:`layer_names`.

    Returns:
        The written paths, one per format; for ``png`` the folder.

    Raises:
        UserError: for an unknown format.
        ValueError: if there is no layer, or layers differ in size or are no RGBA images.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"format {unknown[0]!r}: expected one of {', '.join(FORMATS)}")
    check_stack(layers)
    names = layer_names(len(layers)) if names is None else list(names)
    places = outputs(target, formats)
    for name, place in zip(formats, places, strict=True):
        if name == "png":
            _write_folder(place, layers, names)
        else:
            write_whole(place, ENCODERS[name](layers, names))
    return places


def outputs(target: Path, formats: Sequence[str]) -> list[Path]:
    """Paths that :func:`export` writes: the folder ``target`` for ``png``, beside it a file for each other format."""
    return [target if name == "png" else target.with_name(f"{target.name}.{name}") for name in formats]


def _write_folder(folder: Path, layers: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Write one file per layer, and remove those of an earlier stack, which would count as layers of this one."""
    files = [png_name(index, name) for index, name in enumerate(names)]
    for file, layer in zip(files, layers, strict=True):
        write_whole(folder / file, encode_png(layer))
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in files:
            path.unlink()


def check_stack(layers: Sequence[np.ndarray]) -> None:
    """Raise ValueError unless ``layers`` are one or more ``(H, W, 4)`` uint8 images of one size."""
    if not layers:
        raise ValueError("a stack without layers; expected at least one")
    for index, layer in enumerate(layers):
        if layer.ndim != 3 or layer.shape[2] != 4 or layer.dtype != np.uint8 or layer.size == 0:
            raise ValueError(f"layer {index}: expected (H, W, 4) uint8, got {layer.shape} of {layer.dtype}")
        if layer.shape != layers[0].shape:
            raise ValueError(f"layer {index} is {layer.shape[1]}x{layer.shape[0]} pixels, layer 0 is not")
