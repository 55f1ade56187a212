import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.splits import assign_splits, until_filled


def pairs(names):
    return [(name, name) for name in names]


def assign(names, **changes):
    settings = {"seed": 0, "val_share": 0.2, "train_count": None, "val_count": None} | changes
    return assign_splits(pairs(names), **settings)


@given(
    st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=60),
    st.sets(st.text(min_size=1, max_size=8), max_size=60),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(1, 10)),
)
@settings(max_examples=150, deadline=None)
def test_a_sample_never_changes_sides_when_the_dataset_grows(before, more, seed, count):
    small = assign(sorted(before), seed=seed, train_count=count, val_count=count)
    large = assign(sorted(before | more, reverse=True), seed=seed, train_count=count, val_count=count)
    assert all(large[name] == side for name, side in small.items() if name in large)
    if count is None:
        assert small.keys() <= large.keys()


def test_counts_are_bounds_and_the_order_of_listing_is_nothing():
    names = [f"s{i}" for i in range(500)]
    splits = assign(names, train_count=50, val_count=10)
    assert splits == assign(names[::-1], train_count=50, val_count=10)
    assert list(splits.values()).count("train") == 50 and list(splits.values()).count("val") == 10
    share = list(assign(names).values()).count("val") / 500
    assert 0.13 < share < 0.27
    assert splits != assign(names, train_count=50, val_count=10, seed=1)


def test_a_list_decides_alone():
    names = [f"s{i}" for i in range(50)]
    named = assign(names, validation_ids=["s3", "s9", "gone"])
    assert {name for name, side in named.items() if side == "val"} == {"s3", "s9"} and len(named) == 50


def test_variants_of_one_template_share_a_side():
    samples = [(f"{template}-{k}", template) for template in "abcdefghij" for k in range(5)]
    splits = assign_splits(samples, seed=0, val_share=0.5, train_count=None, val_count=None)
    for template in "abcdefghij":
        assert len({splits[f"{template}-{k}"] for k in range(5)}) == 1
    assert len(set(splits.values())) == 2


def test_an_endless_stream_fills_both_counts_exactly():
    stream = ((str(i), str(i)) for i in itertools.count())
    taken = until_filled(stream, seed=0, val_share=0.1, train_count=30, val_count=7)
    splits = assign_splits(taken, seed=0, val_share=0.1, train_count=30, val_count=7)
    assert sorted(splits.values()) == ["train"] * 30 + ["val"] * 7
    with pytest.raises(ValueError, match="never fills"):
        until_filled(iter([]), seed=0, val_share=0.0, train_count=3, val_count=1)
