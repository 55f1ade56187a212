"""Properties of a PSD layer: kind, description, dependence on its backdrop, and parts that psd-tools does not draw."""

from __future__ import annotations

import re
from collections.abc import Iterator

from psd_tools import PSDImage
from psd_tools.api.layers import AdjustmentLayer, FillLayer, Group, ShapeLayer, SmartObjectLayer, TypeLayer
from psd_tools.api.layers import Layer as PsdLayer
from psd_tools.composite.adjustments import ADJUSTMENT_FUNC
from psd_tools.constants import BlendMode, Clipping, Tag
from psd_tools.psd.descriptor import Bool, Descriptor, List
from psd_tools.terminology import Key

from config.errors import SampleError
from layers.imaging.codec import MAX_PIXELS
from layers.imaging.stack import MAX_LAYERS

UNDRAWN_EFFECTS = ("DropShadow", "InnerShadow", "OuterGlow", "InnerGlow", "BevelEmboss", "Satin")
EFFECT_TAGS = (
    Tag.OBJECT_BASED_EFFECTS_LAYER_INFO,
    Tag.OBJECT_BASED_EFFECTS_LAYER_INFO_V0,
    Tag.OBJECT_BASED_EFFECTS_LAYER_INFO_V1,
)
ARTBOARD_TAGS = (Tag.ARTBOARD_DATA3, Tag.ARTBOARD_DATA2, Tag.ARTBOARD_DATA1)
FULL_RANGE = (0, 65535)
REASON_LENGTH = 200
# Reasons for baking a group into one layer.
CLIPPED, ISOLATED = "clipped layers", "isolated blending"


def reason_of(error: Exception) -> str:
    """Shorten an error of psd-tools to one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:REASON_LENGTH]}" if lines else type(error).__name__


def check(psd: PSDImage) -> None:
    """Raise an error for documents that would exhaust the memory, before anything is drawn.

    Raises:
        SampleError: if there are more than :data:`MAX_LAYERS` visible layers, or a layer or mask is above
            :data:`MAX_PIXELS`.
    """
    count = 0
    for layer in psd.descendants():
        if layer.is_group() or not layer.is_visible():
            continue
        count += 1
        if count > MAX_LAYERS:
            raise SampleError(f"more than {MAX_LAYERS} visible layers")
        boxes = [layer.bbox] + ([layer.mask.bbox] if layer.mask is not None else [])
        for left, top, right, bottom in boxes:
            if max(0, right - left) * max(0, bottom - top) > MAX_PIXELS:
                raise SampleError(f'layer "{layer.name}" of {right - left}x{bottom - top} is above {MAX_PIXELS} pixels')


def mend_effects(psd: PSDImage) -> None:
    """Mark the effects of old documents as present: they lack the flag, so psd-tools would silently drop them."""
    for layer in psd.descendants():
        for tag in EFFECT_TAGS:
            block = layer.tagged_blocks.get_data(tag)
            for value in block.values() if isinstance(block, Descriptor) else ():
                for effect in value if isinstance(value, List) else (value,):
                    if isinstance(effect, Descriptor) and b"enab" in effect and b"present" not in effect:
                        effect[b"present"] = Bool(True)


def members(layer: PsdLayer) -> list[PsdLayer]:
    """The visible layers, including groups, that are drawn together with this layer as one."""
    found = [layer]
    if layer.is_group():
        found += [member for child in layer if child.visible and not child.clipping for member in members(child)]
    return found + [member for clipped in visible_clips(layer) for member in members(clipped)]


def kind_of(layer: PsdLayer) -> str:
    """Kind of the layer made of this one and all its members."""
    own = _own_kind(layer)
    # A text with a texture clipped to it is still a text.
    if own == "text":
        return own
    drawn = (m for m in members(layer) if not m.is_group() and not isinstance(m, AdjustmentLayer))
    kinds = {_own_kind(member) for member in drawn} or {own}
    return kinds.pop() if len(kinds) == 1 else "group"


def _own_kind(layer: PsdLayer) -> str:
    if isinstance(layer, TypeLayer):
        return "text"
    if isinstance(layer, ShapeLayer | FillLayer):
        return "shape"
    return "group" if layer.is_group() else "image"


def words_of(layer: PsdLayer) -> str:
    """Description: the text of a text layer, the texts of a group of texts only, else the layer's name."""
    if kind_of(layer) == "text":
        texts = [_text(member) for member in members(layer) if isinstance(member, TypeLayer)]
        return "\n".join(text for text in texts if text) or layer.name.strip()
    return layer.name.strip()


def _text(layer: TypeLayer) -> str:
    try:
        text = layer.text
    except (ValueError, AttributeError):
        # Texts of Photoshop 5 and broken texts.
        return ""
    # Carriage returns end paragraphs, end-of-text marks break lines within them.
    return re.sub("[\r\x03]", "\n", text).strip()


def mode_of(layer: PsdLayer) -> str:
    """Name of a layer's blend mode in words."""
    return layer.blend_mode.name.lower().replace("_", " ")


def baking_reason(group: Group) -> str | None:
    """Reason why a group cannot be split into its layers without changing the image, or None."""
    return next(_baking_reasons(group), None)


def _baking_reasons(group: Group) -> Iterator[str]:
    if group.opacity < 255 or group.fill_opacity < 255:
        yield "opacity"
    if _is_masked(group):
        yield "mask"
    if draws_effects(group):
        yield "effects"
    if group.has_clip_layers(visible=True):
        yield CLIPPED
    if group.blend_mode not in (BlendMode.NORMAL, BlendMode.PASS_THROUGH):
        yield mode_of(group)
    if any(_knocks_out(layer) for layer in (group, *group.descendants())):
        yield "knockout"
    # On an artboard's own opaque background the layers below have no effect.
    isolated = group.blend_mode is BlendMode.NORMAL and artboard_background(group) is None
    if isolated and any(map(_sees_backdrop, group)):
        yield ISOLATED


