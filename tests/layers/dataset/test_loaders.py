import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.dataset.batches import BatchError, BucketBatches
from layers.dataset.buckets import BucketLimits
from layers.dataset.loaders import (
    BadBucketError,
    RgbaComponentDataset,
    StackDataset,
    create_component_dataloader,
    create_stack_dataloader,
)
from layers.dataset.manifest import DatasetError
from layers.dataset.storage import read_image
from layers.imaging import tensors
from layers.imaging.compositing import composite, to_float
from layers.imaging.tensors import to_image, to_tensor
from layers.preparation.dataset import prepare_dataset
from layers.preparation.sample import Preparation
from layers.sources.location import Location
from layers.sources.rendered import RenderedSource


def test_layers_recompose_to_the_stored_composite(bucketed_root):
    for split in ("train", "val"):
        dataset = StackDataset(bucketed_root, split)
        for record in map(dataset.record, range(len(dataset))):
            layers = [to_float(read_image(bucketed_root, place)) for place in record.layers]
            stored = to_float(read_image(bucketed_root, record.composite))
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
        flat = tensors.composite(layers[None])[0]
        assert (flat - tensors.over_background(dataset[index]["composite"], -1.0)).abs().max() <= 2 / 127.5
        # Shuffling the order must show, or this test shows nothing.
        if len(layers) > 2:
            assert (tensors.composite(layers.flip(0)[None])[0] - flat).abs().max() > 0.1


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
        list(BucketBatches(items, size, seed=1, fill=fill, rank=r, world_size=world).batches(epoch))
        for r in range(world)
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
    assert list(first.batches(0)) == list(BucketBatches(items, 4, seed=1).batches(0))
    assert list(first.batches(0)) != list(first.batches(1))
    assert list(first.batches(0)) != list(BucketBatches(items, 4, seed=2).batches(0))
    assert list(BucketBatches(items, 4, shuffle=False).batches(0)) == list(
        BucketBatches(items, 4, shuffle=False).batches(1)
    )


def test_a_pass_goes_on_from_where_it_was_left(bucketed_root):
    loader = create_component_dataloader(bucketed_root, "train", 2, seed=4)
    loader.batch_sampler.set_position(epoch=1)
    whole = [batch["id"] for batch in loader]
    loader.batch_sampler.set_position(epoch=1, batch=3)
    assert [batch["id"] for batch in loader] == whole[3:]
    loader.batch_sampler.set_position(epoch=2)
    assert [batch["id"] for batch in loader] != whole


def test_ranks_share_a_pass(bucketed_root):
    ranks = [
        [batch["id"] for batch in create_stack_dataloader(bucketed_root, "train", 1, rank=r, world_size=2, seed=3)]
        for r in range(2)
    ]
    assert len(ranks[0]) == len(ranks[1])
    seen = {name for rank in ranks for batch in rank for name in batch}
    assert seen == {f"sample{i:02d}" for i in range(8)}


def test_partial_batches_are_for_one_rank_and_a_bucket_must_fill_one():
    assert sum(map(len, BucketBatches("aaab", 2, fill="partial").batches(0))) == 4
    with pytest.raises(ValueError, match="unequal batches"):
        BucketBatches("aaab", 2, fill="partial", world_size=2)
    with pytest.raises(BatchError, match="no bucket fills a batch of 5"):
        next(BucketBatches("aaab", 5, fill="drop").endless())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("storage", ["files", "shards"])
def test_a_bad_image_is_replaced_counted_and_named(rendered_root, tmp_path, workers, storage):
    root = tmp_path / "set"
    source = RenderedSource(Location(rendered_root / "rendered", "rendered_root"), None)
    names = ["sample00", "sample02", "sample06", "sample08"]
    limits = BucketLimits(min_side=32, max_side=96, max_pixels=6144, max_aspect=2.3)
    samples = 256 if storage == "shards" else None
    prepare_dataset(source, dict.fromkeys(names, "train"), Preparation(limits), root, shard_samples=samples)
    dataset = StackDataset(root, "train")
    record = dataset.record(2)
    assert record.sample_id == "sample06"
    path = root / record.layers[1]["path"]
    start, size = record.layers[1].get("range", (0, path.stat().st_size))
    data = bytearray(path.read_bytes())
    data[start + 20 : start + size] = bytes(size - 20)
    path.write_bytes(data)

    loader = create_stack_dataloader(root, "train", 2, num_workers=workers, shuffle=False)
    batches = list(loader)
    assert sum(len(batch["id"]) for batch in batches) == 4 and len(batches) == len(loader)
    (reason,) = [name for batch in batches for name in batch["skipped"]]
    assert reason.startswith("sample06: sample06") and "comp001.png: " in reason
    assert "sample06" not in [name for batch in batches for name in batch["id"]]
    components = create_component_dataloader(root, "train", 1, num_workers=workers, shuffle=False)
    skipped = [name for batch in components for name in batch["skipped"]]
    assert len(skipped) == 1 and skipped[0].startswith("sample06_comp001: ")


def test_a_bucket_without_a_readable_image_ends_it(bucketed_root, tmp_path):
    shutil.copytree(bucketed_root, tmp_path / "set")
    for path in (tmp_path / "set").rglob("*_composite.png"):
        path.write_bytes(b"")
    with pytest.raises(BadBucketError, match=r"no image of bucket .* can be read; the first: sample00: .*zero bytes"):
        StackDataset(tmp_path / "set", "train")[0]


def test_datasets_travel_to_workers(bucketed_root):
    for dataset in (StackDataset(bucketed_root, "train"), RgbaComponentDataset(bucketed_root, "train")):
        copy = pickle.loads(pickle.dumps(dataset))
        assert len(copy) == len(dataset) and copy[1]["id"] == dataset[1]["id"]
        assert list(copy.keys) == list(dataset.keys)


def test_a_missing_dataset_says_what_to_run(tmp_path):
    with pytest.raises(DatasetError, match="run the stage prepare_buckets"):
        StackDataset(tmp_path, "train")
