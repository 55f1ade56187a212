"""Reader of the LICA release: JSON layouts with one flat render each; their layers are rendered here.

    <root>/metadata.csv                                  layout_id,category,template_id,...,width,height; may be missing
    <root>/layouts/<template_id>/<layout_id>.json        {"components": [...], "background": "rgb(1, 2, 3)",
                                                         "width": "1920px", "height": "1080px"}, bottom to top
    <root>/images/<template_id>/<layout_id>.png          flat render; .mp4 if the layout moves
    <root>/annotations/<template_id>/<layout_id>.json    {"description": .., "user_intent": ..}; may be missing
    <root>/assets/<name>                                 not in the release: a copy of the images that components name
                                                         by URL, under the last part of the URL

Components have CSS-like properties, at their top level or, in the rows of LICA's benchmark, under ``style``; those rows
have ``layout_config.components`` instead of ``components``. A group becomes one layer.
:mod:`layers.sources.lica.render` describes the drawing of components and its assumptions.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from config.errors import SampleError, UserError
from layers.dataset.digest import text_digest
from layers.imaging.codec import MAX_PIXELS, ImageError, decode_rgba
from layers.imaging.compositing import to_uint8
from layers.imaging.stack import MAX_LAYERS, Layer, LayeredSample
from layers.sources.base import Source
from layers.sources.download import fetch
from layers.sources.lica.css import colour, px, shown
from layers.sources.lica.element import Element
from layers.sources.lica.fonts import Fonts
from layers.sources.lica.render import Renderer
from layers.sources.lica.text import clean
from layers.sources.location import Location

PROTOCOLS = ("http", "https", "gs", "s3", "hf")
# Maximum size of an image, since a URL in a layout may return anything.
MAX_BYTES = 100_000_000
# Maximum number of parts of all groups together; each is drawn on the whole canvas.
MAX_PARTS = 2000
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class LicaSource(Source):
    """The LICA release, or a dataset of the same form.

    Ids are layout ids. Layouts of one template share a split.

    Args:
        root: the folder that holds ``layouts/``.
        fonts: folder or URL of TTF and OTF files, named by their families; with ``None`` all texts get stand-ins.
        download: whether images without a copy in ``assets/`` are downloaded from their URLs.

    Raises:
        UserError: if there is no ``layouts/``, ``metadata.csv`` is not the table above, or ``fonts`` is no folder.
    """

    def __init__(self, root: Location, *, fonts: str | None, download: bool) -> None:
        self.root, self.download = root, download
        key = ".".join([*root.key.split(".")[:-1], "fonts"])
        self.fonts = Fonts(Location(fonts, key, follow_links=root.follow_links) if fonts is not None else None)
        self._known: dict[str, str] | None = None
        if "layouts" not in root.folders():
            raise UserError(f"{root.key}: {root.url} has no folder layouts; expected the root of the LICA release")
        self._templates()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": None}

    def sample_ids(self) -> list[str]:
        """All layout ids, sorted: those of ``metadata.csv``, or of the files if there is none."""
        return sorted(self._templates())

    def split_key(self, sample_id: str) -> str:
        """The template's id.

        Raises:
            SampleError: if there is no such layout.
        """
        template = self._templates().get(sample_id)
        if template is None:
            raise SampleError(f"{shown(sample_id)} is no layout of {self.root.key}")
        return template

    def signature(self, sample_id: str) -> str:
        """Digest of the layout, annotation, render, images in ``assets/``, fonts, and the option ``download``."""
        try:
            name = self._name(sample_id)
            layout = self.root.read_json(f"layouts/{name}.json")
        except SampleError as error:
            return text_digest(str(error))
        names = [f"layouts/{name}.json", f"annotations/{name}.json", f"images/{name}.png", f"images/{name}.mp4"]
        signature = self.root.signature([*names, *(f"assets/{_base_name(src)}" for src in _sources(layout))])
        fetched = ":download" if self.download else ""
        return text_digest(f"{signature}:{self.fonts.signature()}{fetched}")

    def read(self, sample_id: str) -> LayeredSample:
        """Read and render one layout: the page's colour, then one layer per component.

        Raises:
            SampleError: with the part that is missing, broken or cannot be drawn.
        """
        name = self._name(sample_id)
        layout = self.root.read_json(f"layouts/{name}.json")
        size, page, elements = _page(layout)
        preview = self._preview(name)
        renderer = Renderer(size, self._image, self.fonts, preview)
        layers = []
        for position, element in enumerate(elements):
            drawn = renderer.draw(element)
            if drawn is None:
                renderer.notes.append(f"{element.where} shows nothing")
                continue
            kind = element.layer_kind()
            if position == 0 and kind == "image" and (drawn[..., 3] > 0).all():
                kind = "background"
            layers.append(Layer(to_uint8(drawn), kind, element.words()))
        if page is None and (not layers or layers[0].image[..., 3].min() < 255) and _opaque(preview):
            page = (1.0, 1.0, 1.0, 1.0)
            renderer.notes.append("no page colour, white taken")
        if page is not None:
            ground = np.broadcast_to(to_uint8(np.array(page)[None, None]), (*size, 4)).copy()
            layers.insert(0, Layer(ground, "background"))
        if not layers:
            raise SampleError(f"layouts/{name}.json: nothing is to be seen")
        notes = tuple(dict.fromkeys(renderer.notes))
        return LayeredSample(sample_id, tuple(layers), self._caption(name, layout), preview, notes)

    def _templates(self) -> dict[str, str]:
        """Template of each layout; read once per process."""
        if self._known is None:
            known: dict[str, str] = {}
            try:
                for layout, template in self._table() if self.root.exists("metadata.csv") else self._walk():
                    if known.setdefault(layout, sys.intern(template)) != template:
                        raise UserError(f"{self.root.key}: layout {layout!r} is in two templates, {template!r} is one")
            except SampleError as error:
                raise UserError(f"{self.root.key}: {error}") from None
            self._known = known
        return self._known

    def _table(self) -> Iterator[tuple[str, str]]:
        try:
            with io.TextIOWrapper(self.root.open("metadata.csv"), encoding="utf-8-sig", newline="") as lines:
                for number, row in enumerate(csv.DictReader(lines), start=1):
                    pair = row.get("layout_id"), row.get("template_id")
                    if not all(pair):
                        raise UserError(
                            f"{self.root.key}: row {number} of metadata.csv lacks a layout_id or a template_id"
                        )
                    yield pair
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{self.root.key}: metadata.csv is no readable table ({error})") from None

    def _walk(self) -> Iterator[tuple[str, str]]:
        names = (PurePosixPath(name) for name in self.root.find([".json"], "layouts"))
        return ((name.stem, name.parts[1]) for name in names if len(name.parts) == 3)

    def _name(self, sample_id: str) -> str:
        """``<template_id>/<layout_id>``, both valid as file names."""
        template = self.split_key(sample_id)
        for part in (template, sample_id):
            if not NAME.fullmatch(part):
                raise SampleError(f"{shown(part)} is no id: letters, digits, _, . and - are expected")
        return f"{template}/{sample_id}"

    def _preview(self, name: str) -> np.ndarray | None:
        if self.root.exists(f"images/{name}.png"):
            return self.root.read_rgba(f"images/{name}.png")
        if self.root.exists(f"images/{name}.mp4"):
            raise SampleError(f"images/{name}.mp4: the layout is a video")
        return None

    def _caption(self, name: str, layout: dict[str, Any]) -> str:
        """The annotation's description, else its ``user_intent``; rows of the benchmark hold both themselves."""
        file = f"annotations/{name}.json"
        annotation = self.root.read_json(file) if self.root.exists(file) else layout.get("layout_semantic_description")
        for holder in (annotation, layout):
            for key in ("description", "user_intent"):
                words = clean(holder.get(key)) if isinstance(holder, dict) else ""
                if words.strip():
                    return words.strip()
        return ""

    def _image(self, src: str, where: str) -> np.ndarray:
        """A component's image, ``(h, w, 4)`` uint8, from ``assets/`` or from its URL.

        Raises:
            SampleError: with the URL.
        """
        base_name = _base_name(src)
        if base_name is None:
            raise SampleError(f"{where}.src: {shown(src)} is no address of {', '.join(PROTOCOLS)}")
        if base_name and self.root.exists(f"assets/{base_name}"):
            data = self.root.read(f"assets/{base_name}")
        elif not self.download:
            raise SampleError(
                f"{where}.src: {shown(src)} has no copy in assets/; expected one, or prepare_buckets.lica.download true"
            )
        else:
            data = _download(src, where)
        try:
            return decode_rgba(data, src)
        except ImageError as error:
            raise SampleError(f"{where}.src: {error}") from None


