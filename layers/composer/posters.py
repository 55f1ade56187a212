"""Layouts of posters and flyers: one dominant image, one dominant line of text.

A layout draws on a :class:`scene.Scene`, bottom to top, and returns the name of the kind of design.
"""

from __future__ import annotations

from layers.composer import assets, grounds, labels, lettering, objects, panels, shapes
from layers.composer import palette as colours
from layers.composer.element import Box
from layers.composer.scene import Scene


def hero_poster(scene: Scene) -> str:
    """A big object, perhaps on a backdrop, with the title above or below; sometimes it covers the title's edge."""
    chosen = scene.pick(1, {"title": 8, "backdrop": 2, "shadow": 1, "subtitle": 1.5, "badge": 1.5, "pattern": 1})
    if scene.want == 2:
        # Scene.reduce joins these to the background.
        chosen |= {scene.choice(("backdrop", "pattern", "nothing"))}
    if "subtitle" in chosen:
        chosen.add("title")
    unit, page = scene.unit, scene.box.inset(0.075 * scene.unit)
    name = scene.objects(1)[0]
    text_box: Box | None = None
    stage = page
    above, beside = scene.chance(0.6), False
    if "title" in chosen:
        share = 0.27 + (0.1 if "subtitle" in chosen else 0.0)
        if scene.width > scene.height and scene.chance(0.6):
            beside = True
            text_box, stage = page.columns(0.5, 0.5) if above else page.columns(0.5, 0.5)[::-1]
            text_box = text_box.inset(0.03 * unit, 0)
        else:
            text_box, stage = page.rows(share, 1 - share) if above else page.rows(1 - share, share)[::-1]
    grounds.ground(scene, plain=bool(chosen & {"pattern", "backdrop"}))
    if "pattern" in chosen:
        grounds.pattern(scene, text_box)
    behind = text_box is not None and scene.chance(0.35) and not beside and not (above and "subtitle" in chosen)
    stage = stage.inset(0.02 * unit)
    if "backdrop" in chosen:
        stage = panels.backdrop(scene, stage, assets.object_colour(name)).inset(0.09 * unit)
        behind = False
    if behind:
        ink = lettering.text_block(scene, text_box, chosen & {"subtitle"}, lines=1, valign=0.0 if above else 0.5)
        reach = min(0.22 * ink.height, 0.06 * unit)
        top, bottom = (ink.bottom - reach, stage.bottom) if above else (stage.top, ink.top + reach)
        stage = Box(stage.left, top, stage.width, bottom - top)
    hero = objects.place_object(
        scene,
        name,
        stage.square(0.97),
        shadow=objects.shadow_mode(scene, chosen),
        turn=objects.some_turn(scene),
        sticker=scene.chance(0.12),
    )
    if "badge" in chosen:
        side = scene.uniform(0.27, 0.33) * unit
        x = hero.right - 0.02 * unit if scene.chance(0.6) else hero.left
        x = stage.left + 0.35 * side if beside and not above else stage.right - 0.35 * side if beside else x
        x = min(max(x, page.left + side / 2), page.right - side / 2)
        y = hero.top + 0.32 * side if text_box is None or not above else hero.bottom - 0.32 * side
        y = min(max(y, page.top + side / 2), page.bottom - side / 2)
        if text_box is not None and not beside:
            y = max(y, text_box.bottom + side / 2) if above else min(y, text_box.top - side / 2)
        labels.badge(scene, (x, y), side)
    if text_box is not None and not behind:
        lettering.text_block(scene, text_box, chosen & {"subtitle"}, lines=2)
    return "poster"


def flyer(scene: Scene) -> str:
    """An object standing on hills at the foot of the page, the title in the sky, perhaps a date."""
    chosen = scene.pick(3, {"shadow": 1, "date": 1.5, "subtitle": 1.5, "pattern": 0.8, "second": 1})
    grounds.ground(scene, plain=True)
    if "pattern" in chosen:
        grounds.pattern(scene)
    unit, page = scene.unit, scene.box.inset(0.07 * scene.unit)
    palette = scene.palette
    wide = scene.width > scene.height
    height = scene.uniform(0.34, 0.46) * scene.height
    colour = scene.choice((palette.accent, palette.accent2, palette.ink))
    land = shapes.hills(scene.rng, scene.width, round(height), scene.uniform(0.5, 1.2))
    scene.add(
        shapes.crop(land, colour),
        0,
        scene.height - height,
        kind="shape",
        description=f"wavy {colours.name(colour)} ground along the bottom",
        glue=0.1,
    )
    names = scene.objects(2)
    side = 0.62 * unit
    if wide:
        text_box, stage = page.columns(0.54, 0.46)
        text_box = text_box.rows(0.68, 0.32)[0]
        side = min(side, stage.width)
    else:
        text_box, stage = page.rows(0.36, 0.64)
        side = min(side, 0.92 * stage.height)
    if "second" in chosen and not wide:
        objects.place_object(
            scene,
            names[1],
            Box(stage.centre[0] + 0.15 * side, page.bottom - 0.62 * side - 0.06 * unit, 0.6 * side, 0.6 * side),
        )
        hero_box = Box(stage.centre[0] - side * 0.85, page.bottom - side, side, side)
    else:
        hero_box = Box(stage.centre[0] - side / 2, page.bottom - side - 0.02 * unit, side, side)
    objects.place_object(scene, names[0], hero_box, shadow=objects.shadow_mode(scene, chosen))
    if "date" in chosen:
        left = page.left if wide else page.right - 0.26 * unit
        labels.date_chip(scene, Box(left, page.bottom - 0.28 * unit, 0.26 * unit, 0.28 * unit))
    lettering.text_block(scene, text_box, chosen & {"subtitle"}, align=0.0 if wide else 0.5, valign=0.3, lines=2)
    return "flyer"


