import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from layers.imaging.compositing import resize
from layers.imaging.resampling import axes, filtered, lanczos


@st.composite
def cases(draw):
    height, width = draw(st.integers(3, 60)), draw(st.integers(3, 60))
    size = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    left, top = draw(st.floats(0, width - 2)), draw(st.floats(0, height - 2))
    right, bottom = draw(st.floats(left + 1, width)), draw(st.floats(top + 1, height))
    return (height, width), size, (left, top, right, bottom)


@given(cases())
@settings(max_examples=150, deadline=None)
def test_equals_pillows_lanczos_in_float(case):
    shape, size, box = case
    image = np.random.default_rng(0).random((*shape, 4), dtype=np.float32)
    rows, columns = axes(shape, size, box)
    ours = filtered(image, rows.weights, columns.weights)
    for channel in range(4):
        theirs = Image.fromarray(image[..., channel]).resize(size[::-1], Image.Resampling.LANCZOS, box=box)
        assert np.abs(ours[..., channel] - np.asarray(theirs)).max() < 2e-5


def test_the_same_size_is_the_same_image():
    image = np.random.default_rng(0).random((7, 9, 4), dtype=np.float32)
    rows, columns = axes((7, 9), (7, 9), None)
    assert np.abs(filtered(image, rows.weights, columns.weights) - image).max() < 1e-6


@given(st.integers(2, 80), st.integers(1, 80), st.data())
@settings(max_examples=100, deadline=None)
def test_reach_names_exactly_the_outputs_that_see_an_input(n_in, n_out, data):
    axis = lanczos(n_in, n_out, 0.0, float(n_in))
    start = data.draw(st.integers(0, n_in - 1))
    stop = data.draw(st.integers(start + 1, n_in))
    first, last = axis.reached_from(start, stop)
    touched = np.flatnonzero(np.abs(axis.weights.toarray()[:, start:stop]).sum(1) > 0)
    assert touched.size == 0 or (first <= touched[0] and touched[-1] < last)
    assert np.allclose(axis.weights.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(("size", "to"), [((9, 700), (64, 31)), ((1, 500), (40, 500)), ((50, 11), (7, 90))])
def test_rows_made_a_few_at_a_time_are_the_same(monkeypatch, size, to):
    image = np.random.default_rng(0).random((*size, 4), np.float32)
    at_once = resize(image, to)
    monkeypatch.setattr("layers.imaging.resampling.PART", 1500)
    assert np.array_equal(resize(image, to), at_once)
