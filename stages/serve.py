"""Serve the model that an alias of the registry names: picture in, layers out, on loopback.

    python -m stages.serve [--alias champion] [--port 5001]

Sees that the version and its weights are there, then becomes ``mlflow models serve``. docs/registry.md shows requests.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from stages.cli import stage_command
from training.params import Params
from training.tracking import tracking_uri
from training.versions import Registry, RegistryError, open_weights


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Look, then hand over; does not come back."""
    registry = Registry(params)
    number = registry.holder(arguments.alias)
    if number is None:
        raise RegistryError(f"no version of {registry.name} is {arguments.alias}; python -m stages.promote makes one")
    (version,) = (version for version in registry.versions() if version.number == number)
    # MLflow would say the same between tracebacks.
    open_weights(version.path, version.md5)
    if not 0 < arguments.port < 65536:
        raise RegistryError(f"--port: got {arguments.port}, expected 1 to 65535")
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
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(arguments.port)]
    # MLflow starts uvicorn by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    print(f"serve: version {number} of {registry.name} on http://127.0.0.1:{arguments.port}/invocations", flush=True)
    os.execve(command[0], command, os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": tracking_uri()})


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alias", default="champion", help="default: champion")
    parser.add_argument("--port", type=int, default=5001, help="default: 5001")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return stage_command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