def _base_name(src: str) -> str | None:
    """Last part of a URL's path; ``None`` if it is no URL that may be read.

    Local paths and ``file:`` would read the machine's own files; ``::`` would chain to them.
    """
    try:
        parts = urlsplit(src)
    except ValueError:
        return None
    if parts.scheme not in PROTOCOLS or not parts.netloc or "::" in src or not src.isprintable():
        return None
    return PurePosixPath(parts.path).name


def _download(src: str, where: str) -> bytes:
    try:
        data = fetch(src, MAX_BYTES)
    except SampleError as error:
        raise SampleError(f"{where}.src: {src} is not read: {error}") from None
    except Exception as error:  # each file system has its own exceptions
        raise SampleError(f"{where}.src: {src} cannot be read ({type(error).__name__})") from None
    if len(data) > MAX_BYTES:
        raise SampleError(f"{where}.src: {src} is above {MAX_BYTES} bytes")
    return data


def _sources(layout: Any) -> list[str]:
    """URLs of all images in a layout that may be read, at any depth."""
    found, open_ends = set(), [layout]
    while open_ends:
        part = open_ends.pop()
        if isinstance(part, dict):
            open_ends.extend(part.values())
            if isinstance(src := part.get("src"), str) and _base_name(src):
                found.add(src)
        elif isinstance(part, list):
            open_ends.extend(part)
    return sorted(found)


