import json

import pytest

from inference.sizes import stretched_size
from models.transformer.trained_for import (
    FILE,
    RELEASED,
    TrainedFor,
    TrainedForError,
    of_buckets,
    read_trained_for,
    save_trained_for,
)

KEYS = [(64, 96, 2), (96, 64, 5), (64, 64, 3)]


def test_sizes_are_those_of_the_buckets_and_survive_the_disk(tmp_path):
    trained = of_buckets(KEYS, 6, 2.3)
    assert trained == TrainedFor(min_side=64, max_side=96, max_pixels=6144, surplus_layers=6, sampling_shift=2.3)
    save_trained_for(trained, tmp_path)
    assert read_trained_for(tmp_path) == trained


@pytest.mark.parametrize("canvas", [(3000, 4000), (20, 20), (10, 900)])
def test_any_image_gets_a_size_that_was_trained(canvas):
    height, width = stretched_size(canvas, of_buckets(KEYS, None, None).limits)
    assert {height, width} <= {64, 96} and height * width <= 6144


def test_a_folder_that_says_nothing_is_the_released_model(tmp_path):
    assert read_trained_for(tmp_path) == RELEASED
    height, width = stretched_size((1080, 1920), RELEASED.limits)
    assert height * width <= 640 * 640 and height % 32 == width % 32 == 0


def test_weights_from_before_there_was_a_shift_are_sampled_as_they_were(tmp_path):
    sizes = {"min_side": 64, "max_side": 96, "max_pixels": 6144, "surplus_layers": 6}
    (tmp_path / FILE).write_text(json.dumps(sizes))
    assert read_trained_for(tmp_path).sampling_shift is None


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"min_side": 64}', '{"min_side": 0, "max_side": 1, "max_pixels": 1, "surplus_layers": null}']
)
def test_a_damaged_file_is_one_sentence(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(TrainedForError, match=FILE) as caught:
        read_trained_for(tmp_path)
    assert "\n" not in str(caught.value)
