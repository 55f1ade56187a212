import copy

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from config.errors import UserError
from training.engine.checkpoint import CheckpointStore, ResumePointError, fingerprint
from training.engine.session import with_checkpoint


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
    store.save(network=network, auxiliary=[], ema=ema, best=None, optimizer=optimizer, state={"step": 3, **state})


def test_a_restored_run_goes_on_bit_equal(tmp_path):
    network, optimizer = make()
    advance(network, optimizer, 5)
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    saved(store, network, optimizer)
    advance(network, optimizer, 5, seed=2)
    expected = copy.deepcopy(network.state_dict())
    again, again_optimizer = make()
    store.load(network=again, auxiliary=[], optimizer=again_optimizer)
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
    store.load(network=network, auxiliary=[], optimizer=optimizer)
    assert torch.equal(network.bias, bias) and (network.weight == 7.0).all()


def test_state_and_averages_come_back(tmp_path):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    assert store.read_state() is None
    store.save(
        network=network,
        auxiliary=[],
        ema=[torch.full((12,), float(i)) for i in range(12)],
        best=[torch.ones(2)],
        optimizer=optimizer,
        state={"step": 7, "run_id": "abc"},
    )
    state = store.read_state()
    assert (state["step"], state["run_id"]) == (7, "abc")
    ema, best = store.load(network=network, auxiliary=[], optimizer=optimizer)
    assert [float(tensor[0]) for tensor in ema] == list(range(12)), "ten comes after nine"
    assert torch.equal(best[0], torch.ones(2))


def test_what_is_trained_beside_the_network_comes_back(tmp_path):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    auxiliary = [torch.nn.Parameter(torch.full((3,), float(i))) for i in range(12)]
    store.save(network=network, auxiliary=auxiliary, ema=[], best=None, optimizer=optimizer, state={"step": 1})
    on_disk = load_file(store.folder / "tensors_0.safetensors")
    assert on_disk.keys() >= {f"companion.{index}" for index in range(12)}, "the name of older resume points"
    again = [torch.nn.Parameter(torch.zeros(3)) for _ in range(12)]
    store.load(network=network, auxiliary=again, optimizer=optimizer)
    assert [p[0].item() for p in again] == list(range(12)) and all(p.requires_grad for p in again)


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    saved(store, network, optimizer)
    store.folder.rename(store.folder.with_suffix(".old"))
    store.folder.with_suffix(".part").mkdir()
    store.recover()
    assert store.read_state()["step"] == 3


def test_other_fingerprints_are_seen_and_stay(tmp_path):
    """They may be those of a run that lives, which would fail at its next save."""
    network, optimizer = make()
    other = CheckpointStore(tmp_path, "stage", "old", Accelerator(cpu=True))
    saved(other, network, optimizer)
    store = CheckpointStore(tmp_path, "stage", "new", Accelerator(cpu=True))
    assert store.read_state() is None
    assert store.others() == ["old"]
    saved(store, network, optimizer)
    saved(store, network, optimizer)
    assert store.others() == ["old"] and other.others() == ["new"]
    (other.folder.with_suffix(".part")).mkdir()
    store.clear()
    assert sorted(path.name for path in store.home.iterdir()) == ["old", "old.part"]
    saved(other, network, optimizer)
    assert other.read_state()["step"] == 3
    other.clear()
    assert not other.home.exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


BROKEN = {
    "a torn tensor": lambda folder: cut(folder / "tensors_0.safetensors"),
    "an empty tensor": lambda folder: (folder / "tensors_0.safetensors").write_bytes(b""),
    "zeros": lambda folder: (folder / "tensors_0.safetensors").write_bytes(bytes(4000)),
    "no tensor": lambda folder: (folder / "tensors_0.safetensors").unlink(),
    "torn best weights": lambda folder: cut(folder / "best_0.safetensors"),
    "a torn state": lambda folder: cut(folder / "state.json"),
    "an empty state": lambda folder: (folder / "state.json").write_bytes(b""),
    "no text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe"),
    "another state": lambda folder: (folder / "state.json").write_text("[7]"),
    "no state": lambda folder: (folder / "state.json").unlink(),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_broken_resume_point_gives_way_to_the_one_before(tmp_path, spoil):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    for step in (1, 2, 3):
        advance(network, optimizer, 1, seed=step)
        before = copy.deepcopy(network.state_dict())
        # Each file of its own, as when the best weights have changed.
        saved(store, network, optimizer, step=step, best_epoch=step)
        if step == 2:
            expected = before
    spoil(store.folder)
    store.recover()
    assert store.read_state()["step"] == 2
    again, again_optimizer = make()
    store.load(network=again, auxiliary=[], optimizer=again_optimizer)
    assert all(torch.equal(expected[name], value) for name, value in again.state_dict().items())
    saved(store, network, optimizer, step=4)
    store.recover()
    assert store.read_state()["step"] == 4


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_broken_resume_point_with_none_before_says_what_to_delete(tmp_path, spoil):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    saved(store, network, optimizer)
    spoil(store.folder)
    for _ in range(2):
        with pytest.raises(ResumePointError) as raised:
            store.recover()
        assert f"delete {store.folder}* to start afresh" in str(raised.value) and "\n" not in str(raised.value)
    assert issubclass(ResumePointError, UserError) and store.folder.is_dir()


def test_a_resume_point_that_cannot_be_read_now_is_left_alone(tmp_path, monkeypatch):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    for step in (1, 2):
        saved(store, network, optimizer, step=step)

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    for target in ("training.engine.cache.safe_open", "pathlib.Path.read_text"):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            patch.setattr("pathlib.Path.open", fail)
            with pytest.raises(UserError, match=r"cannot be read now \(Input/output error\)"):
                store.recover()
    store.recover()
    assert store.read_state()["step"] == 2


def test_a_resume_point_of_another_network_is_one_sentence(tmp_path):
    network, optimizer = make()
    store = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True))
    saved(store, network, optimizer)
    for other in (torch.nn.Linear(3, 5), torch.nn.Sequential(torch.nn.Linear(3, 2))):
        with pytest.raises(ResumePointError, match="delete"), store.reading():
            store.load(network=other, auxiliary=[], optimizer=torch.optim.AdamW(other.parameters()))


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
        store.save(network=network, auxiliary=[], ema=[], best=best, optimizer=optimizer, state=state)
        return (store.folder / "best_0.safetensors").stat().st_ino

    first, second = save(None, None), save(None, None)
    assert first == second and store.load(network=network, auxiliary=[], optimizer=optimizer)[1] is None
    third = save(1.0, 1)
    assert third != second and save(1.0, 1) == third
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    save(1.0, 1)
    (best,) = store.load(network=network, auxiliary=[], optimizer=optimizer)[1]
    assert torch.equal(best, torch.ones(2))
    save(2.0, 3)
    (best,) = store.load(network=network, auxiliary=[], optimizer=optimizer)[1]
    assert torch.equal(best, torch.full((2,), 2.0))
