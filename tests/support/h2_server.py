"""The HTTP/2 server of the tests, on the h2 library, as it runs in its own process; servers.H2Server starts it.

Over TLS it takes h2 by ALPN and nothing else, without TLS it expects HTTP/2 from the first byte. The paths are those
of http_server.py, and a few of its own at the end. How often each request was worked on is counted by the value of
its field x-id: a request counts once it is whole, before it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from support import http_server
from support.http_server import HELLO, Reply, Request
from support.listeners import listen

LARGEST = 1 << 14  # bytes of DATA in a frame
AHEAD = 1 << 20  # bytes that wait in the transport before bodies pause
ZEROS = bytes(1 << 16)
LINGER = 0.5  # seconds for a client to close first, once all is answered after a GOAWAY
BIG = 20_000_000  # bytes of /big


class Server:
    """What the connections share: settings and counts."""

    def __init__(
        self,
        *,
        addresses: list[str],
        ports: int,
        tls: tuple[str, str] | None,
        streams: int,
        window: int,
        requests: int | None,
        close_after_response: bool,
        announce_close: bool,
        keepalive_timeout: float | None,
    ) -> None:
        self._addresses, self._ports, self._tls = addresses, ports, tls
        self.streams, self.window, self.limit = streams, window, requests
        self.close_after_response = close_after_response
        self.announce_close = announce_close
        self.keepalive_timeout = keepalive_timeout
        self._servers: list[asyncio.Server] = []
        self.meeting = http_server.Meeting()
        self.accepted = self.open = self.requests = self.running = self.most_running = self.most_streams = 0
        self.processed: Counter[str] = Counter()
        self.doors: defaultdict[int, Counter[str]] = defaultdict(Counter)  # what each port had
        self.received: dict[str, list[int]] = {}  # by x-id, the length of each body
        self.at_once: Counter[int] = Counter()  # requests without the end of a response, by the port that they came to
        self.most_at_once: dict[int, int] = {}
        self.resets: list[int] = []  # codes of RST_STREAM that came
        self.goodbyes: list[int] = []  # codes of GOAWAY that came
        self.clients: list[int] = []  # ports of connections accepted, in order
        self.flaws: list[str] = []  # what h2 found wrong with what came

    async def start(self) -> dict[str, Any]:
        """Open the listeners; return where they are."""
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            context.set_alpn_protocols(["h2"])
        loop = asyncio.get_running_loop()
        listeners = listen(self._addresses, self._ports)
        for listener in listeners:
            server = await loop.create_server(lambda: Connection(self), sock=listener, ssl=context, backlog=8192)
            self._servers.append(server)
        return {"addresses": [listener.getsockname()[:2] for listener in listeners]}

    def stats(self) -> dict[str, Any]:
        names = ("accepted", "open", "requests", "running", "most_running", "most_streams", "resets", "goodbyes")
        told = {name: getattr(self, name) for name in (*names, "clients", "flaws", "doors", "most_at_once")}
        return {**told, "processed": dict(self.processed), "received": self.received}


class Connection(asyncio.Protocol):
    """One connection; asyncio calls it. Each request is answered by a task of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._bodies: dict[int, tuple[Request, bytearray]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unanswered: set[int] = set()
        self._room = asyncio.Event()  # set when windows or the transport may have some
        self._last = 0  # the last stream that is worked on
        self._seen = 0
        self._leaving = False  # GOAWAY was sent
        self._settled = False  # the client has acknowledged our SETTINGS, and has no more to say by itself
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=AHEAD)
        # asyncio does so by itself where the listener was made with IPPROTO_TCP. A head and its body are two writes.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = (transport.get_extra_info("peername") or ("gone", 0))[:2]  # a reset takes the name away
        self.port = transport.get_extra_info("sockname")[1]
        self.server.accepted += 1
        self._door = self.server.doors[self.port]
        self._door["accepted"] += 1
        self.server.open += 1
        self.server.clients.append(self.client[1])
        # The first SETTINGS: update_settings() would wait for an answer before it believes its own values.
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: self.server.streams,
                SettingCodes.INITIAL_WINDOW_SIZE: self.server.window,
            },
        )
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open -= 1
        if self._idle:
            self._idle.cancel()
        for task in self._tasks.values():
            task.cancel()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except H2Error as error:
            self.server.flaws.append(f"{type(error).__name__}: {error}")
            self.flush()
            self.transport.close()
            return
        for event in events:
            self._take(event)
        self._room.set()  # windows may have grown
        self.flush()

    def flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def stats(self) -> dict[str, Any]:
        return self.server.stats()

    def _rest(self) -> None:
        if self.server.keepalive_timeout is not None:
            self._idle = asyncio.get_running_loop().call_later(self.server.keepalive_timeout, self._end)

    def _end(self) -> None:
        """Close, and announce it if that is to be."""
        if self.server.announce_close:
            self.leave()
        self.transport.close()
        with contextlib.suppress(OSError):  # over TLS it would wait for the client to close, too
            self.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            if event.stream_id in self._bodies:
                self._bodies[event.stream_id][1].extend(event.data)
            if event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            if event.stream_id in self._bodies:
                self._answer(event.stream_id)
        elif isinstance(event, StreamReset):
            self.server.resets.append(int(event.error_code))
            self._bodies.pop(event.stream_id, None)
            if task := self._tasks.get(event.stream_id):
                task.cancel()
        elif isinstance(event, SettingsAcknowledged):
            self._settled = True
            self._end_after_response()
        elif isinstance(event, ConnectionTerminated):
            self.server.goodbyes.append(int(event.error_code))

    def _begin(self, event: RequestReceived) -> None:
        if self._leaving:
            return  # above the last stream that the GOAWAY named: somebody else's
        if self._idle:
            self._idle.cancel()
        self._last = event.stream_id
        self._seen += 1
        fields = dict(event.headers)
        parts = urlsplit(fields[":path"])
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        headers = [(name, value) for name, value in event.headers if not name.startswith(":")]
        request = Request(fields[":method"], parts.path, query, headers, b"")
        self._bodies[event.stream_id] = request, bytearray()
        if (request.header("expect") or "").lower() == "100-continue":
            self.h2.send_headers(event.stream_id, [(":status", "100")])
        if request.path in EARLY:
            self._answer(event.stream_id)
        if self._seen == self.server.limit:
            self.leave()

    def _answer(self, stream: int) -> None:
        server = self.server
        request, body = self._bodies.pop(stream)
        server.requests += 1
        self._door["requests"] += 1
        server.running += 1
        server.most_running = max(server.running, server.most_running)
        self._unanswered.add(stream)
        server.at_once[self.port] += 1
        server.most_at_once[self.port] = max(server.at_once[self.port], server.most_at_once.get(self.port, 0))
        if (name := request.header("x-id")) is not None:
            server.processed[name] += 1
            server.received.setdefault(name, []).append(len(body))
        task = asyncio.get_running_loop().create_task(self._serve(stream, request._replace(body=bytes(body))))
        self._tasks[stream] = task
        server.most_streams = max(len(self._tasks), server.most_streams)
        task.add_done_callback(lambda _: self._done(stream))  # of one cancelled before it began, too

    def answered(self, stream: int) -> None:
        """Count a request no more: what goes out now is the end of its response, and the client may send another."""
        if stream in self._unanswered:
            self._unanswered.discard(stream)
            self.server.at_once[self.port] -= 1

    def _done(self, stream: int) -> None:
        if self._tasks.pop(stream, None) is None:
            return
        self.server.running -= 1
        self.answered(stream)
        if self._leaving and not self._tasks and not self._bodies:
            # Not at once: what the client has sent meanwhile would turn the close into a RST, which destroys answers.
            asyncio.get_running_loop().call_later(LINGER, self.transport.close)
        elif not self._tasks and not self._bodies:
            self._rest()
            self._end_after_response()

    def _end_after_response(self) -> None:
        """Close if that is to be; not before the client has said all, which would turn the close into a RST."""
        if self.server.close_after_response and self._settled and self._seen and not self._tasks and not self._bodies:
            self._end()

    async def _serve(self, stream: int, request: Request) -> None:
        try:
            await self._respond(stream, request)
        finally:
            # In the turn in which the answer went out: what the client asks next may come before a callback.
            self._done(stream)

    async def _respond(self, stream: int, request: Request) -> None:
        exchange = Exchange(self, stream, request)
        # The client may have reset the stream, or gone.
        with contextlib.suppress(H2Error):
            if own := OWN.get(request.path):
                await own(exchange)
                return
            reply = http_server.PATHS.get(request.path, http_server.not_found)(request, self)  # type: ignore[arg-type]
            await asyncio.sleep(reply.pause)
            if reply.meets:
                all_are_there = asyncio.get_running_loop().create_future()
                self.server.meeting.join(reply.meets, lambda: all_are_there.set_result(None))
                await all_are_there
            await exchange.reply(reply)

    def leave(self, last: int | None = None) -> None:
        """Send GOAWAY, by hand: h2 would send nothing after it."""
        self._leaving = True
        self.flush()
        self.transport.write(GoAwayFrame(0, last_stream_id=self._last if last is None else last).serialize())

    async def room(self, stream: int) -> int:
        """Wait for the windows and the transport; return how many bytes may be sent."""
        while True:
            size = min(self.h2.local_flow_control_window(stream), LARGEST)
            if size > 0 and self.transport.get_write_buffer_size() < AHEAD:
                return size
            self._room.clear()
            await self._room.wait()