def adjusts_itself(group: Group) -> bool:
    """Whether only adjustments confined to a group, in it or clipped to it, prevent splitting it."""
    if not set(_baking_reasons(group)) <= {CLIPPED, ISOLATED} or not all(map(maps_colours, visible_clips(group))):
        return False
    return not any(_sees_backdrop(layer, adjustments=False) for layer in group)


def maps_colours(layer: PsdLayer) -> bool:
    """Whether a layer only maps each colour below it to another: an adjustment, or a folder of adjustments."""
    if not layer.is_group():
        drawn = isinstance(layer, AdjustmentLayer) and layer.kind in ADJUSTMENT_FUNC
        return drawn and all(map(maps_colours, visible_clips(layer)))
    if layer.blend_mode is not BlendMode.PASS_THROUGH or not set(_baking_reasons(layer)) <= {"opacity", "mask"}:
        return False
    children = [child for child in layer if child.visible and not child.clipping]
    return bool(children) and all(map(maps_colours, children))


def visible_clips(layer: PsdLayer) -> list[PsdLayer]:
    """The visible layers that are clipped to this one, bottom to top."""
    return [clipped for clipped in layer.clip_layers if clipped.visible]


def artboard_background(group: Group) -> tuple[float, float, float] | None:
    """Background colour of an artboard, RGB in [0, 1]; None if there is none or the group is no artboard."""
    data = next((group.tagged_blocks.get_data(tag) for tag in ARTBOARD_TAGS if tag in group.tagged_blocks), None)
    if not isinstance(data, Descriptor):
        return None
    # psd-tools takes 1 for transparent, 2 for white and 3 for black; images stored by Photoshop contradict this.
    kind = data.get(b"artboardBackgroundType")
    if kind == 4 and isinstance(colour := data.get(Key.Color), Descriptor):
        channels = [float(colour.get(key, 0.0)) / 255.0 for key in (Key.Red, Key.Green, Key.Blue)]
        red, green, blue = (min(max(channel, 0.0), 1.0) for channel in channels)
        return red, green, blue
    return {1: (1.0, 1.0, 1.0), 2: (0.0, 0.0, 0.0)}.get(kind)


def _is_masked(layer: PsdLayer) -> bool:
    mask, path = layer.mask, layer.vector_mask
    whole = mask is None or mask.disabled or (mask.width * mask.height == 0 and mask.background_color == 255)
    return not whole or (path is not None and not path.disabled)


def _sees_backdrop(layer: PsdLayer, adjustments: bool = True) -> bool:
    """Whether a layer depends on its backdrop other than by ``over``; adjustments count if ``adjustments`` is set."""
    if not layer.visible or layer.clipping:
        return False
    if isinstance(layer, AdjustmentLayer):
        return adjustments
    if layer.is_group() and layer.blend_mode is BlendMode.PASS_THROUGH:
        return any(_sees_backdrop(child, adjustments) for child in layer)
    strokes = layer.effects.find("stroke")
    return layer.blend_mode is not BlendMode.NORMAL or any(s.blend_mode is not BlendMode.NORMAL for s in strokes)


def _knocks_out(layer: PsdLayer) -> bool:
    return bool(layer.visible and layer.tagged_blocks.get_data(Tag.KNOCKOUT_SETTING, 0))


def draws_effects(layer: PsdLayer) -> bool:
    """Whether effects change how psd-tools draws the layer."""
    return any(effect not in UNDRAWN_EFFECTS for effect in _enabled_effects(layer))


def _enabled_effects(layer: PsdLayer) -> list[str]:
    effects = layer.effects
    return [type(effect).__name__ for effect in effects if effect.enabled] if effects.enabled else []


def undrawn(layer: PsdLayer) -> Iterator[str]:
    """Yield notes on parts of a layer that psd-tools does not draw, or draws differently from Photoshop."""
    for effect in _enabled_effects(layer):
        if effect in UNDRAWN_EFFECTS:
            yield re.sub(r"\B(?=[A-Z])", " ", effect).lower() + " not drawn"
    blocks = layer.tagged_blocks
    old = blocks.get_data(Tag.EFFECTS_LAYER)
    enabled = old is not None and any(getattr(effect, "enabled", 0) for effect in old.values())
    if enabled and not any(tag in blocks for tag in EFFECT_TAGS):
        yield "old effects not drawn"
    if isinstance(layer, AdjustmentLayer) and layer.kind not in ADJUSTMENT_FUNC:
        yield f"{layer.kind} not drawn"
    if isinstance(layer, TypeLayer | SmartObjectLayer) and not layer.has_pixels():
        yield "not drawn, has no pixels"
    settings = layer.mask.parameters if layer.mask is not None else None
    if settings and (settings.user_mask_feather or settings.vector_mask_feather):
        yield "mask feather not drawn"
    if layer.is_group() and layer._record.clipping is Clipping.NON_BASE and not layer.clipping:
        yield "clipping of a group not applied"
    if layer.blend_mode is BlendMode.DISSOLVE:
        yield "dissolve drawn as normal"
    ranges = layer._record.blending_ranges
    pairs = [*(ranges.composite_ranges or ()), *(pair for row in ranges.channel_ranges or () for pair in row)]
    if any(tuple(pair) != FULL_RANGE for pair in pairs):
        yield "blend-if not applied"
    if blocks.get_data(Tag.CHANNEL_BLENDING_RESTRICTIONS_SETTING):
        yield "channel restriction not applied"
    if _knocks_out(layer):
        yield "knockout approximate"
