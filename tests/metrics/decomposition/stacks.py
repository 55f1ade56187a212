"""Reference samples and drawn stacks that the metric's tests share."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from metrics.decomposition.folders import read_stack

VECTORS = Path(__file__).parents[2] / "data" / "decomposition"
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
SCORES = ("rgb_l1", "alpha_iou", "cost")
close = partial(pytest.approx, rel=0, abs=1e-9)


def vector(name):
    return read_stack(VECTORS / "pred" / name), read_stack(VECTORS / "gt" / name)


def flat(red, green, blue, alpha, shape=(4, 5)):
    return np.full((*shape, 4), (red, green, blue, alpha), np.uint8)


def random_layer(rng, shape):
    """Few values, so that empty, opaque and equal pixels are common."""
    return rng.choice(np.array([0, 1, 3, 127, 128, 254, 255], np.uint8), (*shape, 4))


@st.composite
def stacks(draw, count=2):
    """Stacks of one size: each layer is noise, a box or one colour, so that ties and peels happen."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    drawn = []
    for _ in range(count):
        layers = []
        for kind in draw(st.lists(st.sampled_from(["noise", "box", "flat"]), min_size=1, max_size=6)):
            layer = random_layer(rng, shape if kind == "noise" else (1, 1)) * np.ones((*shape, 1), np.uint8)
            if kind == "box":
                layer[rng.integers(shape[0]) :, : rng.integers(shape[1]) + 1] = 0
            layers.append(layer)
        drawn.append(layers)
    return drawn