def emblem(scene: Scene) -> str:
    """A round emblem with an object in it and the title on a ribbon across."""
    chosen = scene.pick(2, {"ribbon": 3, "ring": 1.2, "pattern": 1, "shadow": 1, "subtitle": 0.8})
    grounds.ground(scene, plain="pattern" in chosen)
    if "pattern" in chosen:
        grounds.pattern(scene)
    unit = scene.unit
    page = scene.box.inset(0.07 * unit)
    if scene.height > scene.width and "subtitle" in chosen:
        page, foot = page.rows(0.84, 0.16)
    else:
        chosen.discard("subtitle")
        foot = page
    round_box = page.square()
    name = scene.objects(1)[0]
    disc = panels.disc(
        scene, round_box, assets.object_colour(name), shadow=objects.shadow_mode(scene, chosen - {"shadow"})
    )
    if "ring" in chosen:
        inner = round_box.inset(0.035 * unit)
        colour, _ = scene.legible(inner, (scene.palette.paper, scene.palette.accent2), 1.6)
        scene.add(
            shapes.crop(shapes.ring(round(inner.width), 0.014 * unit), colour),
            inner.left,
            inner.top,
            kind="shape",
            description=f"thin {colours.name(colour)} ring",
            glue=0.5,
        )
    ribbon = "ribbon" in chosen
    stage = disc.square(0.6 if ribbon else 0.66)
    if ribbon:
        stage = Box(stage.left, stage.top - 0.11 * disc.height, stage.width, stage.height)
    objects.place_object(scene, name, stage, shadow=objects.shadow_mode(scene, chosen))
    if ribbon:
        width = min(scene.width * 0.94, disc.width * 1.12)
        band = Box(disc.centre[0] - width / 2, disc.top + 0.66 * disc.height, width, 0.23 * disc.height)
        labels.title_ribbon(scene, band)
    if "subtitle" in chosen:
        lettering.small_line(scene, foot)
    return "emblem"


def sale(scene: Scene) -> str:
    """A huge discount beside an object."""
    chosen = scene.pick(2, {"button": 1.5, "shadow": 1, "panel": 1.2, "subtitle": 1.5, "pattern": 1, "second": 1})
    unit, page = scene.unit, scene.box.inset(0.08 * scene.unit)
    wide = scene.width > scene.height
    text_box, stage = page.columns(0.55, 0.45) if wide else page.rows(0.48, 0.52)
    if wide and scene.chance(0.4):
        stage, text_box = page.columns(0.45, 0.55)
    grounds.ground(scene, plain="pattern" in chosen)
    if "pattern" in chosen:
        grounds.pattern(scene, text_box)
    if "panel" in chosen:
        panels.veil(scene, text_box.inset(-0.02 * unit))
        text_box = text_box.inset(0.045 * unit)
    names = scene.objects(2)
    if "second" in chosen:
        side = 0.62 * min(stage.width, stage.height) if wide else 0.72 * stage.height
        objects.place_object(
            scene, names[1], Box(stage.right - side, stage.top, side, side), turn=objects.some_turn(scene)
        )
        side *= 1.12 if wide else 1.25
        stage = Box(stage.left, stage.bottom - side, side, side)
    objects.place_object(
        scene,
        names[0],
        stage.inset(0.025 * unit).square(),
        shadow=objects.shadow_mode(scene, chosen),
        turn=objects.some_turn(scene),
    )
    lettering.offer(scene, text_box, chosen & {"subtitle", "button"}, align=scene.choice((0.0, 0.5)) if wide else 0.5)
    return "sale banner" if wide else "sale poster"


def type_poster(scene: Scene) -> str:
    """Large letters alone on the page, perhaps with a small object."""
    chosen = scene.pick(1, {"subtitle": 2, "button": 1.5, "frame": 1.5, "pattern": 1.2, "sticker": 2, "kicker": 1})
    unit, page = scene.unit, scene.box.inset((0.13 if "frame" in chosen else 0.085) * scene.unit)
    text_box = page
    grounds.ground(scene, plain="pattern" in chosen)
    if "pattern" in chosen:
        grounds.pattern(scene, page)
    if "frame" in chosen:
        panels.page_frame(scene, 0.05 * unit, None)
    align = scene.choice((0.0, 0.5))
    if "sticker" in chosen:
        text_box, foot = page.rows(0.7, 0.3)
        side = min(foot.height, 0.34 * unit)
        box = Box(foot.left + (foot.width - side) * align, foot.bottom - side, side, side)
        objects.place_object(scene, scene.objects(1)[0], box, shadow="baked" if scene.chance(0.5) else "none")
    parts_of_text = chosen & {"subtitle", "button", "kicker"}
    lettering.text_block(scene, text_box, parts_of_text, align=align, lines=4, most=0.42)
    return "typographic poster"
