"""Layouts of cards, banners and grids: columns, frames and tiles; see ``posters``."""

from __future__ import annotations

from layers.composer import assets, grounds, labels, lettering, objects, panels, photos
from layers.composer import palette as colours
from layers.composer import words as copy
from layers.composer.element import Box
from layers.composer.scene import Scene


def split(scene: Scene) -> str:
    """A page in two halves: a coloured field with an object or a photograph, and a column of text."""
    chosen = scene.pick(2, {"field": 3, "subtitle": 1.5, "button": 1.5, "shadow": 1, "kicker": 0.6, "badge": 0.7})
    grounds.ground(scene, plain=True)
    unit = scene.unit
    tall = scene.height > scene.width
    flip = scene.chance(0.5)
    share = scene.uniform(0.46, 0.54)
    cut = scene.box.rows if tall else scene.box.columns
    side, column = cut(share, 1 - share) if flip or tall else cut(1 - share, share)[::-1]
    use_photo = scene.chance(0.35)
    name = scene.objects(1)[0]
    if use_photo:
        photo = scene.photo()
        crop, said = photos.photo_crop(scene, photo, "full", side)
        scene.add(crop, side.left, side.top, kind="image", description=said)
        scene.theme = None
        stage = side.square(0.88)
    else:
        if "field" in chosen:
            panels.field(scene, side, assets.object_colour(name))
        stage = side.square(0.88)
        objects.place_object(scene, name, stage, shadow=objects.shadow_mode(scene, chosen))
    if "badge" in chosen:
        size = 0.28 * unit
        x = side.left + 0.2 * unit if side.left < column.left or tall else side.right - 0.2 * unit
        labels.badge(scene, (x, side.top + 0.2 * unit), size)
    lettering.text_block(
        scene, column.inset(0.075 * unit), chosen & {"subtitle", "button", "kicker"}, align=0.5 if tall else 0.0
    )
    return "card" if tall or scene.width == scene.height else "banner"


def greeting(scene: Scene) -> str:
    """A framed card: the title, and above or below it one object or a row of three."""
    chosen = scene.pick(2, {"frame": 2, "panel": 1.5, "subtitle": 1.2, "more": 1.5, "pattern": 1.2})
    unit, page = scene.unit, scene.box.inset(0.05 * scene.unit)
    inner = page.inset((0.115 if chosen & {"panel", "frame"} else 0.05) * unit)
    names = scene.objects(3 if "more" in chosen else 1)
    share = 0.38 if scene.width > scene.height else 0.42
    row, text_box = inner.rows(share, 1 - share) if scene.chance(0.5) else inner.rows(1 - share, share)[::-1]
    text_box = text_box.inset(0, 0.03 * unit)
    grounds.ground(scene, plain="pattern" in chosen)
    if "pattern" in chosen:
        grounds.pattern(scene, None if "panel" in chosen else text_box)
    if "panel" in chosen:
        panels.veil(scene, page.inset(0.035 * unit))
    if "frame" in chosen:
        panels.page_frame(scene, (0.115 if "panel" in chosen else 0.05) * unit, None)
    cells = row.columns(*([1.0] * len(names)))
    shadow = "baked" if scene.chance(0.6) else "none"
    # The outer two first, so that the one in the middle may overlap them.
    order = sorted(range(len(names)), key=lambda i: abs(i - (len(names) - 1) / 2), reverse=True)
    for drawn, i in enumerate(order):
        middle = i == len(names) // 2
        objects.place_object(
            scene, names[i], cells[i].square(1.0 if middle else 0.82), shadow=shadow, glue=0.7 if drawn else 0.0
        )
    lettering.text_block(scene, text_box, chosen & {"subtitle"}, lines=2)
    return "greeting card"


def tiles(scene: Scene) -> str:
    """A grid of coloured tiles with an object on each, and a title."""
    wide, tall = scene.width > scene.height, scene.height > scene.width
    chosen = scene.pick(2, {"title": 3, "third": 1.5, "fourth": 1, "subtitle": 0.7})
    grounds.ground(scene, plain=scene.chance(0.7))
    unit, page, palette = scene.unit, scene.box.inset(0.065 * scene.unit), scene.palette
    count = 2 + len(chosen & {"third", "fourth"})
    if "subtitle" in chosen:
        chosen.add("title")
    text_box: Box | None = None
    if "title" in chosen:
        share = 0.3 + (0.06 if "subtitle" in chosen else 0)
        if wide and count in (2, 4):
            text_box, page = page.columns(0.42, 0.58)
            text_box = text_box.inset(0.02 * unit, 0)
        elif not wide and not tall:
            text_box, page = page.rows(share, 1 - share)
        else:
            text_box, page = page.rows(share * (0.8 if tall else 1.0), 1 - share)
    if count == 4:
        cells = [cell for row in page.rows(1, 1) for cell in row.columns(1, 1)]
    elif count == 3 and tall:
        first, second = page.rows(1, 1)
        cells = [first, *second.columns(1, 1)]
    else:
        cut = page.rows if tall and page.height > 1.3 * page.width else page.columns
        cells = cut(*([1.0] * count))
    names = scene.objects(len(cells))
    shades = [palette.accent, palette.accent2, palette.surface, palette.tone, palette.ink]
    shades = [
        c for c in shades if colours.distance(c, palette.ground) > 0.09 and colours.distance(c, palette.ground2) > 0.06
    ] or [palette.paper]
    turn = int(scene.rng.integers(len(shades)))
    plain = scene.chance(0.35)
    for i, (cell, name) in enumerate(zip(cells, names, strict=False)):
        colour = shades[(turn + (0 if plain else i)) % len(shades)]
        inner = cell.inset(0.02 * unit)
        panels.block(
            scene, inner, colour, copy.article(f"{colours.name(colour)} tile"), shadow="baked" if plain else "none"
        )
        objects.place_object(scene, name, inner.square(0.74))
        scene.bake()
    if text_box is not None:
        align = 0.0 if text_box.right < page.left + 1 else 0.5
        lettering.text_block(scene, text_box.inset(0, 0.015 * unit), chosen & {"subtitle"}, align=align)
    return "tile grid"
