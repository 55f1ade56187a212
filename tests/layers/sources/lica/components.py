"""Components of a LICA layout, and their drawing, for the tests of images and of text."""

import numpy as np

from layers.sources.lica.element import Element
from layers.sources.lica.fonts import Fonts
from layers.sources.lica.render import Renderer

RED, BLUE = (255, 0, 0, 255), (0, 0, 255, 255)
SIZE = (40, 60)
SQUARE = 'path("M0,0L10,0L10,10L0,10Z")'


def flat(colour, height=4, width=4):
    return np.broadcast_to(np.uint8(colour), (height, width, 4)).copy()


def quarters(size=20):
    """Red, green, blue and white quarters, clockwise from the left upper one."""
    image = flat((255, 255, 255, 255), size, size)
    half = size // 2
    image[:half, :half], image[:half, half:], image[half:, half:] = RED, (0, 255, 0, 255), BLUE
    return image


def image(left=0, top=0, width=20, height=20, **more):
    return {"type": "IMAGE", "src": "x", "left": left, "top": top, "width": width, "height": height} | more


def group(*children, **more):
    return {"type": "GROUP", "components": list(children)} | more


def text(words, **more):
    style = {"left": 0, "top": 0, "width": 60, "height": 12, "fontSize": "10px", "lineHeight": "12px"}
    return {"type": "TEXT", "text": words} | style | more


def render(component, pixels=None, size=SIZE, preview=None, fonts=None):
    pixels = flat(RED) if pixels is None else pixels
    renderer = Renderer(size, lambda src, where: pixels, Fonts(fonts), preview)
    drawn = renderer.draw(Element(component, "c"))
    return drawn, renderer.notes


def alpha(component, **more):
    drawn, _ = render(component, **more)
    return np.zeros(more.get("size", SIZE), np.float32) if drawn is None else drawn[..., 3]


def extent(mask):
    """Left, top, right, bottom (exclusive) of what is above one half."""
    rows, columns = np.flatnonzero((mask > 0.5).any(axis=1)), np.flatnonzero((mask > 0.5).any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
