"""What a browser may ask of a session, without a browser, a server or networks."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from app.edit import stacked
from app.guard import names_a_file
from app.session import Session, decomposed, edited, packed, split
from app.view import canvas, layer_list, note
from config.errors import UserError
from inference import restore
from inference.images import layer_count


def halves(image, count):
    """Stands for the networks: left, right and, beyond two, nothing."""
    left, right = image.copy(), image.copy()
    left[:, image.shape[1] // 2 :] = 0
    right[:, : image.shape[1] // 2] = 0
    return [left, right, *(np.zeros_like(image) for _ in range((count or 2) - 2))]


@pytest.fixture
def session():
    image = np.full((20, 30, 4), 255, np.uint8)
    return decomposed(Session(image), "auto", halves)[0]


def test_auto_leaves_the_number_to_the_model():
    assert layer_count("auto") is None and layer_count(" 7 ") == 7 and layer_count(3) == 3
    for wrong in ("21", "0", "", None, "1e1", "٣", ["auto"], "9" * 5000):
        with pytest.raises(UserError, match="expected auto or 1 to 20"):
            layer_count(wrong)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"action": "hide"},
        {"action": "hide", "key": "0"},
        {"action": "hide", "key": True},
        {"action": "hide", "key": 7},
        {"action": "format", "key": 0},
        {"action": ["hide"], "key": 0},
        {"action": "move", "key": 0, "x": 1},
        {"action": "move", "key": 0, "x": 1.5, "y": 0},
        {"action": "move", "key": 0, "x": 10**30, "y": 0},
        {"action": "move", "key": 0, "x": 31, "y": 0},
        {"action": "recolour", "key": 0, "colour": "red"},
        {"action": "recolour", "key": 0, "colour": "#ff00001"},
        {"action": "up", "key": 1},
        {"action": "down", "key": 0},
    ],
)
def test_what_is_no_edit_is_refused(session, said):
    with pytest.raises(UserError) as error:
        edited(session, said)
    assert "\n" not in str(error.value)


def test_edits_say_what_they_did_and_choose_their_layer(session):
    after, words = edited(session, {"action": "move", "key": 0, "x": 3, "y": -2})
    assert after.stack.entry(0).offset == (3, -2) and after.chosen == 0 and words == "background is moved."
    after, words = edited(after, {"action": "delete", "key": 0})
    assert after.chosen == 1 and words == "background is deleted."
    assert len(session.stack.entries) == 2


def test_nothing_is_asked_of_the_networks_that_would_not_fit(session, monkeypatch):
    def never(image, count):
        raise AssertionError("too late")

    monkeypatch.setattr(restore, "MOST_PIXELS", 5 * 20 * 30)
    with pytest.raises(UserError, match="6 layers of 30x20 pixels; expected at most 5 of this size"):
        decomposed(session, "6", never)
    with pytest.raises(UserError, match="expected at most 5"):
        split(session, {"key": 0}, "4", never)
    empty = stacked([np.zeros((20, 30, 4), np.uint8), session.image])
    with pytest.raises(UserError, match="background has nothing visible to split"):
        split(replace(session, stack=empty), {"key": 0}, "2", never)
    with pytest.raises(UserError, match="no image yet"):
        decomposed(Session(), "auto", never)


def test_files_are_made_of_what_is_shown(session):
    assert packed(session, "psd").startswith(b"8BPS") and packed(session, "zip").startswith(b"PK")
    for form in ("png", "../psd", ""):
        with pytest.raises(UserError, match="format: expected one of psd"):
            packed(session, form)
    with pytest.raises(UserError, match="no layers yet"):
        packed(Session(), "psd")


def test_the_page_shows_what_there_is(session):
    assert "image appears here" in canvas(Session()) and "layers appear here" in layer_list(Session())
    assert canvas(replace(session, stack=None)).count("<img") == 1
    assert layer_list(session).count("<li") == 2
    assert "&lt;b&gt;" in note("<b>") and note("same") != note("same")


def test_a_file_is_found_wherever_it_hides():
    assert names_a_file(json.loads('[1, {"a": [[{"path": null}]]}]')) and names_a_file({"url": 1})
    assert not names_a_file(json.loads('{"data": [null, "path", {"key": 1}], "event_data": {"x": 1}}'))
    deep = []
    for _ in range(10 * sys.getrecursionlimit()):
        deep = [deep]
    assert not names_a_file(deep)
