"""Layouts about photographs: posters, covers, quote cards and collages; see ``posters``."""

from __future__ import annotations

from layers.composer import assets, grounds, labels, lettering, objects, panels, photos, shapes
from layers.composer import palette as colours
from layers.composer.element import Box
from layers.composer.scene import Scene


def photo_poster(scene: Scene) -> str:
    """A photograph with margins on a coloured ground, the title beside it and perhaps a sticker on its corner."""
    chosen = scene.pick(2, {"shadow": 1, "sticker": 1.5, "subtitle": 1.5, "frame": 0.8, "badge": 0.8})
    grounds.ground(scene)
    page = scene.box.inset(0.07 * scene.unit)
    wide = scene.width > scene.height
    if wide:
        text_box, image = page.columns(0.48, 0.52) if scene.chance(0.5) else page.columns(0.52, 0.48)[::-1]
        text_box = text_box.inset(0.06 * scene.unit, 0)
    else:
        share = 0.34 if "subtitle" in chosen else 0.28
        text_box, image = page.rows(share, 1 - share) if scene.chance(0.4) else page.rows(1 - share, share)[::-1]
        text_box = text_box.inset(0, 0.02 * scene.unit)
    # A frame follows the outline of the photograph; only two outlines can be drawn as a line.
    forms = ("rounded", "circle") if "frame" in chosen else ("rounded", "rounded", "circle", "arch", "blob")
    form = scene.choice(forms)
    image = image.square() if form in ("circle", "blob") else image
    crop, said = photos.photo_crop(scene, scene.photo(), form, image)
    objects.framed(scene, crop, image, said, shadow=objects.shadow_mode(scene, chosen))
    if "frame" in chosen:
        inner, line = image.inset(0.045 * scene.unit), 0.013 * scene.unit
        width, height = round(inner.width), round(inner.height)
        mask = (
            shapes.ring(width, line)
            if form == "circle"
            else shapes.outline(width, height, line, scene.radius * scene.unit)
        )
        colour = scene.palette.paper
        scene.add(
            shapes.crop(mask, colour),
            inner.left,
            inner.top,
            kind="shape",
            description=f"thin {colours.name(colour)} frame inside the photograph",
            glue=0.2,
        )
    # On a wide page the text is beside the photograph, so nothing may reach out of it sideways.
    edge = image.inset(0.05 * scene.unit, 0) if wide else page
    y = image.bottom - 0.13 * scene.unit if wide else image.top + 0.13 * scene.unit
    spots = (image.left + 0.1 * scene.unit, image.right - 0.1 * scene.unit)
    spots = spots if scene.chance(0.5) else spots[::-1]
    if "sticker" in chosen:
        side = 0.33 * scene.unit
        x = min(max(spots[0], edge.left + side / 2), edge.right - side / 2)
        box = Box(x - side / 2, y - side / 2, side, side)
        objects.place_object(scene, scene.objects(1)[0], box, sticker=True, turn=objects.some_turn(scene, 20))
    if "badge" in chosen:
        side = 0.28 * scene.unit
        x = min(max(spots[1], edge.left + side / 2), edge.right - side / 2)
        labels.badge(scene, (x, image.top + 0.13 * scene.unit if wide else y), side)
    scene.theme = scene.theme if "sticker" in chosen else None
    lettering.text_block(scene, text_box, chosen & {"subtitle"}, align=0.0 if wide else 0.5)
    return "photo poster"


def cover(scene: Scene) -> str:
    """A photograph over the whole page, darkened at one edge where the title stands."""
    chosen = scene.pick(2, {"subtitle": 2, "sticker": 1.5, "frame": 1, "badge": 1})
    photos.photo_ground(scene, scene.photo())
    unit = scene.unit
    below = scene.chance(0.7)
    page = scene.box.inset((0.12 if "frame" in chosen else 0.085) * unit)
    top, bottom = page.rows(0.6, 0.4) if below else page.rows(0.4, 0.6)
    text_box, rest = (bottom, top) if below else (top, bottom)
    panels.scrim(scene, below, scene.uniform(0.55, 0.7))
    if "frame" in chosen:
        panels.page_frame(scene, 0.035 * unit, scene.palette.paper)
    x = scene.choice((rest.left + 0.17 * unit, rest.right - 0.17 * unit))
    y = rest.top + 0.17 * unit if below else rest.bottom - 0.17 * unit
    if "sticker" in chosen:
        objects.place_object(
            scene,
            scene.objects(1)[0],
            Box(x - 0.17 * unit, y - 0.17 * unit, 0.34 * unit, 0.34 * unit),
            sticker=True,
            turn=objects.some_turn(scene),
        )
        x = rest.left + rest.right - x
    if "badge" in chosen:
        labels.badge(scene, (x, y), 0.3 * unit)
    scene.theme = scene.theme if "sticker" in chosen else None
    align = scene.choice((0.0, 0.5))
    lettering.text_block(scene, text_box, chosen & {"subtitle"}, align=align, valign=1.0 if below else 0.0, lines=2)
    return "cover"


