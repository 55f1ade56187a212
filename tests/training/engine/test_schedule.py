import math

import pytest

from training.engine.schedule import learning_rate


def rate(seen, kind="cosine", warmup=100, total=1100):
    return learning_rate(seen, base=2.0, total=total, warmup=warmup, kind=kind)


def test_warm_up_is_linear_and_never_zero():
    assert 0.0 < rate(0) < 0.05
    assert rate(50) == pytest.approx(1.0, abs=0.02)
    assert rate(100) == 2.0


def test_cosine_reaches_zero_and_stays():
    assert rate(600) == pytest.approx(1.0)
    assert rate(350) == pytest.approx(1.0 + math.cos(math.pi / 4))
    assert rate(1100) == pytest.approx(0.0, abs=1e-12)
    assert rate(5000) == pytest.approx(0.0, abs=1e-12)


def test_constant_stays():
    assert rate(101, "constant") == rate(99999, "constant") == 2.0


def test_no_warm_up():
    assert rate(0, warmup=0) == 2.0
    assert learning_rate(0, base=1.0, total=0, warmup=0, kind="cosine") == 1.0
