import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.imaging.compositing import composite_8bit, group_into_peels
from metrics.editability import scores as editability
from metrics.editability.edits import KINDS, counterparts, edited, edits, shown_peels
from metrics.editability.scores import edit_scores, mean_edit_scores
from metrics.reconstruction.perceptual import Perceptual
from metrics.reconstruction.rgba import PSNR_CEILING
from tests.metrics.decomposition.stacks import stacks

SIDE = 32
PIXELS = SIDE * SIDE


def ground(level=204, side=SIDE):
    return np.full((side, side, 4), (level, level, level, 255), np.uint8)


def box(top, left, height=8, width=8, level=51, alpha=255):
    layer = np.zeros((SIDE, SIDE, 4), np.uint8)
    layer[top : top + height, left : left + width] = (level, level, level, alpha)
    return layer


def nothing():
    return np.zeros((SIDE, SIDE, 4), np.uint8)


def decibel(squares, pixels=PIXELS):
    """PSNR of a sum of squared errors, the same in all channels, over so many pixels."""
    return -10.0 * math.log10(squares / pixels)


def near(value):
    return pytest.approx(value, abs=1e-3)


def perfect(scores):
    return all(
        row["psnr"] == row["psnr_changed"] == PSNR_CEILING and row.get("lpips", 0.0) == 0.0 and row["reached"] == 1.0
        for row in scores.values()
    )


# Light grey 0.8 under a dark box 0.2 of 64 pixels: all that an edit of one or the other changes is known.
TWO = [ground(), box(8, 8)]
# A box of 0.4 over the lower right quarter of it, 16 pixels; the only peel that can be brought to the top is the first.
THREE = [ground(), box(8, 8), box(12, 12, level=102)]


def test_equal_stacks_reach_the_ceiling_in_every_edit():
    scores = edit_scores(THREE, THREE, Perceptual())
    assert list(scores) == [*KINDS, "all"]
    assert perfect(scores) and all("lpips" in row for row in scores.values())


def test_the_composite_alone_against_two_flat_colours():
    scores = edit_scores([composite_8bit(TWO)], TWO)
    # The composite stands for the ground. Of the box: 0.8 expected, 0.2 left; of the ground: white, and 0.2 expected.
    assert scores["delete"]["psnr"] == near((decibel(64 * 0.36) + decibel(64 * 0.64)) / 2)
    # Moved by 4 pixels each way it keeps 16 of its 64: 48 are left where it was, 48 missing where it should be.
    assert scores["move"]["psnr"] == near(decibel(96 * 0.36))
    # 1 - 0.2 is expected, 0.2 is there; then 1 - 0.2 is there, and 0.2 expected.
    assert scores["recolour"]["psnr"] == near(decibel(64 * 0.36))
    # (0.2 + 0.8) / 2 is expected, 0.2 is there; then (0.2 + 1) / 2 is there, and 0.2 expected.
    assert scores["fade"]["psnr"] == near((decibel(64 * 0.09) + decibel(64 * 0.16)) / 2)
    assert "reorder" not in scores
    assert {kind: row["reached"] for kind, row in scores.items()} == {
        "delete": 0.5,
        "move": 0.0,
        "recolour": 0.5,
        "fade": 0.5,
        "all": 0.375,
    }
    assert scores["all"]["psnr"] == near(np.mean([scores[kind]["psnr"] for kind in KINDS if kind in scores]))


def test_the_composite_alone_keeps_the_order():
    scores = edit_scores([composite_8bit(THREE)], THREE)
    assert scores["reorder"]["psnr"] == near(decibel(16 * 0.04))
    assert scores["reorder"]["psnr_changed"] == near(decibel(16 * 0.04, 36))


def test_psnr_changed_is_that_of_the_widened_region():
    # Two boxes and a pixel around each, 10 x 10, which share 6 x 6; 2 x 2 amid what both cover are too far from any
    # change.
    assert edit_scores([composite_8bit(TWO)], TWO)["move"]["psnr_changed"] == near(decibel(96 * 0.36, 2 * 100 - 36 - 4))
    # What is wrong far from the change does not count in it.
    spoilt = [TWO[0], np.maximum(TWO[1], box(24, 24, 4, 4))]
    scores = edit_scores(spoilt, TWO)
    assert scores["move"]["psnr_changed"] == PSNR_CEILING
    assert scores["move"]["psnr"] == near(decibel(16 * 0.36))


