"""Serve a web page, on loopback only, to decompose an image, edit its layers and download them.

    python -m stages.app [--model FOLDER] [--port 7860]
    python -m stages.app --model Qwen/Qwen-Image-Layered --guidance 4 --offload models

The model is the one that ships with the project, another folder, or a hub repository in the released layout.
Images stay in memory, nothing is written to disk, and the page contacts no other server.
"""

from __future__ import annotations

import argparse
import os
import sys

from app.ports import HOST, listen
from inference.images import effort_of
from stages.cli import command
from stages.decompose import add_effort_arguments, add_model_arguments, check_effort, open_model


def run(arguments: argparse.Namespace) -> None:
    """Check, load the networks, serve until interrupted."""
    # Gradio reads these on import, which takes seconds, so arguments are checked before.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    from app.page import looks, make_page
    from app.server import build_server, serve

    check_effort(arguments)
    with listen(arguments.port, any_free=True) as opened:
        model = open_model(arguments)
        effort = effort_of(model, arguments.steps, arguments.tries)
        blocks, page = make_page(model, effort, arguments.guidance, arguments.seed)
        server = build_server(blocks, page.uploads, page.downloads, looks())
        print(f"app: http://{HOST}:{opened.getsockname()[1]}", flush=True)
        serve(server, opened)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    add_effort_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