def _opaque(preview: np.ndarray | None) -> bool:
    """Whether the flat render is opaque, or missing."""
    return preview is None or bool(preview[..., 3].min() == 255)


def _page(layout: Any) -> tuple[tuple[int, int], tuple[float, float, float, float] | None, list[Element]]:
    """Size (height, width), colour and components of a layout, all within the limits.

    Raises:
        SampleError: with the missing or invalid entry.
    """
    config = layout.get("layout_config", layout) if isinstance(layout, dict) else None
    components = config.get("components") if isinstance(config, dict) else None
    if not isinstance(components, list):
        raise SampleError("components: the layout holds no such list")
    if len(components) >= MAX_LAYERS:
        raise SampleError(f"{len(components)} components and a page, more than {MAX_LAYERS} layers")
    sides = []
    for key in ("height", "width"):
        holders = (config, config.get("style"), layout.get("layout_metadata"))
        values = (holder.get(key) for holder in holders if isinstance(holder, dict))
        sides.append(round(px(next((value for value in values if value is not None), None), key)))
    height, width = sides
    if height < 1 or width < 1:
        raise SampleError(f"a canvas of {width}x{height} pixels")
    if height * width > MAX_PIXELS:
        raise SampleError(f"a canvas of {width}x{height} is above {MAX_PIXELS} pixels")
    elements = [Element(component, f"components[{i}]") for i, component in enumerate(components)]
    if (count := sum(element.count() for element in elements)) > MAX_PARTS:
        raise SampleError(f"{count} components, groups counted through, more than {MAX_PARTS}")
    page = colour(config.get("background"), "background") or colour(config.get("backgroundColor"), "backgroundColor")
    return (height, width), page, elements