def test_where_layers_flatten_to_the_image_fading_is_half_of_deleting():
    # Half of the box has been left in the ground.
    predicted = [np.where(box(8, 8, 4)[..., 3:] > 0, box(8, 8, 4), ground()), box(8, 8)]
    assert (composite_8bit(predicted) == composite_8bit(TWO)).all()
    of_box = {edit.kind: edit for edit in edits(predicted, TWO) if edit.true == (1,)}
    stack, truth = (torch.tensor(np.stack(one)).permute(0, 3, 1, 2) / 255.0 for one in (predicted, TWO))
    errors = {
        kind: (
            editability.composite_over_white(edited(stack, of_box[kind].predicted, kind))
            - editability.composite_over_white(edited(truth, of_box[kind].true, kind))
        )
        for kind in ("delete", "fade")
    }
    assert errors["delete"].abs().max() > 0.5
    assert torch.allclose(errors["fade"], errors["delete"] / 2, atol=1e-6)


def test_a_thing_split_over_two_layers_is_edited_whole():
    halves = [box(8, 8, width=3), box(8, 11, width=5)]
    assert perfect(edit_scores([THREE[0], *halves, THREE[2]], THREE))
    assert perfect(edit_scores([THREE[0], THREE[1], box(12, 12, 2, level=102), box(14, 12, 6, level=102)], THREE))


def test_two_things_in_one_layer_go_with_the_one_it_is_more_like():
    together = composite_8bit(THREE[1:])
    assert counterparts([THREE[0], together], THREE, [[0], [1], [2]]) == [(0,), (), (1,)]
    scores = edit_scores([THREE[0], together], THREE)
    assert scores["move"]["reached"] == 0.5 and scores["reorder"]["reached"] == 0.0
    # The ground goes alone. The lower box has no layer, and its 48 pixels stay; with the upper one it goes whole.
    assert scores["delete"]["psnr"] == near((PSNR_CEILING + decibel(48 * 0.36) + decibel(64 * 0.36)) / 3)


def test_a_small_thing_in_haze_is_still_found():
    hazy = box(8, 8)
    hazy[hazy[..., 3] == 0] = (204, 204, 204, 40)  # 0.16 of 960 pixels: more than 64
    assert counterparts([TWO[0], hazy], TWO, [[0], [1]]) == [(0,), (1,)]


def test_a_hidden_copy_is_not_taken_and_appears():
    scores = edit_scores([TWO[0], TWO[1], TWO[1]], TWO)
    assert counterparts([TWO[0], TWO[1], TWO[1]], TWO, [[0], [1]]) == [(0,), (2,)]
    assert scores["move"]["psnr"] == near(decibel(48 * 0.36))


def test_layers_side_by_side_are_one_peel_however_they_are_predicted():
    gt = [ground(), box(2, 2), box(20, 20)]
    assert [edit.true for edit in edits(gt, gt) if edit.kind == "move"] == [(1, 2)]
    assert perfect(edit_scores(gt, gt))
    assert perfect(edit_scores([gt[0], gt[2], gt[1]], gt))
    assert perfect(edit_scores([gt[0], np.maximum(gt[1], gt[2])], gt))


def test_a_faint_small_member_of_a_large_peel_belongs_to_it():
    gt = [ground(), box(0, 0, SIDE, 20), box(24, 24, 4, 4, alpha=102)]
    # 16 pixels of 0.4: less of the peel's 640 than of the ground's 368.
    assert counterparts(gt, gt, [[0], [1, 2]]) == [(0,), (1, 2)]


def test_what_lies_where_nothing_is_true_belongs_nowhere():
    assert counterparts([box(2, 2), box(20, 20)], [box(2, 2)], [[0]]) == [(0,)]


def test_bottom_and_top_peels_are_not_reordered_and_the_bottom_stays():
    found = {(edit.true[0], edit.kind) for edit in edits(THREE, THREE)}
    everywhere = {(peel, kind) for peel in range(3) for kind in ("delete", "recolour", "fade")}
    assert found == everywhere | {(1, "move"), (2, "move"), (1, "reorder")}


def test_a_wrong_order_is_seen_where_layers_overlap():
    swapped = [THREE[0], THREE[2], THREE[1]]
    assert counterparts(swapped, THREE, [[0], [1], [2]]) == [(0,), (2,), (1,)]
    scores = edit_scores(swapped, THREE)
    # On top the lower box is right, and so is what one of them leaves; 16 pixels are 0.2 for 0.4 once the ground goes.
    assert scores["reorder"]["psnr"] == PSNR_CEILING
    assert scores["delete"]["psnr"] == near((2 * PSNR_CEILING + decibel(16 * 0.04)) / 3)


