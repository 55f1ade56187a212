"""Server of the page: Gradio's events, and two routes through which bytes come and go without touching a disk."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
from collections import OrderedDict
from types import FrameType
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from app.guard import Guard
from app.ports import HOST
from app.session import MAX_BYTES, MAX_PIXELS
from layers.imaging.codec import ImageError
from layers.imaging.to_srgb import decode_image

SESSIONS = 6  # whose layers are kept; the one not used for longest makes room
SHELF = 4


class Shelf:
    """A few things in memory, each under a name nobody can guess; the oldest makes room."""

    def __init__(self, room: int = SHELF):
        self._room, self._lock = room, threading.Lock()
        self._things: OrderedDict[str, Any] = OrderedDict()

    def put(self, thing: Any) -> str:
        """Keep a thing; returns its name."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._things[name] = thing
            while len(self._things) > self._room:
                self._things.popitem(last=False)
        return name

    def look(self, name: Any) -> Any:
        """The entry of this name, or None."""
        with self._lock:
            return self._things.get(name) if isinstance(name, str) else None

    def take(self, name: Any) -> Any:
        """The same, and it is gone."""
        with self._lock:
            return self._things.pop(name, None) if isinstance(name, str) else None


def build_server(blocks: gr.Blocks, uploads: Shelf, downloads: Shelf, looks: dict[str, Any]) -> FastAPI:
    """Put the page and its two routes behind the guard.

    Args:
        blocks: the page.
        uploads: where decoded images wait for an event that names them.
        downloads: of (bytes, file name, media type).
        looks: theme, style and scripts, arguments of ``gradio.mount_gradio_app``.
    """
    # Gradio would add pages of its own documentation; the guard would close them.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, max_bytes=MAX_BYTES)

    @app.post("/image")
    async def image(request: Request) -> Response:
        """Decode a body to an image; the answer is its name on the shelf, or a sentence."""
        data = await request.body()
        try:
            pixels = await run_in_threadpool(decode_image, data, "this file", MAX_PIXELS)
        except ImageError as error:
            return PlainTextResponse(str(error), 400)
        return PlainTextResponse(uploads.put(pixels))

    @app.get("/download/{name}")
    async def download(name: str) -> Response:
        """Send what the page has packed."""
        found = downloads.look(name)
        if found is None:
            return PlainTextResponse("this file is no longer here; ask the page for it again", 404)
        data, title, kind = found
        return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{title}"'})

    blocks.state_session_capacity = SESSIONS
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=1,  # its upload route is closed anyway
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **looks,
    )


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """An open tab keeps connections for as long as it is there: they are cut, without words about each."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def serve(app: FastAPI, opened: socket.socket) -> None:
    """Serve until interrupted."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config).run(sockets=[opened])
