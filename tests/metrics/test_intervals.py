import numpy as np
import pytest

from metrics.intervals import bootstrap_interval


def test_it_is_near_the_normal_interval_of_many_samples():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values.tolist())
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_it_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.exponential(1.0, 60).tolist(), seed=k) for k in range(200)]
    assert 0.88 < np.mean([low <= 1.0 <= high for low, high in intervals]) <= 0.99


def test_one_sample_and_equal_samples_have_no_width():
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(2).random(30).tolist()
    assert bootstrap_interval(values) == bootstrap_interval(values)
