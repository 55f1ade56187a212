"""How a training stage opens its processes."""

from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from tests.stages.workspace import make_workspace
from training import session
from training.params import load_params


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
    with session.training_session("train_vae", load_params("params.yaml"), ["input"]) as opened:
        assert opened.compute_dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")
    (limit,) = [handler for handler in asked["kwargs_handlers"] if isinstance(handler, InitProcessGroupKwargs)]
    assert limit.timeout == timedelta(seconds=77.0)
    assert asked["mixed_precision"] == "no"
