import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from layers.dataset.buckets import Placement
from layers.imaging.compositing import composite, to_float
from layers.preparation.patches import Patch, composite_patches, merged, resized, to_levels, trimmed, visible_box


def sparse_layer(rng, height, width, opaque=False):
    """A canvas with one soft rectangle, loud colours hiding under alpha 0."""
    image = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if opaque:
        image[..., 3] = 255
        return image
    top, left = rng.integers(0, height), rng.integers(0, width)
    bottom, right = rng.integers(top, height + 1), rng.integers(left, width + 1)
    alpha = np.zeros((height, width), np.uint8)
    alpha[top:bottom, left:right] = rng.integers(0, 256, (bottom - top, right - left))
    image[..., 3] = alpha
    return image


def reference(image, placement):
    """The same by Pillow, channel by channel over the whole canvas, in premultiplied float."""
    pixels = image.astype(np.float32)
    premultiplied = np.concatenate([pixels[..., :3] * pixels[..., 3:] / 255, pixels[..., 3:]], axis=2)
    height, width = placement.size
    out = np.stack(
        [
            np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS, box=placement.box))
            for plane in np.ascontiguousarray(premultiplied.transpose(2, 0, 1))
        ],
        axis=2,
    )
    # Ringing makes alpha above 1, and colours that no alpha could carry.
    alpha = out[..., 3:]
    straight = np.clip(np.divide(out[..., :3] * 255, alpha, out=np.zeros_like(out[..., :3]), where=alpha > 0.5), 0, 255)
    alpha = np.clip(alpha, 0, 255)
    return np.concatenate([straight * alpha / 255, alpha], axis=2)


@given(st.integers(0, 10**6), st.integers(4, 50), st.integers(4, 50), st.integers(2, 40), st.integers(2, 40))
@settings(max_examples=150, deadline=None)
def test_resizing_the_visible_part_equals_resizing_the_canvas(seed, height, width, new_height, new_width):
    rng = np.random.default_rng(seed)
    image = sparse_layer(rng, height, width, opaque=seed % 5 == 0)
    placement = Placement((new_height, new_width), (0.25, 0.5, width - 0.25, height - 0.5), 1.0, 0.0)
    ours = resized(image, placement).on_canvas(placement.size).astype(np.float32)
    theirs = reference(image, placement)
    assert np.abs(ours[..., 3] - theirs[..., 3]).max() <= 0.5 + 1e-2
    # Premultiplied, colours may be off by their own rounding and by that of alpha.
    assert np.abs(ours[..., :3] * ours[..., 3:] / 255 - theirs[..., :3]).max() <= 1.0 + 1e-2
    assert not ours[ours[..., 3] == 0].any(), "RGB under alpha 0 is 0"


def test_hidden_colour_never_reaches_an_edge():
    image = np.zeros((64, 64, 4), np.uint8)
    image[...] = (255, 0, 0, 0)
    image[16:48, 16:48] = (0, 0, 255, 255)
    patch = resized(image, Placement((20, 20), (0.0, 0.0, 64.0, 64.0), 0.3125, 0.0))
    assert patch.image[..., 0].max() == 0
    assert patch.image[patch.image[..., 3] > 0][:, 2].min() == 255


def test_boxes_and_trimming():
    alpha = np.zeros((6, 8), np.uint8)
    assert visible_box(alpha) is None
    alpha[2, 3] = alpha[4, 5] = 1
    assert visible_box(alpha) == (2, 3, 5, 6)
    image = np.zeros((6, 8, 4), np.uint8)
    image[..., 3] = alpha
    patch = trimmed(image, top=10, left=20)
    assert (patch.top, patch.left, patch.image.shape) == (12, 23, (3, 3, 4))
    assert trimmed(np.zeros((3, 3, 4), np.uint8)).empty


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_flattening_patches_equals_over_on_whole_canvases(seed, count):
    rng = np.random.default_rng(seed)
    layers = [sparse_layer(rng, 12, 15, opaque=index == 0 and seed % 2 == 0) for index in range(count)]
    patches = [trimmed(np.where(layer[..., 3:] > 0, layer, 0)) for layer in layers]
    theirs = composite([to_float(layer) for layer in layers])
    ours = composite_patches(patches, (12, 15))
    assert np.allclose(ours[..., 3], theirs[..., 3], atol=1e-6)
    assert np.allclose(ours[..., :3], theirs[..., :3] * theirs[..., 3:], atol=1e-6)
    assert np.abs(to_levels(ours).astype(float) - np.rint(theirs * 255))[theirs[..., 3] > 0.05].max(initial=0) <= 1


def test_merging_keeps_the_image_and_the_place():
    rng = np.random.default_rng(3)
    left = Patch(rng.integers(1, 256, (4, 5, 4), dtype=np.uint8), 2, 1)
    right = Patch(rng.integers(1, 256, (6, 3, 4), dtype=np.uint8), 5, 9)
    one = merged([left, right], "group", "both")
    assert (one.kind, one.description, one.top, one.left) == ("group", "both", 2, 1)
    assert np.array_equal(one.on_canvas((16, 16))[left.where][..., 3], left.image[..., 3])
    assert np.abs(composite_patches([one], (16, 16)) - composite_patches([left, right], (16, 16))).max() <= 0.6 / 255
