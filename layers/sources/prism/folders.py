"""Folders of PrismLayers designs, converted to the columns of its tables."""

from __future__ import annotations

import re
from typing import Any

from config.errors import SampleError
from layers.sources.location import Location

METADATA = "metadata.json"
IMAGE = re.compile(r"layer_([0-9]{2,3})\.png")
KEPT = re.compile(r"(base|whole)_caption|layer_count|layer_[0-9]{2,3}_(box|caption)")


class PrismFolders:
    """Access to designs by the names of their folders.

    Args:
        root: location of the dataset.
        under: folder of the split, relative to ``root``; empty for the root itself.
    """

    def __init__(self, root: Location, under: str) -> None:
        self._root, self._under = root, under

    def ids(self) -> list[str]:
        """Names of all folders, sorted."""
        return self._root.folders(self._under)

    def holds(self, name: str) -> bool:
        """Whether a folder looks like a design."""
        try:
            return self._root.exists(f"{self._folder(name)}/{METADATA}")
        except SampleError:
            return False

    def signature(self, sample_id: str) -> str:
        """String that changes when a file of the folder does."""
        folder = self._folder(sample_id)
        try:
            names = self._root.files(folder)
        except SampleError:
            return "unreadable"
        return self._root.signature(f"{folder}/{name}" for name in names)

    def row(self, sample_id: str) -> dict[str, Any]:
        """The design as the columns of a row; images as paths.

        Raises:
            SampleError: if the metadata is missing or broken.
        """
        folder = self._folder(sample_id)
        metadata = self._root.read_json(f"{folder}/{METADATA}")
        if not isinstance(metadata, dict):
            raise SampleError(f"{METADATA} is no JSON object")
        names = self._root.files(folder)
        row = {column: value for column, value in metadata.items() if KEPT.fullmatch(column)}
        row["base_image"] = f"{folder}/base_image.png"
        row["whole_image"] = f"{folder}/whole_image.png" if "whole_image.png" in names else None
        listed = metadata.get("layers")
        if listed is None:
            return row | {name.removesuffix(".png"): f"{folder}/{name}" for name in names if IMAGE.fullmatch(name)}
        columns = _columns(listed, folder)
        row["unlisted"] = [
            name for name in names if IMAGE.fullmatch(name) and f"{folder}/{name}" not in columns.values()
        ]
        return row | columns

    def _folder(self, sample_id: str) -> str:
        return f"{self._under}/{sample_id}" if self._under else sample_id


def _columns(listed: Any, folder: str) -> dict[str, Any]:
    """Columns of a list of layers, in the order of ``layer_idx`` if all have one, else in that of the list."""
    if not isinstance(listed, list) or not all(isinstance(layer, dict) for layer in listed):
        raise SampleError(f"{METADATA}: layers is no list of objects")
    numbers = [layer.get("layer_idx") for layer in listed]
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        if len(set(numbers)) < len(numbers):
            raise SampleError(f"{METADATA}: several layers have one layer_idx")
        listed = sorted(listed, key=lambda layer: layer["layer_idx"])
    columns: dict[str, Any] = {"layer_count": len(listed)}
    for position, layer in enumerate(listed):
        path, column = layer.get("image_path"), f"layer_{position:02d}"
        if not isinstance(path, str) or not path:
            raise SampleError(f"{METADATA}: layer {position} has no image_path")
        columns[column] = f"{folder}/{path}"
        columns |= {f"{column}_{key}": layer.get(key) for key in ("box", "caption", "type")}
    return columns
