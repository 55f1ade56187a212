import pytest
import torch

from training.decompose import edits
from training.decompose.edits import edit_layers


def stack():
    """Two samples of a background and two squares on transparent ground."""
    layers = torch.full((2, 3, 4, 32, 32), -1.0)
    layers[:, 0] = 1.0
    layers[:, 1, :, 10:20, 12:18] = torch.tensor([0.6, -0.2, 0.1, 1.0]).view(4, 1, 1)
    layers[:, 2, :, 4:8, 4:8] = torch.tensor([-0.5, 0.5, 0.0, 1.0]).view(4, 1, 1)
    return layers


def alpha_box(layer):
    rows, columns = torch.where(layer[3] > 0.0)
    return rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()


@pytest.mark.parametrize("edit", ["move", "resize", "recolour"])
def test_only_the_chosen_layer_changes(edit):
    torch.manual_seed(0)
    layers = stack()
    edited = edit_layers(layers, torch.tensor([1, 2]), edit)
    assert torch.equal(edited[0, [0, 2]], layers[0, [0, 2]]) and torch.equal(edited[1, :2], layers[1, :2])
    assert not torch.equal(edited[0, 1], layers[0, 1]) and not torch.equal(edited[1, 2], layers[1, 2])
    assert edited.abs().max() <= 1.0


def test_deleting_closes_the_gap():
    layers = stack()
    edited = edit_layers(layers, torch.tensor([0, 2]), "delete")
    assert torch.equal(edited[0], layers[0, 1:]) and torch.equal(edited[1], layers[1, :2])


def test_moving_keeps_size_and_colour():
    torch.manual_seed(1)
    edited = edit_layers(stack(), torch.tensor([1, 1]), "move")[0, 1]
    top, bottom, left, right = alpha_box(edited)
    assert abs(bottom - top - 9) <= 1 and abs(right - left - 5) <= 1
    assert (top, left) != (10, 12)
    inside = edited[:3, top + 2 : bottom - 1, left + 2 : right - 1]
    assert torch.allclose(inside, torch.tensor([0.6, -0.2, 0.1]).view(3, 1, 1).expand_as(inside), atol=1e-4)


def test_resizing_keeps_the_centre(monkeypatch):
    monkeypatch.setattr(edits, "SIZES", (0.6, 0.6))
    edited = edit_layers(stack(), torch.tensor([1, 1]), "resize")
    for sample in edited[:, 1]:
        top, bottom, left, right = alpha_box(sample)
        assert (top + bottom) / 2 == pytest.approx(14.5, abs=1.0) and (left + right) / 2 == pytest.approx(14.5, abs=1.0)
        assert bottom - top == pytest.approx(0.6 * 10, abs=1.0)


def test_recolouring_keeps_alpha():
    torch.manual_seed(3)
    layers = stack()
    edited = edit_layers(layers, torch.tensor([1, 1]), "recolour")
    assert torch.equal(edited[:, :, 3], layers[:, :, 3])
    assert (edited[0, 1, :3] - layers[0, 1, :3]).abs().mean() > 0.05


def test_an_empty_layer_stays_empty():
    layers = torch.full((1, 2, 4, 8, 8), -1.0)
    for edit in ("move", "resize"):
        edited = edit_layers(layers, torch.tensor([1]), edit)
        assert torch.isfinite(edited).all() and (edited[:, 1, 3] == -1.0).all()
