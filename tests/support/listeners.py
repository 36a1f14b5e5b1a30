"""Listening sockets on ports that no client wants, and that no listener had before them.

A listener inside the ephemeral range takes its port from every client of the namespace, and what clients at that port
have left in TIME_WAIT on the servers' side reads as connections towards it: ours lie outside of the range. What the
clients of an earlier listener have left reads so too: each takes the port after the last one's, in whatever process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from pathlib import Path

CANDIDATES = range(10000, 30000)  # below Linux's own range, above what is usually taken


def listen(addresses: list[str], count: int = 1, backlog: int = 8192) -> list[socket.socket]:
    """Listen on *count* ports, each of them on all the addresses; in the order of ports, then of addresses."""
    low, high = _ephemeral()
    listeners: list[socket.socket] = []
    while len(listeners) < count * len(addresses):
        port = _next()
        if not low <= port <= high:
            listeners += _all(addresses, port, backlog)
    return listeners


def free_port(addresses: list[str]) -> int:
    """Return a port that was free on all the addresses; somebody could take it before the caller does."""
    listeners = listen(addresses)
    port: int = listeners[0].getsockname()[1]
    for listener in listeners:
        listener.close()
    return port


def _all(addresses: list[str], port: int, backlog: int) -> list[socket.socket]:
    """Return one listener for each address, or none at all if the port is taken at one."""
    with contextlib.ExitStack() as stack:
        listeners = []
        for address in addresses:
            ((family, *_, end),) = socket.getaddrinfo(
                address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(end)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return []
                raise
            listener.listen(backlog)
            listeners.append(listener)
        stack.pop_all()
        return listeners


def _next() -> int:
    """Draw the port after the one drawn last, by any process of this user."""
    path = Path(tempfile.gettempdir()) / f"fewports-tests-port.{os.getuid()}"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        drawn = int(file.read() or 0) + 1
        file.truncate(0)
        file.write(str(drawn))
    return CANDIDATES[drawn % len(CANDIDATES)]


def _ephemeral() -> tuple[int, int]:
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(low), int(high)
