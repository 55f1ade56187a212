"""Which number of layers a network is asked for, where it is to find the number itself."""

import numpy as np
import torch

from inference.images import layers_of
from models.transformer.trained_for import TrainedFor


class Filling:
    """Fills as many layers, each with a square of its own, as an image's red says, and remembers what it was asked."""

    trained_for = TrainedFor(min_side=32, max_side=32, max_pixels=1024, surplus_layers=4)

    def __init__(self):
        self.asked = []

    def decompose(self, images, layer_count, ids, captions, **effort):
        self.asked.append((layer_count, len(images), captions))
        stacks = torch.full((len(images), layer_count, 4, 32, 32), -1.0)
        for stack, image in zip(stacks, images, strict=True):
            stack[0] = 1.0
            filled = min(layer_count, round(float(image[0].mean() + 1.0) / 2.0 * 255.0 / 50.0))
            for number in range(1, filled):
                stack[number, :, 8 * number : 8 * number + 8, 4:20] = 1.0
        return stacks


def image(layers):
    shown = np.full((32, 32, 4), 255, np.uint8)
    shown[..., 0] = 50 * layers
    return shown


def test_what_is_found_is_asked_for_again_by_its_number():
    model = Filling()
    found = layers_of(model, [image(2), image(4), image(3), image(2), image(1)], captions=list("abcde"))
    assert [len(layers) for layers in found] == [2, 4, 3, 2, 1]
    # All four filled, or the bottom alone: there is nothing to ask again.
    assert model.asked == [(4, 5, list("abcde")), (2, 2, ["a", "d"]), (3, 1, ["c"])]


def test_a_number_that_is_said_is_asked_for_once():
    model = Filling()
    (layers,) = layers_of(model, [image(2)], 3)
    assert len(layers) == 3 and model.asked == [(3, 1, None)]
