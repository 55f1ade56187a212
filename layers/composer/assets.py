"""Assets of the composer: vendored objects, photographs and fonts that installed packages ship.

Objects are Microsoft Fluent Emoji (``fluent_emoji/``, MIT). Photographs are CC0 or public domain. Most are from
``skimage.data``, as its docstrings say (astronaut, camera, chelsea, clock, coffee, coins, hubble, immunohistochemistry,
moon, retina, rocket; textures brick, grass, gravel). One is matplotlib's sample data (Grace Hopper, US Navy). Fonts are
DejaVu and STIX (OFL) from matplotlib and the ``font-*`` packages (OFL, Caladea Apache-2.0).

Every asset belongs to one of three pools: ``train``; ``held_out``, for validation: never trained on, but used for
choices; and ``test``, for the test split alone.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from layers.composer.words import THEMES, UNSEEN
from layers.imaging.codec import opened

POOLS = ("train", "held_out", "test")
# Name of the stratum of a pool's designs, where metrics are broken down.
STRATA = {"train": "known_assets", "held_out": "held_out_assets", "test": "unseen_assets"}
OBJECT_DIR = Path(__file__).parent / "fluent_emoji"
PHOTO_LONG_SIDE = 768


@dataclass(frozen=True)
class Photo:
    """A photograph that an installed package ships.

    Attributes:
        package: import name of the package.
        path: below the package's folder.
        description: what it shows, in words.
        focus: (x, y) in [0, 1] of the point that a crop must keep.
        pool: one of :data:`POOLS`.
        weight: relative frequency in the draw.
    """

    package: str
    path: str
    description: str
    focus: tuple[float, float] = (0.5, 0.5)
    pool: str = "train"
    weight: float = 1.0


@dataclass(frozen=True)
class Face:
    """A font face.

    Attributes:
        package: import name of the package.
        path: below the package's folder.
        look: how its letters look, in words.
        role: ``title`` or ``body``.
        pool: one of :data:`POOLS`.
    """

    package: str
    path: str
    look: str
    role: str
    pool: str = "train"


PHOTOS: dict[str, Photo] = {
    "astronaut": Photo("skimage", "data/astronaut.png", "a smiling astronaut in a space suit", (0.42, 0.3)),
    "photographer": Photo("skimage", "data/camera.png", "a man with a camera on a tripod", (0.45, 0.35)),
    "cat": Photo("skimage", "data/chelsea.png", "a tabby cat", (0.5, 0.4)),
    "galaxies": Photo("skimage", "data/hubble_deep_field.jpg", "galaxies in deep space"),
    "retina": Photo("skimage", "data/retina.jpg", "a retina with its blood vessels", weight=0.2),
    "launch": Photo("skimage", "data/rocket.jpg", "a rocket at lift-off", (0.5, 0.6)),
    "coffee": Photo("skimage", "data/coffee.png", "a cup of coffee on a wooden table", (0.5, 0.5), "held_out"),
    "officer": Photo(
        "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "a naval officer in uniform", (0.5, 0.3), "held_out"
    ),
    "coins": Photo("skimage", "data/coins.png", "rows of ancient coins", pool="test"),
    "clock": Photo("skimage", "data/clock_motion.png", "a wall clock, blurred by motion", pool="test"),
    "tissue": Photo("skimage", "data/ihc.png", "stained tissue under a microscope", pool="test"),
}
TEXTURES: dict[str, Photo] = {
    "brick": Photo("skimage", "data/brick.png", "brick wall"),
    "grass": Photo("skimage", "data/grass.png", "grass"),
    "gravel": Photo("skimage", "data/gravel.png", "gravel", pool="held_out"),
    "moon": Photo("skimage", "data/moon.png", "lunar dust", pool="test"),
}
FACES: dict[str, Face] = {
    "fredoka": Face("font_fredoka_one", "files/FredokaOne-Regular.ttf", "rounded", "title"),
    "amatic": Face("font_amatic_sc", "files/AmaticSC-Bold.ttf", "narrow hand-drawn", "title"),
    "manrope": Face("font_manrope", "files/Manrope-ExtraBold.ttf", "heavy sans-serif", "title"),
    "dejavu": Face("matplotlib", "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf", "bold sans-serif", "title"),
    "mono": Face("matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono-Bold.ttf", "typewriter", "title"),
    "caladea": Face("font_caladea", "files/Caladea-Bold.ttf", "bold serif", "title"),
    "caladea_italic": Face("font_caladea", "files/Caladea-BoldItalic.ttf", "italic serif", "title"),
    "manrope_body": Face("font_manrope", "files/Manrope-Bold.ttf", "sans-serif", "body"),
    "caladea_body": Face("font_caladea", "files/Caladea-Regular.ttf", "serif", "body"),
    "fredoka_body": Face("font_fredoka_one", "files/FredokaOne-Regular.ttf", "rounded", "body"),
    "dejavu_serif": Face("matplotlib", "mpl-data/fonts/ttf/DejaVuSerif-Bold.ttf", "slab serif", "title", "held_out"),
    "dejavu_serif_body": Face("matplotlib", "mpl-data/fonts/ttf/DejaVuSerif.ttf", "serif", "body", "held_out"),
    "stix": Face("matplotlib", "mpl-data/fonts/ttf/STIXGeneralBol.ttf", "bold newspaper serif", "title", "test"),
    "stix_italic": Face("matplotlib", "mpl-data/fonts/ttf/STIXGeneralBolIta.ttf", "italic serif", "title", "test"),
    "stix_body": Face("matplotlib", "mpl-data/fonts/ttf/STIXGeneral.ttf", "newspaper serif", "body", "test"),
}
_BODY_FOR = {
    "fredoka": ("fredoka_body", "manrope_body"),
    "amatic": ("manrope_body", "caladea_body"),
    "manrope": ("manrope_body",),
    "dejavu": ("manrope_body",),
    "mono": ("manrope_body",),
    "caladea": ("caladea_body", "manrope_body"),
    "caladea_italic": ("caladea_body", "manrope_body"),
    "dejavu_serif": ("dejavu_serif_body",),
    "stix": ("stix_body",),
    "stix_italic": ("stix_body",),
}


def check_pool(pool: str) -> None:
    """Raise ValueError unless ``pool`` is one of :data:`POOLS`."""
    if pool not in POOLS:
        raise ValueError(f"unknown asset pool {pool!r}, expected one of {', '.join(POOLS)}")


@cache
def objects(theme: str, pool: str) -> tuple[str, ...]:
    """Names of a theme's objects in a pool; every theme has at least one in each."""
    check_pool(pool)
    if pool == "test":
        return UNSEEN[theme]
    # Every tenth of a theme in alphabetical order, from the fifth on, so that each theme has held-out objects.
    held_out = THEMES[theme].objects[4::10]
    return tuple(name for name in THEMES[theme].objects if (name in held_out) == (pool == "held_out"))


