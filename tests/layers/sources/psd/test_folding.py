"""Folding an adjustment into the layers below: what is exact, what is fitted, and what is refused."""

import numpy as np
import pytest

from layers.sources.psd.folding import Piece, fold
from tests.layers.sources.psd.documents import (
    SIZE,
    canvas,
    curves,
    document,
    drawn_by_psd_tools,
    names,
    off_by,
    put,
    read,
    uncovered,
)


def test_curves_that_translucent_layers_cannot_follow_become_a_layer_of_their_own(tmp_path):
    psd = document((0, 0, 0))
    put(psd, "Glass", (255, 255, 255, 128), size=SIZE)
    curves(psd, "Curves", (0, 0), (250, 128), (255, 255))
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Glass", "Curves"]
    np.testing.assert_array_equal(sample.layers[1].image, canvas([((255, 255, 255, 128), 0, 0, 20, 16)]))
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == ('curves baked into a layer of its own: "Curves"',)


def test_translucent_layers_take_the_colours_that_curves_make_of_their_mixture(tmp_path):
    psd = document((255, 255, 255))
    put(psd, "Shadow", (0, 0, 0, 128))
    curves(psd, "Curves", (0, 0), (150, 128), (255, 255))
    sample = read(tmp_path, psd)
    assert names(sample) == uncovered(sample) == ["Back", "Shadow"]
    assert np.unique(sample.layers[1].image[..., 3]).tolist() == [0, 128]
    assert drawn_by_psd_tools(tmp_path / "a.psd")[0, 0, 0] > 140
    assert off_by(sample, tmp_path).max() <= 1
    assert sample.notes == (
        'curves folded into the layers below "Curves"',
        'translucent colours fitted to what lies below: "Curves"',
    )


def test_outlines_may_differ_a_little_and_that_is_noted(tmp_path):
    psd = document((20, 30, 60))
    put(psd, "Card", (250, 250, 250), left=2, top=2, size=(16, 12))
    put(psd, "Outline", (250, 250, 250, 100), left=1, top=2, size=(1, 4))
    curves(psd, "Curves", (0, 0), (150, 128), (255, 255))
    sample = read(tmp_path, psd)
    assert names(sample) == ["Back", "Card", "Outline"]
    np.testing.assert_array_equal(sample.layers[2].image[..., 3], canvas([((0, 0, 0, 100), 1, 2, 2, 6)])[..., 3])
    difference = off_by(sample, tmp_path)
    assert 5 < difference[3, 1] < 32
    difference[2:6, 1] = 0
    assert difference.max() <= 1
    assert sample.notes[-1] == 'approximate at soft edges: "Curves"'


FRAME = (0, 0, 4, 2)


def pieces_of(*layers):
    """Pieces of plain colours, straight alpha in [0, 1], on boxes."""
    return [
        Piece.of(np.full((bottom - top, right - left, 4), colour, np.float32), (left, top, right, bottom))
        for colour, (left, top, right, bottom) in layers
    ]


def squared(image, box):
    assert image.shape == (box[3] - box[1], box[2] - box[0], 4) and (image[..., 3] == 1).all()
    return image[..., :3] ** 2


def image(*rows):
    return np.float32([rows[0]] * 2 if len(rows) == 1 else rows)


def test_fold_maps_the_colours_of_each_opaque_piece_and_keeps_what_it_does_not_touch():
    pieces = pieces_of(((0.5, 0.5, 0.5, 1), FRAME), ((0.8, 0.2, 0.4, 1), (1, 0, 2, 2)), ((0, 1, 0, 1), (3, 0, 4, 2)))
    before = image([(0.5, 0.5, 0.5, 1), (0.8, 0.2, 0.4, 1), (0.5, 0.5, 0.5, 1), (0, 1, 0, 1)])
    wanted = np.concatenate([before[..., :3] ** 2, before[..., 3:]], axis=-1)
    folded = fold(pieces, squared, FRAME, before, wanted)
    np.testing.assert_allclose(folded.pieces[0].image()[..., :3], 0.25, atol=1e-4)
    np.testing.assert_allclose(folded.pieces[1].image(), np.broadcast_to((0.64, 0.04, 0.16, 1), (2, 1, 4)), atol=1e-4)
    assert folded.pieces[2] is pieces[2] and folded.error < 0.1 and not folded.fitted


