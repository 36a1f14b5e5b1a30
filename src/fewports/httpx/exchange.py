"""One request and its response on a connection, for threads: whoever has the response has the connection.

Each way out gives it back: the end of the body, close(), an error, a KeyboardInterrupt.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

from urllib3.exceptions import HTTPError

from .. import http1
from ..errors import FewportsError
from ..events import CloseReason
from ..gated import GatedSocket
from ..sync.stream import StreamWire
from ..sync.wire import TOGETHER, Wire
from ..urllib3 import HTTPConnection, HTTPConnectionPool
from .errors import cut_short, in_connecting, in_receiving, is_unconnected
from .libraries import SyncByteStream
from .message import Call, extensions_of, is_tunnel, traced_head
from .network import NetworkStream
from .trace import Step, complete, failed, started

REPEATS = 8  # of a request that a server has not looked at; each time on another connection
BACKOFF = 0.5  # seconds before the second time that a connection is tried again, doubled each time: httpcore's

Trace = Callable[[str, dict[str, Any]], object]


class Route(NamedTuple):
    """The way to an origin: its pool, whether through a tunnel, and what a proxy that forwards is told besides."""

    pool: HTTPConnectionPool
    tunnelled: bool = False
    front: bytes = b""
    fields: list[tuple[bytes, bytes]] | None = None


class Exchange:
    """One request, on a connection that it has until the response is closed."""

    __slots__ = (*("_begun", "_call", "_conn", "_keeps", "_over", "_pool", "_route", "_trace", "_tunnel", "_wire"),)

    _conn: HTTPConnection
    _wire: Wire | StreamWire

    def __init__(self, route: Route, call: Call, keeps: bool) -> None:
        self._route = route
        self._pool = route.pool
        self._call = call
        self._keeps = keeps
        self._trace: Trace | None = call.extensions.get("trace")
        self._over = True
        self._tunnel = False
        self._begun = False  # to iterate the body, which can be done once

    def run(self, retries: int) -> Any:
        """Send the request and receive the head of the response; return the library's Response.

        A connection that cannot be made is tried *retries* times more.
        """
        for tried in itertools.count():
            self._connect(retries)
            try:
                wire = self._wire
                if isinstance(wire, Wire):
                    self._send(wire)
                else:
                    self._send_stream(wire)
                return self._respond(self._receive())
            except BaseException as error:
                again = tried < REPEATS and self._unanswered(error)
                self._break_off(CloseReason.PEER_CLOSED if again else CloseReason.DONE)
                if not again:
                    raise
        raise AssertionError("it returns or raises")

    def pieces(self, ahead: list[bytes]) -> Iterator[bytes]:
        """Give the body as it comes, after what is there already; the connection goes back with the last of it."""
        if self._over:
            raise self._call.library.error("StreamClosed")()
        reader = self._wire.reader
        try:
            with self._step("receive_response_body", request=True):
                yield from ahead
                while not reader.done:
                    if piece := self._piece():
                        yield piece
        except BaseException:
            self.close()
            raise
        self.close()

    def close(self) -> None:
        """Give the connection back; closed, if the body was not read to its end."""
        if self._over:
            return
        with self._step("response_closed"):
            wire = self._wire
            if self._tunnel or not wire.reader.done:
                self._break_off(CloseReason.DONE)
                return
            self._over = True
            if isinstance(wire, StreamWire):
                if not self._keeps:
                    wire.carrier.expires = 0.0  # so it closes with its last stream
            elif not self._keeps or self._call.fields.close or not wire.reader.reusable:
                wire.part()
                self._conn.close()
            self._pool.give_back(self._conn)

    def _connect(self, retries: int) -> None:
        """Take an idle connection, or make one."""
        conn = self._pool.take(None)
        try:
            if conn is None:
                conn = self._pool._new_conn()  # type: ignore[assignment]
            assert conn is not None
            self._conn = conn
            if conn.is_closed:
                self._dial(conn, retries)
            rider = conn.rider
            self._wire = conn._wired() if rider is None else rider.begin(self._call.method)
        except BaseException:
            if conn is not None:
                conn.close()
            self._pool.give_back(conn)
            raise
        self._over = False

    def _dial(self, conn: HTTPConnection, retries: int) -> None:
        call = self._call
        conn.timeout, conn.wait = call.timeouts.get("connect"), call.timeouts.get("pool")
        for tried in itertools.count():
            try:
                if self._trace is not None:
                    self._dial_traced(conn)
                else:
                    self._dial_once(conn)
                return
            except (OSError, HTTPError, FewportsError) as error:
                found = in_connecting(call.library, error)
                if tried >= retries or not is_unconnected(call.library, found):
                    raise found from error
                conn.close()
            with self._step("connection.retry"):
                time.sleep(BACKOFF * 2 ** (tried - 1) if tried else 0.0)

    def _dial_once(self, conn: HTTPConnection) -> None:
        if self._route.tunnelled:
            self._pool._prepare_proxy(conn)
        else:
            conn.connect()

    def _dial_traced(self, conn: HTTPConnection) -> None:
        call, peer = self._call, conn.peer
        step = "connection.connect_tcp"

        def dialled(sock: GatedSocket) -> None:
            nonlocal step
            if call.origin.scheme == "https":
                self._tell(complete(step, NetworkStream(call.library, sock)))
                step = "connection.start_tls"
                name = call.origin.sni or call.origin.host
                self._tell(started(step, {"server_hostname": name, "timeout": conn.timeout}))

        conn.when_dialled = dialled
        try:
            self._tell(started(step, {"host": peer.host, "port": peer.port, "timeout": conn.timeout}))
            self._dial_once(conn)
        except BaseException as error:
            self._tell(failed(step, error))
            raise
        finally:
            conn.when_dialled = None
        self._tell(complete(step, NetworkStream(call.library, self._sock)))

    @property
    def _sock(self) -> socket.socket | None:
        rider = self._conn.rider
        return self._conn.sock if rider is None else rider.carrier.sock

    def _send(self, wire: Wire) -> None:
        """Send the request; a peer that takes no more of it may have answered already."""
        call, conn = self._call, self._conn
        head, body = call.head(self._route.fields, self._route.front), call.body
        conn._sent = False
        wire.deadline = None
        wire.patience(call.timeouts.get("write"))
        wire.reader.begin(call.method, sending=body is None, upgrade=call.fields.upgrade)
        with self._step("send_request_headers", request=True):
            if body is not None and len(body) <= TOGETHER:
                head, body = head + body, b""
            going = self._push(wire, head)
        with self._step("send_request_body", request=True):
            if body is None:
                self._send_pieces(wire, going)
            elif body and going:
                self._push(wire, body)

    def _send_pieces(self, wire: Wire, going: bool) -> None:
        call, sent = self._call, 0
        self._begun = going
        for piece in call.request.stream if going else ():
            data = call.framed(piece, sent)
            sent += len(piece)
            if data and not self._push(wire, data):
                return
        if going and self._push(wire, call.framed_end(sent)):
            wire.reader.sent()

    def _send_stream(self, wire: StreamWire) -> None:
        """Send the request as a stream of HTTP/2; a body in pieces as they come."""
        call, content = self._call, self._call.content
        wire.timeout = call.timeouts.get("write")
        fields = call.stream_fields()
        with self._step("send_request_headers", request=True):
            try:
                if content is None:
                    wire.begin(fields)
                else:
                    wire.ask(fields, content)
            except (OSError, http1.ProtocolError) as error:
                raise self._unsent(error) from error
        with self._step("send_request_body", request=True):
            sent = 0
            self._begun = content is None
            for piece in call.request.stream if content is None else ():
                call.counted(piece, sent)
                sent += len(piece)
                self._push_stream(wire, piece)
            if content is None:
                call.counted_end(sent)
                self._push_stream(wire, b"", end=True)

    def _push_stream(self, wire: StreamWire, data: bytes, *, end: bool = False) -> None:
        if not data and not end:
            return
        try:
            wire.send(data, end=end)
        except (OSError, http1.ProtocolError) as error:
            raise self._unsent(error) from error

    def _unsent(self, error: Exception) -> Exception:
        """Return what the library would raise for a stream that could not be sent."""
        library = self._call.library
        if isinstance(error, TimeoutError):
            return library.error("WriteTimeout")(str(error))
        return in_receiving(library, error)

    def _push(self, wire: Wire, data: bytes) -> bool:
        """Send *data*; False where the peer takes no more."""
        conn = self._conn
        try:
            if conn._sent:
                wire.sock.sendall(data)
            else:
                conn._send(wire, data, b"")
        except TimeoutError as error:
            raise self._call.library.error("WriteTimeout")(str(error)) from error
        except OSError:
            return False
        return True

    def _receive(self) -> http1.Head:
        wire, seconds = self._wire, self._call.timeouts.get("read")
        with self._step("receive_response_headers", request=True) as step:
            try:
                if isinstance(wire, Wire):
                    wire.patience(seconds)
                else:
                    wire.timeout = seconds
                head = wire.head()
            except (OSError, http1.ProtocolError) as error:
                raise in_receiving(self._call.library, error) from error
            if step is not None:
                step.value = traced_head(head)
        return head

    def _respond(self, head: http1.Head) -> Any:
        """Make the Response; where all of it is there already, the connection goes back before anybody reads."""
        library, wire = self._call.library, self._wire
        reader = wire.reader
        self._tunnel = is_tunnel(head, self._call.method)
        network = NetworkStream(library, self._sock, wire.reader.beyond if isinstance(wire, Wire) else b"")
        ahead = [] if self._tunnel else self._ahead()
        stream: Any
        if reader.done and self._trace is None and not self._tunnel:
            stream = library.bytes(b"".join(ahead))
            self.close()
        else:
            stream = Stream(self, ahead)
        extensions = extensions_of(head, network)
        if isinstance(wire, StreamWire) and wire.stream is not None:
            extensions["stream_id"] = wire.stream.id
        return library.response(head.status, headers=head.raw_fields(), stream=stream, extensions=extensions)

    def _ahead(self) -> list[bytes]:
        """Return what came of the body with the head."""
        reader = self._wire.reader
        pieces: list[bytes] = []
        try:
            while piece := reader.take():
                pieces.append(bytes(piece))
        except http1.RemoteProtocolError:
            pass  # each call raises it: whoever reads on is told
        return pieces

    def _piece(self) -> bytes:
        wire, library = self._wire, self._call.library
        if self._over:
            raise library.error("StreamClosed")()
        try:
            piece = wire.read_some()
        except (OSError, http1.ProtocolError) as error:
            raise in_receiving(library, error) from error
        if wire.failure is not None:
            raise cut_short(library, wire.reader.got, wire.reader.length) from wire.failure
        return piece

    def _unanswered(self, error: BaseException) -> bool:
        """Say whether to send the request again: on a connection that was kept it met the end of that."""
        cause = error.__cause__
        if not isinstance(cause, Exception) or self._begun:
            return False
        if isinstance(cause, http1.Truncated) and self._conn.rider is None and not self._wire.reader.interim:
            cause = ConnectionResetError()
        return self._conn.unanswered(self._call.method, cause)

    def _break_off(self, reason: CloseReason) -> None:
        if not self._over:
            self._over = True
            self._conn.end(reason)
            self._pool.give_back(self._conn)

    def _tell(self, step: Step) -> None:
        if self._trace is not None:
            self._trace(step.name, step.info)

    def _step(self, name: str, *, request: bool = False) -> AbstractContextManager[Any]:
        """Have the trace, if there is one, told of what begins and ends here."""
        if self._trace is None:
            return _SILENT
        if "." not in name:
            name = f"{'http11' if isinstance(self._wire, Wire) else 'http2'}.{name}"
        return _Told(self._trace, name, {"request": self._call.traced()} if request else {})


class Stream(SyncByteStream):
    """The body of a response as it comes."""

    def __init__(self, exchange: Exchange, ahead: list[bytes]) -> None:
        self._exchange = exchange
        self._ahead = ahead

    def __iter__(self) -> Iterator[bytes]:
        return self._exchange.pieces(self._ahead)

    def close(self) -> None:
        self._exchange.close()


class _Told:
    """A step of which a callback is told when it begins and ends, with the *value* that came of it."""

    def __init__(self, trace: Trace, name: str, info: dict[str, Any]) -> None:
        self._trace = trace
        self._name = name
        self._info = info
        self.value: object = None

    def __enter__(self) -> _Told:
        self._trace(*started(self._name, self._info))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._trace(*(complete(self._name, self.value) if error is None else failed(self._name, error)))


_SILENT = nullcontext()
