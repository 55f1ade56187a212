"""Short texts on a shape: labels, badges, buttons, ribbons and calendar leaves."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from layers.composer import assets, objects, shapes
from layers.composer import palette as colours
from layers.composer import text as typeset
from layers.composer import words as copy
from layers.composer.element import Box
from layers.composer.scene import Scene

LABEL_CONTRAST = 4.0


def headline(scene: Scene) -> str:
    """A title for the theme, in capitals where the face or a random draw says so."""
    text = copy.title(scene.rng, scene.theme)
    share = {"amatic": 0.7, "mono": 0.5, "caladea_italic": 0.0}.get(scene.title_face, 0.33)
    return text.upper() if scene.chance(share) else text


def sturdy(scene: Scene) -> str:
    """The title face, or one that is legible when small."""
    return "manrope" if scene.title_face in ("amatic", "caladea_italic") else scene.title_face


def label(
    scene: Scene,
    box: Box,
    text: str,
    face: str,
    *,
    turn: float = 0.0,
    what: str = "the text",
    glue: float = 0.0,
    lines: int = 2,
) -> Box:
    """Set a short text as large as a box allows, in the middle."""
    setting = typeset.fit(text, face, box.width, box.height, max_lines=lines)
    ink = typeset.mask(setting, 0.5)
    height, width = ink.shape
    area = Box(box.centre[0] - width / 2, box.centre[1] - height / 2, width, height)
    colour, _ = scene.legible(area, (scene.palette.paper, scene.palette.ink), LABEL_CONTRAST)
    crop = shapes.crop(ink, colour)
    if turn:
        pad = 2 + int(abs(math.sin(math.radians(turn))) * max(width, height))
        image = Image.fromarray(np.rint(np.pad(ink, pad) * 255).astype(np.uint8)).rotate(turn, Image.Resampling.BICUBIC)
        crop = shapes.crop(np.asarray(image, dtype=np.float32) / 255.0, colour)
        area = Box(area.left - pad, area.top - pad, crop.shape[1], crop.shape[0])
    look = assets.FACES[face].look
    said = f"{what} '{text}' in {colours.name(colour)} {look} letters"
    return scene.add(crop, area.left, area.top, kind="text", description=said, text=text, glue=glue)


def badge(scene: Scene, centre: tuple[float, float], diameter: float, text: str | None = None) -> Box:
    """Draw a round price badge with its text, as one group layer."""
    palette, text = scene.palette, text or copy.badge(scene.rng)
    side = round(diameter)
    form = scene.choice(("starburst", "seal", "circle"))
    if form == "starburst":
        mask = shapes.starburst(side, int(scene.rng.integers(12, 19)), scene.uniform(0.14, 0.24), scene.uniform(0, 1))
    elif form == "seal":
        mask = shapes.scallop(side, int(scene.rng.integers(12, 18)), 0.1)
    else:
        mask = shapes.ellipse(side, side)
    area = Box(centre[0] - side / 2, centre[1] - side / 2, side, side)
    on = scene.mean_under(area)
    colour = max(
        (palette.accent, palette.accent2, palette.ink),
        key=lambda c: colours.distance(c, on) * (0.6 if c == palette.ink else 1),
    )
    scene.add(
        shapes.crop(mask, colour),
        area.left,
        area.top,
        kind="shape",
        description=copy.article(f"{colours.name(colour)} {form} badge"),
    )
    inner = area.square(0.66)
    turn = scene.choice((0.0, 0.0, 12.0, -12.0))
    label(scene, inner, text, sturdy(scene), turn=turn, what="the label")
    scene.bake()
    return area


def button(scene: Scene, box: Box) -> Box:
    """Draw a button with its label; two layers that readily join."""
    palette = scene.palette
    on = scene.mean_under(box)
    colour = next(
        (c for c in (palette.accent, palette.accent2, palette.ink) if colours.distance(c, on) > 0.15), palette.paper
    )
    radius = box.height / 2 if scene.chance(0.6) else 0.02 * scene.unit
    mask = shapes.rounded(round(box.width), round(box.height), radius)
    crop = shapes.crop(mask, colour)
    objects.framed(
        scene,
        crop,
        box,
        copy.article(f"{colours.name(colour)} button"),
        kind="shape",
        shadow="baked" if scene.chance(0.3) else "none",
    )
    return label(
        scene, box.inset(0.1 * box.width, 0.27 * box.height), copy.button(scene.rng), scene.body_face, glue=0.9, lines=1
    )


def title_ribbon(scene: Scene, box: Box, glue: float = 0.6) -> Box:
    """Draw a ribbon, or a bar, with the title on it; two layers that may join."""
    palette = scene.palette
    on = scene.mean_under(box)
    colour = max(
        (palette.accent, palette.ink, palette.paper, palette.accent2),
        key=lambda c: min(0.35, colours.distance(c, on)) + scene.uniform(0, 0.1),
    )
    form = scene.choice(("ribbon", "bar", "ribbon"))
    width, height = round(box.width), round(box.height)
    mask = (
        shapes.ribbon(width, height, 0.3 * height)
        if form == "ribbon"
        else shapes.rounded(width, height, scene.radius * scene.unit)
    )
    objects.framed(
        scene,
        shapes.crop(mask, colour),
        box,
        copy.article(f"{colours.name(colour)} {form}"),
        kind="shape",
        shadow="baked" if scene.chance(0.5) else "none",
    )
    text = headline(scene)
    return label(
        scene,
        box.inset(0.13 * box.width, 0.2 * box.height),
        text,
        scene.title_face,
        what="the title",
        glue=glue,
        lines=1,
    )


def date_chip(scene: Scene, box: Box) -> Box:
    """Draw a calendar leaf with month and day, as one group layer."""
    palette = scene.palette
    day, month = copy.date(scene.rng)
    colour = palette.accent if scene.chance(0.6) else palette.ink
    width, height = round(box.width), round(box.height)
    mask = shapes.rounded(width, height, 0.03 * scene.unit)
    fill = np.empty((height, width, 3), np.float32)
    fill[...] = np.asarray(palette.paper, np.float32)
    head = round(0.36 * height)
    fill[:head] = np.asarray(colour, np.float32)
    objects.framed(
        scene,
        shapes.crop(mask, fill),
        box,
        f"calendar leaf with {copy.article(colours.name(colour))} head",
        kind="shape",
        shadow="baked",
    )
    top, bottom = box.rows(0.36, 0.64)
    label(scene, top.inset(0.14 * width, 0.07 * height), month, scene.body_face, what="the month", lines=1)
    scene.bake()
    label(scene, bottom.inset(0.12 * width, 0.1 * height), day, sturdy(scene), what="the day", lines=1)
    scene.bake()
    return box
