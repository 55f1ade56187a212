import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.dataset.splits import SPLITS, assign_splits, until_filled

COUNTS = {"train": 50, "val": 10}


def pairs(names):
    return [(name, name) for name in names]


def assign(names, **changes):
    return assign_splits(pairs(names), **{"seed": 0, "val_share": 0.2} | changes)


@given(
    st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=60),
    st.sets(st.text(min_size=1, max_size=8), max_size=60),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(1, 10)),
)
@settings(max_examples=150, deadline=None)
def test_a_sample_never_changes_sides_when_the_dataset_grows(before, more, seed, count):
    how = {"seed": seed, "test_share": 0.3, "counts": dict.fromkeys(SPLITS, count)}
    small, large = assign(sorted(before), **how), assign(sorted(before | more, reverse=True), **how)
    assert all(large[name] == side for name, side in small.items() if name in large)
    if count is None:
        assert small.keys() <= large.keys()


def test_counts_are_bounds_and_the_order_of_listing_is_nothing():
    names = [f"s{i}" for i in range(500)]
    splits = assign(names, counts=COUNTS)
    assert splits == assign(names[::-1], counts=COUNTS)
    assert list(splits.values()).count("train") == 50 and list(splits.values()).count("val") == 10
    share = list(assign(names).values()).count("val") / 500
    assert 0.13 < share < 0.27
    assert splits != assign(names, counts=COUNTS, seed=1)


def test_a_list_decides_alone():
    names = [f"s{i}" for i in range(50)]
    named = assign(names, named={"val": ["s3", "s9"]})
    assert {name for name, side in named.items() if side == "val"} == {"s3", "s9"} and len(named) == 50


def test_the_test_split_takes_from_training_alone():
    names = [f"s{i}" for i in range(500)]
    before, after = assign(names), assign(names, test_share=0.3)
    moved = {name for name in names if before[name] != after[name]}
    assert {before[name] for name in moved} == {"train"} and {after[name] for name in moved} == {"test"}
    assert 0.2 < len(moved) / 500 < 0.4
    assert list(assign(names, test_share=0.3, counts={"test": 7}).values()).count("test") == 7
    assert set(assign(names, val_share=0.4, test_share=0.6).values()) == {"val", "test"}


def test_shares_grow_into_the_training_samples_alone():
    names = [f"s{i}" for i in range(500)]
    fewer = assign(names, val_share=0.1, test_share=0.1, counts={"test": 20})
    for shares in ({"val_share": 0.4, "test_share": 0.1}, {"val_share": 0.1, "test_share": 0.4}):
        more = assign(names, **shares, counts={"test": 20})
        moved = {(fewer[name], more[name]) for name in names if name in fewer and name in more}
        assert ("val", "test") not in moved and ("test", "val") not in moved and ("val", "train") not in moved
        kept = [{name for name, side in found.items() if side == "test"} for found in (fewer, more)]
        assert kept[0] == kept[1], "what was the test set still is"


def test_named_test_samples_are_no_others_whatever_the_hash_says():
    names = [f"s{i}" for i in range(200)]
    by_hash = assign(names)
    validated = next(name for name, side in by_hash.items() if side == "val")
    named = assign(names, test_share=0.5, named={"test": [validated, "s1"]})
    assert {name for name, side in named.items() if side == "test"} == {validated, "s1"}
    assert all(named[name] == side for name, side in by_hash.items() if name not in (validated, "s1"))
    with pytest.raises(ValueError, match=r"'s1', .*is named for val and for test"):
        assign(names, named={"val": ["s1"], "test": ["s1"]})
    with pytest.raises(ValueError, match=r"'s1\.png' is named for test, but no sample has that id"):
        assign(names, named={"test": ["s1.png"]})


def test_variants_of_one_template_share_a_side():
    samples = [(f"{template}-{k}", template) for template in "abcdefghij" for k in range(5)]
    splits = assign_splits(samples, seed=0, val_share=0.5)
    for template in "abcdefghij":
        assert len({splits[f"{template}-{k}"] for k in range(5)}) == 1
    assert len(set(splits.values())) == 2
    named = assign_splits(samples, seed=0, val_share=0.0, named={"test": ["c-2"]})
    assert {name for name, side in named.items() if side == "test"} == {f"c-{k}" for k in range(5)}


def test_an_endless_stream_fills_both_counts_exactly():
    stream = ((str(i), str(i)) for i in itertools.count())
    taken = until_filled(stream, seed=0, val_share=0.1, train_count=30, val_count=7)
    splits = assign_splits(taken, seed=0, val_share=0.1, counts={"train": 30, "val": 7})
    assert sorted(splits.values()) == ["train"] * 30 + ["val"] * 7
    with pytest.raises(ValueError, match="never fills"):
        until_filled(iter([]), seed=0, val_share=0.0, train_count=3, val_count=1)