def quote(scene: Scene) -> str:
    """A translucent panel over a photograph or pattern, with text and perhaps an object on its edge."""
    chosen = scene.pick(2, {"sticker": 2, "subtitle": 1.5, "button": 0.8, "frame": 1, "badge": 0.5})
    unit = scene.unit
    on_photo = scene.chance(0.7)
    if on_photo:
        photos.photo_ground(scene, scene.photo())
    else:
        grounds.ground(scene)
        grounds.pattern(scene)
        scene.bake()
    tall = scene.height > scene.width
    panel = scene.box.inset(0.1 * unit, (0.2 if tall else 0.14) * scene.height)
    if "sticker" in chosen:
        panel = Box(panel.left, panel.top + 0.07 * unit, panel.width, panel.height)
    where = scene.choice(("middle", "left", "right", "bottom"))
    if not tall and where in ("left", "right") and scene.width > scene.height:
        panel = Box(
            panel.left if where == "left" else panel.right - 0.62 * panel.width,
            panel.top,
            0.62 * panel.width,
            panel.height,
        )
    panels.block(
        scene,
        panel,
        *panels.veil_colour(scene),
        opacity=scene.uniform(0.72, 0.9),
        radius=scene.choice((0.0, 0.05, 0.09)) * unit,
    )
    if "frame" in chosen:
        line = panel.inset(0.03 * unit)
        colour, _ = scene.legible(line, (scene.palette.accent, scene.palette.ink), 1.8)
        scene.add(
            shapes.crop(shapes.outline(round(line.width), round(line.height), 0.012 * unit, 0.03 * unit), colour),
            line.left,
            line.top,
            kind="shape",
            description=f"thin {colours.name(colour)} frame on the panel",
            glue=0.5,
        )
    inner = panel.inset(0.075 * unit)
    if "sticker" in chosen:
        side = 0.32 * unit
        objects.place_object(
            scene,
            scene.objects(1)[0],
            Box(panel.centre[0] - side / 2, panel.top - 0.62 * side, side, side),
            shadow="baked",
        )
        inner = Box(inner.left, inner.top + 0.06 * unit, inner.width, inner.height - 0.06 * unit)
    else:
        scene.theme = None if on_photo else scene.theme
    if "badge" in chosen and "sticker" not in chosen:
        labels.badge(scene, (panel.right - 0.05 * unit, panel.top + 0.03 * unit), 0.26 * unit)
    lettering.text_block(scene, inner, chosen & {"subtitle", "button"}, lines=3)
    return "quote card"


def collage(scene: Scene) -> str:
    """Tilted prints of photographs and objects, overlapping a little, with a title strip."""
    count = max(1, min(3, scene.want - 2))
    chosen = scene.pick(count, {"title": 3, "sticker": 1.5, "pattern": 1, "shadow": 1})
    grounds.ground(scene, plain="pattern" in chosen)
    if "pattern" in chosen:
        grounds.pattern(scene)
    unit, page = scene.unit, scene.box.inset(0.06 * scene.unit)
    area = foot = page
    if "title" in chosen:
        strip = 0.2 if scene.width > scene.height else 0.24
        area, foot = page.rows(1 - strip, strip)
    taken: list[str] = []
    names = scene.objects(3)
    spots = {
        1: [(0.5, 0.5, 0.92)],
        2: [(0.3, 0.36, 0.66), (0.7, 0.64, 0.66)],
        3: [(0.27, 0.3, 0.56), (0.74, 0.38, 0.56), (0.44, 0.74, 0.56)],
    }[count]
    reach = min(area.width, area.height)
    if area.width > 1.1 * area.height:
        spots = {
            1: spots,
            2: [(0.27, 0.47, 0.98), (0.73, 0.53, 0.98)],
            3: [(0.18, 0.46, 0.96), (0.5, 0.54, 1.0), (0.82, 0.46, 0.96)],
        }[count]
        reach = min(area.height, area.width / (0.92 + 0.72 * (count - 1)))
    mirrored = scene.chance(0.5)
    for i, (x, y, size) in enumerate(spots):
        side = size * reach
        cx = area.left + (1 - x if mirrored else x) * area.width
        cx = min(max(cx, page.left + 0.5 * side), page.right - 0.5 * side)
        cy = min(max(area.top + y * area.height, area.top + 0.52 * side), area.bottom - 0.5 * side)
        box = Box(cx - side / 2, cy - side / 2, side * 0.92, side)
        turn = scene.uniform(-9, 9)
        if len(taken) < len(assets.photos(scene.pool)) and scene.chance(0.6):
            taken.append(scene.photo(taken))
            crop, said = photos.print_of_photo(scene, taken[-1], box)
        else:
            crop, said = photos.print_of_object(scene, names[i % len(names)], box)
        objects.framed(
            scene, crop, box, said, turn=turn, shadow="layer" if "shadow" in chosen and i == count - 1 else "baked"
        )
    if "sticker" in chosen:
        side = 0.3 * unit
        x = scene.choice((page.left, page.right - side))
        y = foot.top - side * 0.8 if "title" in chosen else page.bottom - side
        name = scene.choice(assets.objects("party", scene.pool))
        objects.place_object(scene, name, Box(x, y, side, side), sticker=True, turn=scene.uniform(-20, 20))
    if "title" in chosen:
        scene.theme = scene.theme if scene.chance(0.5) else None
        if scene.chance(0.5):
            labels.title_ribbon(scene, foot.inset(0.03 * foot.width, 0.08 * foot.height), glue=0.9)
        else:
            lettering.text_block(scene, foot.inset(0, 0.03 * unit), set(), lines=1)
    return "collage"
