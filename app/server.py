"""Server of the page: Gradio's events, and two routes for uploads and downloads that stay in memory."""

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

SESSIONS = 6  # whose layers are kept; the least recently used one is dropped first
SHELF = 4


class Shelf:
    """A small in-memory store under random names; the oldest entry is dropped when it is full."""

    def __init__(self, room: int = SHELF):
        self._room, self._lock = room, threading.Lock()
        self._things: OrderedDict[str, Any] = OrderedDict()

    def put(self, thing: Any) -> str:
        """Store a thing; returns its name."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._things[name] = thing
            while len(self._things) > self._room:
                self._things.popitem(last=False)
        return name

    def look(self, name: Any) -> Any:
        """Entry of this name, or ``None``."""
        with self._lock:
            return self._things.get(name) if isinstance(name, str) else None

    def take(self, name: Any) -> Any:
        """Entry of this name, or ``None``; it is removed."""
        with self._lock:
            return self._things.pop(name, None) if isinstance(name, str) else None


def build_server(blocks: gr.Blocks, uploads: Shelf, downloads: Shelf, looks: dict[str, Any]) -> FastAPI:
    """Build the application: the page and its two routes behind the request filter.

    Args:
        blocks: the page.
        uploads: decoded images, until an event names them.
        downloads: packed files as (bytes, file name, media type).
        looks: theme, style and scripts, arguments of ``gradio.mount_gradio_app``.
    """
    # No documentation pages: the request filter would refuse them anyway.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, max_bytes=MAX_BYTES)

    @app.post("/image")
    async def image(request: Request) -> Response:
        """Decode a body to an image; the answer is its name in the store, or a sentence."""
        data = await request.body()
        try:
            pixels = await run_in_threadpool(decode_image, data, "this file", MAX_PIXELS)
        except ImageError as error:
            return PlainTextResponse(str(error), 400)
        return PlainTextResponse(uploads.put(pixels))

    @app.get("/download/{name}")
    async def download(name: str) -> Response:
        """Send a packed file."""
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
        max_file_size=1,  # the request filter closes Gradio's upload route anyway
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **looks,
    )


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Close quietly: open tabs hold connections, and cutting them would log an error for each."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def serve(app: FastAPI, opened: socket.socket) -> None:
    """Serve an application on an open socket until interrupted."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config).run(sockets=[opened])
