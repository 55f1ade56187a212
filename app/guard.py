"""Request filter of the page's server (ASGI middleware): own pages only, from this machine, small, and no paths.

Gradio brings routes that this page has no use for, among them one that sends files by path, one that fetches addresses
and one that stores uploads. What is not on the list below is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
PAGES = frozenset(
    {
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/gradio_api/theme.css",
        "/gradio_api/startup-events",
    }
)
FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/", "/download/")
EVENTS = frozenset({"/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset"})
UPLOAD = "/image"
MAX_EVENT_BYTES = 64 * 1024
POLICY = "; ".join(
    (
        "default-src 'none'",
        # Gradio starts from scripts in the page and compiles the code of HTML components.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self' blob:",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


class Guard:
    """Refuses what the page does not send, and forbids it every other server.

    Args:
        app: what is guarded.
        max_bytes: of an upload.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or say in a sentence why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        refused = _refused(scope)
        body: bytes | None = None
        if refused is None and scope["method"] == "POST":
            body = await _body(scope, receive, self.max_bytes if scope["path"] == UPLOAD else MAX_EVENT_BYTES)
            refused = _refused_body(scope["path"], body)
        if refused is not None:
            await refused(scope, receive, send)
            return
        delivered = False

        async def replay() -> Message:
            nonlocal delivered
            if body is None or delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, replay, labelled)


def _refused(scope: Scope) -> PlainTextResponse | None:
    """An answer to who has no business here, or to an address that is none of the page's."""
    headers, path = Headers(scope=scope), scope["path"]
    host = headers.get("host", "")
    # A name that somebody else points at this machine is not ours (DNS rebinding), nor is another site's page.
    if urlsplit(f"//{host}").hostname not in HOSTS or headers.get("origin", f"http://{host}") != f"http://{host}":
        return PlainTextResponse("this page is for this machine alone", 403)
    known = path in PAGES or path in EVENTS or path == UPLOAD or path.startswith(FOLDERS)
    if not known or ".." in path or "//" in path:
        return PlainTextResponse("there is nothing here", 404)
    if scope["method"] not in ("GET", "HEAD", "POST"):
        return PlainTextResponse("GET or POST", 405)
    return None


def _refused_body(path: str, body: bytes | None) -> PlainTextResponse | None:
    """An answer to a body that is too long (``None``) or names a file."""
    if body is None:
        return PlainTextResponse("the request is too large", 413)
    if path == UPLOAD:
        return None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return PlainTextResponse("expected JSON", 400)
    if names_a_file(said):
        # Wherever an event holds a file, Gradio opens its path, or fetches its address.
        return PlainTextResponse("no event of this page names a file", 403)
    return None


def names_a_file(said: Any) -> bool:
    """True if JSON holds an object with a path or an address, which Gradio would take for a file."""
    found = [said]
    while found:
        value = found.pop()
        if isinstance(value, Mapping):
            if not {"path", "url"}.isdisjoint(value):
                return True
            found += value.values()
        elif isinstance(value, list):
            found += value
    return False


async def _body(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The whole body; ``None`` if it is longer than ``most`` bytes, whatever its header says."""
    said = Headers(scope=scope).get("content-length", "0")
    if not said.isdecimal() or int(said) > most:
        return None
    parts, length = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > most:
            return None
        if not message.get("more_body"):
            return b"".join(parts)
