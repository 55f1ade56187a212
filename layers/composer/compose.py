"""Stream of layered designs made of real images, endless and deterministic: the embedded default data.

``compose(index, seed=...)`` draws design number ``index``: a page of one of a dozen layouts (posters, cards, banners,
collages) with two to six RGBA layers. Words and colours fit its objects. The same arguments give the same pixels in
every process and in any order, so the stream needs no storage and no state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from layers.composer import assets, cards, photo_layouts, posters
from layers.composer import palette as colours
from layers.composer.element import Element
from layers.composer.scene import Scene
from layers.composer.words import THEMES, article
from layers.imaging.stack import Layer, LayeredSample

DEFAULT_SIZE = 384
LAYER_COUNTS = (2, 3, 4, 5, 6)
_COUNT_WEIGHTS = (0.09, 0.20, 0.25, 0.24, 0.22)
_ASPECTS = ((1, 1), (2, 3), (3, 2))
_ASPECT_WEIGHTS = (0.34, 0.36, 0.30)
# Weight in the draw, and the fewest layers with which the layout looks finished.
_LAYOUTS = {
    posters.hero_poster: (0.18, 2),
    photo_layouts.photo_poster: (0.11, 3),
    photo_layouts.cover: (0.07, 3),
    posters.flyer: (0.10, 4),
    posters.type_poster: (0.06, 2),
    posters.emblem: (0.07, 3),
    posters.sale: (0.10, 3),
    cards.split: (0.12, 3),
    cards.greeting: (0.09, 3),
    photo_layouts.collage: (0.06, 4),
    cards.tiles: (0.05, 3),
    photo_layouts.quote: (0.05, 3),
}
_ATTEMPTS = 24
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Design:
    """A composed sample and the elements that its layers were made from.

    Attributes:
        sample: the layers.
        elements: one per layer, bottom to top; they hold the text that is set.
        layout: kind of design, in words.
    """

    sample: LayeredSample
    elements: tuple[Element, ...]
    layout: str


def sample_id(index: int, *, seed: int, size: int = DEFAULT_SIZE, pool: str = "train") -> str:
    """Twenty letters and digits that name a design; different arguments of ``compose`` give different names."""
    number = int.from_bytes(sha256(f"{seed}:{index}:{size}:{pool}".encode()).digest())
    digits = []
    for _ in range(20):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)


def compose(index: int, *, seed: int, size: int = DEFAULT_SIZE, pool: str = "train") -> LayeredSample:
    """Compose design number ``index`` of the stream ``seed``.

    Args:
        index: 0 or more.
        seed: seed of the stream, 0 or more.
        size: long side in pixels, a multiple of 6; the canvas is 1:1, 2:3 or 3:2.
        pool: which assets to use, one of ``assets.POOLS``; no object, photograph or font is in two pools.

    Returns:
        Two to six layers; the background is opaque, RGB is 0 wherever alpha is.

    Raises:
        ValueError: if an argument is out of range.
    """
    return design(index, seed=seed, size=size, pool=pool).sample


def design(index: int, *, seed: int, size: int = DEFAULT_SIZE, pool: str = "train") -> Design:
    """Compose as :func:`compose` does, with the elements that the layers were made from."""
    assets.check_pool(pool)
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must be 0 or more, got index {index} and seed {seed}")
    if size < 48 or size % 6:
        raise ValueError(f"size must be a multiple of 6 (so that 2:3 is exact) and at least 48, got {size}")
    for attempt in range(_ATTEMPTS):
        scene = _scene(np.random.default_rng([seed, index, attempt]), size, pool)
        layout = _layout(scene)(scene)
        scene.reduce()
        if 2 <= len(scene.elements) <= LAYER_COUNTS[-1] and scene.all_visible():
            return _finished(scene, layout, sample_id(index, seed=seed, size=size, pool=pool))
    raise RuntimeError(f"no visible design in {_ATTEMPTS} attempts for index {index}, seed {seed}, size {size}")


def _scene(rng: np.random.Generator, size: int, pool: str) -> Scene:
    wide, tall = _ASPECTS[int(rng.choice(len(_ASPECTS), p=_ASPECT_WEIGHTS))]
    longest = max(wide, tall)
    theme = str(rng.choice(list(THEMES)))
    pairs = assets.font_pairs(pool)
    title_face, body_face = pairs[int(rng.integers(len(pairs)))]
    # Half of the palettes start from an object of the theme, so that backgrounds and objects match.
    hue = float(rng.uniform(0, 360))
    names = assets.objects(theme, pool)
    if rng.random() < 0.5:
        own = colours.to_oklch(assets.object_colour(names[int(rng.integers(len(names)))]))[2]
        hue = (own + float(rng.choice((150.0, 180.0, 210.0, 60.0, -60.0)))) % 360
    return Scene(
        rng=rng,
        width=size * wide // longest,
        height=size * tall // longest,
        pool=pool,
        theme=theme,
        palette=colours.palette(rng, hue),
        title_face=title_face,
        body_face=body_face,
        want=int(rng.choice(LAYER_COUNTS, p=_COUNT_WEIGHTS)),
        radius=float(rng.choice((0.0, 0.03, 0.06, 0.09))),
    )


def _layout(scene: Scene) -> Callable[[Scene], str]:
    fitting = [(draw, weight) for draw, (weight, fewest) in _LAYOUTS.items() if scene.want >= fewest]
    weights = np.array([weight for _, weight in fitting])
    return fitting[int(scene.rng.choice(len(fitting), p=weights / weights.sum()))][0]


def _finished(scene: Scene, layout: str, name: str) -> Design:
    layers = tuple(Layer(scene.layer_image(element), element.kind, element.description) for element in scene.elements)
    sample = LayeredSample(name, layers, _caption(scene, layout), stratum=assets.STRATA[scene.pool])
    return Design(sample, tuple(scene.elements), layout)


def _caption(scene: Scene, layout: str) -> str:
    form = "square" if scene.width == scene.height else "portrait" if scene.height > scene.width else "landscape"
    said = [element.description for element in scene.elements[1:] if element.kind != "shadow"]
    listed = said[0] if len(said) == 1 else f"{'; '.join(said[:-1])}; and {said[-1]}"
    return f"A {form} {layout}: {listed}. It has {article(scene.elements[0].description)}."
