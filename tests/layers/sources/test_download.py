"""Addresses that a layout names: a server of this machine stands for both sides, and must not be asked."""

import http.server
import socket
import threading

import fsspec
import pytest

from config.errors import SampleError
from layers.sources import download
from layers.sources.download import fetch, is_public
from tests.layers.sources.lica.folders import IMAGE, only, read

PUBLIC = "93.184.216.34"
NAMES = {"public.example": [PUBLIC], "private.example": ["10.0.0.7"], "both.example": ["169.254.169.254", PUBLIC]}


@pytest.fixture
def server(monkeypatch):
    """Paths that were asked for, and the port; names of NAMES are known, and PUBLIC is this server."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"x" * 50)

        def log_message(self, *_):
            pass

    known, reach = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host, port, *arguments, **named):
        if host not in NAMES:
            return known(host, port, *arguments, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port)) for found in NAMES[host]]

    def create_connection(place, *arguments):
        return reach(("127.0.0.1", place[1]) if place[0] == PUBLIC else place, *arguments)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(socket, "create_connection", create_connection)
        yield asked, running.server_port
        running.shutdown()


def test_a_public_address_is_read_and_no_more_than_asked_for(server, monkeypatch):
    asked, port = server
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(f"http://public.example:{port}/a.png", 100) == b"x" * 50
    assert fetch(f"http://public.example:{port}/to/http://public.example:{port}/b.png", 9) == b"x" * 10
    assert asked[-1] == "/b.png"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:PORT/",
        "http://localhost:PORT/",
        "http://[::1]:PORT/",
        "http://[::ffff:127.0.0.1]:PORT/",
        "http://2130706433:PORT/",
        "http://0.0.0.0:PORT/",
        "http://private.example:PORT/",
        "http://both.example:PORT/",
        "http://169.254.169.254/latest/meta-data",
        "https://192.168.1.1/",
        "https://10.0.0.7/",
    ],
)
@pytest.mark.parametrize("redirected", [False, True])
def test_an_address_that_is_not_of_the_internet_is_refused(server, address, redirected):
    asked, port = server
    address = address.replace("PORT", str(port))
    src = f"http://public.example:{port}/to/{address}" if redirected else address
    with pytest.raises(SampleError, match="an address of this machine or of a private network"):
        fetch(src, 100)
    assert len(asked) == redirected, "no more than the page that leads there"


@pytest.mark.parametrize("address", ["ftp://public.example/a", "file:///etc/hostname", "gopher://public.example/"])
def test_a_redirect_to_no_web_address_is_refused(server, address):
    _, port = server
    with pytest.raises(OSError, match=r"not allowed|unknown url type|Found"):
        fetch(f"http://public.example:{port}/to/{address}", 100)


@pytest.mark.parametrize(
    "address",
    ["127.9.9.9", "10.1.1.1", "172.16.0.1", "192.168.0.1", "169.254.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "ff02::1",
     "64:ff9b::a00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "::ffff:0:127.0.0.1", "fec0::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)
    assert is_public(PUBLIC) and is_public("2606:4700::1111") and is_public(f"::ffff:{PUBLIC}")
    assert is_public("64:ff9b::808:808") and is_public("2002:808:808::")


def test_stores_are_read_by_their_own_file_system(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 50)
    monkeypatch.setattr(fsspec, "open", lambda src, mode: (tmp_path / "a").open(mode))
    assert download.fetch("gs://bucket/a", 9) == b"x" * 10


def test_a_layout_that_names_this_machine_is_dropped_with_that_reason(root, server):
    asked, port = server
    layout = only(IMAGE | {"src": f"http://127.0.0.1:{port}/a.png"})
    with pytest.raises(
        SampleError, match=r"components\[0\]\.src: http://127.0.0.1:\d+/a.png is not read: 127.0.0.1 is"
    ):
        read(root, layout, download=True)
    assert not asked
