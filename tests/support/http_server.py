"""The HTTP/1.1 server of the tests, as it runs in its own process; servers.HttpServer starts it.

Keeps connections alive, answers one request after the other, and closes or kills connections when a path or the
settings say so. Knows only what a client under test sends. The paths are the functions at the end.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import ssl
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from support.listeners import listen

SMALL = {"message": "hello", "items": [1, 2, 3]}
HELLO = b'{"message": "%s"}' % (b"x" * 185)  # 200 bytes
CHUNK = 1000
DIGITS = b"0123456789" * 20_000
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class Request(NamedTuple):
    """A request as it arrived; the query has the last value of each name."""

    method: str
    path: str
    query: dict[str, str]
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass
class Reply:
    """What to send, and what to do to the connection; *pause* is in seconds, *raw* stands for the whole reply.

    It waits until *meets* requests that do so are there.
    """

    status: int = 200
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    close: bool = False
    kill: bool = False
    pause: float = 0.0
    meets: int = 0
    raw: bytes | None = None


class Meeting:
    """Requests of which none is answered before all are there."""

    def __init__(self) -> None:
        self._there: list[Callable[[], object]] = []

    def join(self, number: int, answer: Callable[[], object]) -> None:
        """Call *answer* once so many have come."""
        self._there.append(answer)
        if len(self._there) >= number:
            there, self._there = self._there, []
            for each in there:
                each()


class Server:
    """What the connections share: settings and counts."""

    def __init__(
        self,
        *,
        addresses: list[str],
        ports: int,
        tls: tuple[str, str] | None,
        close_after_response: bool,
        announce_close: bool,
        kill_probability: float,
        kill: str,
        keepalive_timeout: float | None,
        seed: int,
    ) -> None:
        self._addresses, self._ports = addresses, ports
        self._tls = tls
        self.close_after_response = close_after_response
        self.announce_close = announce_close
        self.keepalive_timeout = keepalive_timeout
        self._kill_probability, self._kill = kill_probability, kill
        self._random = random.Random(seed)
        self._servers: list[asyncio.Server] = []
        self.meeting = Meeting()
        self.accepted = self.open = self.most_open = self.requests = self.killed = 0
        self.sources: Counter[str] = Counter()
        self.doors: defaultdict[int, Counter[str]] = defaultdict(Counter)  # what each port had

    async def start(self) -> dict[str, Any]:
        """Open the listeners; return where they are."""
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            context.set_alpn_protocols(["http/1.1"])
        loop = asyncio.get_running_loop()
        listeners = listen(self._addresses, self._ports)
        for listener in listeners:
            server = await loop.create_server(lambda: Connection(self), sock=listener, ssl=context, backlog=8192)
            self._servers.append(server)
        return {"addresses": [listener.getsockname()[:2] for listener in listeners]}

    def stats(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "open": self.open,
            "most_open": self.most_open,
            "requests": self.requests,
            "killed": self.killed,
            "sources": dict(self.sources),
            "doors": self.doors,
        }

    def fate(self) -> str:
        """Throw the dice for a request: "before", "after" or "" (it lives)."""
        if not self._kill_probability or self._random.random() >= self._kill_probability:
            return ""
        return self._random.choice(("before", "after")) if self._kill == "either" else self._kill


class Connection(asyncio.Protocol):
    """One connection; asyncio calls it. A request is taken from the buffer when the one before is answered."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = bytearray()
        self._busy = False
        self._continued = False
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.client = (transport.get_extra_info("peername") or ("gone", 0))[:2]  # a reset takes the name away
        server = self._server
        server.accepted += 1
        server.open += 1
        server.most_open = max(server.open, server.most_open)
        server.sources[self.client[0]] += 1
        self._door = server.doors[transport.get_extra_info("sockname")[1]]
        self._door.update(["accepted", self.client[0]])
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open -= 1
        if self._idle:
            self._idle.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def _rest(self) -> None:
        if self._server.keepalive_timeout is not None:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._server.keepalive_timeout, self._transport.close)

    def _advance(self) -> None:
        while not self._busy and not self._transport.is_closing() and (request := self._take()):
            if self._idle:
                self._idle.cancel()
            self._server.requests += 1
            self._door["requests"] += 1
            self._busy = True
            self._answer(request)

    def _take(self) -> Request | None:
        """Take one whole request out of the buffer, if there is one."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        method, target, _ = first.split(" ")
        parts = urlsplit(target if target.startswith("http") else f"http://host{target}")
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        request = Request(method, parts.path, query, headers, b"")
        body, end = _body(request, self._buffer, end + 4)
        if body is None:
            self._go_on(request)
            return None
        del self._buffer[:end]
        self._continued = False
        return request._replace(body=body)

    def _go_on(self, request: Request) -> None:
        if (request.header("expect") or "").lower() == "100-continue" and not self._continued:
            self._continued = True
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer(self, request: Request) -> None:
        server = self._server
        fate = server.fate()
        reply = Reply(kill=True) if fate == "before" else PATHS.get(request.path, not_found)(request, self)
        if reply.pause:
            asyncio.get_running_loop().call_later(reply.pause, self._send, request, reply, fate)
        elif reply.meets:
            self._server.meeting.join(reply.meets, lambda: self._send(request, reply, fate))
        else:
            self._send(request, reply, fate)

    def _send(self, request: Request, reply: Reply, fate: str) -> None:
        server, transport = self._server, self._transport
        if reply.kill:
            self._kill()
            return
        asked = (request.header("connection") or "").lower() == "close"
        close = reply.close or asked or server.close_after_response
        told = close and (asked or reply.close or server.announce_close)
        transport.write(reply.raw if reply.raw is not None else _bytes(request, reply, told))
        if fate == "after":
            self._kill()
        elif close:
            transport.close()
        else:
            self._busy = False
            self._rest()
            # Not from within: requests in the buffer would pile up frames.
            asyncio.get_running_loop().call_soon(self._advance)

    def _kill(self) -> None:
        """Reset the connection; what was written before has most likely left already."""
        self._server.killed += 1
        self._door["killed"] += 1
        # SO_LINGER with no time: close() sends RST instead of FIN, and leaves no TIME_WAIT here.
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    def stats(self) -> dict[str, Any]:
        return self._server.stats()


def _body(request: Request, buffer: bytearray, start: int) -> tuple[bytes | None, int]:
    """Return the body and where it ends; None while it is not all there."""
    if (request.header("transfer-encoding") or "").lower() == "chunked":
        return _chunked(buffer, start)
    end = start + int(request.header("content-length") or 0)
    return (bytes(buffer[start:end]), end) if len(buffer) >= end else (None, start)


def _chunked(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    body = bytearray()
    while (line := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:line].split(b";")[0], 16)
        at = line + 2 + size + 2
        if len(buffer) < at:
            break
        if not size:
            return bytes(body), at
        body += buffer[line + 2 : line + 2 + size]
    return None, at


def _bytes(request: Request, reply: Reply, close: bool) -> bytes:
    headers = [*reply.headers]
    if reply.status not in (204, 304) and not any(name == "Transfer-Encoding" for name, _ in headers):
        headers.append(("Content-Length", str(len(reply.body))))
    if close:
        headers.append(("Connection", "close"))
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {reply.status} {phrase}", *(f"{name}: {value}" for name, value in headers), "", ""]
    body = b"" if request.method == "HEAD" or reply.status in (204, 304) else reply.body
    return "\r\n".join(lines).encode("latin-1") + body


# Below: the paths. Each takes the request and the connection and says what to reply.


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), [("Content-Type", "application/json")])


def not_found(request: Request, connection: Connection) -> Reply:
    return _json({"no such path": request.path}, 404)


def root(request: Request, connection: Connection) -> Reply:
    return _json(SMALL)


def close(request: Request, connection: Connection) -> Reply:
    reply = _json(SMALL)
    reply.close = True
    return reply


def slow(request: Request, connection: Connection) -> Reply:
    reply = _json(SMALL)
    reply.pause = float(request.query.get("s", "0.2"))
    return reply


def meet(request: Request, connection: Connection) -> Reply:
    reply = _json(SMALL)
    reply.meets = int(request.query["n"])
    return reply


def echo(request: Request, connection: Connection) -> Reply:
    kind = request.header("content-type") or "application/octet-stream"
    return Reply(200, request.body, [("Content-Type", kind)])


def headers(request: Request, connection: Connection) -> Reply:
    told = {"method": request.method, "path": request.path, "query": request.query, "headers": request.headers}
    return _json({**told, "client": connection.client})


def number_of_bytes(request: Request, connection: Connection) -> Reply:
    return Reply(200, bytes(int(request.query["n"])), [("Content-Type", "application/octet-stream")])


def chunked(request: Request, connection: Connection) -> Reply:
    left = int(request.query["n"])
    body = bytearray()
    while left:
        size = min(left, CHUNK)
        body += b"%x\r\n%s\r\n" % (size, bytes(size))
        left -= size
    return Reply(200, bytes(body) + b"0\r\n\r\n", [("Transfer-Encoding", "chunked")])


def packed(request: Request, connection: Connection) -> Reply:
    """Send DIGITS in the *coding* gzip or deflate."""
    coding = request.query["coding"]
    return Reply(200, PACK[coding](DIGITS), [("Content-Encoding", coding)])


def drop(request: Request, connection: Connection) -> Reply:
    return Reply(kill=True)


def half(request: Request, connection: Connection) -> Reply:
    return Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(50), close=True)


def redirect(request: Request, connection: Connection) -> Reply:
    """Lead to *to* in *n* steps, with *code* (302)."""
    to, code, steps = request.query.get("to", "/"), request.query.get("code", "302"), int(request.query.get("n", "1"))
    where = "/redirect?" + urlencode({"n": steps - 1, "code": code, "to": to}) if steps > 1 else to
    return Reply(int(code), b"", [("Location", where)])


def status(request: Request, connection: Connection) -> Reply:
    """Reply *code*, with a Retry-After of *retry-after* seconds if given."""
    reply = _json(SMALL, int(request.query["code"]))
    if "retry-after" in request.query:
        reply.headers.append(("Retry-After", request.query["retry-after"]))
    return reply


def cookies(request: Request, connection: Connection) -> Reply:
    """Set each cookie of the query; reply with those that came."""
    reply = _json({"cookie": request.header("cookie")})
    reply.headers += [("Set-Cookie", f"{name}={value}; Path=/") for name, value in request.query.items()]
    return reply


def stats(request: Request, connection: Connection) -> Reply:
    return _json(connection.stats())


PATHS: dict[str, Callable[[Request, Connection], Reply]] = {
    "/": root,
    "/close": close,
    "/slow": slow,
    "/meet": meet,
    "/echo": echo,
    "/headers": headers,
    "/bytes": number_of_bytes,
    "/chunked": chunked,
    "/packed": packed,
    "/drop": drop,
    "/half": half,
    "/redirect": redirect,
    "/status": status,
    "/cookies": cookies,
    "/stats": stats,
}
