"""Parts of stage 2 that a whole run would not show to be wrong."""

import torch

from layers.dataset.batches import BucketBatches
from layers.dataset.loaders import RgbaComponentDataset
from stages import train_vae
from stages.train_vae import images

CPU = torch.device("cpu")


def test_the_statistics_see_enough_items_whatever_the_batch(bucketed_root, monkeypatch):
    """With batches of one item, 128 batches were 128 items."""
    monkeypatch.setattr(train_vae, "STATISTICS_ITEMS", 9)
    monkeypatch.setattr(train_vae, "STATISTICS_BATCHES", 3)
    dataset = RgbaComponentDataset(bucketed_root, "train")
    for size, batches in ((1, 9), (2, 5), (4, 3)):
        found = list(images(dataset, BucketBatches(dataset.keys, size, seed=0), 4, CPU))
        assert [len(part) for part in found] == [2 * size] * batches, "a component and its composite an item"
