import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.dataset.buckets import BucketLimits, NoBucketError, bucket_name, place

SMALL = BucketLimits(min_side=64, max_side=96, max_pixels=6144, max_aspect=2.3)
LARGE = BucketLimits(min_side=256, max_side=1408, max_pixels=1408 * 768, max_aspect=2.3)


@pytest.mark.parametrize(
    ("canvas", "bucket"),
    [((192, 192), (64, 64)), ((128, 192), (64, 96)), ((192, 128), (96, 64)), ((64, 64), (64, 64))],
)
def test_the_default_sizes_are_met_without_cropping(canvas, bucket):
    placement = place(canvas, SMALL)
    assert placement.size == bucket
    assert placement.crop_share == pytest.approx(0.0, abs=1e-9)


@given(st.integers(16, 4000), st.integers(16, 4000), st.booleans(), st.sampled_from([SMALL, LARGE]))
@settings(max_examples=300, deadline=None)
def test_every_placement_keeps_every_bound(height, width, upscale, limits):
    limits = BucketLimits(limits.min_side, limits.max_side, limits.max_pixels, limits.max_aspect, upscale)
    try:
        placement = place((height, width), limits)
    except NoBucketError:
        return
    h, w = placement.size
    assert h % 32 == w % 32 == 0
    assert limits.min_side <= min(h, w) and max(h, w) <= limits.max_side and h * w <= limits.max_pixels
    assert max(height, width) / min(height, width) <= limits.max_aspect
    assert upscale or placement.scale <= 1.0
    left, top, right, bottom = placement.box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert (right - left) / (bottom - top) == pytest.approx(w / h, rel=1e-6), "the image would be stretched"
    assert placement.crop_share == pytest.approx(1 - (right - left) * (bottom - top) / (height * width), abs=1e-6)


@given(st.integers(256, 2000), st.floats(1.0, 2.2))
@settings(max_examples=100, deadline=None)
def test_a_large_canvas_of_allowed_aspect_always_finds_a_bucket(side, aspect):
    assert place((side, int(side * aspect)), LARGE).crop_share < 0.25


def test_reasons_name_the_bound():
    with pytest.raises(NoBucketError, match=r"aspect 3\.00 of 300x100 is above max_aspect 2\.3"):
        place((100, 300), SMALL)
    with pytest.raises(NoBucketError, match=r"40x40 fits no bucket .* no upscaling"):
        place((40, 40), SMALL)


def test_bucket_names():
    assert bucket_name((64, 96)) == "w96-h64"
