"""The HTTP server of a trial, in a process of its own: answers alike, keeps connections alive, counts them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from .child import await_parent, tell

BODY = b'{"message": "%s"}' % (b"x" * 185)  # 200 bytes: a small answer of an API
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Accepted:
    """The flows that the server has seen: client address and port, and the port of ours it came to."""

    def __init__(self) -> None:
        self.flows: set[tuple[str, int, int]] = set()


class Connection(asyncio.Protocol):
    """One connection; asyncio calls it. A client sends requests without body, one after the other."""

    def __init__(self, accepted: Accepted, pause: float) -> None:
        self._accepted = accepted
        self._pause = pause
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        address, port = transport.get_extra_info("peername")[:2]
        self._accepted.flows.add((address, port, transport.get_extra_info("sockname")[1]))

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not self._head.endswith(b"\r\n\r\n"):
            return
        self._head = b""
        if self._pause:
            asyncio.get_running_loop().call_later(self._pause, self._transport.write, REPLY)
        else:
            self._transport.write(REPLY)


def serve(ports: Sequence[int], pause: float) -> dict[str, int]:
    """Listen on 127.0.0.1 until the parent hangs up; each answer takes *pause* seconds.

    Tells where it listens (``addresses``), and returns how many flows came (``opened``).
    """
    return asyncio.run(_serve(ports, pause))


async def _serve(ports: Sequence[int], pause: float) -> dict[str, int]:
    loop = asyncio.get_running_loop()
    accepted = Accepted()
    listeners = [socket.create_server(("127.0.0.1", port), backlog=4096) for port in ports]
    servers = [
        await loop.create_server(lambda: Connection(accepted, pause), sock=listener, backlog=4096)
        for listener in listeners
    ]
    tell({"addresses": [listener.getsockname() for listener in listeners]})
    await loop.run_in_executor(None, await_parent)
    for server in servers:
        server.close()
    return {"opened": len(accepted.flows)}
