import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from layers.imaging.compositing import composite, group_into_peels, over, over_background, resize, to_float, to_uint8

rgba8 = arrays(np.uint8, (5, 4, 4))


@given(rgba8, rgba8)
@settings(max_examples=100, deadline=None)
def test_over_equals_pillow_within_its_rounding(top, bottom):
    theirs = np.asarray(Image.alpha_composite(Image.fromarray(bottom), Image.fromarray(top))).astype(float)
    ours = over(to_float(top), to_float(bottom)) * 255.0
    assert np.abs(ours[..., 3] - theirs[..., 3]).max() <= 1.0
    visible = theirs[..., 3] > 8
    assert np.abs(ours[..., :3] - theirs[..., :3])[visible].max(initial=0.0) <= 1.5


@given(rgba8, rgba8, rgba8)
@settings(max_examples=50, deadline=None)
def test_over_is_associative(a, b, c):
    a, b, c = map(to_float, (a, b, c))
    left, right = over(over(a, b), c), over(a, over(b, c))
    premultiply = lambda x: x[..., :3] * x[..., 3:]  # noqa: E731
    assert np.allclose(premultiply(left), premultiply(right), atol=1e-5)
    assert np.allclose(left[..., 3], right[..., 3], atol=1e-6)


def test_composite_equals_the_papers_recursion_on_an_opaque_bottom():
    rng = np.random.default_rng(0)
    layers = [rng.random((6, 5, 4), dtype=np.float32) for _ in range(4)]
    layers[0][..., 3] = 1.0
    expected = np.zeros((6, 5, 3), np.float32)
    for layer in layers:
        expected = layer[..., 3:] * layer[..., :3] + (1 - layer[..., 3:]) * expected
    flat = composite(layers)
    assert np.allclose(flat[..., :3], expected, atol=1e-5)
    assert np.allclose(flat[..., 3], 1.0)


def test_an_empty_stack_is_refused():
    with pytest.raises(ValueError, match="empty stack"):
        composite([])


def test_files_hold_no_colour_under_alpha_zero():
    image = np.ones((2, 2, 4), np.float32)
    image[0, 0, 3] = 0.0
    assert to_uint8(image)[0, 0].tolist() == [0, 0, 0, 0]
    assert to_uint8(image)[1, 1].tolist() == [255, 255, 255, 255]


def test_resizing_does_not_bleed_hidden_colour():
    image = np.zeros((64, 64, 4), np.float32)
    image[..., 0] = 1.0  # red hides under alpha 0 ...
    image[16:48, 16:48] = (0.0, 0.0, 1.0, 1.0)  # ... around an opaque blue square
    small = resize(image, (20, 20))
    assert small[..., 0][small[..., 3] > 0].max() < 1e-3
    channels = [np.asarray(Image.fromarray(image[..., c]).resize((20, 20), Image.Resampling.LANCZOS)) for c in (0, 3)]
    assert channels[0][channels[1] > 0.01].max() > 0.5, "the straight way bleeds, or this test shows nothing"


@given(st.integers(8, 40), st.integers(8, 40), st.integers(4, 40), st.integers(4, 40))
@settings(max_examples=30, deadline=None)
def test_resizing_keeps_a_flat_image_flat(h, w, new_h, new_w):
    image = np.broadcast_to(np.float32([0.2, 0.4, 0.6, 0.5]), (h, w, 4)).copy()
    out = resize(image, (new_h, new_w))
    assert out.shape == (new_h, new_w, 4)
    assert np.allclose(out, [0.2, 0.4, 0.6, 0.5], atol=1e-4)


def test_resizing_commutes_with_compositing_over_a_background():
    rng = np.random.default_rng(1)
    # Mid-range values: at 0 and 1 Lanczos rings out of range and clipping, which is right, breaks the equality.
    image = resize(0.3 + 0.4 * rng.random((12, 12, 4), dtype=np.float32), (48, 48))
    before = over_background(resize(image, (24, 24)), (0.0, 0.0, 0.0))
    opaque = np.concatenate([over_background(image, (0.0, 0.0, 0.0)), np.ones((48, 48, 1), np.float32)], axis=2)
    after = resize(opaque, (24, 24))[..., :3]
    assert np.abs(before - after).max() < 0.002


def test_peels_group_what_nothing_remaining_covers():
    def mask(*columns):
        out = np.zeros((2, 6))
        out[:, list(columns)] = 1
        return out

    full = np.ones((2, 6))
    # 1 and 2 are apart, 3 lies on 2, 4 is apart from all but the background.
    assert group_into_peels([full, mask(0), mask(2, 3), mask(3), mask(5)]) == [[0], [2], [1, 3, 4]]
    assert group_into_peels([full, full, full]) == [[0], [1], [2]]
    assert group_into_peels([full, np.zeros((2, 6))]) == [[0, 1]]
    assert group_into_peels([]) == []


@given(arrays(np.uint8, (6, 4, 4), elements=st.sampled_from([0, 0, 255])))
@settings(max_examples=50, deadline=None)
def test_peels_partition_the_stack_and_members_never_overlap(masks):
    groups = group_into_peels(list(masks))
    assert sorted(i for group in groups for i in group) == list(range(6))
    for group in groups:
        assert ((masks[group] > 0).sum(0) <= 1).all()


def test_opaque_pixels_beside_a_transparent_edge_keep_their_colour():
    image = np.zeros((32, 32, 4), np.float32)
    image[8:24, 8:24] = (0.0, 200 / 255, 0.0, 1.0)
    for size in ((70, 70), (20, 20)):
        out = resize(image, size)
        assert np.abs(out[out[..., 3] > 0.02][:, 1] - 200 / 255).max() < 1e-3, "where alpha rings, colour rings with it"
