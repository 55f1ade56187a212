"""Held-out figures of networks whose answer is known."""

import torch
from accelerate import Accelerator

from layers.dataset.digest import digest
from layers.dataset.loaders import StackDataset
from layers.imaging.tensors import to_image
from metrics.decomposition.scores import aggregate, score_sample
from models.vae.latents import decode_layers
from tests.support.networks import tiny_network, tiny_vae
from training.decompose.latents import cached_stacks, encode_missing, open_cache
from training.decompose.validation import sampled_scores

ALONE = Accelerator(cpu=True)


class Knowing(torch.nn.Module):
    """Answers with the velocity towards the latents of whichever sample it is shown."""

    patch_size = 2

    def __init__(self, stacks):
        super().__init__()
        self.stacks = stacks
        self.condition_tokens = tiny_network().condition_tokens

    def forward(self, noisy, condition, sigma, text=None):
        clean = torch.stack([next(s for s in self.stacks if torch.equal(s[0], image)) for image in condition])
        return (noisy - clean) / sigma.view(-1, 1, 1, 1, 1)


def test_sampled_scores_are_the_protocol_on_decoded_samples(bucketed_root, tmp_path):
    vae, truth = tiny_vae(), StackDataset(bucketed_root, "val")
    vae.save_pretrained(tmp_path / "vae")
    cache = open_cache(digest(tmp_path / "vae"), tmp_path / "cache")
    encode_missing(vae, truth, cache, ALONE, torch.float32)
    data = cached_stacks(truth, cache)
    # Two in another order than the split's.
    order = list(reversed(range(len(data.ids))))[:2]
    for name in ("numbers", "contents", "ids", "keys", "texts"):
        setattr_frozen(data, name, [getattr(data, name)[i] for i in order])
    stacks = [data.stack(i) for i in range(2)]
    found = sampled_scores(Knowing(stacks), vae, data, truth, ALONE, samples=2, steps=3)
    rows = [
        score_sample(list(to_image(decode_layers(vae, stack[None, 1:])[0])), list(to_image(truth[index]["layers"])), 0)
        for stack, index in zip(stacks, order, strict=True)
    ]
    mean = aggregate(rows)[0]
    for name in ("rgb_l1", "alpha_iou", "cost"):
        assert abs(found[name] - getattr(mean, name)) < 0.02, name
    one = sampled_scores(Knowing(stacks), vae, data, truth, ALONE, samples=1, steps=3)
    assert abs(one["cost"] - rows[0][0].cost) < 0.02
    assert sampled_scores(Knowing(stacks), vae, data, truth, ALONE, samples=0, steps=3) == {}


def setattr_frozen(data, name, value):
    object.__setattr__(data, name, value)
