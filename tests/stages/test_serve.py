"""What is looked at before the server starts; tests/tracking/test_serving.py has the server itself."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from stages.serve import CONFIG, main
from tests.tracking.registered import FOLDER, enter_project, evaluate
from tracking.run import tracking_uri
from tracking.versions import Registry


class Started(Exception):
    """Stands for the process becoming another."""


def test_it_hands_over_only_what_is_there(tmp_path, bucketed_root, monkeypatch, capsys):
    def execve(program, command, env):
        raise Started(command, env)

    monkeypatch.setattr(os, "execve", execve)
    params = enter_project(tmp_path / "project", bucketed_root, monkeypatch)

    def refused(*arguments):
        assert main(list(arguments)) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    nobody = "error: no version of smoke-decomposer is champion; python -m stages.promote makes one"
    assert refused() == nobody
    evaluate(params)
    assert refused() == nobody
    Registry(params).set_alias("champion", 1)
    assert refused("--port", "0") == "error: --port: got 0, expected 1 to 65535"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (
            refused("--port", str(port)) == f"error: --port {port}: address already in use; expected one that is free"
        )
    with pytest.raises(Started) as started:
        main(["--port", "5005"])
    command, env = started.value.args
    assert "models:/smoke-decomposer/1" in command and command[-4:] == ["--host", "127.0.0.1", "--port", "5005"]
    assert env["MLFLOW_TRACKING_URI"] == tracking_uri() and CONFIG not in env
    monkeypatch.setenv(CONFIG, '{"precision": "fp32", "offload": "blocks"}')
    with pytest.raises(Started) as started:
        main(["--precision", "bf16"])
    _, env = started.value.args
    assert json.loads(env[CONFIG]) == {"precision": "bf16", "offload": "blocks"}
    monkeypatch.setenv(CONFIG, "bf16")
    said = "error: MLFLOW_PYFUNC_INFERENCE_CONFIG: got 'bf16', expected a JSON object"
    assert refused("--precision", "bf16") == said
    files = Path("mlruns/artifacts").rename("kept")
    assert refused().startswith("error: version 1 of smoke-decomposer: sqlite:///")
    files.rename("mlruns/artifacts")
    monkeypatch.setattr(Registry, "config", lambda self, number: {"weights": "w", "md5": "m"})
    said = "error: --offload, --precision: version 1 of smoke-decomposer was registered before this choice existed"
    assert refused("--precision", "bf16", "--offload", "models") == said
    shutil.rmtree(FOLDER)
    assert "error: no weights at " in refused()
