import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.compositing import composite, to_float
from layers.dataset import (
    BucketBatches,
    DatasetError,
    StackDataset,
    create_component_dataloader,
    create_stack_dataloader,
    read_manifest,
)
from layers.images import read_rgba
from layers.prepare import assign_splits
from layers.tensors import composite_stack, over_grey, to_image, to_tensor


def test_layers_recompose_to_the_stored_composite(bucketed_root):
    for split in ("train", "val"):
        for sample in read_manifest(bucketed_root, split):
            layers = [to_float(read_rgba(bucketed_root / path)) for path in sample.layer_paths]
            stored = to_float(read_rgba(bucketed_root / sample.composite_path))
            assert np.abs(composite(layers) - stored).max() <= 1 / 255 + 1e-6


def test_slots_are_bottom_to_top(bucketed_root):
    dataset = StackDataset(bucketed_root, "train")
    for index in range(len(dataset)):
        layers = dataset[index]["layers"]
        cover = (layers[:, 3] > -1).float().mean((1, 2))
        assert cover[0] == 1.0, "the background is slot 0 of the layers"
        assert (cover[1:] < 1.0).all()
        # The writer of the fixture stacks ever smaller discs.
        assert (cover[1:].diff() < 0).all()
        flat = composite_stack(layers[None])[0]
        assert (flat - over_grey(dataset[index]["composite"], -1.0)).abs().max() <= 2 / 127.5
        # Shuffling the order must show, or this test shows nothing.
        if len(layers) > 2:
            assert (composite_stack(layers.flip(0)[None])[0] - flat).abs().max() > 0.1


def test_component_batches(bucketed_root):
    batch = next(iter(create_component_dataloader(bucketed_root, "train", batch_size=4, num_workers=0)))
    assert batch["component"].shape == batch["composite"].shape
    assert batch["component"].shape[:2] == (4, 4)
    assert batch["component"].dtype == torch.float32
    assert batch["component"].min() >= -1.0 and batch["component"].max() <= 1.0
    assert (batch["composite"][:, 3] == 1.0).all()


def test_stack_batches_share_their_bucket_and_workers_change_nothing(bucketed_root):
    alone = list(create_stack_dataloader(bucketed_root, "train", 2, seed=3))
    helped = list(create_stack_dataloader(bucketed_root, "train", 2, num_workers=1, seed=3))
    assert len(alone) == len(helped)
    for a, b in zip(alone, helped, strict=True):
        assert a["id"] == b["id"]
        assert torch.equal(a["layers"], b["layers"])
        assert a["layers"].shape[0] == 2 and a["layers"].shape[2] == 4


def test_tensors_and_images_round_trip():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    assert np.array_equal(to_image(to_tensor(image)), image)
    assert to_tensor(image).min() >= -1.0


keys = st.lists(st.sampled_from("abc"), min_size=1, max_size=40)


@given(keys, st.integers(1, 5), st.integers(1, 3), st.sampled_from(["drop", "repeat"]), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_batches_are_homogeneous_full_and_equal_on_every_rank(items, size, world, fill, epoch):
    ranks = [
        BucketBatches(items, size, seed=1, fill=fill, rank=r, world_size=world).batches(epoch) for r in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == len(BucketBatches(items, size, fill=fill, world_size=world))
    seen = []
    for step in zip(*ranks, strict=True):
        joint = [index for batch in step for index in batch]
        assert len({items[index] for index in joint}) == 1
        assert all(len(batch) == size for batch in step)
        seen += joint
    if fill == "repeat":
        assert set(seen) == set(range(len(items))), "a sample is never dropped silently"
    else:
        assert len(seen) == len(set(seen))


@given(keys, st.integers(1, 4), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_the_stream_goes_on_anywhere(items, size, start):
    batches = BucketBatches(items, size, seed=5)
    whole, resumed = batches.endless(), batches.endless(start)
    for _ in range(start):
        next(whole)
    assert [next(whole) for _ in range(10)] == [next(resumed) for _ in range(10)]


def test_order_depends_on_seed_and_epoch_alone():
    items = "ab" * 20
    first = BucketBatches(items, 4, seed=1)
    assert first.batches(0) == BucketBatches(items, 4, seed=1).batches(0)
    assert first.batches(0) != first.batches(1)
    assert first.batches(0) != BucketBatches(items, 4, seed=2).batches(0)


def test_partial_batches_are_for_one_rank():
    assert sum(map(len, BucketBatches("aaab", 2, fill="partial").batches(0))) == 4
    with pytest.raises(ValueError, match="unequal batches"):
        BucketBatches("aaab", 2, fill="partial", world_size=2)


def test_a_missing_dataset_says_what_to_run(tmp_path):
    with pytest.raises(DatasetError, match="run the stage prepare_buckets"):
        read_manifest(tmp_path, "train")


def test_splits_ignore_listing_order_and_honour_counts_and_lists():
    names = [f"s{i}" for i in range(50)]
    splits = assign_splits(names, seed=0, train_count=20, val_count=5)
    assert splits == assign_splits(names[::-1], seed=0, train_count=20, val_count=5)
    assert sorted(splits.values()).count("train") == 20 and sorted(splits.values()).count("val") == 5
    named = assign_splits(names, seed=0, train_count=None, val_count=5, validation_ids=["s3", "s9", "gone"])
    assert {k for k, v in named.items() if v == "val"} == {"s3", "s9"}
    assert len(named) == 50
