"""Reader of musubi-tuner's datasets for Qwen-Image-Layered (``multiple_target = true``).

As a folder:

    <root>/<id>.png                      the flat image; any of SUFFIXES
    <root>/<id>_0.png, <id>_1.png, ...   its layers, bottom to top by number, from 0 or 1; alpha required
    <root>/<id>.txt                      its caption

or as JSON lines, which take precedence if there are any:

    <root>/*.jsonl    {"image_path_0": flat, "image_path_1": lowest layer, "image_path_2": ..., "caption": ...}

where ``image_path`` may stand for ``image_path_0``, and paths are relative to the root or lie in it. The number of
layers may differ from sample to sample, which musubi-tuner itself refuses.

The order bottom to top is that of the released model, the datasets' target; musubi-tuner does not document it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from config.errors import SampleError, UserError
from layers.dataset.digest import text_digest
from layers.imaging.stack import LayeredSample
from layers.sources.base import Source
from layers.sources.listed import Entry, by_id, json_lines, numbered_gaps, read_stack, record
from layers.sources.location import Location
from layers.sources.memo import kept

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
NUMBERED = re.compile(r"(.+)_([0-9]+)", re.DOTALL)
PATH_KEY = re.compile(r"image_path_(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True)
class _Files:
    """The files of one sample of a folder."""

    flats: tuple[str, ...]
    layers: tuple[tuple[int, str], ...]
    caption: str | None


def _grouped(names: list[str]) -> dict[str, _Files]:
    """Assign images to samples and their layers.

    ``a_1`` is a layer of ``a`` if there is an image ``a``, unless ``a_1`` has a caption or layers of its own: then it
    is a sample. Captions decide as in musubi-tuner, where every sample has one.
    """
    images: dict[str, list[str]] = defaultdict(list)
    captions = set()
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() in SUFFIXES:
            images[path.stem].append(name)
        elif path.suffix == ".txt":
            captions.add(path.stem)
    parts = {stem: match for stem in images if (match := NUMBERED.fullmatch(stem)) and match[1] in images}
    owners = {match[1] for match in parts.values()} | captions
    layers: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for stem, match in parts.items():
        if stem not in owners:
            layers[match[1]] += [(int(match[2]), name) for name in images[stem]]
    return {
        stem: _Files(tuple(flats), tuple(sorted(layers[stem])), f"{stem}.txt" if stem in captions else None)
        for stem, flats in sorted(images.items())
        if stem not in parts or stem in owners
    }


def _first_path(entry: dict[str, Any]) -> Any:
    return entry.get("image_path") or entry.get("image_path_0")


def _numbered_paths(entry: dict[str, Any]) -> list[str]:
    """All paths of a record, the flat image's first."""
    named = {key: value for key, value in entry.items() if key.startswith("image_path_") and value is not None}
    if odd := [key for key in named if not PATH_KEY.fullmatch(key)]:
        raise SampleError(f"{odd[0]!r} is no valid key of a path, expected image_path_1")
    found = {int(key.removeprefix("image_path_")): value for key, value in named.items()}
    if entry.get("image_path") is not None:
        if 0 in found:
            raise SampleError("image_path and image_path_0 are both given")
        found[0] = entry["image_path"]
    for number in range(max(len(found), 1)):
        if number not in found:
            raise SampleError(f"record has no image_path_{number}")
        if not isinstance(found[number], str) or not found[number]:
            raise SampleError(f"image_path_{number} is no path")
    return [found[number] for number in sorted(found)]


class MusubiSource(Source):
    """A musubi-tuner dataset for Qwen-Image-Layered.

    Args:
        root: folder of the images, or of the ``*.jsonl``.

    Raises:
        UserError: if there is neither a ``*.jsonl`` nor an image with layers.
    """

    def __init__(self, root: Location) -> None:
        self.root = root
        self._token = uuid4().hex
        names = root.files()
        self._tables = [name for name in names if name.lower().endswith(".jsonl")]
        if not self._tables and not any(files.layers for files in kept(self._token, lambda: _grouped(names)).values()):
            raise UserError(
                f"{root.key}: {root.url} holds neither a *.jsonl nor an image x.png with layers x_0.png, x_1.png; "
                "expected a dataset of musubi-tuner for Qwen-Image-Layered"
            )

    def sample_ids(self) -> list[str]:
        """Stems of the flat images, sorted for a folder, in the order of the lines for JSON lines.

        An image without layers or a broken line is a sample too; reading it raises the error.
        """
        return list(self._index())

    def read(self, sample_id: str) -> LayeredSample:
        """Read one sample; layers bottom to top, the flat image as preview.

        Raises:
            SampleError: with the missing or broken part.
        """
        found = self._index().get(sample_id)
        if found is None:
            raise SampleError(f"no sample {sample_id!r}")
        if isinstance(found, _Files):
            return self._read_files(sample_id, found)
        entry = record(found)
        caption = entry.get("caption")
        notes = ["control images are not used"] if any(key.startswith("control_path") for key in entry) else []
        names = [self._below_root(name) for name in _numbered_paths(entry)]
        return read_stack(self.root, sample_id, names, caption.strip() if isinstance(caption, str) else "", notes)

    def signature(self, sample_id: str) -> str:
        """Digest of the sample's line, and of the names, sizes and times of its files."""
        found = self._index().get(sample_id)
        if isinstance(found, _Files):
            caption = [] if found.caption is None else [found.caption]
            return self.root.signature([*found.flats, *(name for _, name in found.layers), *caption])
        try:
            names = [self._below_root(name) for name in _numbered_paths(record(found or ""))]
        except SampleError:
            names = []
        return f"{text_digest(found or b'', 16)}-{self.root.signature(names)}"

    def _index(self) -> dict[str, _Files] | dict[str, Entry]:
        return kept(self._token, self._from_lines if self._tables else lambda: _grouped(self.root.files()))

    def _from_lines(self) -> dict[str, Entry]:
        entries = []
        for name in self._tables:
            prefix = "line" if len(self._tables) == 1 else f"{PurePosixPath(name).stem}-line"
            entries += json_lines(self.root.read(name), prefix)
        return by_id(entries, _first_path)

    def _below_root(self, name: str) -> str:
        # musubi-tuner's own examples have absolute paths; those below the root are accepted like relative ones.
        if not name.startswith("/") and "://" not in name:
            return name
        roots = (f"{self.root.root}/", f"{self.root.url.rstrip('/')}/")
        return next((name[len(root) :] for root in roots if name.startswith(root)), name)

    def _read_files(self, sample_id: str, files: _Files) -> LayeredSample:
        if len(files.flats) > 1:
            raise SampleError(f"{files.flats[0]}: several flat images, also {', '.join(files.flats[1:])}")
        numbers = [number for number, _ in files.layers]
        if len(set(numbers)) < len(numbers):
            raise SampleError(f"{files.flats[0]}: several images are one layer, numbers {numbers}")
        listed = ", ".join(map(str, numbers))
        notes = [f'layers are not numbered throughout: "{listed}"'] if numbers and numbered_gaps(numbers) else []
        caption = ""
        if files.caption is not None:
            try:
                caption = self.root.read(files.caption).decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise SampleError(f"{files.caption}: not UTF-8") from None
        return read_stack(self.root, sample_id, [files.flats[0], *(name for _, name in files.layers)], caption, notes)
