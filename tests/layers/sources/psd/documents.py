"""Photoshop documents built in memory, and what is read of them, for the PSD tests."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image
from psd_tools import PSDImage
from psd_tools.composite import composite_pil
from psd_tools.constants import Tag
from psd_tools.psd.adjustments import CurvesExtraItem, CurvesExtraMarker
from psd_tools.psd.descriptor import (
    Bool,
    Descriptor,
    DescriptorBlock,
    DescriptorBlock2,
    Double,
    Enumerated,
    Integer,
    UnitFloat,
)
from psd_tools.psd.tagged_blocks import TaggedBlock
from psd_tools.terminology import Unit

from layers.imaging.compositing import composite, over_background, to_float, to_uint8
from layers.preparation.cleaning import Cleaning, clean
from layers.preparation.patches import trimmed
from layers.sources.location import Location
from layers.sources.psd.reader import PsdSource

SIZE = (20, 16)
BACK = (200, 100, 50)


def block(colour, size=(10, 8)):
    return Image.new("RGBA", size, (*colour, 255) if len(colour) == 3 else colour)


def document(back=BACK, mode="RGB", **how):
    psd = PSDImage.new(mode, SIZE, **how)
    if back is not None:
        psd.create_pixel_layer(Image.new("RGBA", SIZE, (*back, 255)), name="Back")
    return psd


def put(group, name, colour, left=0, top=0, size=(10, 8), **marks):
    layer = group.create_pixel_layer(block(colour, size), name=name, left=left, top=top)
    for key, value in marks.items():
        setattr(layer, key, value)
    return layer


def tag(layer, key, data):
    layer.tagged_blocks[key] = TaggedBlock(key=key, data=data)
    layer._psd.mark_updated()


def adjust(group, name, key=Tag.INVERT, /, *args, clipping=False, **data):
    layer = put(group, name, (0, 0, 0), size=SIZE, clipping=clipping)
    layer.tagged_blocks.set_data(key, *args, **data)
    return layer


def curves(group, name, *points, **marks):
    """Curves through points (result, input)."""
    extra = CurvesExtraMarker(items=[CurvesExtraItem(0, points)])
    return adjust(group, name, Tag.CURVES, version=1, count_map=1, data=[points], extra=extra, **marks)


def inverted(*colour):
    return tuple(255 - value for value in colour[:3]) + (colour[3:] or (255,))


def uncovered(sample):
    """Descriptions of the layers that nothing above hides."""
    patches = [replace(trimmed(layer.image), description=layer.description) for layer in sample.layers]
    kept, _, _ = clean(patches, Cleaning(drop_unchanging=False), sample.size)
    return [patch.description for patch in kept]


def descriptor(kind, block_class=Descriptor, **fields):
    made = block_class(classID=kind)
    for key, value in fields.items():
        made[key.encode().replace(b"_", b" ")] = value
    return made


def mask(layer, value, left=3, top=2):
    if layer.has_mask():
        layer.remove_mask()
    layer.create_mask(Image.new("L", (4, 4), value), left=left, top=top)


def colour_of(red, green, blue):
    return descriptor(b"RGBC", Rd__=Double(red), Grn_=Double(green), Bl__=Double(blue))


def read(root, psd):
    psd.save(root / "a.psd")
    return PsdSource(Location(root, "prepare.psd")).read("a")


def names(sample):
    return [layer.description for layer in sample.layers]


def white(image):
    return over_background(to_float(np.asarray(image)), (1.0, 1.0, 1.0)) * 255.0


def recomposed(sample):
    return to_uint8(composite([to_float(layer.image) for layer in sample.layers]))


def drawn_by_psd_tools(path):
    return np.asarray(composite_pil(PSDImage.open(path), 1.0, 0.0, None, None, True).convert("RGBA"))


def off_by(sample, root):
    """Largest difference of each pixel from what psd-tools draws, which it rounds down."""
    return np.abs(recomposed(sample).astype(int) - drawn_by_psd_tools(root / "a.psd")).max(axis=-1)


def canvas(boxes):
    """Full-canvas images of plain rectangles: (colour with alpha, left, top, right, bottom)."""
    image = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    for colour, left, top, right, bottom in boxes:
        image[top:bottom, left:right] = colour
    return image


def overlay_of(red, green, blue):
    overlay = descriptor(b"SoFi", enab=Bool(True), present=Bool(True), Clr_=colour_of(red, green, blue))
    overlay[b"Md  "] = Enumerated(typeID=b"BlnM", enum=b"Nrml")
    overlay[b"Opct"] = UnitFloat(unit=Unit.Percent, value=100.0)
    return descriptor(b"null", DescriptorBlock2, masterFXSwitch=Bool(True), SoFi=overlay)


def make_artboard(board, kind):
    rect = descriptor(b"classFloatRect", Top_=Double(2.0), Left=Double(3.0), Btom=Double(12.0), Rght=Double(15.0))
    data = descriptor(b"artboard", DescriptorBlock, artboardRect=rect, artboardBackgroundType=Integer(kind))
    data[b"Clr "] = colour_of(51.0, 102.0, 204.0)
    tag(board, Tag.ARTBOARD_DATA1, data)


def saved(psd):
    buffer = io.BytesIO()
    psd.save(buffer)
    return buffer.getvalue()