def photos(pool: str) -> tuple[str, ...]:
    """Names of the photographs in a pool."""
    check_pool(pool)
    return tuple(name for name, photo in PHOTOS.items() if photo.pool == pool)


def textures(pool: str) -> tuple[str, ...]:
    """Names of the grey textures in a pool."""
    check_pool(pool)
    return tuple(name for name, photo in TEXTURES.items() if photo.pool == pool)


def font_pairs(pool: str) -> tuple[tuple[str, str], ...]:
    """Pairs (title face, body face) of a pool."""
    check_pool(pool)
    titles = [name for name, face in FACES.items() if face.pool == pool and face.role == "title"]
    return tuple((title, body) for title in titles for body in _BODY_FOR[title])


def words(name: str) -> str:
    """An object's name in words: ``red_apple`` is "red apple"."""
    return name.replace("t_shirt", "T-shirt").replace("jack_o_lantern", "jack-o'-lantern").replace("_", " ")


def _package_file(package: str, path: str) -> Path:
    # find_spec instead of import: importing matplotlib or skimage costs each worker process a second.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"package {package} is not installed; the composer takes {path} from it")
    file = Path(spec.origin).parent / path
    if not file.is_file():
        raise FileNotFoundError(f"package {package} does not hold {path}; install the versions of requirements.txt")
    return file


@cache
def load_object(name: str) -> np.ndarray:
    """An object, ``(h, w, 4)`` uint8 straight alpha, cropped to where its alpha is above 0; do not write into it."""
    with opened((OBJECT_DIR / f"{name}.webp").read_bytes(), name) as file:
        image = file.convert("RGBA")
    array = np.array(image.crop(image.getchannel("A").getbbox()))
    array.setflags(write=False)
    return array


@cache
def object_colour(name: str) -> tuple[float, float, float]:
    """Mean sRGB colour of an object in [0, 1], weighted by alpha."""
    image = load_object(name)[::2, ::2].astype(np.float32) / 255.0
    weight = image[..., 3:]
    mean = (image[..., :3] * weight).sum((0, 1)) / weight.sum()
    return float(mean[0]), float(mean[1]), float(mean[2])


@cache
def load_photo(name: str) -> Image.Image:
    """A photograph or texture in RGB, long side at most :data:`PHOTO_LONG_SIDE` pixels."""
    photo = PHOTOS.get(name) or TEXTURES[name]
    with opened(_package_file(photo.package, photo.path).read_bytes(), name) as file:
        image = file.convert("RGB")
    image.thumbnail((PHOTO_LONG_SIDE, PHOTO_LONG_SIDE), Image.Resampling.LANCZOS)
    return image


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at a pixel size, with the basic layout engine, so that text does not depend on an optional library."""
    face = FACES[name]
    return ImageFont.truetype(str(_package_file(face.package, face.path)), size, layout_engine=ImageFont.Layout.BASIC)
