"""OpenRaster files (openraster.org, baseline 0.0.3), which Krita, GIMP and MyPaint open."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from layers.export.archive import entry
from layers.export.crop import crop
from layers.imaging.codec import encode_png
from layers.imaging.compositing import composite_8bit

THUMBNAIL = 256  # maximum of its longer side in pixels, by the specification


def encode_ora(layers: Sequence[np.ndarray], names: Sequence[str]) -> bytes:
    """Make an ORA file with every layer in place, the flat image and a thumbnail.

    Args:
        layers: bottom to top, ``(H, W, 4)`` uint8.
        names: names of the layers.
    """
    height, width = layers[0].shape[:2]
    image = ElementTree.Element("image", version="0.0.3", w=str(width), h=str(height))
    stack = ElementTree.SubElement(image, "stack")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        # First and uncompressed, since programs recognise the file type by it.
        archive.writestr(entry("mimetype"), "image/openraster", zipfile.ZIP_STORED)
        for index, (layer, name) in reversed(list(enumerate(zip(layers, names, strict=True)))):
            cut, path = crop(layer), f"data/layer{index}.png"
            archive.writestr(entry(path), encode_png(cut.image))
            ElementTree.SubElement(
                stack,
                "layer",
                {
                    "name": name,
                    "src": path,
                    "x": str(cut.left),
                    "y": str(cut.top),
                    "opacity": "1.0",
                    "visibility": "visible",
                    "composite-op": "svg:src-over",
                },
            )
        archive.writestr(entry("stack.xml"), ElementTree.tostring(image, encoding="utf-8", xml_declaration=True))
        flat = composite_8bit(list(layers))
        archive.writestr(entry("mergedimage.png"), encode_png(flat))
        thumbnail = Image.fromarray(flat)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        archive.writestr(entry("Thumbnails/thumbnail.png"), encode_png(np.asarray(thumbnail)))
    return file.getvalue()
