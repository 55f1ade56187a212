import copy

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from training.checkpoint import CheckpointStore, fingerprint
from training.session import with_checkpoint


def make():
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    return network, optimizer


def advance(network, optimizer, steps, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()


def saved(store, network, optimizer, **state):
    ema = [p.detach().clone() for p in network.parameters()]
    store.save(network=network, companions=[], ema=ema, best=None, optimizer=optimizer, state={"step": 3, **state})


def test_a_restored_run_goes_on_bit_equal(tmp_path):
    network, optimizer = make()
    advance(network, optimizer, 5)
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    saved(store, network, optimizer)
    advance(network, optimizer, 5, seed=2)
    expected = copy.deepcopy(network.state_dict())
    again, again_optimizer = make()
    store.load(network=again, companions=[], optimizer=again_optimizer)
    advance(again, again_optimizer, 5, seed=2)
    assert all(torch.equal(expected[k], v) for k, v in again.state_dict().items())


def test_frozen_weights_are_not_saved_and_stay_as_they_are(tmp_path):
    network, optimizer = make()
    network.weight.requires_grad_(False)
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    bias = network.bias.detach().clone()
    saved(store, network, optimizer)
    assert "network.weight" not in load_file(store.folder / "tensors_0.safetensors")
    with torch.no_grad():
        network.weight.fill_(7.0), network.bias.fill_(7.0)
    store.load(network=network, companions=[], optimizer=optimizer)
    assert torch.equal(network.bias, bias) and (network.weight == 7.0).all()


def test_state_and_averages_come_back(tmp_path):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    assert store.read_state() is None
    store.save(
        network=network,
        companions=[],
        ema=[torch.full((12,), float(i)) for i in range(12)],
        best=[torch.ones(2)],
        optimizer=optimizer,
        state={"step": 7, "run_id": "abc"},
    )
    state = store.read_state()
    assert (state["step"], state["run_id"]) == (7, "abc")
    ema, best = store.load(network=network, companions=[], optimizer=optimizer)
    assert [float(tensor[0]) for tensor in ema] == list(range(12)), "ten comes after nine"
    assert torch.equal(best[0], torch.ones(2))


def test_what_is_trained_beside_the_network_comes_back(tmp_path):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    companions = [torch.nn.Parameter(torch.full((3,), float(i))) for i in range(12)]
    store.save(network=network, companions=companions, ema=[], best=None, optimizer=optimizer, state={"step": 1})
    again = [torch.nn.Parameter(torch.zeros(3)) for _ in range(12)]
    store.load(network=network, companions=again, optimizer=optimizer)
    assert [p[0].item() for p in again] == list(range(12)) and all(p.requires_grad for p in again)


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    saved(store, network, optimizer)
    store.folder.rename(store.folder.with_suffix(".old"))
    store.folder.with_suffix(".part").mkdir()
    store.recover()
    assert store.read_state()["step"] == 3


def test_other_fingerprints_are_seen_and_cleared(tmp_path):
    network, optimizer = make()
    saved(CheckpointStore(tmp_path, "stage", "old", Accelerator(cpu=True)), network, optimizer)
    store = CheckpointStore(tmp_path, "stage", "new", Accelerator(cpu=True))
    assert store.read_state() is None
    assert store.others() == ["old"]
    store.clear()
    assert store.others() == []


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"lr": 2.0}, False),
        ({"optimisation": {"log_every": 5, "epochs": 1}}, True),
        ({"optimisation": {"log_every": 1, "epochs": 2}}, False),
    ],
)
def test_the_fingerprint_knows_what_matters(change, same):
    block = {"lr": 1.0, "optimisation": {"log_every": 1, "epochs": 1}}
    assert (fingerprint(block, {"data": "x"}, 1) == fingerprint({**block, **change}, {"data": "x"}, 1)) is same
    assert fingerprint(block, {"data": "x"}, 1) != fingerprint(block, {"data": "y"}, 1)
    assert fingerprint(block, {"data": "x"}, 1) != fingerprint(block, {"data": "x"}, 2)


def test_a_start_that_lies_here_is_an_input(tmp_path):
    assert with_checkpoint(["data"], str(tmp_path), "key") == ["data", str(tmp_path)]
    assert with_checkpoint(["data"], "owner/name", "key") == with_checkpoint(["data"], None, "key") == ["data"]


def test_a_start_that_is_nowhere_is_named_with_its_parameter():
    """Before anything is encoded; it used to be found when the network was built."""
    for given in ("models/pretrained/modell/vae", "models/wieghts"):
        with pytest.raises(
            FileNotFoundError, match=f"^train_vae.rgb_checkpoint: got '{given}': no folder at .*expected"
        ):
            with_checkpoint([], given, "train_vae.rgb_checkpoint")


def test_the_best_weights_are_written_when_they_change_and_linked_between(tmp_path, monkeypatch):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))

    def save(value, epoch):
        best = None if value is None else [torch.full((2,), value)]
        state = {"step": 1, "best_epoch": epoch}
        store.save(network=network, companions=[], ema=[], best=best, optimizer=optimizer, state=state)
        return (store.folder / "best_0.safetensors").stat().st_ino

    first, second = save(None, None), save(None, None)
    assert first == second and store.load(network=network, companions=[], optimizer=optimizer)[1] is None
    third = save(1.0, 1)
    assert third != second and save(1.0, 1) == third
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    save(1.0, 1)
    (best,) = store.load(network=network, companions=[], optimizer=optimizer)[1]
    assert torch.equal(best, torch.ones(2))
    save(2.0, 3)
    (best,) = store.load(network=network, companions=[], optimizer=optimizer)[1]
    assert torch.equal(best, torch.full((2,), 2.0))
