"""Download of images that a dataset names by URL, from public internet addresses only.

A dataset's author chooses its URLs, and this machine may reach hosts that the author may not: loopback services, a
company's network, a cloud's metadata service with its keys. So the IP address of every connection is checked, whatever
name led to it, redirects included. Proxies are not used, since they would connect without this check.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import fsspec

from config.errors import SampleError

SECONDS = 30
WEB = ("http", "https")
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch(src: str, most: int) -> bytes:
    """Read the bytes at a URL, at most ``most`` and one more.

    Args:
        src: URL of a protocol that fsspec knows; those of :data:`WEB` are checked as above, others lead to stores that
            the machine's own settings name.
        most: maximum size in bytes; one byte more tells the caller that the file is larger.

    Raises:
        SampleError: if the address is private.
        Exception: any other error of the file system.
    """
    if urlsplit(src).scheme not in WEB:
        with fsspec.open(src, "rb") as file:
            return file.read(most + 1)
    with _opener().open(src, timeout=SECONDS) as answer:
        return answer.read(most + 1)


def connect(place: tuple[str, int], timeout: float | None = SECONDS, source_address: Any = None) -> socket.socket:
    """Connect like :func:`socket.create_connection`, but to public addresses only.

    Raises:
        SampleError: if the name resolves to another address.
        OSError: if nothing answers.
    """
    host, port = place
    error: OSError = OSError(f"{host} has no address")
    for *_, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not is_public(found[0]):
            raise SampleError(f"{host} is {found[0]}, an address of this machine or of a private network")
        try:
            return socket.create_connection(found[:2], timeout, source_address)
        except OSError as failed:
            error = failed
    raise error


def is_public(address: str) -> bool:
    """Whether an IP address is public: not loopback, private, link-local, shared, multicast.

    For an IPv6 address that embeds an IPv4 address (mapped, NAT64, 6to4, compatible) the IPv4 address decides.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.is_site_local:
            return False
        if found.sixtofour:
            found = found.sixtofour
        elif found in NAT64 or int(found) >> 64 == 0:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.is_global and not found.is_multicast


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        self._create_connection = connect
        super().connect()


class _Https(http.client.HTTPSConnection):
    def connect(self) -> None:
        self._create_connection = connect
        super().connect()


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Http, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Https, request)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """URL opener without proxies and ftp, which would open connections of their own."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        _HttpHandler,
        _HttpsHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
