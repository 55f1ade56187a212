"""Loopback ports on which commands serve pages and models."""

from __future__ import annotations

import socket

from config.errors import UserError

HOST = "127.0.0.1"


class PortError(UserError):
    """A port that is in use or invalid; the message is one sentence."""


def listen(port: int, any_free: bool = False) -> socket.socket:
    """Open a port on the loopback interface.

    Args:
        port: its number.
        any_free: whether 0 means any free port.

    Raises:
        PortError: if it is no port, in use or not permitted.
    """
    if not (0 if any_free else 1) <= port < 65536:
        raise PortError(
            f"--port: got {port}, expected 1 to 65535" + (", or 0 for any that is free" if any_free else "")
        )
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
        opened.listen()
    except OSError as error:
        opened.close()
        raise PortError(f"--port {port}: {error.strerror.lower()}; expected one that is free") from None
    return opened
