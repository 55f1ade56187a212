"""Objects, cut-outs and tilted prints, with the shadows they cast."""

from __future__ import annotations

import numpy as np
from PIL import Image

from layers.composer import assets, shapes
from layers.composer import palette as colours
from layers.composer.element import Box
from layers.composer.scene import Scene
from layers.imaging.compositing import over, resize


def some_turn(scene: Scene, most: float = 16.0) -> float:
    """A random angle in degrees, at most ``most`` either way; more often than not 0."""
    return scene.uniform(-most, most) if scene.chance(0.4) else 0.0


def shadow_mode(scene: Scene, chosen: set[str]) -> str:
    """Mode of an object's shadow: a ``layer`` if the layout chose "shadow", else drawn at random."""
    if "shadow" in chosen:
        return "layer"
    return str(scene.rng.choice(("layer", "baked", "none"), p=(0.35, 0.35, 0.3)))


def cast_shadow(
    scene: Scene, mask: np.ndarray, left: float, top: float, of: str, *, blur: float, drop: float, strength: float
) -> bool:
    """Draw the soft shadow of a mask if the background is light enough to show it; returns whether it did."""
    height, width = mask.shape
    if float(colours.luminance(scene.under(Box(left, top, width, height))).mean()) < 0.08:
        return False
    pad = int(blur * 2.2) + 2
    ink = colours.mix(scene.palette.ink, (0.0, 0.0, 0.0), 0.5)
    soft = shapes.crop(shapes.blurred(mask, blur, pad), ink, strength)
    scene.add(soft, left - pad, top - pad + drop, kind="shadow", description=f"soft shadow of {of}", glue=0.05)
    return True


def object_crop(scene: Scene, name: str, side: float, turn: float, border: float) -> np.ndarray:
    """An object whose longer side is ``side`` pixels, turned by degrees, with a white border of ``border`` pixels."""
    image = assets.load_object(name)
    if turn:
        # Pillow rotates RGBA with premultiplied colours.
        rotated = Image.fromarray(image).rotate(turn, Image.Resampling.BICUBIC, expand=True)
        image = np.asarray(rotated.crop(rotated.getchannel("A").getbbox()))
    scale = side / max(image.shape[:2])
    size = max(2, round(image.shape[0] * scale)), max(2, round(image.shape[1] * scale))
    crop = resize(image.astype(np.float32) / 255.0, size)
    if border < 1:
        return crop
    pad = int(border * 2) + 2
    rim = np.clip((shapes.blurred(crop[..., 3], border * 0.8, pad) - 0.1) * 5, 0, 1)
    return over(np.pad(crop, ((pad, pad), (pad, pad), (0, 0))), shapes.crop(rim, scene.palette.paper))


def place_object(
    scene: Scene,
    name: str,
    box: Box,
    *,
    shadow: str = "none",
    turn: float = 0.0,
    sticker: bool = False,
    glue: float = 0.0,
) -> Box:
    """Draw an object in the middle of a box.

    Args:
        scene: the canvas to draw on.
        name: name of the object.
        box: its square; the object's longer side fills the box's shorter.
        shadow: ``none``, ``baked`` into the object's layer or a ``layer`` of its own.
        turn: degrees, counter-clockwise.
        sticker: whether to cut it out with a white border; it also gets one on a background of similar colour.
        glue: see :class:`element.Element`.
    """
    side = min(box.width, box.height)
    drowns = colours.distance(assets.object_colour(name), scene.mean_under(box.square(0.7))) < 0.13
    border = 0.022 * scene.unit if sticker or drowns else 0.0
    crop = object_crop(scene, name, side - 2.5 * border, turn, border)
    height, width = crop.shape[:2]
    left, top = box.centre[0] - width / 2, box.centre[1] - height / 2
    said = f"a {'sticker of a ' if border else ''}3D {assets.words(name)}"
    cast = False
    if shadow != "none":
        cast = _object_shadow(scene, crop[..., 3], left, top, assets.words(name))
    out = scene.add(crop, left, top, kind="image", description=said, glue=0.08 if cast else glue)
    if cast and shadow == "baked":
        scene.bake()
    return out


def _object_shadow(scene: Scene, alpha: np.ndarray, left: float, top: float, of: str) -> bool:
    height, width = alpha.shape
    if scene.chance(0.5):
        # Standing: a flat ellipse at the foot.
        foot = shapes.ellipse(max(4, round(width * 0.8)), max(3, round(height * 0.13)))
        x, y = left + width / 2 - foot.shape[1] / 2, top + height - foot.shape[0] * 0.62
        return cast_shadow(
            scene, foot, x, y, f"the {of}", blur=0.018 * scene.unit, drop=0, strength=scene.uniform(0.5, 0.75)
        )
    size = scene.uniform(0.6, 1.0)
    return cast_shadow(
        scene,
        alpha,
        left,
        top,
        f"the {of}",
        blur=0.028 * scene.unit * size,
        drop=0.04 * scene.unit * size,
        strength=scene.uniform(0.4, 0.6),
    )


def framed(
    scene: Scene,
    crop: np.ndarray,
    box: Box,
    description: str,
    *,
    kind: str = "image",
    shadow: str = "none",
    turn: float = 0.0,
    glue: float = 0.0,
) -> Box:
    """Draw a crop of a box's size, perhaps turned, with a shadow as in :func:`place_object`."""
    if turn:
        image = Image.fromarray(np.rint(np.pad(crop, ((2, 2), (2, 2), (0, 0))) * 255).astype(np.uint8))
        crop = np.asarray(image.rotate(turn, Image.Resampling.BICUBIC, expand=True), dtype=np.float32) / 255.0
    height, width = crop.shape[:2]
    left, top = box.centre[0] - width / 2, box.centre[1] - height / 2
    cast = shadow != "none" and cast_shadow(
        scene, crop[..., 3], left, top, description, blur=0.022 * scene.unit, drop=0.016 * scene.unit, strength=0.42
    )
    out = scene.add(crop, left, top, kind=kind, description=description, glue=0.08 if cast else glue)
    if cast and shadow == "baked":
        scene.bake()
    return out
