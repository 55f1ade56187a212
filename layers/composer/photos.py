"""Photographs on a design: as the background, cut to an outline, or as instant prints."""

from __future__ import annotations

import numpy as np
from PIL import Image

from layers.composer import assets, objects, shapes
from layers.composer import palette as colours
from layers.composer import words as copy
from layers.composer.element import Box
from layers.composer.scene import Scene

_FORMS = {"rounded": "rounded rectangle", "circle": "circle", "arch": "arch", "blob": "soft blob"}


def cover_fill(
    image: Image.Image, width: int, height: int, scene: Scene, *, zoom: float = 1.0, focus: tuple = (0.5, 0.5)
) -> np.ndarray:
    """Crop and resize an image to cover a box, ``(height, width, 3)`` float32; sometimes mirrored."""
    scale = max(width / image.width, height / image.height) * zoom
    cut_width, cut_height = width / scale, height / scale
    left = min(max(0.0, focus[0] * image.width - cut_width / 2), image.width - cut_width)
    top = min(max(0.0, focus[1] * image.height - cut_height / 2), image.height - cut_height)
    out = image.resize(
        (width, height), Image.Resampling.LANCZOS, box=(left, top, left + cut_width, top + cut_height), reducing_gap=2.0
    )
    array = np.asarray(out, dtype=np.float32) / 255.0
    return array[:, ::-1] if scene.chance(0.5) else array


def photo_fill(scene: Scene, name: str, width: int, height: int) -> tuple[np.ndarray, str]:
    """A photograph cropped to a box and sometimes toned; returns the fill and its description."""
    photo = assets.PHOTOS[name]
    zoom = scene.uniform(1.0, 1.15)
    fill = cover_fill(assets.load_photo(name), width, height, scene, zoom=zoom, focus=photo.focus)
    said = f"photograph of {photo.description}"
    grade = scene.uniform(0, 1)
    if grade < 0.12:
        dark, light = np.asarray(scene.palette.ink, np.float32), np.asarray(scene.palette.paper, np.float32)
        fill = dark + (light - dark) * fill.mean(-1, keepdims=True)
        said = f"{colours.name(scene.palette.ink)} and white {said}"
    elif grade < 0.22:
        fill = np.repeat(fill.mean(-1, keepdims=True), 3, axis=-1)
        said = f"grey {said}"
    return fill, said


def photo_ground(scene: Scene, name: str) -> None:
    """Draw a photograph over the whole canvas as the background layer."""
    fill, said = photo_fill(scene, name, scene.width, scene.height)
    opaque = np.ones((scene.height, scene.width), np.float32)
    scene.add(shapes.crop(opaque, fill), 0, 0, kind="background", description=f"full-size {said}")


def photo_mask(scene: Scene, form: str, width: int, height: int) -> np.ndarray:
    """The outline of a photograph: ``rounded``, ``circle``, ``arch`` or ``blob``."""
    if form == "circle":
        return shapes.ellipse(width, height)
    if form == "arch":
        return shapes.arch(width, height)
    if form == "blob":
        return shapes.blob(scene.rng, width, height)
    return shapes.rounded(width, height, max(0.02, scene.radius) * scene.unit)


def photo_crop(scene: Scene, name: str, form: str, box: Box) -> tuple[np.ndarray, str]:
    """A photograph in an outline, as a crop of a box's size; returns it and its description."""
    width, height = round(box.width), round(box.height)
    fill, said = photo_fill(scene, name, width, height)
    if form == "full":
        return shapes.crop(np.ones((height, width), np.float32), fill), said
    return shapes.crop(photo_mask(scene, form, width, height), fill), f"{said} cut to {copy.article(_FORMS[form])}"


def _print(scene: Scene, box: Box, fill: np.ndarray) -> np.ndarray:
    width, height = round(box.width), round(box.height)
    rim = max(2, round(0.05 * width))
    crop = shapes.crop(shapes.rounded(width, height, 0.012 * scene.unit), scene.palette.paper)
    crop[rim : rim + fill.shape[0], rim : rim + fill.shape[1], :3] = fill
    return crop


def _print_window(box: Box) -> tuple[int, int]:
    rim = max(2, round(0.05 * round(box.width)))
    return round(box.width) - 2 * rim, round(box.height) - round(3.4 * rim)


def print_of_photo(scene: Scene, name: str, box: Box) -> tuple[np.ndarray, str]:
    """An instant print of a photograph, as a crop of a box's size; returns it and its description."""
    fill, said = photo_fill(scene, name, *_print_window(box))
    return _print(scene, box, fill), f"instant print of a {said}"


def print_of_object(scene: Scene, name: str, box: Box) -> tuple[np.ndarray, str]:
    """An instant print that shows an object on colour, as a crop of a box's size; returns it and its description."""
    width, height = _print_window(box)
    palette = scene.palette
    wishes = (palette.accent, palette.accent2, palette.tone, palette.ink)
    colour = max(
        wishes, key=lambda c: min(0.3, colours.distance(c, assets.object_colour(name))) + scene.uniform(0, 0.12)
    )
    fill = np.empty((height, width, 3), np.float32)
    fill[...] = np.asarray(colour, np.float32)
    crop = objects.object_crop(scene, name, 0.8 * min(width, height), 0.0, 0.0)
    top, left = (height - crop.shape[0]) // 2, (width - crop.shape[1]) // 2
    window = fill[top : top + crop.shape[0], left : left + crop.shape[1]]
    window += crop[..., 3:] * (crop[..., :3] - window)
    return _print(scene, box, fill), f"instant print of a 3D {assets.words(name)} on {colours.name(colour)}"