def test_fold_reaches_only_its_box():
    pieces = pieces_of(((0.5, 0.5, 0.5, 1), FRAME))
    half = (0, 0, 2, 2)
    before, wanted = np.float32([[[0.5, 0.5, 0.5, 1]] * 2] * 2), np.float32([[[0.25, 0.25, 0.25, 1]] * 2] * 2)
    image = fold(pieces, squared, half, before, wanted).pieces[0].image()
    np.testing.assert_allclose(image[..., 0], [[0.25, 0.25, 0.5, 0.5]] * 2, atol=1e-4)


def test_fold_fits_translucent_colours_where_they_can_and_refuses_where_they_cannot():
    for own, works in ((0.0, True), (1.0, False)):
        pieces = pieces_of(((1 - own,) * 3 + (1,), FRAME), ((own,) * 3 + (0.5,), (0, 0, 2, 2)))
        mixed, turned = (0.5, 0.5, 0.5, 1), (0.75, 0.75, 0.75, 1)
        rest = (1 - own,) * 3 + (1,)
        before, wanted = image([mixed, mixed, rest, rest]), image([turned, turned, rest, rest])
        folded = fold(pieces, lambda image, _: 1 - (1 - image[..., :3]) ** 2, FRAME, before, wanted)
        assert (folded is not None) == works
        if works:
            assert folded.fitted and folded.error < 0.1
            np.testing.assert_allclose(folded.pieces[1].image(), np.full((2, 2, 4), 0.5), atol=1e-4)


def test_pixels_that_nothing_happens_to_excuse_no_fault():
    frame = (0, 0, 100, 100)
    pieces = pieces_of(((0, 0, 0, 1), frame), ((1, 1, 1, 0.5), (0, 0, 2, 2)))
    before = np.full((100, 100, 4), (0, 0, 0, 1), np.float32)
    before[:2, :2, :3] = 0.5

    def folded(levels):
        def brighter(image, box):
            return image[..., :3] * (1 + 2 * levels / 255)

        wanted = before.copy()
        wanted[..., :3] *= 1 + 2 * levels / 255
        return fold(pieces, brighter, frame, before, wanted)

    # White stays white, so four pixels of ten thousand lack these levels.
    assert abs(folded(0.9).error - 0.9) < 0.01
    assert folded(1.1) is None


@pytest.mark.parametrize(("lacking", "works"), [(30, True), (34, False)])
def test_a_few_pixels_may_lack_some_levels_but_not_many(lacking, works):
    frame = (0, 0, 100, 100)
    gain = 1 + 2 * lacking / 255
    # One pixel of five hundred, at a mean of less than a tenth of a level.
    pieces = pieces_of(((0.3, 0.3, 0.3, 1), frame), ((0, 0, 0, 1), (0, 0, 20, 1)), ((1, 1, 1, 0.5), (0, 0, 20, 1)))
    before = np.full((100, 100, 4), (0.3, 0.3, 0.3, 1), np.float32)
    before[0, :20, :3] = 0.5
    wanted = before * np.float32([gain, gain, gain, 1])
    folded = fold(pieces, lambda image, _: image[..., :3] * gain, frame, before, wanted)
    assert (folded is not None) == works


def test_what_is_transparent_in_a_piece_stays_black():
    image = np.zeros((2, 4, 4), np.float32)
    image[:, ::3] = (0.5, 0.5, 0.5, 1)
    before, wanted = image, image * np.float32([0.5, 0.5, 0.5, 1])
    folded = fold(
        [Piece.of(image, FRAME)], lambda image, _: np.where(image[..., :3] > 0, 0.25, 1), FRAME, before, wanted
    )
    np.testing.assert_allclose(folded.pieces[0].image(), wanted, atol=1e-4)