class Exchange:
    """A request and the way to answer it."""

    def __init__(self, connection: Connection, stream: int, request: Request) -> None:
        self.connection, self.stream, self.request = connection, stream, request

    @property
    def query(self) -> dict[str, str]:
        return self.request.query

    def head(self, status: int, *fields: tuple[str, str], end: bool = False) -> None:
        if end:
            self.connection.answered(self.stream)
        self.connection.h2.send_headers(self.stream, [(":status", str(status)), *fields], end_stream=end)
        self.connection.flush()

    async def body(self, data: bytes, *, end: bool = True) -> None:
        view, at = memoryview(data), 0
        while at < len(view):
            size = await self.connection.room(self.stream)
            piece = bytes(view[at : at + size])
            at += len(piece)
            if end and at == len(view):
                self.connection.answered(self.stream)
            self.connection.h2.send_data(self.stream, piece, end_stream=end and at == len(view))
            self.connection.flush()
        if end and not data:
            self.connection.answered(self.stream)
            self.connection.h2.end_stream(self.stream)
            self.connection.flush()

    async def reply(self, reply: Reply) -> None:
        if reply.kill:
            self.connection.transport.abort()
            return
        headers = [(name.lower(), value) for name, value in reply.headers]
        if reply.status not in (204, 304):
            headers.append(("content-length", str(len(reply.body))))
        empty = self.request.method == "HEAD" or reply.status in (204, 304)
        self.head(reply.status, *headers, end=empty)
        if not empty:
            await self.body(reply.body)

    def reset(self, code: int) -> None:
        self.connection.h2.reset_stream(self.stream, code)
        self.connection.flush()


