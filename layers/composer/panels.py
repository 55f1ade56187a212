"""Flat areas: backdrops, tiles, plates, fields, veils and frames."""

from __future__ import annotations

import numpy as np

from layers.composer import objects, shapes
from layers.composer import palette as colours
from layers.composer import words as copy
from layers.composer.element import Box
from layers.composer.palette import Colour
from layers.composer.scene import Scene


def _far_colour(scene: Scene, box: Box, avoid: Colour, wishes: tuple[Colour, ...]) -> Colour:
    on = scene.mean_under(box)
    return max(
        wishes,
        key=lambda c: min(0.25, colours.distance(c, avoid)) + min(0.2, colours.distance(c, on)) + scene.uniform(0, 0.1),
    )


def backdrop(scene: Scene, box: Box, avoid: Colour | None = None) -> Box:
    """Draw a large flat shape behind an object; its colour is the farthest from ``avoid``."""
    palette = scene.palette
    wishes: list[Colour] = [palette.accent2, palette.accent, palette.surface, palette.tone]
    on = scene.mean_under(box)
    wishes = [c for c in wishes if colours.distance(c, on) > 0.07] or [palette.paper]
    if avoid is not None:
        wishes.sort(key=lambda c: -min(0.3, colours.distance(c, avoid)) - 0.05 * scene.uniform(0, 1))
    colour = wishes[0]
    form = scene.choice(("circle", "circle", "blob", "rounded", "scallop", "arch", "ring"))
    width, height = round(box.width), round(box.height)
    side = min(width, height)
    if form == "blob":
        mask = shapes.blob(scene.rng, width, height)
    elif form == "rounded":
        mask = shapes.rounded(width, height, 0.08 * scene.unit)
    elif form == "arch":
        mask = shapes.arch(round(min(width, 0.9 * height)), height)
    elif form == "scallop":
        mask = shapes.scallop(side, int(scene.rng.integers(10, 17)), 0.14)
    elif form == "ring":
        mask = shapes.ring(side, 0.09 * side)
    else:
        mask = shapes.ellipse(side, side)
    fill: Colour | np.ndarray = colour
    if form != "ring" and scene.chance(0.35):
        friend = colours.mix(colour, palette.paper if scene.chance(0.5) else palette.accent2, 0.35)
        fill = shapes.linear(mask.shape[1], mask.shape[0], colour, friend, 90.0)
    said = {"circle": "circle", "rounded": "rounded square", "scallop": "seal with a wavy rim", "arch": "arch"}.get(
        form, form
    )
    left, top = box.centre[0] - mask.shape[1] / 2, box.centre[1] - mask.shape[0] / 2
    opacity = scene.uniform(0.45, 0.75) if scene.chance(0.2) else 1.0
    clear = "translucent " if opacity < 1 else ""
    return scene.add(
        shapes.crop(mask, fill, opacity),
        left,
        top,
        kind="shape",
        description=copy.article(f"{clear}{colours.name(colour)} {said}"),
        glue=0.3,
    )


def block(
    scene: Scene,
    box: Box,
    colour: Colour,
    description: str,
    *,
    radius: float | None = None,
    opacity: float = 1.0,
    glue: float = 0.0,
    shadow: str = "none",
) -> Box:
    """Draw a rectangle with round corners (``radius`` in pixels), opaque or translucent."""
    corner = scene.radius * scene.unit if radius is None else radius
    mask = shapes.rounded(round(box.width), round(box.height), corner)
    if shadow != "none" and opacity == 1.0:
        return objects.framed(
            scene, shapes.crop(mask, colour), box, description, kind="shape", shadow=shadow, glue=glue
        )
    return scene.add(
        shapes.crop(mask, colour, opacity), box.left, box.top, kind="shape", description=description, glue=glue
    )


def disc(scene: Scene, box: Box, avoid: Colour, shadow: str = "none") -> Box:
    """Draw the plate of an emblem."""
    palette = scene.palette
    colour = _far_colour(scene, box, avoid, (palette.accent, palette.accent2, palette.surface, palette.ink))
    side = round(box.width)
    form = scene.choice(("circle", "seal", "starburst", "circle"))
    mask = {
        "circle": lambda: shapes.ellipse(side, side),
        "seal": lambda: shapes.scallop(side, int(scene.rng.integers(14, 22)), 0.07),
        "starburst": lambda: shapes.starburst(side, int(scene.rng.integers(18, 30)), 0.08),
    }[form]()
    return objects.framed(
        scene,
        shapes.crop(mask, colour),
        box,
        copy.article(f"{colours.name(colour)} {form}"),
        kind="shape",
        shadow=shadow,
    )


