"""A LICA data folder with two layouts, and what is read of it, for the tests of the source."""

import json

import numpy as np

from layers.imaging.codec import encode_png
from layers.sources.lica.reader import LicaSource
from layers.sources.location import Location

URL = "https://storage.example/bucket/"
IMAGE = {
    "type": "IMAGE",
    "src": f"{URL}cat.png",
    "left": "5px",
    "top": "4px",
    "width": "10px",
    "height": "8px",
    "transform": "none",
    "opacity": 1,
    "overflow": "hidden",
}
TEXT = {
    "type": "TEXT",
    "text": "Hill",
    "left": "2px",
    "top": "2px",
    "width": "50px",
    "height": "14px",
    "transform": "none",
    "color": "rgb(10, 20, 30)",
    "fontSize": "12px",
    "fontFamily": "Rufina--400",
    "fontWeight": "400",
    "textAlign": "center",
    "lineHeight": "14.0px",
    "letterSpacing": "0.1em",
    "textTransform": "none",
    "fontStyle": "normal",
}
GROUP = {
    "type": "GROUP",
    "left": "20px",
    "top": "10px",
    "width": "20px",
    "height": "10px",
    "transform": "none",
    "background": "rgb(0, 255, 0)",
    "backgroundColor": "rgb(0, 255, 0)",
    "clipPath": 'path("M0,0L8,0L8,4L0,4Z")',
    "components": [],
}
LAYOUT = {"components": [IMAGE, GROUP, TEXT], "background": "rgb(1, 2, 3)", "width": "60px", "height": "40px"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def image(colour, size=(8, 10)):
    return encode_png(np.broadcast_to(np.uint8(colour), (*size, 4)).copy())


def source(root, fonts=None, download=False):
    return LicaSource(Location(root, "prepare_buckets.root"), fonts=fonts, download=download)


def read(root, layout=None, fonts=None, download=False):
    if layout is not None:
        write(root / "layouts/T1/L1.json", layout)
    return source(root, fonts, download).read("L1")


def only(*components, **more):
    return LAYOUT | {"components": list(components)} | more
