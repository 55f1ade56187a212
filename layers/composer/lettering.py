"""Columns of text: titles with the lines above and below them."""

from __future__ import annotations

import numpy as np

from layers.composer import assets, labels, shapes
from layers.composer import palette as colours
from layers.composer import text as typeset
from layers.composer import words as copy
from layers.composer.element import Box
from layers.composer.palette import Colour
from layers.composer.scene import Scene

BODY_CONTRAST = 4.0
TITLE_CONTRAST = 3.3
THIN_CONTRAST = 5.0
TITLE_STYLES = {"plain": 0.62, "outline": 0.1, "block": 0.12, "soft": 0.08, "gradient": 0.08}
BODY_SIZE = 0.074


def text_block(
    scene: Scene,
    box: Box,
    with_parts: set[str],
    *,
    align: float = 0.5,
    valign: float = 0.5,
    lines: int = 3,
    most: float = 0.3,
) -> Box:
    """Set a title and its accompanying lines as one column.

    Args:
        scene: the canvas to draw on.
        box: the column; the text stays inside.
        with_parts: any of ``kicker``, ``subtitle`` and ``button``.
        align: 0 left, 0.5 centred, 1 right.
        valign: 0 top, 0.5 centred, 1 bottom.
        lines: maximum number of lines of the title.
        most: maximum font size of the title as a share of the short side.

    Returns:
        The box of the inked letters.
    """
    unit = scene.unit
    room = box.height
    room -= (0.1 * unit if "kicker" in with_parts else 0) + (0.22 * unit if "button" in with_parts else 0)
    small = None
    if "subtitle" in with_parts:
        height = min(0.19 * unit, 0.38 * room)
        said = copy.subtitle(scene.rng)
        small = typeset.fit(said, scene.body_face, box.width, height, max_lines=2, most=1.25 * BODY_SIZE * unit)
        room -= (len(small.lines) * 1.08 * small.size) + 0.05 * unit
    text = labels.headline(scene)
    height = max(room, 0.2 * box.height)
    setting = typeset.fit(text, scene.title_face, box.width, height, max_lines=lines, most=most * unit)
    ink = typeset.mask(setting, align)
    inks = [("title", ink, setting)]
    if small is not None:
        inks.append(("subtitle", typeset.mask(small, align), small))
    if "kicker" in with_parts:
        face = "manrope_body" if scene.pool == "train" else scene.body_face
        said = copy.kicker(scene.rng).upper()
        setting = typeset.fit(said, face, box.width, 0.08 * unit, max_lines=1, most=0.07 * unit)
        inks.insert(0, ("kicker", typeset.mask(setting, align), setting))
    gap = 0.05 * unit
    tall = sum(mask.shape[0] for _, mask, _ in inks) + gap * (len(inks) - 1)
    tall += 0.2 * unit if "button" in with_parts else 0
    y = box.top + max(0.0, box.height - tall) * valign
    top = y
    for role, mask, setting in inks:
        x = box.left + (box.width - mask.shape[1]) * align
        set_text(scene, mask, setting, Box(x, y, mask.shape[1], mask.shape[0]), role)
        y += mask.shape[0] + gap
    if "button" in with_parts:
        width = min(box.width, 0.5 * unit)
        labels.button(scene, Box(box.left + (box.width - width) * align, y + 0.02 * unit, width, 0.15 * unit))
    return Box(box.left, top, box.width, tall)


def set_text(scene: Scene, ink: np.ndarray, setting: typeset.Setting, area: Box, role: str) -> Box:
    """Colour, style and draw the letters of one text in its place; ``role`` is title, subtitle or kicker."""
    palette = scene.palette
    strong = (palette.ink, palette.paper)
    if role == "title":
        wishes = (palette.accent, *strong) if scene.chance(0.45) else (*strong, palette.accent)
        wishes = wishes if scene.chance(0.6) else (palette.accent2, *wishes)
        style = str(scene.rng.choice(list(TITLE_STYLES), p=list(TITLE_STYLES.values())))
        need = THIN_CONTRAST if setting.face == "amatic" else TITLE_CONTRAST
    else:
        wishes, style, need = (*strong, palette.accent), "plain", BODY_CONTRAST
    colour, ratio = scene.legible(area, wishes, need)
    opposite = palette.paper if colours.to_oklab(colour)[0] < 0.6 else palette.ink
    fill: Colour | np.ndarray = colour
    said = colours.name(colour)
    if ratio < 2.4:
        style = "halo"
    elif style == "gradient" and ratio < 6:
        style = "plain"
    elif style == "gradient":
        friend = colours.mix(colour, palette.accent, 0.45)
        fill = shapes.linear(ink.shape[1], ink.shape[0], colour, friend, 90.0)
    crop, pad = typeset.styled(ink, fill, "plain" if style == "gradient" else style, opposite, setting.size)
    extra = {
        "outline": f" with {copy.article(colours.name(opposite))} outline",
        "block": f" with {copy.article(colours.name(opposite))} block shadow",
        "soft": " with a soft shadow",
        "halo": " with a glow",
    }.get(style, "")
    text = " ".join(setting.lines)
    description = f"the {role} '{text}' in {said} {assets.FACES[setting.face].look} letters{extra}"
    glue = {"title": 0.0, "subtitle": 0.85, "kicker": 0.0}[role]
    return scene.add(crop, area.left - pad, area.top - pad, kind="text", description=description, text=text, glue=glue)


def _aligned(box: Box, ink: np.ndarray, align: float) -> Box:
    height, width = ink.shape
    return Box(box.left + (box.width - width) * align, box.centre[1] - height / 2, width, height)


def small_line(scene: Scene, box: Box) -> Box:
    """Set a subtitle on its own, in the middle of a box."""
    text = copy.subtitle(scene.rng)
    setting = typeset.fit(text, scene.body_face, box.width, box.height, max_lines=2, most=1.3 * BODY_SIZE * scene.unit)
    ink = typeset.mask(setting, 0.5)
    return set_text(scene, ink, setting, _aligned(box, ink, 0.5), "subtitle")


def offer(scene: Scene, box: Box, with_parts: set[str], *, align: float) -> None:
    """Set a discount as large as possible, with a ``subtitle`` and a ``button`` below if requested."""
    unit, rng = scene.unit, scene.rng
    shares = [0.6, 0.2 if "subtitle" in with_parts else 0.001, 0.3 if "button" in with_parts else 0.001]
    head, middle, foot = box.rows(*shares)
    setting = typeset.fit(copy.offer(rng), labels.sturdy(scene), head.width, head.height * 0.96, max_lines=2)
    ink = typeset.mask(setting, align)
    set_text(scene, ink, setting, _aligned(head, ink, align), "title")
    if "subtitle" in with_parts:
        text = copy.title(rng, scene.theme)
        small = typeset.fit(text, scene.body_face, middle.width, 0.8 * middle.height, max_lines=1, most=0.1 * unit)
        ink = typeset.mask(small, align)
        set_text(scene, ink, small, _aligned(middle, ink, align), "subtitle")
    if "button" in with_parts:
        width, height = min(foot.width, 0.52 * unit), min(0.16 * unit, 0.95 * foot.height)
        labels.button(scene, Box(foot.left + (foot.width - width) * align, foot.centre[1] - height / 2, width, height))