def test_empty_layers_and_colours_under_alpha_0_change_nothing():
    scores = edit_scores([composite_8bit(THREE)], THREE)
    hidden = [layer.copy() for layer in THREE]
    for layer in hidden:
        layer[layer[..., 3] == 0] = (9, 99, 199, 0)
    assert edit_scores([nothing(), composite_8bit(THREE), nothing()], [*hidden, nothing()]) == scores
    assert edit_scores([nothing()], THREE)["all"]["reached"] == 0.0


def test_one_layer_can_be_deleted_recoloured_and_faded():
    scores = edit_scores([ground()], [ground()])
    assert list(scores) == ["delete", "recolour", "fade", "all"] and perfect(scores)
    assert edit_scores([ground(102)], [ground()])["recolour"]["psnr"] == near(decibel(0.16, 1))


def test_what_changes_nothing_is_no_edit():
    white = [ground(255), box(8, 8, level=255)]
    assert list(edit_scores(white, white)) == ["recolour", "all"]
    one_level, two_levels = ([ground(255), box(8, 8, level=level)] for level in (254, 253))
    assert list(edit_scores(one_level, one_level)) == ["recolour", "all"]
    assert list(edit_scores(two_levels, two_levels)) == ["delete", "move", "recolour", "all"]
    assert edit_scores(THREE, [nothing(), nothing()]) == {}
    covered = [box(2, 2), ground()]
    assert shown_peels(covered) == [[1]]
    assert list(edit_scores(covered, covered)) == ["delete", "recolour", "fade", "all"]


def test_moving_loses_what_leaves_and_brings_in_nothing():
    layers = torch.rand(2, 4, 16, 24)
    before = layers.clone()
    moved = edited(layers, [1], "move")
    assert (moved[1, :, 2:, 3:] == before[1, :, :-2, :-3]).all()
    assert not moved[1, :, :2].any() and not moved[1, :, :, :3].any()
    assert (moved[0] == before[0]).all() and (layers == before).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_nothing_leaves_the_stack(kind):
    layers = torch.rand(3, 4, 5, 6)
    assert (edited(layers, [], kind) == layers).all()


def test_distance_sees_the_images_between_minus_1_and_1():
    def distance(ours, theirs):
        return (ours - theirs).abs().mean((1, 2, 3))

    scores = edit_scores([composite_8bit(TWO)], TWO, distance)
    assert scores["move"]["lpips"] == near(96 * 1.2 / PIXELS)
    assert scores["recolour"]["lpips"] == near(64 * 1.2 / PIXELS)


def test_figures_do_not_hang_on_how_many_images_are_compared_together(monkeypatch):
    whole = edit_scores([composite_8bit(THREE)], THREE, Perceptual())
    monkeypatch.setattr(editability, "PIXELS_AT_ONCE", 3 * PIXELS)
    parts = edit_scores([composite_8bit(THREE)], THREE, Perceptual())
    assert list(parts) == list(whole)
    for kind, row in whole.items():
        assert parts[kind] == pytest.approx(row, abs=1e-4)


def test_means_over_samples_are_of_those_that_have_the_kind():
    found = [edit_scores([composite_8bit(TWO)], TWO), edit_scores(THREE, THREE), {}]
    mean = mean_edit_scores(found)
    assert mean["reorder"] == {"psnr": PSNR_CEILING, "psnr_changed": PSNR_CEILING, "reached": 1.0, "samples": 1.0}
    assert mean["move"]["samples"] == 2.0
    assert mean["all"]["psnr"] == near((found[0]["all"]["psnr"] + PSNR_CEILING) / 2)
    assert mean_edit_scores([{}]) == {}


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="prediction layer 0 is 16x16 pixels and ground truth layer 0 is 32x32"):
        edit_scores([ground(side=16)], TWO)
    with pytest.raises(ValueError, match="the prediction has no layers"):
        edit_scores([], TWO)


@settings(deadline=None, max_examples=60)
@given(stacks(count=1))
def test_any_stack_replays_its_own_edits(drawn):
    assert perfect(edit_scores(drawn[0], drawn[0]))


@settings(deadline=None, max_examples=60)
@given(stacks(count=2), st.randoms())
def test_every_layer_stands_for_one_peel_at_most_wherever_it_lies(drawn, random):
    predicted, true = drawn
    peels = group_into_peels([layer[..., 3] for layer in true])
    taken = [index for mates in counterparts(predicted, true, peels) for index in mates]
    assert len(taken) == len(set(taken))
    for kind in KINDS:
        layers = torch.rand(len(predicted), 4, 3, 3)
        chosen = random.sample(range(len(predicted)), random.randint(0, len(predicted)))
        count = len(predicted) - (len(chosen) if kind == "delete" else 0)
        assert len(edited(layers, chosen, kind)) == count