# Below: the paths that only HTTP/2 has, or has in another way.


async def hello(exchange: Exchange) -> None:
    await exchange.reply(Reply(200, HELLO, [("Content-Type", "application/json")]))


async def big(exchange: Exchange) -> None:
    exchange.query["n"] = str(BIG)
    await number_of_bytes(exchange)


async def number_of_bytes(exchange: Exchange) -> None:
    """Send *n* zeros, with Content-Length unless *length* is 0."""
    left = int(exchange.query["n"])
    length = [("content-length", str(left))] if exchange.query.get("length") != "0" else []
    exchange.head(200, *length, end=exchange.request.method == "HEAD")
    if exchange.request.method == "HEAD":
        return
    while left > len(ZEROS):
        await exchange.body(ZEROS, end=False)
        left -= len(ZEROS)
    await exchange.body(ZEROS[:left])


async def chunked(exchange: Exchange) -> None:
    exchange.query["length"] = "0"
    await number_of_bytes(exchange)


async def half(exchange: Exchange) -> None:
    """Send 50 of 100 bytes, and reset the stream."""
    exchange.head(200, ("content-length", "100"))
    await exchange.body(bytes(50), end=False)
    exchange.reset(ErrorCodes.INTERNAL_ERROR)


async def trailer(exchange: Exchange) -> None:
    exchange.head(200, ("trailer", "x-checksum"))
    await exchange.body(b"with a trailer", end=False)
    exchange.connection.h2.send_headers(exchange.stream, [("x-checksum", "abc")], end_stream=True)
    exchange.connection.flush()


async def interim(exchange: Exchange) -> None:
    """Send *n* responses with 103 before the one that counts."""
    for _ in range(int(exchange.query.get("n", "1"))):
        exchange.head(103, ("link", "</style.css>; rel=preload"))
    await exchange.reply(http_server.root(exchange.request, exchange.connection))  # type: ignore[arg-type]


async def drip(exchange: Exchange) -> None:
    """Send *n* bytes, one each *s* seconds."""
    exchange.head(200)
    for left in reversed(range(int(exchange.query["n"]))):
        await asyncio.sleep(float(exchange.query.get("s", "0.05")))
        await exchange.body(b"x", end=not left)


async def reset(exchange: Exchange) -> None:
    """Reset the stream with *code*, *times* times for one x-id; then answer."""
    times = int(exchange.query.get("times", "1000000"))
    if exchange.connection.server.processed[exchange.request.header("x-id") or ""] > times:
        await exchange.reply(http_server.root(exchange.request, exchange.connection))  # type: ignore[arg-type]
    else:
        exchange.reset(int(exchange.query["code"]))


async def early(exchange: Exchange) -> None:
    """Answer before the body has come, and ask for no more of it (RFC 9113, section 8.1)."""
    await exchange.reply(Reply(413, b"too much"))
    exchange.reset(ErrorCodes.NO_ERROR)


async def goaway(exchange: Exchange) -> None:
    """Announce the end of the connection, finish what was begun after *s* seconds."""
    exchange.connection.leave()
    await asyncio.sleep(float(exchange.query.get("s", "0.05")))
    await exchange.reply(http_server.root(exchange.request, exchange.connection))  # type: ignore[arg-type]


OWN: dict[str, Callable[[Exchange], Any]] = {
    "/hello": hello,
    "/big": big,
    "/bytes": number_of_bytes,
    "/chunked": chunked,
    "/half": half,
    "/trailer": trailer,
    "/interim": interim,
    "/drip": drip,
    "/reset": reset,
    "/early": early,
    "/goaway": goaway,
}
EARLY = frozenset(("/early",))  # answered when the head is there
