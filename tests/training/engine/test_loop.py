import copy
import itertools
import math

import pytest
import torch
from accelerate import Accelerator
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from config.base import Optimisation
from tracking.run import Run
from training.engine.checkpoint import CheckpointStore
from training.engine.loop import fit, step_seed
from training.engine.progress import Plan, make_plan
from training.engine.readings import NonFiniteLossError, Readings
from training.engine.session import Session
from training.engine.task import Task, is_better


def settings(**changes):
    values = {
        "epochs": 1,
        "epoch_samples": 8,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 0.1,
        "schedule": "constant",
        "warmup_samples": 0,
        "weight_decay": 0.0,
        "grad_clip": 100.0,
        "ema_decay": 0.0,
        "mixed_precision": "no",
        "num_workers": 0,
        "log_every": 1,
        "checkpoint_every": 100,
    }
    return Optimisation(**values | changes)


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(2, 1)

    def forward(self, batch):
        return {"loss": (self.line(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()}


class Contest(Regression):
    """A network and something trained beside it whose gradient is a thousand times larger."""

    def __init__(self):
        super().__init__()
        self.rival = torch.nn.Linear(2, 1)
        self.frozen = torch.nn.Linear(2, 1).requires_grad_(False)
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch["seen"])
        ours, rival = super().forward(batch)["loss"], 1e3 * self.rival(batch["x"]).square().mean()
        return {"loss": ours + rival, "ours": ours, "rival": rival}


def train(tmp_path, block, batch_size, *, steps=4, poison=None, validation=None, log=None, module=None, **changes):
    """Fit a line; ``changes`` are of the task."""
    torch.manual_seed(3)
    data = torch.randn(64, 2)

    def batches(start):
        for index in itertools.count(start):
            rows = [(index * batch_size + k) % 64 for k in range(batch_size)]
            x = data[rows] if index != poison else torch.full((batch_size, 2), float("nan"))
            yield {"x": x, "id": [f"file{row}" for row in rows]}

    class Recorder(Run):
        def metrics(self, values, step=None):
            if log is not None:
                log.append((step, values))

    module = module or Regression()
    seen = iter(validation or itertools.count())
    task = Task(
        title="test",
        objective=module,
        network=module.line,
        batches=batches,
        validate=lambda epoch: {"score": float(next(seen))},
        select="score",
        **{"largest": True, **changes},
    )
    accelerator = Accelerator(cpu=True)
    store = CheckpointStore(tmp_path, "stage", "key", accelerator)
    plan = Plan(block.epochs, steps, batch_size * block.gradient_accumulation)
    progress, _ = fit(task, block, plan, seed=0, session=Session(accelerator, None, Recorder(None), store, {}))
    return module.line.weight.detach().clone(), progress


def test_accumulation_equals_the_joint_batch(tmp_path):
    joint, _ = train(tmp_path / "a", settings(), batch_size=8)
    parts, _ = train(tmp_path / "b", settings(gradient_accumulation=4), batch_size=2)
    assert torch.allclose(joint, parts, atol=1e-6)


class Sometimes(Regression):
    """A term that every second batch has nothing of, and that is 5 otherwise."""

    calls = 0

    def forward(self, batch):
        self.calls += 1
        rare = torch.tensor(5.0 if self.calls % 2 else float("nan"))
        return {**super().forward(batch), "rare": rare}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_term_is_averaged_over_the_batches_that_have_it(tmp_path, accumulation):
    log = []
    block = settings(log_every=4, gradient_accumulation=accumulation)
    train(tmp_path, block, batch_size=4, log=log, module=Sometimes())
    (logged,) = [values for _, values in log if "train/rare" in values]
    assert logged["train/rare"] == 5.0 and logged["train/loss"] > 0.0


def test_raw_weights_are_measured_beside_the_average(tmp_path):
    log, module = [], Regression()
    average, _ = train(
        tmp_path, settings(ema_decay=0.9), batch_size=4, log=log, module=module,
        validate_raw=lambda: {"weight": float(module.line.weight[0, 0])},
    )  # fmt: skip
    (raw,) = [values["val_raw/weight"] for _, values in log if "val_raw/weight" in values]
    assert raw != float(average[0, 0]), "the run ends with the average in place"


def test_the_loop_follows_plain_adamw(tmp_path):
    ours, _ = train(tmp_path, settings(), batch_size=4, steps=3)
    torch.manual_seed(3)
    data, module = torch.randn(64, 2), Regression()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for index in range(3):
        optimizer.zero_grad()
        module({"x": data[index * 4 : index * 4 + 4]})["loss"].backward()
        optimizer.step()
    assert torch.allclose(ours, module.line.weight, atol=1e-6)


def test_a_loss_that_is_no_number_names_step_and_files(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 2; files: file8, file9, file10, file11"):
        train(tmp_path, settings(), batch_size=4, poison=2)


def test_the_best_validated_weights_are_kept(tmp_path):
    first, _ = train(tmp_path / "a", settings(epochs=1), batch_size=4)
    best_first, progress = train(tmp_path / "b", settings(epochs=3), batch_size=4, validation=[5, 1, 2])
    assert torch.equal(first, best_first)
    assert progress.best == {"score": 5.0}
    assert [entry["score"] for entry in progress.history] == [5.0, 1.0, 2.0]
    assert [entry["samples"] for entry in progress.history] == [16, 32, 48]


def test_means_are_logged_over_their_interval(tmp_path):
    single, grouped = [], []
    train(tmp_path / "a", settings(), batch_size=4, log=single)
    train(tmp_path / "b", settings(log_every=2), batch_size=4, log=grouped)
    each = [values["train/loss"] for _, values in single if "train/loss" in values]
    pairs = [values["train/loss"] for _, values in grouped if "train/loss" in values]
    assert pairs == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2])


