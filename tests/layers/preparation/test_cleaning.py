import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.imaging.compositing import composite, group_into_peels, to_float
from layers.preparation.cleaning import Cleaning, clean, group_layers
from layers.preparation.patches import Patch, composite_patches, trimmed

SIZE = (64, 64)


def layer(columns, alpha=255, kind="image", words="", colour=None):
    image = np.zeros((*SIZE, 4), np.uint8)
    colour = np.random.default_rng(columns.start).integers(0, 255, 3) if colour is None else colour
    image[:, columns] = (*colour, alpha)
    patch = trimmed(image)
    return Patch(patch.image, patch.top, patch.left, kind, words)


BACKGROUND = layer(slice(0, 64), kind="background", colour=(250, 250, 250))
EMPTY = Patch(np.zeros((0, 0, 4), np.uint8))


def names(patches):
    return [patch.description for patch in patches]


def test_empty_hidden_and_unchanging_layers_go_and_are_counted():
    stack = [
        layer(slice(0, 64), words="hidden below", colour=(9, 9, 9)),
        BACKGROUND,
        EMPTY,
        layer(slice(5, 9), words="same colour", colour=(250, 250, 250)),
        layer(slice(10, 14), words="one level off", colour=(249, 250, 250)),
        layer(slice(20, 30), words="covered", colour=(3, 3, 3)),
        layer(slice(18, 32), words="cover", colour=(200, 0, 0)),
        layer(slice(40, 44), alpha=3, words="faint", colour=(0, 0, 0)),
    ]
    kept, flat, counts = clean(stack, Cleaning(), SIZE)
    assert names(kept) == ["", "cover", "faint"]
    assert counts == {"empty": 1, "hidden": 2, "unchanging": 2}
    assert np.abs(flat - composite_patches(stack, SIZE)).max() * 255 <= 1.0 + 1e-4


def test_each_step_is_a_switch():
    stack = [BACKGROUND, EMPTY, layer(slice(5, 9), colour=(250, 250, 250)), layer(slice(3, 12), colour=(0, 0, 0))]
    assert len(clean(stack, Cleaning(False, False, False), SIZE)[0]) == 4
    assert clean(stack, Cleaning(True, False, False), SIZE)[2] == {"empty": 1, "hidden": 0, "unchanging": 0}
    assert clean(stack, Cleaning(False, True, False), SIZE)[2] == {"empty": 0, "hidden": 1, "unchanging": 0}


def test_of_two_equal_layers_the_upper_stays():
    stack = [
        BACKGROUND,
        layer(slice(5, 9), words="low", colour=(1, 2, 3)),
        layer(slice(5, 9), words="high", colour=(1, 2, 3)),
    ]
    assert names(clean(stack, Cleaning(), SIZE)[0]) == ["", "high"]


def test_one_visible_pixel_is_enough():
    dot = Patch(np.array([[[255, 0, 0, 255]]], np.uint8), 33, 17, description="dot")
    assert names(clean([BACKGROUND, dot], Cleaning(), SIZE)[0]) == ["", "dot"]


def random_stack(rng, count):
    stack = []
    for _ in range(count):
        height, width = rng.integers(1, 20, 2)
        image = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        if rng.random() < 0.5:
            image[...] = rng.choice([0, 128, 255], 4)
        image[image[..., 3] == 0] = 0
        stack.append(trimmed(image, int(rng.integers(0, 24 - height + 1)), int(rng.integers(0, 24 - width + 1))))
    return stack


@given(st.integers(0, 10**6), st.integers(1, 8))
@settings(max_examples=120, deadline=None)
def test_cleaning_and_grouping_never_change_the_image(seed, count):
    stack = random_stack(np.random.default_rng(seed), count)
    kept, flat, counts = clean(stack, Cleaning(min_change=0.0), (24, 24))
    assert len(kept) + sum(counts.values()) == len(stack)
    whole = composite_patches(stack, (24, 24))
    # What hides behind layers may add up to half a level each.
    assert np.abs(flat - whole).max() * 255 <= 0.5 * counts["hidden"] + 1e-3
    peels = group_layers(kept)
    assert np.abs(composite_patches(peels, (24, 24)) - flat).max() * 255 <= 1.0
    again, _, second = clean(kept, Cleaning(min_change=0.0), (24, 24))
    assert len(again) == len(kept) and not any(second.values()), "cleaning twice does nothing more"


def test_layers_side_by_side_become_one():
    merged = group_layers([BACKGROUND, layer(slice(0, 9), kind="text", words="a"), layer(slice(20, 30), words="b")])
    assert [(x.kind, x.description) for x in merged] == [("background", ""), ("group", "a, b")]
    assert np.array_equal(merged[1].on_canvas(SIZE)[:, 20:30], layer(slice(20, 30)).on_canvas(SIZE)[:, 20:30])


def test_haze_gives_no_order():
    hazy = np.maximum(layer(slice(0, 9)).on_canvas(SIZE), layer(slice(9, 12), alpha=10).on_canvas(SIZE))
    stack = [BACKGROUND, trimmed(hazy), layer(slice(10, 30))]
    assert len(group_layers(stack, overlap_alpha=0)) == 3
    assert len(group_layers(stack, overlap_alpha=16)) == 2


def test_grouping_equals_the_evaluations_and_it_groups_no_further():
    rng = np.random.default_rng(0)
    for _ in range(20):
        stack = [BACKGROUND]
        for _ in range(6):
            left = int(rng.integers(0, 50))
            stack.append(layer(slice(left, left + int(rng.integers(3, 20))), alpha=int(rng.integers(5, 256))))
        masks = [x.on_canvas(SIZE)[..., 3] for x in stack]
        expected = [composite([to_float(stack[i].on_canvas(SIZE)) for i in group]) for group in group_into_peels(masks)]
        ours = group_layers(stack)
        assert len(ours) == len(expected)
        for patch, image in zip(ours, expected, strict=True):
            assert np.abs(to_float(patch.on_canvas(SIZE)) - image).max() <= 0.6 / 255
        hazy = group_layers(stack, overlap_alpha=16)
        assert group_into_peels([x.on_canvas(SIZE)[..., 3] for x in hazy]) == [[i] for i in range(len(hazy))]
