"""Which of several decompositions is kept: distances in closed form, choices that can only be one."""

import pytest
import torch

from inference.consensus import most_agreed, stack_distance
from inference.decomposer import Decomposer, names_of_tries
from layers.imaging.tensors import composite
from models.transformer.sampling import decompose_images, slots_noise
from models.transformer.trained_for import save_trained_for
from models.vae.latents import encode_images
from tests.support.networks import save_tiny


def stacks(count, samples=1, layers=2, size=8):
    """Random stacks ``(N, B, L, 4, H, W)``."""
    return torch.rand(count, samples, layers, 4, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def flat(stack):
    """What they show, opaque."""
    rgb = composite(stack)
    return torch.cat([rgb, torch.ones_like(rgb[:, :1])], 1)


def test_the_distance_is_symmetric_and_0_between_equals():
    one, other = stacks(2, samples=3)
    assert torch.allclose(stack_distance(one, other), stack_distance(other, one))
    assert (stack_distance(one, other) > 0.1).all() and (stack_distance(one, one) == 0.0).all()


def test_the_distance_in_closed_form():
    """White opaque against black opaque is 1/2 (the shapes agree), against nothing 1; nothing against nothing is 0."""
    white = torch.ones(1, 1, 4, 50, 50)
    black = torch.cat([-white[:, :, :3], white[:, :, 3:]], 2)
    nothing = -white
    for first, second, expected in ((white, black, 0.5), (white, nothing, 1.0), (nothing, nothing, 0.0)):
        assert stack_distance(first, second).item() == pytest.approx(expected, abs=0.003)
    pair = torch.cat([white, white], 1), torch.cat([white, nothing], 1)
    assert stack_distance(*pair).item() == pytest.approx(0.5, abs=0.003), "the mean over layers"


def test_noise_of_layers_that_are_not_there_counts_little():
    noise = torch.rand(2, 1, 1, 4, 64, 64) * 0.002 - 1.0
    assert stack_distance(*noise).item() < 0.15


def test_the_one_that_others_agree_with_is_kept():
    first, outlier = stacks(2, samples=2)
    near = (first + 0.01).clamp(max=1.0)
    candidates = torch.stack([outlier, first, near])
    assert set(most_agreed(candidates, flat(first)).tolist()) <= {1, 2}
    # Sample by sample: in the second the outlier is what the two others are near to.
    mixed = candidates.clone()
    mixed[:, 1] = torch.stack([first, outlier, outlier])[:, 1]
    images = torch.stack([flat(first)[0], flat(outlier)[1]])
    assert (most_agreed(mixed, images) != 0).all()


def test_of_two_that_disagree_the_one_that_flattens_to_the_image_is_kept():
    candidates = stacks(2, samples=2)
    assert most_agreed(candidates, flat(candidates[0])).tolist() == [0, 0]
    assert most_agreed(candidates, flat(candidates[1])).tolist() == [1, 1]


def test_a_decomposer_keeps_one_of_its_tries(tmp_path):
    model = Decomposer.from_pretrained(str(save_tiny(tmp_path)), "cpu")
    images = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    names = names_of_tries(["a", "b"], 3)
    assert names[0] == ["a", "b"] and len({name for row in names for name in row}) == 6
    single = [model.decompose(images, 2, row, None, steps=2, seed=0) for row in names]
    kept = model.decompose(images, 2, ["a", "b"], None, steps=2, seed=0, tries=3)
    chosen = most_agreed(torch.stack(single), images)
    for sample, index in enumerate(chosen.tolist()):
        assert torch.equal(kept[sample], single[index][sample])
    assert torch.equal(model.decompose(images, 2, names[0], None, steps=2, seed=0, tries=1), single[0])


def test_a_decomposer_samples_with_the_shift_that_its_weights_came_with(tmp_path):
    model = Decomposer.from_pretrained(str(save_tiny(tmp_path)), "cpu")
    trained = model.trained_for
    save_trained_for(trained.model_copy(update={"sampling_shift": 3.0}), tmp_path)
    shifted = Decomposer.from_pretrained(str(tmp_path), "cpu")
    images = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = shifted.decompose(images, 2, ["a"], None, steps=2, seed=0)
    text = shifted._text([""])
    networks, condition = (shifted.network, shifted.vae), encode_images(shifted.vae, images)
    noise = slots_noise(condition, 2, ["a"], seed=0)
    expected = decompose_images(*networks, condition, noise, steps=2, shift=3.0, text=text)
    assert torch.equal(found, expected)
    assert not torch.equal(found, model.decompose(images, 2, ["a"], None, steps=2, seed=0))