def test_averaged_weights_lag_behind(tmp_path):
    raw, _ = train(tmp_path / "a", settings(), batch_size=4)
    averaged, _ = train(tmp_path / "b", settings(ema_decay=0.9), batch_size=4)
    start = Regression().line.weight.detach()
    assert 0 < (averaged - start).norm() < (raw - start).norm()


def test_what_is_trained_beside_the_network_is_clipped_apart_and_not_averaged(tmp_path):
    block = settings(grad_clip=1.0, ema_decay=0.9)
    alone, _ = train(tmp_path / "a", block, batch_size=4)
    contest = Contest()
    before = copy.deepcopy(contest.state_dict())
    beside, _ = train(tmp_path / "b", block, batch_size=4, module=contest)
    assert torch.allclose(alone, beside, atol=1e-6), "a rival's gradient must not shrink the network's"
    assert not torch.equal(contest.rival.weight, before["rival.weight"])
    assert torch.equal(contest.frozen.weight, before["frozen.weight"])
    assert contest.seen == [0, 4, 8, 12], "samples before each step"


def test_what_is_trained_beside_the_network_is_resumed(tmp_path):
    block = settings(epochs=4, epoch_samples=4)
    straight = Contest()
    train(tmp_path / "a", block, batch_size=4, steps=1, module=straight)
    with pytest.raises(NonFiniteLossError):
        train(tmp_path / "b", block, batch_size=4, steps=1, poison=2, module=Contest())
    resumed = Contest()
    with torch.no_grad():
        resumed.rival.weight.zero_()
    train(tmp_path / "b", block, batch_size=4, steps=1, module=resumed)
    assert resumed.seen == [8, 12]
    assert torch.equal(straight.rival.weight, resumed.rival.weight)


def test_plans():
    block = settings(epochs=3, epoch_samples=100, batch_size=8, gradient_accumulation=2)
    assert make_plan(block, batches_per_pass=50, world_size=2) == Plan(3, 4, 32)
    whole = settings(epoch_samples=None, gradient_accumulation=2)
    assert make_plan(whole, batches_per_pass=51, world_size=1) == Plan(1, 25, 8)


def test_seeds_differ_by_step_micro_batch_and_rank():
    seeds = {step_seed(0, s, m, r) for s in range(20) for m in range(4) for r in range(4)}
    assert len(seeds) == 320


def test_the_start_is_measured_once_and_the_kept_epoch_is_told(tmp_path):
    log = []
    _, progress = train(
        tmp_path, settings(epochs=3), batch_size=4, validation=[7, 1, 5, 2], log=log, measure_start=True
    )
    assert progress.start == {"score": 7.0} and (0, {"val/score": 7.0}) in log
    assert progress.best_epoch == 0 and progress.best == {"score": 7.0}
    assert [entry["epoch"] for entry in progress.history] == [1, 2, 3], "the start is no epoch of the table"


