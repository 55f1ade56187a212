"""Lists of image files as designs: the flat image first, then the layers bottom to top.

That is the order of the released model's sequence, and so of the datasets that other trainers use for it. The readers
of musubi-tuner's and DiffSynth-Studio's datasets share this module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from config.errors import SampleError
from layers.imaging.pixels import cleared
from layers.imaging.stack import MAX_LAYERS, Layer, LayeredSample
from layers.sources.location import Location, parse_json

UNFIT = re.compile(r"[\\\x00-\x1f\ud800-\udfff]")
# One JSON record as bytes, or the reason as text why it could not be read.
Entry = bytes | str


def json_lines(data: bytes, prefix: str = "line") -> list[tuple[str, Entry]]:
    """Split JSON lines into records and the names of their lines, ``line-000001`` first; skips empty lines."""
    lines = enumerate(data.split(b"\n"), 1)
    return [(f"{prefix}-{number:06d}", line) for number, line in lines if line.strip()]


def record(entry: Entry) -> dict[str, Any]:
    """Parse one record.

    Raises:
        SampleError: if it is no JSON object.
    """
    if isinstance(entry, str):
        raise SampleError(entry)
    try:
        parsed = parse_json(entry)
    except ValueError as error:
        raise SampleError(f"record is not valid JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise SampleError(f"record is no JSON object but a {type(parsed).__name__}")
    return parsed


def by_id(entries: Sequence[tuple[str, Entry]], first: Callable[[dict[str, Any]], Any]) -> dict[str, Entry]:
    """Map sample ids to records; the id is the stem of the first image's path, or the full path where stems repeat.

    Args:
        entries: name of the line or row, and the record. A broken record or one without a path has its line's name as
            id, so that no record is lost.
        first: gives a record's first path.

    Returns:
        Records by id, in the order of the entries.
    """
    paths = [_path(entry, first) for _, entry in entries]
    stems = Counter(path.stem for path in paths if path is not None)
    found: dict[str, Entry] = {}
    for (line, entry), path in zip(entries, paths, strict=True):
        name = line if path is None else path.stem
        if path is not None and stems[path.stem] > 1:
            name = str(path.with_suffix("")).strip("/").replace("/", "-")
        while name in found:
            name = f"{name}-{line}"
        found[name] = entry
    return found


def _path(entry: Entry, first: Callable[[dict[str, Any]], Any]) -> PurePosixPath | None:
    try:
        name = first(record(entry))
    except SampleError:
        return None
    # An id must be valid as a file name and in JSON: no backslash, no control character, no lone surrogate.
    if not isinstance(name, str) or UNFIT.search(name):
        return None
    path = PurePosixPath(name)
    return path if path.stem.strip(".") else None


def numbered_gaps(numbers: Sequence[int]) -> bool:
    """Whether ascending numbers have gaps; they may begin with 0 or with 1."""
    return list(numbers) != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1


def read_stack(
    root: Location, sample_id: str, names: Sequence[str], caption: str, notes: Iterable[str] = ()
) -> LayeredSample:
    """Read a flat image and its layers.

    Args:
        root: location of the files.
        sample_id: id of the sample.
        names: the flat image, which becomes the preview and may have any size, then the layers bottom to top.
        caption: caption of the sample.
        notes: notes on the sample.

    Raises:
        SampleError: if there is no layer or too many, or an image cannot be read or has another size.
    """
    flat, *files = names
    if not files:
        raise SampleError(f"{flat}: no layers beside the flat image")
    if len(files) > MAX_LAYERS:
        raise SampleError(f"{len(files)} layers are above {MAX_LAYERS}")
    layers: list[Layer] = []
    for name in files:
        image = cleared(root.read_rgba(name))
        if layers and image.shape != layers[0].image.shape:
            sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (image, layers[0].image)]
            raise SampleError(f"{name}: layers differ in size, this is {sizes[0]}, the first {sizes[1]}")
        # The formats name no kinds; only the lowest layer, if it covers all, is certainly a background.
        ground = not layers and bool((image[..., 3] == 255).all())
        layers.append(Layer(image, "background" if ground else "image"))
    preview = root.read_rgba(flat)
    said = ["the flat image has another size than the layers"] if preview.shape != layers[0].image.shape else []
    return LayeredSample(sample_id, tuple(layers), caption, preview, (*notes, *said))
