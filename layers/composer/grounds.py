"""Backgrounds of designs: gradients, patterns and textures."""

from __future__ import annotations

import numpy as np

from layers.composer import assets, photos, shapes
from layers.composer import palette as colours
from layers.composer.element import Box
from layers.composer.scene import Scene

GROUNDS = {"flat": 0.2, "linear": 0.36, "radial": 0.16, "pattern": 0.18, "texture": 0.10}


def ground(scene: Scene, plain: bool = False) -> None:
    """Draw the background layer; ``plain`` leaves patterns and textures out."""
    styles = [style for style in GROUNDS if not (plain and style in ("pattern", "texture"))]
    weight = np.array([GROUNDS[style] for style in styles])
    style = str(scene.rng.choice(styles, p=weight / weight.sum()))
    width, height, palette = scene.width, scene.height, scene.palette
    first, second = palette.ground, palette.ground2
    named, other = colours.name(first), colours.name(second)
    both = named if named == other else f"{named} to {other}"
    if style == "flat" or style == "pattern":
        fill = np.broadcast_to(np.asarray(first, np.float32), (height, width, 3))
        said = f"plain {named} background"
    elif style == "linear":
        fill = shapes.linear(width, height, first, second, scene.choice((0.0, 45.0, 90.0, 90.0, 135.0, 270.0)))
        said = f"{both} gradient background"
    elif style == "radial":
        bright, dim = sorted((first, second), key=lambda c: -colours.to_oklab(c)[0])
        fill = shapes.radial(width, height, bright, dim, (scene.uniform(0.3, 0.7), scene.uniform(0.3, 0.7)))
        said = f"{both} background glowing from the middle"
    else:
        fill, said = _texture(scene)
    scene.add(shapes.crop(np.ones((height, width), np.float32), fill), 0, 0, kind="background", description=said)
    if style == "pattern":
        pattern(scene)
        scene.bake()


def _texture(scene: Scene) -> tuple[np.ndarray, str]:
    name = scene.choice(assets.textures(scene.pool))
    zoom = scene.uniform(1.0, 1.5)
    grey = photos.cover_fill(assets.load_photo(name), scene.width, scene.height, scene, zoom=zoom)[..., :1]
    grey = np.clip((grey - grey.mean()) / (grey.std() + 1e-6) * 0.13 + 0.5, 0, 1)
    dark = np.asarray(colours.mix(scene.palette.ground, scene.palette.ink, 0.35), np.float32)
    light = np.asarray(colours.mix(scene.palette.ground, scene.palette.paper, 0.35), np.float32)
    said = f"{colours.name(scene.palette.ground)} {assets.TEXTURES[name].description} background"
    return dark + (light - dark) * grey, said


def pattern(scene: Scene, quiet: Box | None = None) -> None:
    """Draw a pattern over the whole canvas; it is a layer of kind shape that readily joins the background.

    Args:
        scene: the canvas to draw on.
        quiet: box of the later text; confetti stays out of it.
    """
    unit, width, height, palette = scene.unit, scene.width, scene.height, scene.palette
    style = scene.choice(("dots", "stripes", "waves", "rays", "checks", "confetti", "circles", "blobs"))
    tone = palette.tone
    if palette.mode == "light" and scene.chance(0.5):
        tone = colours.mix(palette.ground, palette.accent, 0.2)
    size = scene.uniform(0.09, 0.16) * unit
    if style == "dots":
        mask = shapes.dots(width, height, size, size * scene.uniform(0.16, 0.3))
    elif style == "stripes":
        mask = shapes.stripes(width, height, size * 1.2, scene.choice((0.0, 45.0, -45.0, 90.0)))
    elif style == "waves":
        mask = shapes.waves(width, height, size * 1.2, size * 0.3, size * scene.uniform(2, 4))
    elif style == "rays":
        centre = (width * scene.uniform(0.4, 0.6), height * scene.uniform(0.4, 0.6))
        mask = shapes.rays(width, height, centre, int(scene.rng.integers(10, 19)))
    elif style == "checks":
        mask = shapes.checks(width, height, size)
    elif style == "circles":
        mask = np.zeros((height, width), np.float32)
        for x, y in ((0.0, 0.0), (1.0, 1.0)) if scene.chance(0.5) else ((1.0, 0.0), (0.0, 1.0)):
            diameter = round(scene.uniform(0.5, 0.85) * unit)
            row, column = np.mgrid[0:height, 0:width].astype(np.float32)
            reach = np.hypot(column - x * width, row - y * height)
            mask = np.maximum(mask, np.clip(diameter / 2 - reach + 0.5, 0, 1))
    elif style == "blobs":
        _corner_blobs(scene)
        return
    else:
        keep_out = (quiet.left, quiet.top, quiet.right, quiet.bottom) if quiet else (0.0, 0.0, 0.0, 0.0)
        tones = (palette.accent, palette.accent2, palette.paper)
        crop = shapes.scatter(scene.rng, width, height, colours=tones, size=size * 0.34, keep_out=keep_out)
        scene.add(crop, 0, 0, kind="shape", description="colourful confetti", glue=0.8)
        return
    said = f"{colours.name(tone)} {'large circles in two corners' if style == 'circles' else style}"
    scene.add(shapes.crop(mask, tone), 0, 0, kind="shape", description=said, glue=0.8)


def _corner_blobs(scene: Scene) -> None:
    """Two soft shapes that reach in from opposite corners, as one layer."""
    palette = scene.palette
    colour = scene.choice((palette.accent2, palette.accent, palette.tone))
    mask = np.zeros((scene.height, scene.width), np.float32)
    for x, y in ((0.0, 0.0), (1.0, 1.0)) if scene.chance(0.5) else ((1.0, 0.0), (0.0, 1.0)):
        side = round(scene.uniform(0.55, 0.8) * scene.unit)
        one = shapes.blob(scene.rng, side, side)
        left, top = round(x * scene.width - side / 2), round(y * scene.height - side / 2)
        x0, y0, x1, y1 = max(0, left), max(0, top), min(scene.width, left + side), min(scene.height, top + side)
        mask[y0:y1, x0:x1] = np.maximum(mask[y0:y1, x0:x1], one[y0 - top : y1 - top, x0 - left : x1 - left])
    opacity = 1.0 if colour == palette.tone else scene.uniform(0.4, 0.9)
    said = f"two {colours.name(colour)} blobs in the corners"
    scene.add(shapes.crop(mask, colour, opacity), 0, 0, kind="shape", description=said, glue=0.6)
