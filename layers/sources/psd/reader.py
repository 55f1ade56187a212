"""Reader of Photoshop documents (.psd, .psb), one sample per file.

    header           "8BPS", version (1: psd, 2: psb), channels, height, width, depth, colour mode; 26 bytes, big-endian
    colour mode data
    image resources  ICC profile, whether the merged image is real
    layers           records bottom to top: box (may leave the canvas), blend mode, opacity, clipping, visibility, mask,
                     tagged blocks (text, effects, fills, group boundaries), then the channels of each box
    merged image   the preview

psd-tools parses and draws; module ``stack`` splits the document into layers, ``facts`` gives their properties.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageCms
from psd_tools import PSDImage
from psd_tools.compression import PSDDecompressionWarning
from psd_tools.constants import ColorMode, Resource

from config.errors import SampleError, UserError
from layers.dataset.digest import text_digest
from layers.imaging.codec import MAX_PIXELS
from layers.imaging.stack import Layer, LayeredSample
from layers.sources.base import Source
from layers.sources.location import Location
from layers.sources.psd.facts import check, mend_effects, reason_of
from layers.sources.psd.stack import Stack

SUFFIXES = (".psd", ".psb")
HEADER = struct.Struct(">4sH6xHIIHH")
MODES = {ColorMode.RGB: "RGB", ColorMode.GRAYSCALE: "L"}
# Depths in bits; 32 bits are linear light, which layers of 8 bits cannot hold.
DEPTHS = (8, 16)


class PsdSource(Source):
    """A folder of Photoshop documents, sub-folders included.

    Ids are paths below the root without suffix, with ``__`` for ``/``; where two would be equal, the suffix stays.

    Args:
        root: the folder.

    Raises:
        UserError: if no such document is below it.
    """

    def __init__(self, root: Location) -> None:
        self.root = root
        self.names = _ids(root.find(SUFFIXES))
        if not self.names:
            raise UserError(f"{root.key}: no {' or '.join(SUFFIXES)} file below {root.url}")

    def sample_ids(self) -> list[str]:
        """Ids of all documents, in the order of their paths."""
        return list(self.names)

    def signature(self, sample_id: str) -> str:
        """String that changes with the document's file."""
        return self.root.signature([self._name(sample_id)])

    def read(self, sample_id: str) -> LayeredSample:
        """Read one document and draw its layers.

        Raises:
            SampleError: with the missing or broken part.
        """
        name = self._name(sample_id)
        data = self.root.read(name)
        with warnings.catch_warnings():
            # A channel that cannot be decompressed would become black.
            warnings.simplefilter("error", PSDDecompressionWarning)
            try:
                return _sample(sample_id, data)
            except SampleError as error:
                raise SampleError(f"{name}: {error}") from None
            except Exception as error:
                # For broken files psd-tools may raise any exception.
                raise SampleError(f"{name}: not a readable document ({reason_of(error)})") from None

    def _name(self, sample_id: str) -> str:
        try:
            return self.names[sample_id]
        except KeyError:
            raise SampleError(f"no document {sample_id!r} below {self.root.key}") from None


def _ids(names: list[str]) -> dict[str, str]:
    """Name of each document by its id, the shortest of three forms that is unique among all documents' forms."""
    forms = []
    for name in names:
        flat = name.replace("/", "__")
        digest = text_digest(name.encode(errors="surrogateescape"), 8)
        forms.append((str(PurePosixPath(flat).with_suffix("")), flat, f"{flat}__{digest}"))
    counts = Counter(form for own in forms for form in own)
    return {next(form for form in own if counts[form] == 1): name for name, own in zip(names, forms, strict=True)}


def _sample(sample_id: str, data: bytes) -> LayeredSample:
    mode = _checked_mode(data)
    psd = PSDImage.open(io.BytesIO(data))
    notes = ["16 bits reduced to 8"] if psd.depth == 16 else []
    recolour = _recolouring(psd, mode, notes)
    preview = _preview(psd, recolour, notes)
    if len(psd) == 0:
        if preview is None:
            raise SampleError("no layers and no image")
        notes.append("no layers, only the merged image")
        kind = "background" if (preview[..., 3] == 255).all() else "image"
        return LayeredSample(sample_id, (Layer(preview, kind),), "", preview, tuple(notes))
    check(psd)
    mend_effects(psd)
    stack = Stack(psd, recolour)
    if not stack.layers:
        raise SampleError("no visible layer shows anything on the canvas")
    return LayeredSample(sample_id, tuple(stack.layers), "", preview, (*notes, *stack.notes))


def _checked_mode(data: bytes) -> str:
    """Pillow's name of the colour mode, read from the header.

    Raises:
        SampleError: if it is not the header of a supported document.
    """
    if not data:
        raise SampleError("zero bytes")
    if len(data) < HEADER.size or not data.startswith(b"8BPS"):
        raise SampleError("not a Photoshop document")
    _, _, _, height, width, depth, mode = HEADER.unpack_from(data)
    if width * height > MAX_PIXELS:
        raise SampleError(f"canvas of {width}x{height} is above {MAX_PIXELS} pixels")
    if min(width, height) < 1:
        raise SampleError(f"canvas of {width}x{height} has no pixels")
    if mode not in MODES or depth not in DEPTHS:
        named = {known.value: known.name for known in ColorMode}.get(mode, mode)
        raise SampleError(f"mode {named} of {depth} bits, expected RGB or GRAYSCALE of 8 or 16")
    return MODES[ColorMode(mode)]


def _recolouring(psd: PSDImage, mode: str, notes: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Conversion of ``(h, w, 4)`` uint8 in the document's colours to sRGB."""
    profile = psd.image_resources.get_data(Resource.ICC_PROFILE)
    if not profile:
        return lambda image: image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        described = ImageCms.getProfileDescription(source).strip()
        if "sRGB" in described:
            return lambda image: image
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f'colour profile cannot be used: "{error}"')
        return lambda image: image
    notes.append(f'colours turned into sRGB from "{described}"')

    def recolour(image: np.ndarray) -> np.ndarray:
        plain = np.ascontiguousarray(image[..., 0] if mode == "L" else image[..., :3])
        colours = np.array(ImageCms.applyTransform(Image.fromarray(plain, mode), transform))
        colours[image[..., 3] == 0] = 0
        return np.concatenate([colours, image[..., 3:]], axis=-1)

    return recolour


def _preview(psd: PSDImage, recolour: Callable[[np.ndarray], np.ndarray], notes: list[str]) -> np.ndarray | None:
    if not psd.has_preview():
        return None
    try:
        merged = psd.topil(apply_icc=False)
    except Exception as error:
        notes.append(f'merged image cannot be read: "{reason_of(error)}"')
        return None
    if merged is None:
        return None
    image = np.array(merged.convert("RGBA"))
    image[image[..., 3] == 0] = 0
    return recolour(image)
