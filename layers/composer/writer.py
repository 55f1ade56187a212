"""Writer of composed designs in the project's dataset form, which ``layers.sources.rendered`` reads.

    <root>/rendered/<id>/background.png, component_0.png, component_1.png, ...     full canvas, bottom to top
    <root>/layouts/<id>.json                                                       words and boxes, same order

In the JSON, a layer's kind is stored under keys that real designs have too. ``type`` is TEXT for text, GROUP for a
mixture and IMAGE for the rest; there ``data0_element_type`` is ``standard_img``, ``shape`` or ``shadow``.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from layers.composer import assets
from layers.composer.compose import Design, design, sample_id
from layers.composer.element import Element, Part
from layers.files import locked, put_folder, sync_all
from layers.preparation.fanout import fan_out

# zlib's fastest level: flat layers compress well at any level, and at higher ones writing costs more than drawing.
_COMPRESS_LEVEL = 1
_CHUNK = 32
_TYPES = {"text": "TEXT", "group": "GROUP"}
_ELEMENT_TYPES = {"text": "text", "group": "group", "image": "standard_img", "shape": "shape", "shadow": "shadow"}


def write_dataset(
    root: str | Path,
    indices: Iterable[int],
    *,
    seed: int,
    size: int,
    jobs: int,
    pool: str = "train",
    cluster: str = "local",
) -> int:
    """Write designs of a stream; existing ones are not written again.

    A sample's JSON is written after its images, so a run that was killed is continued by running it again.
    Samples of other seeds, sizes or pools have other names and may share the folder.

    Args:
        root: folder to write into; made if missing.
        indices: numbers of the designs in the stream, 0 or more.
        seed: see ``compose.compose``, as for ``size`` and ``pool``.
        size: long side in pixels.
        jobs: see ``layers.preparation.fanout.fan_out``, as for ``cluster``.
        pool: pool of the assets, one of ``assets.POOLS``.
        cluster: location of the processes.

    Returns:
        Number of samples written by this call.

    Raises:
        ValueError: if an argument is out of range.
    """
    assets.check_pool(pool)
    root = Path(root).resolve()
    # If two runs need the same designs, one composes them and the other waits.
    with locked(root / ".lock", f"composer: another run that composes designs in {root}", wait=True):
        for folder in ("rendered", "layouts", ".partial"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        done = {path.stem for path in (root / "layouts").glob("*.json")}
        missing = [i for i in indices if sample_id(i, seed=seed, size=size, pool=pool) not in done]
        chunks = (missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK))
        write = partial(_write_samples, root, seed=seed, size=size, pool=pool)
        with tqdm(total=len(missing), desc="compose", unit="sample", mininterval=1.0) as bar:
            for chunk, _ in fan_out(write, chunks, jobs=jobs, cluster=cluster):
                bar.update(len(chunk))
        with contextlib.suppress(OSError):
            (root / ".partial").rmdir()
        return len(missing)


def _write_samples(root: Path, indices: list[int], *, seed: int, size: int, pool: str) -> None:
    drafts = [_write_sample(root, design(index, seed=seed, size=size, pool=pool)) for index in indices]
    sync_all()  # before any layout is written, since a layout implies that its images exist
    for draft in drafts:
        draft.replace(root / "layouts" / draft.name)


def _write_sample(root: Path, made: Design) -> Path:
    """Write a design's images, and its layout to a place where readers do not look yet."""
    name = made.sample.sample_id
    draft_folder = Path(tempfile.mkdtemp(dir=root / ".partial"))
    draft_folder.chmod(0o755)
    for file, layer in zip(_files(made), made.sample.layers, strict=True):
        Image.fromarray(layer.image).save(draft_folder / file, compress_level=_COMPRESS_LEVEL)
    # Images without a JSON are left from a killed run.
    put_folder(draft_folder, root / "rendered" / name, sync=False)
    draft = root / ".partial" / f"{name}.json"
    draft.write_text(json.dumps(layout_json(made), indent=1, ensure_ascii=False), encoding="utf-8")
    return draft


def _files(made: Design) -> list[str]:
    return ["background.png", *(f"component_{k}.png" for k in range(len(made.sample.layers) - 1))]


def layout_json(made: Design) -> dict[str, Any]:
    """Layout of a design as JSON content; components in the order of the component files."""
    height, width = made.sample.size
    name = made.sample.sample_id
    pairs = zip(made.elements[1:], made.sample.layers[1:], strict=True)
    return {
        "layout_config": {
            "width": width,
            "height": height,
            "background_description": made.sample.layers[0].description,
            "components": [_component(element, layer.image) for element, layer in pairs],
        },
        "layout_metadata": {"width": width, "height": height},
        "layout_semantic_description": {"description": made.sample.caption, "tags": [made.layout]},
        "component_renders": [f"rendered/{name}/{file}" for file in _files(made)],
        "sub_category": made.layout,
        "stratum": made.sample.stratum,
    }


def _component(element: Element, image: np.ndarray) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(image[..., 3].any(axis)) for axis in (1, 0))
    component = {
        "type": _TYPES.get(element.kind, "IMAGE"),
        "data0_element_type": _ELEMENT_TYPES[element.kind],
        "style": {
            "left": f"{columns[0]}px",
            "top": f"{rows[0]}px",
            "width": f"{columns[-1] - columns[0] + 1}px",
            "height": f"{rows[-1] - rows[0] + 1}px",
            "transform": "none",
        },
        "element": {"text": element.text, "description": element.description},
    }
    if element.text:
        component["text"] = element.text
    if element.kind == "group":
        component["components"] = [_child(part) for part in element.parts]
    return component


def _child(part: Part) -> dict[str, Any]:
    child = {
        "type": _TYPES.get(part.kind, "IMAGE"),
        "data0_element_type": _ELEMENT_TYPES[part.kind],
        "element": {"text": part.text, "description": part.description},
    }
    return {**child, "text": part.text} if part.text else child