def field(scene: Scene, box: Box, avoid: Colour) -> Box:
    """Fill one side of a page with colour, its inner edge straight, slanted or round."""
    palette = scene.palette
    colour = _far_colour(scene, box, avoid, (palette.accent, palette.accent2, palette.tone, palette.ink))
    upright = box.height >= scene.height - 1
    first = box.left <= 1 and box.top <= 1
    length, breadth = (box.width, box.height) if upright else (box.height, box.width)
    form = scene.choice(("straight", "slanted", "round"))
    reach = length
    if form == "slanted":
        points = [(0.0, 0.0), (reach, 0.0), (reach - 0.2 * length, breadth), (0.0, breadth)]
    elif form == "round":
        steps = np.linspace(-np.pi / 2, np.pi / 2, 40)
        points = [(0.0, 0.0)]
        points += [(float(reach - 0.2 * length * (1 - np.cos(a))), float((np.sin(a) + 1) / 2 * breadth)) for a in steps]
        points += [(0.0, breadth)]
    else:
        points = [(0.0, 0.0), (reach, 0.0), (reach, breadth), (0.0, breadth)]
    if not upright:
        points = [(y, x) for x, y in points]
    width, height = (round(reach), round(breadth)) if upright else (round(breadth), round(reach))
    if not first:
        points = [(width - x, y) for x, y in points] if upright else [(x, height - y) for x, y in points]
    left, top = (0, 0) if first else (scene.width - width, scene.height - height)
    fill: Colour | np.ndarray = colour
    if scene.chance(0.3):
        fill = shapes.linear(width, height, colour, colours.mix(colour, palette.accent2, 0.4), 90.0)
    side = ("left" if first else "right") if upright else ("top" if first else "bottom")
    return scene.add(
        shapes.crop(shapes.polygon(width, height, points), fill),
        left,
        top,
        kind="shape",
        description=f"{form} {colours.name(colour)} field on the {side}",
        glue=0.2,
    )


def veil_colour(scene: Scene) -> tuple[Colour, str]:
    """Colour and description of a translucent panel."""
    palette = scene.palette
    colour = scene.choice((palette.paper, palette.paper, palette.ink, palette.ground))
    return colour, f"translucent {colours.name(colour)} panel"


def veil(scene: Scene, box: Box) -> Box:
    """Draw a translucent panel between text and its background."""
    palette = scene.palette
    colour = palette.ink if palette.mode == "dark" and scene.chance(0.4) else palette.paper
    mask = shapes.rounded(round(box.width), round(box.height), scene.radius * scene.unit)
    return scene.add(
        shapes.crop(mask, colour, scene.uniform(0.6, 0.92)),
        box.left,
        box.top,
        kind="shape",
        description=f"translucent {colours.name(colour)} panel",
        glue=0.1,
    )


def scrim(scene: Scene, below: bool, share: float) -> Box:
    """Draw a dark veil that fades out from the lower or upper edge, behind light text."""
    height = round(share * scene.height)
    ramp = np.linspace(0, 1, height, dtype=np.float32) if below else np.linspace(1, 0, height, dtype=np.float32)
    mask = np.repeat((np.clip(1.5 * ramp, 0, 1) * 0.86)[:, None], scene.width, axis=1)
    colour = scene.palette.ink if scene.chance(0.8) else (0.04, 0.04, 0.05)
    said = f"{colours.name(colour)} veil fading in from the {'bottom' if below else 'top'}"
    return scene.add(
        shapes.crop(mask, colour), 0, scene.height - height if below else 0, kind="shape", description=said, glue=0.1
    )


def page_frame(scene: Scene, margin: float, colour: Colour | None) -> Box:
    """Draw a line around the page; with ``None`` as colour, in an accent that is visible."""
    inner = scene.box.inset(margin)
    if colour is None:
        colour, _ = scene.legible(inner, (scene.palette.accent, scene.palette.accent2), 1.7)
    mask = shapes.outline(
        round(inner.width), round(inner.height), scene.uniform(0.014, 0.026) * scene.unit, scene.radius * scene.unit
    )
    said = f"{colours.name(colour)} frame around the page"
    return scene.add(shapes.crop(mask, colour), inner.left, inner.top, kind="shape", description=said, glue=0.4)
