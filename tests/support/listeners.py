"""Listening sockets on ports that no client wants.

A listener inside the ephemeral range takes its port from every client of the namespace, so ours lie outside of it.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from pathlib import Path

CANDIDATES = range(10000, 30000)  # below Linux's own range, above what is usually taken


def listen(addresses: list[str], count: int = 1) -> list[socket.socket]:
    """Listen on *count* ports, each of them on all the addresses; sorted by port as drawn, then by address."""
    low, high = _ephemeral()
    listeners: list[socket.socket] = []
    while len(listeners) < count * len(addresses):
        port = random.choice(CANDIDATES)
        if not low <= port <= high:
            listeners += _all(addresses, port)
    return listeners


def free_port(addresses: list[str]) -> int:
    """Return a port that was free on all the addresses; somebody could take it before the caller does."""
    listeners = listen(addresses)
    port: int = listeners[0].getsockname()[1]
    for listener in listeners:
        listener.close()
    return port


def _all(addresses: list[str], port: int) -> list[socket.socket]:
    """Return one listener for each address, or none at all if the port is taken at one."""
    with contextlib.ExitStack() as stack:
        listeners = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return []
                raise
            listener.listen(8192)
            listeners.append(listener)
        stack.pop_all()
        return listeners


def _ephemeral() -> tuple[int, int]:
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(low), int(high)
