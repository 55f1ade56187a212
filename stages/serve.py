"""Serve the model of a registry alias over HTTP, on loopback: image in, layers out.

    python -m stages.serve [--alias champion] [--port 5001] [--precision bf16] [--offload models]

Checks that the version and its weights exist, then becomes ``mlflow models serve``. docs/registry.md shows requests.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import get_args

from app.ports import HOST, listen
from config.base import Offload, Precision
from config.params import Params
from stages.cli import stage_command
from tracking.run import tracking_uri
from tracking.versions import Registry, RegistryError, open_weights

# Variable from which MLflow reads overrides of a version's model_config.
CONFIG = "MLFLOW_PYFUNC_INFERENCE_CONFIG"


def config_of(registry: Registry, number: int, arguments: argparse.Namespace) -> dict[str, str]:
    """Environment variable that overrides the settings a version was registered with; empty if none is overridden.

    Raises:
        RegistryError: if the version was registered before these settings existed: MLflow would ignore them.
    """
    asked = {name: getattr(arguments, name) for name in ("precision", "offload")}
    asked = {name: value for name, value in asked.items() if value is not None}
    # Read in any case, because MLflow would report missing files in a traceback.
    known = registry.config(number).keys()
    if not asked:
        return {}
    if unknown := asked.keys() - known:
        flags = ", ".join(f"--{name}" for name in sorted(unknown))
        raise RegistryError(f"{flags}: version {number} of {registry.name} was registered before this choice existed")
    try:
        return {CONFIG: json.dumps(json.loads(os.environ.get(CONFIG, "{}")) | asked)}
    except (ValueError, TypeError):
        raise RegistryError(f"{CONFIG}: got {os.environ[CONFIG]!r}, expected a JSON object") from None


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Check the version, then replace this process by MLflow's server; does not return."""
    registry = Registry(params)
    number = registry.holder(arguments.alias)
    if number is None:
        raise RegistryError(f"no version of {registry.name} is {arguments.alias}; python -m stages.promote makes one")
    (version,) = (version for version in registry.versions() if version.number == number)
    # Checked here, because MLflow would report the same in tracebacks.
    open_weights(version.path, version.md5)
    listen(arguments.port).close()
    config = config_of(registry, number, arguments)
    command = [
        sys.executable,
        "-P",
        "-m",
        "mlflow",
        "models",
        "serve",
        "--model-uri",
        f"models:/{registry.name}/{number}",
    ]
    command += ["--env-manager", "local", "--host", HOST, "--port", str(arguments.port)]
    # MLflow starts uvicorn by name, so its folder must be on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    print(f"serve: version {number} of {registry.name} on http://{HOST}:{arguments.port}/invocations", flush=True)
    env = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": tracking_uri()}
    os.execve(command[0], command, env | config)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alias", default="champion", help="default: champion")
    parser.add_argument("--port", type=int, default=5001, help="default: 5001")
    for flag, choices, what in (("--precision", Precision, "of the weights"), ("--offload", Offload, "see decompose")):
        parser.add_argument(flag, choices=get_args(choices), help=f"{what} (default: evaluate's at registration)")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return stage_command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
