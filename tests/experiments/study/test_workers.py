"""Workers that share a study, and that are killed: with a stub for the stage, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.experiments.study.studies import STUB, alive, params_file, pids, runs, start, stub_workspace, study, wait
from tests.support.servers import Postgres, postgres_binaries
from tests.support.workspace import run, stage


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A workspace whose MLflow database is there already: to create it takes seconds."""
    root = stub_workspace(tmp_path_factory.mktemp("workers") / "work")
    run(stage("tune", "--trials", "1"), root)
    return root


def survives_a_killed_worker(root: Path, name: str, storage: str, workers: int) -> None:
    """One worker is killed in mid-trial; the others go on, and one of them does its trial once more."""
    params = params_file(root, name, storage=storage)
    victims = root / f"{name}.pids"
    victim = start(root, params, "--trials", "9", STUB_CHILD=str(victims), STUB_SECONDS="600")
    wait(lambda: len(pids(victims)) == 2)
    others = [start(root, params, "--trials", "4", STUB_SECONDS="0.5") for _ in range(workers - 1)]
    try:
        wait(lambda: any(trial.state.name == "COMPLETE" for trial in study(root, storage, name).trials))
        victim.kill()
        wait(lambda: not alive(pids(victims)), 10)
        assert [other.wait(200) for other in others] == [0] * len(others), params.with_suffix(".1.log").read_text()
    finally:
        for process in [victim, *others]:
            process.kill()
            process.wait()
    trials = study(root, storage, name).trials
    states = Counter(trial.state.name for trial in trials)
    # The killed one failed; the others finished all of theirs, the retried one among them.
    assert states == {"COMPLETE": 4 * (workers - 1), "FAIL": 1}, states
    (killed,) = (trial for trial in trials if trial.state.name == "FAIL")
    (again,) = (trial for trial in trials if "retry_history" in trial.system_attrs)
    assert again.system_attrs["retry_history"] == [killed.number] and again.state.name == "COMPLETE"
    assert killed.number == 0 and again.params == killed.params == {"train_vae.loss.kl": 1.0e-5}
    drawn = [trial.params["train_vae.loss.kl"] for trial in trials if trial.number not in (0, again.number)]
    assert len(set(drawn)) == len(drawn), "no two workers draw the same"
    (parent,) = runs(root, optuna__study=f"train_vae-{name}", stage="tune")
    assert parent.info.status == "FINISHED"
    nested = runs(root, mlflow__parentRunId=parent.info.run_id)
    assert Counter(run.data.tags["optuna.state"] for run in nested) == states
    assert len({run.data.tags["optuna.trial"] for run in nested}) == len(trials)
    (dead,) = (run for run in nested if run.data.tags["optuna.state"] == "FAIL")
    assert dead.info.status == "FAILED" and dead.data.tags["optuna.error"] == "its worker died"
    folders = {path.name for path in (root / ".tune" / f"train_vae-{name}").glob("trial_*")}
    assert folders == {f"trial_{trial.number:04d}" for trial in trials}


def test_four_workers_on_one_journal(root):
    survives_a_killed_worker(root, "journal", f"journal:{root}/shared/studies.log", 4)


@pytest.fixture(scope="module")
def postgres():
    """URL of a database on a server of its own, with a password to keep."""
    if postgres_binaries() is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    server = Postgres()
    server.start()
    yield server.uri.replace("mlflow@", "mlflow:secret@")
    server.stop()


def test_three_workers_on_postgresql(root, postgres):
    survives_a_killed_worker(root, "postgresql", postgres, 3)
    (parent,) = runs(root, optuna__study="train_vae-postgresql", stage="tune")
    stored = str({**parent.data.tags, **parent.data.params})
    assert "***" in stored and "secret" not in stored


def test_a_killed_tuner_leaves_nothing_and_the_same_command_goes_on(root):
    """Under torchrun, whose workers are in sessions of their own, so that no signal to a group reaches them."""
    torchrun = f"{Path(sys.executable).parent}/torchrun --standalone --nproc-per-node 2 {STUB}"
    params, left = params_file(root, "killed", launcher=torchrun), root / "killed.pids"
    tuner = start(root, params, "--trials", "1", STUB_CHILD=str(left), STUB_SECONDS="600")
    wait(lambda: len(pids(left)) == 4)
    tuner.send_signal(signal.SIGKILL)
    tuner.wait()
    wait(lambda: not alive(pids(left)), 15)
    params_file(root, "killed")
    done = run(stage("tune", "--params", params.name, "--trials", "1"), root)
    assert "in trial 1 of 1, 1 fail" in done.stdout
    again = study(root, "sqlite:///mlruns/optuna.db", "killed").trials[1]
    assert again.system_attrs["retry_history"] == [0] and again.params == {"train_vae.loss.kl": 1.0e-5}
    assert len(runs(root, optuna__study="train_vae-killed", stage="tune")) == 1


def test_what_ignores_the_first_signal_gets_the_second(tmp_path):
    """A grandchild in a session of its own that no SIGTERM ends."""
    stubborn = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{stubborn}\ntime.sleep(600)'''], "
    command = [sys.executable, "-c", f"{child}start_new_session=True)"]
    guard = "import sys; from experiments import guard as g; g.GRACE_SECONDS = 1.0; sys.exit(g.main(sys.argv[1:]))"
    lifeline, held = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", guard, str(lifeline), *command],
        pass_fds=(lifeline,), stdout=subprocess.PIPE, start_new_session=True, text=True,
    ) as process:  # fmt: skip
        os.close(lifeline)
        number = int(process.stdout.readline())
        assert alive([number])
        os.close(held)
        began = time.monotonic()
        assert process.wait(20) == 128 + signal.SIGTERM and time.monotonic() - began > 0.9
        assert not alive([number])
