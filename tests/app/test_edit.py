"""Edits of a stack: each gives another stack, and shows in the flat image what it says."""

import numpy as np
import pytest

from app.edit import (
    EditError,
    composite,
    deleted,
    moved,
    recoloured,
    reduced,
    reordered,
    replaced,
    shifted,
    shown,
    stacked,
    tinted,
    visible_layers,
)

RED, GREEN, BLUE = (200, 20, 20), (20, 200, 20), (20, 20, 200)


def plate(colour, rows=slice(None), columns=slice(None), alpha=255):
    """A rectangle of one colour on a canvas of 40x60."""
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[rows, columns] = (*colour, alpha)
    return layer


def stack():
    """Red ground, green at the left, blue over its lower half."""
    return stacked([plate(RED), plate(GREEN, columns=slice(0, 30)), plate(BLUE, slice(20, 40), slice(0, 30))])


def seen(stack, row, column):
    return tuple(composite(stack)[row, column][:3].tolist())


def test_a_new_stack_shows_its_layers_and_has_their_names():
    assert [entry.name for entry in stack().entries] == ["background", "layer 1", "layer 2"]
    assert [seen(stack(), *at) for at in ((5, 5), (30, 5), (5, 50))] == [GREEN, BLUE, RED]
    for wrong in ([], [plate(RED), plate(RED)[:-1]], [plate(RED)[..., :3]], [plate(RED).astype(float)]):
        with pytest.raises(ValueError):
            stacked(wrong)


def test_an_edit_leaves_the_stack_it_came_from_alone():
    before = stack()
    copies = [entry.pixels.copy() for entry in before.entries]
    flat = composite(before)
    after = recoloured(moved(shown(before, 0, False), 1, (5, 5)), 2, RED)
    deleted(reordered(after, 2, 0), 0), replaced(after, 1, [plate(RED), plate(BLUE)]), composite(after)
    assert np.array_equal(composite(before), flat)
    assert all(np.array_equal(entry.pixels, copy) for entry, copy in zip(before.entries, copies, strict=True))


def test_hidden_layers_are_neither_seen_nor_exported():
    hidden = shown(stack(), 2, False)
    assert seen(hidden, 30, 5) == GREEN and seen(shown(hidden, 2, True), 30, 5) == BLUE
    layers, names = visible_layers(hidden)
    assert len(layers) == 2 and names == ["background", "layer 1"]
    nothing = shown(shown(hidden, 0, False), 1, False)
    assert not composite(nothing).any()
    with pytest.raises(EditError, match="all layers are hidden"):
        visible_layers(nothing)


def test_moves_count_from_where_the_layer_came_from():
    right = moved(stack(), 1, (25, 0))
    assert seen(right, 5, 50) == GREEN and seen(right, 5, 5) == RED
    assert seen(moved(right, 1, (0, 0)), 5, 5) == GREEN
    # Off the canvas and back: nothing was cut off for good.
    assert np.array_equal(composite(moved(moved(stack(), 1, (60, -40)), 1, (0, 0))), composite(stack()))
    for offset in ((61, 0), (0, -41)):
        with pytest.raises(EditError, match="expected at most 60, 40 each way"):
            moved(stack(), 1, offset)


@pytest.mark.parametrize("offset", [(0, 0), (7, 3), (-7, 3), (7, -3), (-59, -39), (60, 0), (0, 40), (60, 40)])
def test_a_shift_is_that_of_a_padded_canvas(offset):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    padded = np.pad(pixels, ((40, 40), (60, 60), (0, 0)))
    right, down = offset
    assert np.array_equal(shifted(pixels, offset), padded[40 - down : 80 - down, 60 - right : 120 - right])