HARMFUL = {"epochs": 3, "learning_rate": 10.0, "ema_decay": 0.9, "gradient_accumulation": 2}


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("epochs_score", [[6, 1, 2], [7, 7, 7]])
def test_a_start_that_no_epoch_beats_is_kept_to_the_last_bit(tmp_path, largest, epochs_score, capsys):
    sign, log, module = 1 if largest else -1, [], Regression()
    module.line.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    _, progress = train(
        tmp_path, settings(**HARMFUL), batch_size=4, validation=[sign * s for s in (7, *epochs_score)], log=log,
        module=module, measure_start=True, largest=largest,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert progress.best_epoch == 0 and progress.best == progress.start == {"score": 7.0 * sign}
    assert progress.kept == {"kept": "epoch 0 (the start)"} and (12, {"best_epoch": 0}) in log
    said = f"test: epoch 0 (the start) was kept: score {7 * sign}, best of the epochs {sign * max(epochs_score)}\n"
    assert capsys.readouterr().out.endswith(said)


@pytest.mark.parametrize("largest", [True, False])
def test_a_score_that_is_no_number_is_beaten_by_any_and_beats_none(largest):
    assert is_better(0.1, math.nan, largest) and not is_better(math.nan, 0.1, largest)
    assert not is_better(math.nan, math.nan, largest)
    for infinite in (math.inf, -math.inf):
        assert not is_better(infinite, 0.1, largest) and is_better(0.1, infinite, largest)
    assert is_better(0.2, 0.1, True) and is_better(0.1, 0.2, False) and not is_better(0.1, 0.1, largest)


def test_an_epoch_that_beats_the_start_gives_what_it_gave_without_it(tmp_path, capsys):
    log = []
    plain, other = train(tmp_path / "a", settings(**HARMFUL), batch_size=4, validation=[1, 8, 2])
    kept, progress = train(
        tmp_path / "b", settings(**HARMFUL), batch_size=4, validation=[7, 1, 8, 2], measure_start=True, log=log
    )
    assert torch.equal(plain, kept) and not torch.equal(kept, Regression().line.weight)
    assert progress.best_epoch == other.best_epoch == 2 and progress.history == other.history
    assert progress.kept == {} and (12, {"best_epoch": 2}) in log
    assert "start" not in capsys.readouterr().out


@pytest.mark.parametrize("killed_at_step", [2, 5])
@pytest.mark.parametrize(("epochs_score", "epoch"), [([1, 2, 3], 0), ([1, 2, 8], 3)])
def test_the_start_survives_a_resume_point(tmp_path, killed_at_step, epochs_score, epoch):
    """Killed within the first epoch and after it; what goes on is another process, whose network is drawn anew."""
    block = settings(epochs=3, learning_rate=10.0, ema_decay=0.9, checkpoint_every=1)
    straight, _ = train(tmp_path / "a", block, batch_size=4, validation=[7, *epochs_score], measure_start=True)
    with pytest.raises(NonFiniteLossError):
        train(
            tmp_path / "b",
            block,
            batch_size=4,
            validation=[7, *epochs_score],
            measure_start=True,
            poison=killed_at_step,
        )
    module = Regression()
    with torch.no_grad():
        module.line.weight.zero_()
    left = epochs_score[killed_at_step // 4 :]
    resumed, progress = train(tmp_path / "b", block, batch_size=4, validation=left, measure_start=True, module=module)
    assert progress.best_epoch == epoch and progress.start == {"score": 7.0}, "the start is not measured again"
    assert torch.equal(resumed, straight)
    assert torch.equal(resumed, Regression().line.weight) == (epoch == 0)


@pytest.mark.parametrize("checkpoint_every", [1, 100])
def test_a_loss_that_is_no_number_is_noticed_before_anything_is_saved(tmp_path, checkpoint_every):
    """Numbers are read every ``log_every`` steps only; the step and files named are those where it began."""
    block = settings(log_every=50, checkpoint_every=checkpoint_every)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 1; files: file4, file5, file6, file7"):
        train(tmp_path, block, batch_size=4, poison=1)
    state = CheckpointStore(tmp_path, "stage", "key", Accelerator(cpu=True)).read_state()
    assert state is None if checkpoint_every == 100 else state["step"] == 1


def test_steps_between_readings_do_not_look_at_the_device():
    """Fake tensors have no numbers: whatever asks for one raises."""
    readings = Readings()
    with FakeTensorMode():
        for step in range(3):
            readings.add(step, ["a"], [{"loss": torch.zeros((), device="cuda")}], torch.zeros((), device="cuda"))
        with pytest.raises(DataDependentOutputException):
            readings.read()


def test_readings_are_means_over_micro_batches_and_leave_out_what_is_nan():
    readings, nan = Readings(), torch.tensor(float("nan"))
    micro = [{"loss": torch.tensor(1.0), "rare": nan}, {"loss": torch.tensor(2.0), "rare": torch.tensor(5.0)}]
    readings.add(0, ["a"], micro, torch.tensor(3.0))
    assert readings.read() == [{"loss": 1.5, "rare": 5.0, "grad_norm": 3.0}]
    assert readings.read() == []
    readings.add(7, ["a", "b"], [{"loss": torch.tensor(1.0)}], torch.tensor(float("inf")))
    with pytest.raises(NonFiniteLossError, match="gradient's norm is inf at step 7; files: a, b"):
        readings.read()
