"""Reader of rendered RGBA folders plus layout JSON: the project's own dataset form.

    <rendered_root>/<id>/background.png | <id>_background.png | *_background.png
    <rendered_root>/<id>/component_<k>.png | <id>_component_<k>.png | *_component_<k>.png
    <layout_root>/<id>.json      {"layout_config": {"components": [...]}, "stratum": ..., ...}; may be missing

Every image has the canvas's size. The first pattern with a match is used; names with "thumbnail" and other files, such
as a flat render, are ignored. Components are ordered by the number at the end of their name; the i-th of them, whatever
its number, is ``layout_config.components[i]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from config.errors import SampleError
from layers.imaging.stack import KINDS, MAX_LAYERS, Layer, LayeredSample
from layers.sources.base import Source
from layers.sources.location import Location

TEXT_KEYS = ("text", "content", "value", "name")
EMPTY: dict[str, Any] = {"layout_config": {"components": []}}


def _number(name: str) -> int:
    digits = [part for part in PurePosixPath(name).stem.split("_") if part.isdecimal()]
    return int(digits[-1]) if digits else -1


def _first_hit(names: list[str], patterns: list[Callable[[str], bool]]) -> list[str]:
    images = [name for name in names if name.endswith(".png") and "thumbnail" not in name]
    return next((hits for pattern in patterns if (hits := [name for name in images if pattern(name)])), [])


def _backgrounds(names: list[str], sample_id: str) -> list[str]:
    exact = [lambda name: name == "background.png", lambda name: name == f"{sample_id}_background.png"]
    return _first_hit(names, [*exact, lambda name: name.endswith("_background.png")])


def _components(names: list[str], sample_id: str) -> list[str]:
    starts = [lambda name: name.startswith("component_"), lambda name: name.startswith(f"{sample_id}_component_")]
    return sorted(_first_hit(names, [*starts, lambda name: "_component_" in name]), key=_number)


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
    """Layer kind of one layout component: text, the kind in ``data0_element_type``, group, else image."""
    if _is_text(component):
        return "text"
    named = str(component.get("data0_element_type", ""))
    if named in KINDS:
        return named
    if named.endswith("_svg") or named == "svg_stroke":
        return "shape"
    return "group" if str(component.get("type", "")).upper() == "GROUP" else "image"


def component_description(component: dict[str, Any]) -> str:
    """Description of one layout component: its own, for text its text, for groups their first three texts."""
    element = component.get("element") if isinstance(component.get("element"), dict) else {}
    described = [component.get("alt"), element.get("alt"), element.get("description"), component.get("description")]
    words = next((word.strip() for word in described if isinstance(word, str) and word.strip()), "")
    if _is_text(component) and not _children(component):
        return words or _text(component)
    if _children(component) and not words:
        return ", ".join([text for text in map(_text, _children(component)) if text][:3])
    return words


def _pixels(value: Any) -> float | None:
    try:
        number = float(value.removesuffix("px") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _canvas(layout: dict[str, Any]) -> tuple[float, float] | None:
    """Width and height of the canvas in a layout, from any of the places that may hold them."""
    config = layout["layout_config"]
    for holder in (config, config.get("style"), layout.get("layout_metadata")):
        if isinstance(holder, dict):
            width, height = _pixels(holder.get("width")), _pixels(holder.get("height"))
            if width is not None and height is not None:
                return width, height
    return None


def _differences(layout: dict[str, Any], count: int, size: tuple[int, int]) -> list[str]:
    """Notes on contradictions between layout and images; the images are used."""
    listed, canvas, (height, width) = len(layout["layout_config"]["components"]), _canvas(layout), size
    notes = []
    if listed != count:
        notes.append(f'the layout lists another number of components: "{listed}, images {count}"')
    if canvas is not None and canvas != (width, height):
        notes.append(
            f'the layout gives the canvas another size: "{canvas[0]:g}x{canvas[1]:g}, images {width}x{height}"'
        )
    return notes


def _background_words(layout: dict[str, Any]) -> str:
    words = layout["layout_config"].get("background_description")
    return words if isinstance(words, str) else ""


def _caption(layout: dict[str, Any]) -> str:
    words = layout.get("layout_semantic_description")
    caption = words.get("description") if isinstance(words, dict) else None
    return caption if isinstance(caption, str) else ""


def _stratum(layout: dict[str, Any]) -> str:
    words = layout.get("stratum")
    return words if isinstance(words, str) else ""


def _component_words(layout: dict[str, Any], count: int) -> list[tuple[str, str]]:
    """Kind and description of each of ``count`` components."""
    entries = [entry if isinstance(entry, dict) else {} for entry in layout["layout_config"]["components"][:count]]
    entries += [{}] * (count - len(entries))
    return [(component_kind(entry), component_description(entry)) for entry in entries]


class RenderedSource(Source):
    """A folder of rendered layers beside a folder of layouts.

    Args:
        rendered_root: one sub-folder per sample.
        layout_root: one JSON per sample; without it caption and descriptions are empty, with ``None`` for all samples.
    """

    def __init__(self, rendered_root: Location, layout_root: Location | None) -> None:
        self.rendered_root, self.layout_root = rendered_root, layout_root

    def sample_ids(self) -> list[str]:
        """Names of all sample folders, sorted."""
        return self.rendered_root.folders()

    def read(self, sample_id: str) -> LayeredSample:
        """Read one sample, background first; pixels are as in the files, including RGB under alpha 0.

        Raises:
            SampleError: with the missing or broken part.
        """
        backgrounds, components = self._names(sample_id)
        if not backgrounds:
            raise SampleError("no background.png")
        if len(components) >= MAX_LAYERS:
            raise SampleError(f"{1 + len(components)} layers are above {MAX_LAYERS}")
        layout = self._layout(sample_id)
        try:
            words = _component_words(layout or EMPTY, len(components))
        except RecursionError:
            raise SampleError(f"{sample_id}.json: groups nested too deeply") from None
        layers = [Layer(self._image(sample_id, backgrounds[0]), "background", _background_words(layout or EMPTY))]
        for name, (kind, description) in zip(components, words, strict=True):
            image = self._image(sample_id, name)
            if image.shape != layers[0].image.shape:
                sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (image, layers[0].image)]
                raise SampleError(f"{name}: layers differ in size, this is {sizes[0]}, the background {sizes[1]}")
            layers.append(Layer(image, kind, description))
        notes = ["several components have one number"] if len(set(map(_number, components))) < len(components) else []
        if layout is not None:
            notes += _differences(layout, len(components), layers[0].image.shape[:2])
        elif self.layout_root is not None:
            notes.append("no layout JSON")
        words = layout or EMPTY
        return LayeredSample(sample_id, tuple(layers), _caption(words), notes=tuple(notes), stratum=_stratum(words))

    def signature(self, sample_id: str) -> str:
        """Digest of the names, sizes and times of the sample's images and of its layout."""
        try:
            backgrounds, components = self._names(sample_id)
        except SampleError:
            return "unreadable"
        images = self.rendered_root.signature(f"{sample_id}/{name}" for name in [*backgrounds[:1], *components])
        if self.layout_root is None:
            return images
        return f"{images}-{self.layout_root.signature([f'{sample_id}.json'])}"

    def _names(self, sample_id: str) -> tuple[list[str], list[str]]:
        names = self.rendered_root.files(sample_id)
        return _backgrounds(names, sample_id), _components(names, sample_id)

    def _image(self, sample_id: str, name: str) -> np.ndarray:
        return self.rendered_root.read_rgba(f"{sample_id}/{name}")

    def _layout(self, sample_id: str) -> dict[str, Any] | None:
        name = f"{sample_id}.json"
        if self.layout_root is None or not self.layout_root.exists(name):
            return None
        layout = self.layout_root.read_json(name)
        config = layout.get("layout_config") if isinstance(layout, dict) else None
        if not isinstance(config, dict) or not isinstance(config.get("components"), list):
            raise SampleError(f"{name}: no list layout_config.components")
        return layout
