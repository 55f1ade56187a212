"""How a training stage opens its processes."""

import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from config.errors import UserError
from config.params import load_params
from tests.support.workspace import environment, make_workspace
from training.engine import session


def test_processes_wait_as_long_as_the_parameters_say(tmp_path, monkeypatch):
    """And accelerate opens no autocast: it would be around losses too. Networks compute in half by themselves."""
    asked = {}

    def accelerator(**options):
        asked.update(options)
        return Accelerator(**options)

    monkeypatch.setattr(session, "Accelerator", accelerator)
    half = {"optimisation": {"mixed_precision": "bf16"}}
    root = make_workspace(tmp_path / "work", collective_timeout=77.0, train_vae=half)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    (root / "input").write_text("x")
    output = tmp_path / "weights" / "vae"
    with session.training_session("train_vae", load_params("params.yaml"), ["input"], output) as opened:
        assert opened.compute_dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")
    (limit,) = [handler for handler in asked["kwargs_handlers"] if isinstance(handler, InitProcessGroupKwargs)]
    assert limit.timeout == timedelta(seconds=77.0)
    assert asked["mixed_precision"] == "no"


HOLD = """
import sys, time
from pathlib import Path
from config.params import load_params
from training.engine.session import training_session
with training_session("train_vae", load_params("params.yaml"), ["input"], Path(sys.argv[1])):
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("output", "seed", "message"),
    [
        ("there/vae", 0, "train_vae: another run with the same parameters and inputs is under way and holds "),
        ("weights/vae", 1, "train_vae: a run into weights/vae is under way and holds weights/.vae.lock; wait"),
    ],
    ids=["the same run into another folder", "another run into the same folder"],
)
def test_a_second_living_run_is_refused_and_a_killed_one_is_taken_over(tmp_path, monkeypatch, output, seed, message):
    root = make_workspace(tmp_path / "work")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    (root / "input").write_text("x")
    params = load_params("params.yaml")
    params = params.model_copy(update={"train_vae": params.train_vae.model_copy(update={"seed": seed})})
    command = [sys.executable, "-P", "-c", HOLD, "weights/vae"]
    env = environment(root, MLFLOW_TRACKING_URI=f"sqlite:///{root / 'mlflow.db'}")
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline() != "open\n":
            assert process.poll() is None
        with pytest.raises(UserError) as raised, session.training_session("train_vae", params, ["input"], Path(output)):
            pass
        assert str(raised.value).startswith(message)
        process.send_signal(signal.SIGKILL)
    with session.training_session("train_vae", params, ["input"], Path(output)):
        pass
