"""Reader of rendered RGBA folders plus layout JSON: the project's own dataset form.

    <rendered_root>/<id>/background.png | <id>_background.png | *_background.png
    <rendered_root>/<id>/component_<k>.png | <id>_component_<k>.png | *_component_<k>.png
    <layout_root>/<id>.json      {"layout_config": {"components": [...]}, ...}; may be missing

Every picture has the canvas's size. The first pattern with a hit counts, names with "thumbnail" never do. Components
are ordered by the number at the end of their name; the i-th of them, whatever its number, is
``layout_config.components[i]``.
"""

from __future__ import annotations

import json
from glob import escape
from pathlib import Path
from typing import Any

from layers.errors import SampleError
from layers.images import PictureError, read_rgba
from layers.stack import KINDS, Layer, LayeredSample

TEXT_KEYS = ("text", "content", "value", "name")


def _number(path: Path) -> int:
    digits = [part for part in path.stem.split("_") if part.isdigit()]
    return int(digits[-1]) if digits else -1


def _first_hit(folder: Path, patterns: list[str]) -> list[Path]:
    for pattern in patterns:
        hits = [path for path in sorted(folder.glob(pattern)) if "thumbnail" not in path.name]
        if hits:
            return hits
    return []


def _text(component: dict[str, Any]) -> str:
    for holder in (component, component.get("element")):
        if isinstance(holder, dict):
            for key in TEXT_KEYS:
                if isinstance(holder.get(key), str) and holder[key].strip():
                    return holder[key].strip()
    return ""


def _children(component: dict[str, Any]) -> list[dict[str, Any]]:
    children = component.get("components")
    return [child for child in children if isinstance(child, dict) and child] if isinstance(children, list) else []


def _is_text(component: dict[str, Any]) -> bool:
    kind = str(component.get("type", "")).upper()
    children = _children(component)
    return kind == "TEXT" or (kind == "GROUP" and bool(children) and all(_is_text(child) for child in children))


def component_kind(component: dict[str, Any]) -> str:
    """Layer kind of one layout component: text, what ``data0_element_type`` names, group, else image."""
    if _is_text(component):
        return "text"
    named = str(component.get("data0_element_type", ""))
    if named in KINDS:
        return named
    if named.endswith("_svg") or named == "svg_stroke":
        return "shape"
    return "group" if str(component.get("type", "")).upper() == "GROUP" else "image"


def component_description(component: dict[str, Any]) -> str:
    """Words for one layout component: its description, for text its text, for groups their first three texts."""
    element = component.get("element") if isinstance(component.get("element"), dict) else {}
    described = [component.get("alt"), element.get("alt"), element.get("description"), component.get("description")]
    words = next((word.strip() for word in described if isinstance(word, str) and word.strip()), "")
    if _is_text(component) and not _children(component):
        return words or _text(component)
    if _children(component) and not words:
        return ", ".join([text for text in map(_text, _children(component)) if text][:3])
    return words


class RenderedSource:
    """A folder of rendered layers beside a folder of layouts.

    Args:
        rendered_root: one sub-folder a sample.
        layout_root: one JSON a sample; a missing one leaves captions and descriptions empty.

    Raises:
        FileNotFoundError: if ``rendered_root`` is no folder.
    """

    def __init__(self, rendered_root: str | Path, layout_root: str | Path) -> None:
        self.rendered_root = Path(rendered_root)
        self.layout_root = Path(layout_root)
        if not self.rendered_root.is_dir():
            raise FileNotFoundError(
                f"prepare_buckets.rendered_root: {self.rendered_root} is no folder; expected one sub-folder a sample"
            )

    def sample_ids(self) -> list[str]:
        """Names of all sample folders, sorted."""
        return sorted(path.name for path in self.rendered_root.iterdir() if path.is_dir())

    def read(self, sample_id: str) -> LayeredSample:
        """Read one sample, background first.

        Raises:
            SampleError: naming what is missing or broken.
        """
        folder = self._inside(self.rendered_root / sample_id, self.rendered_root)
        backgrounds = _first_hit(folder, ["background.png", f"{escape(sample_id)}_background.png", "*_background.png"])
        if not backgrounds:
            raise SampleError("no background.png")
        components = _first_hit(
            folder, ["component_*.png", f"{escape(sample_id)}_component_*.png", "*_component_*.png"]
        )
        layout = self._layout(sample_id)
        entries = layout.get("layout_config", {}).get("components", [])
        layers = [self._layer(backgrounds[0], "background", _background_words(layout))]
        for position, path in enumerate(sorted(components, key=_number)):
            entry = entries[position] if position < len(entries) and isinstance(entries[position], dict) else {}
            layers.append(self._layer(path, component_kind(entry), component_description(entry)))
        words = layout.get("layout_semantic_description")
        caption = words.get("description") if isinstance(words, dict) else None
        try:
            return LayeredSample(sample_id, tuple(layers), caption if isinstance(caption, str) else "")
        except ValueError as error:
            raise SampleError(str(error)) from None

    def _layer(self, path: Path, kind: str, description: str) -> Layer:
        try:
            return Layer(read_rgba(self._inside(path, self.rendered_root)), kind, description)
        except PictureError as error:
            raise SampleError(str(error)) from None

    def _layout(self, sample_id: str) -> dict[str, Any]:
        path = self._inside(self.layout_root / f"{sample_id}.json", self.layout_root)
        if not path.is_file():
            return {}
        try:
            layout = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SampleError(f"{path.name}: not valid JSON ({error})") from None
        config = layout.get("layout_config") if isinstance(layout, dict) else None
        if not isinstance(config, dict) or not isinstance(config.get("components"), list):
            raise SampleError(f"{path.name}: no list layout_config.components")
        return layout

    @staticmethod
    def _inside(path: Path, root: Path) -> Path:
        if not path.resolve().is_relative_to(root.resolve()):
            raise SampleError(f"{path.name} points outside {root.name}")
        return path


def _background_words(layout: dict[str, Any]) -> str:
    words = layout.get("layout_config", {}).get("background_description")
    return words if isinstance(words, str) else ""
