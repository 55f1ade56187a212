"""Request filter of the page's server (ASGI middleware): listed routes, this machine only, small bodies, no paths.

Gradio brings routes that this page does not use. Among them are one that sends files by path, one that fetches
addresses and one that stores uploads. A route that is not in the lists below is answered with 404.
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
    """Middleware that refuses requests the page never sends, and forbids the page to contact other servers.

    Args:
        app: the application behind the filter.
        max_bytes: largest size of an upload.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or answer with a sentence that says why not."""
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
    """Error response to a foreign host or origin, an unknown path or a wrong method; ``None`` if there is no fault."""
    headers, path = Headers(scope=scope), scope["path"]
    host = headers.get("host", "")
    # Foreign host names that resolve to this machine (DNS rebinding) and pages of other sites are refused.
    if urlsplit(f"//{host}").hostname not in HOSTS or headers.get("origin", f"http://{host}") != f"http://{host}":
        return PlainTextResponse("this page is served to this machine only", 403)
    known = path in PAGES or path in EVENTS or path == UPLOAD or path.startswith(FOLDERS)
    if not known or ".." in path or "//" in path:
        return PlainTextResponse("not found", 404)
    if scope["method"] not in ("GET", "HEAD", "POST"):
        return PlainTextResponse("expected GET or POST", 405)
    return None


def _refused_body(path: str, body: bytes | None) -> PlainTextResponse | None:
    """Error response to a body that is too long (``None``), no JSON or names a file; ``None`` if there is no fault."""
    if body is None:
        return PlainTextResponse("the request is too large", 413)
    if path == UPLOAD:
        return None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return PlainTextResponse("expected JSON", 400)
    if names_a_file(said):
        # If an event holds a file, Gradio opens its path or fetches its address.
        return PlainTextResponse("no event of this page names a file", 403)
    return None


def names_a_file(said: Any) -> bool:
    """Return True if JSON holds an object with a path or an address, which Gradio would treat as a file."""
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
    """Read the whole body; ``None`` if it is longer than ``most`` bytes, whatever its header says."""
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