def test_recolouring_keeps_shading_and_alpha_and_can_be_taken_back():
    shades = plate((0, 0, 0))
    shades[:, :, 0] = np.linspace(40, 100, 60).astype(np.uint8)
    shades[:20, :, 3] = 128
    shades[0] = 0
    out = tinted(shades, (150, 90, 30))
    assert np.array_equal(out[..., 3], shades[..., 3]) and not out[0].any()
    mean = np.average(out[..., :3].reshape(-1, 3), axis=0, weights=out[..., 3].reshape(-1))
    assert np.abs(mean - (150, 90, 30)).max() < 1
    assert np.ptp(out[30, :, 0].astype(int)) == 60 and (np.diff(out[30, :, 0].astype(int)) >= 0).all()
    assert tuple(tinted(plate((0, 0, 0)), RED)[0, 0, :3]) == RED, "black too"
    other = recoloured(stack(), 1, (250, 250, 0))
    assert seen(other, 5, 5) == (250, 250, 0)
    assert seen(recoloured(recoloured(other, 1, BLUE), 1, None), 5, 5) == GREEN
    assert np.array_equal(tinted(plate(RED, alpha=0), BLUE), plate(RED, alpha=0)), "nothing to colour"
    for colour in ((0, 0, 256), (-1, 0, 0), (1, 2)):
        with pytest.raises(EditError, match="three values"):
            recoloured(stack(), 1, colour)


def test_order_and_deletion():
    assert seen(reordered(stack(), 1, 2), 30, 5) == GREEN
    assert seen(reordered(stack(), 0, 2), 5, 5) == RED
    assert seen(deleted(stack(), 2), 30, 5) == GREEN
    with pytest.raises(EditError, match="layer 2 is at the top already"):
        reordered(stack(), 2, 3)
    with pytest.raises(EditError, match="background is at the bottom already"):
        reordered(stack(), 0, -1)
    with pytest.raises(EditError, match="the only layer cannot be deleted"):
        deleted(deleted(deleted(stack(), 0), 1), 2)


def test_parts_take_the_place_of_their_layer():
    before = moved(recoloured(stack(), 1, BLUE), 1, (3, 0))
    whole = before.entry(1).recoloured()
    top, bottom = whole.copy(), whole.copy()
    top[20:], bottom[:20] = 0, 0
    after = replaced(before, 1, [bottom, np.zeros_like(top), top])
    assert [entry.name for entry in after.entries] == ["background", "layer 1.1", "layer 1.2", "layer 2"]
    assert np.array_equal(composite(after), composite(before)), "the same image"
    assert len({entry.key for entry in after.entries}) == 4 and after.next_key == 5
    again = replaced(deleted(after, 3), 4, [plate(RED), plate(BLUE)])
    assert {entry.key for entry in again.entries} == {0, 2, 5, 6}, "a key is never used again"
    assert not any(entry.visible for entry in replaced(shown(before, 1, False), 1, [top, bottom]).entries[1:3])
    with pytest.raises(EditError, match="only one part"):
        replaced(before, 1, [whole, np.zeros_like(whole)])
    with pytest.raises(ValueError):
        replaced(before, 1, [top[:5], bottom[:5]])


def test_layers_that_are_gone_are_said_to_be():
    gone = deleted(stack(), 1)
    parts = [plate(RED), plate(BLUE)]
    for edit in (
        lambda: shown(gone, 1, False),
        lambda: moved(gone, 1, (0, 0)),
        lambda: recoloured(gone, 1, RED),
        lambda: deleted(gone, 1),
        lambda: reordered(gone, 1, 0),
        lambda: replaced(gone, 1, parts),
    ):
        with pytest.raises(EditError, match="no longer in the stack"):
            edit()


def test_a_reduced_stack_looks_like_the_large_one():
    large = moved(stack(), 1, (20, 10))
    small = reduced(large, 30)
    assert small.size == (20, 30) and small.entry(1).offset == (10, 5)
    assert np.abs(composite(small).astype(int) - composite(large)[::2, ::2]).max() <= 1
    assert reduced(large, 60) is large
    thin = reduced(stacked([np.full((1000, 8, 4), 255, np.uint8)]), 50)
    assert thin.size == (50, 1)
    # What is under alpha 0 does not bleed into edges.
    layer = plate((255, 255, 255))
    layer[:, 31:] = (0, 0, 0, 0)
    edge = reduced(stacked([layer]), 30).entries[0].pixels
    assert (edge[..., :3][edge[..., 3] > 0] >= 253).all()
