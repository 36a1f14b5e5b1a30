"""One request and its response in a task, over the engine of fewports.aio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import anyio

from .. import aio, http1
from .. import errors as ours
from ..aio.connection import Connection
from ..aio.ride import Ride
from ..gated import GatedSocket
from ..standing import Turn
from .async_network import AsyncNetworkStream
from .errors import NO_RESPONSE, BudgetExhausted, NoUsableSource, cut_short, is_unconnected
from .exchange import BACKOFF
from .libraries import AsyncByteStream, Library
from .message import Call, extensions_of, flaw_of, is_tunnel, traced_head
from .trace import Step, complete, failed, started

# What the engine raises, but for what stays as it is.
ENGINE = (aio.ExchangeError, http1.ProtocolError, ours.BudgetExhausted, ours.NoUsableSource)
_TIMEOUTS = {
    aio.Stage.CONNECT: "ConnectTimeout",
    aio.Stage.TLS: "ConnectTimeout",
    aio.Stage.WRITE: "WriteTimeout",
    aio.Stage.READ: "ReadTimeout",
}
_SILENT: AbstractAsyncContextManager[None] = nullcontext()

Trace = Callable[[str, dict[str, Any]], Awaitable[object]]


class Times(aio.Times):
    """The time-outs of a request, on their way through the engine with who is told of its steps."""

    call: Call
    trace: Trace


class Linked(Connection):
    """A connection that tells of the steps of a request."""

    async def exchange(self, request: aio.Request, times: aio.Times, whole: bool) -> aio.Exchange:
        exchanging = super().exchange(request, times, whole)
        return await (_telling(times, "http11", exchanging) if isinstance(times, Times) else exchanging)


class Riding(Ride):
    """A request on a shared connection that tells of its steps."""

    __slots__ = ()

    async def exchange(self, request: aio.Request, times: aio.Times, whole: bool) -> aio.Exchange:
        exchanging = super().exchange(request, times, whole)
        return await (_telling(times, "http2", exchanging) if isinstance(times, Times) else exchanging)


async def _telling(times: Times, protocol: str, exchanging: Coroutine[Any, Any, aio.Exchange]) -> aio.Exchange:
    # What is sent is handed to the loop, and the answer waited for, in one go.
    info = {"request": times.call.traced()}
    exchange: aio.Exchange | None = None
    try:
        for step in ("send_request_headers", "send_request_body"):
            async with _Told(times.trace, f"{protocol}.{step}", info):
                pass
        async with _Told(times.trace, f"{protocol}.receive_response_headers", info) as told:
            exchange = await exchanging
            told.value = traced_head(exchange.head)
    except BaseException:
        if exchange is not None:
            exchange.forget()  # who asked for it discards the connection, once
        raise
    finally:
        exchanging.close()  # who was told may have raised before it began
    return exchange


class Presets(aio.Presets):
    """Sets of fields as bytes, of values that HTTP/1.1 takes from these libraries."""

    def __missing__(self, fields: aio.Fields) -> http1.Preset:
        if flaw := flaw_of(fields):
            raise http1.LocalProtocolError(flaw)
        return super().__missing__(fields)


class Pool(aio.OriginPool):
    """The engine's pool, with connections that tell."""

    kind = Linked
    ride = Riding
    presets = Presets

    async def _dial(
        self, times: aio.Times, ticket: int | None = None, turn: Turn | None = None
    ) -> GatedSocket | aio.Pooled:
        if not isinstance(times, Times):
            return await super()._dial(times, ticket, turn)
        info = {"host": self.origin.host, "port": self.origin.port, "timeout": times.connect}
        outcome: GatedSocket | aio.Pooled | None = None
        try:
            async with _Told(times.trace, "connection.connect_tcp", info) as told:
                outcome = await super()._dial(times, ticket, turn)
                sock = outcome if isinstance(outcome, GatedSocket) else outcome.link.sock
                told.value = AsyncNetworkStream(times.call.library, sock)
        except BaseException:  # of the callback, which may wait, and be cancelled
            if isinstance(outcome, GatedSocket):
                outcome.close()
            else:
                self._return(outcome)
            raise
        return outcome

    async def _secure(self, connection: Connection, tls: aio.Tls, times: aio.Times) -> None:
        trace = times.trace if isinstance(times, Times) else None
        info = {"server_hostname": tls.hostname, "timeout": times.connect}
        async with _Told(trace, "connection.start_tls", info) if trace else _SILENT as told:
            try:
                await super()._secure(connection, tls, times)
            except aio.Disconnected as error:
                raise aio.NotConnected(str(error.__cause__)) from error.__cause__
            if told is not None and isinstance(times, Times):
                told.value = AsyncNetworkStream(times.call.library, connection.link.sock, connection.link.session)


class Route(NamedTuple):
    """The way to an origin: its pool, and what a proxy that forwards is told besides."""

    pool: Pool
    front: bytes = b""
    fields: list[tuple[bytes, bytes]] | None = None


async def run(route: Route, call: Call, retries: int, keeps: bool) -> Any:
    """Send the request and receive the head of the response; return the library's Response.

    A connection that cannot be made is tried *retries* times more; one is kept if *keeps*.
    """
    fields, target = call.addressed(route.fields, route.front)
    body: Any = call.content
    if body is None:
        body = _counted(call)
    elif not body and not fields.chunked:
        body = None
    asked = aio.Request(call.method, target, fields.raw, body, fields.upgrade)
    seconds = call.timeouts.get
    times = aio.Times(seconds("connect"), seconds("read"), seconds("write"), seconds("pool"))
    trace: Trace | None = call.extensions.get("trace")
    if trace is not None:
        times = Times(*times)
        times.call, times.trace = call, trace
    tried = 0
    while True:
        try:
            exchange = await route.pool.exchange(asked, times)
            break
        except _BodyFailed as failure:
            raise failure.error from None
        except ENGINE as error:
            found = translated(call.library, error)
            if tried >= retries or not is_unconnected(call.library, found):
                raise found from error
        async with _Told(trace, "connection.retry", {}) if trace else _SILENT:
            await anyio.sleep(BACKOFF * 2 ** (tried - 1) if tried else 0.0)
        tried += 1
    try:
        return await _respond(exchange, call, trace, keeps)
    except BaseException:
        await exchange.release()
        raise


def translated(library: Library, error: Exception) -> Exception:
    """Return what the library would raise for an error of the engine."""
    if isinstance(error, ours.BudgetExhausted):
        return BudgetExhausted(error)
    if isinstance(error, ours.NoUsableSource):
        return NoUsableSource(error)
    if isinstance(error, aio.TimedOut):
        return library.error(_TIMEOUTS[error.stage])(str(error))
    if isinstance(error, aio.TunnelRefused):
        return library.error("ProxyError")(f"{error.status} {error.reason}")
    if isinstance(error, aio.SocksRefused):
        return library.error("ProxyError")(str(error))
    if isinstance(error, http1.LocalProtocolError):
        return library.error("LocalProtocolError")(str(error))
    cause = error.__cause__
    if isinstance(error, http1.Truncated) or isinstance(cause, http1.Truncated):
        return library.error("RemoteProtocolError")(NO_RESPONSE)
    if isinstance(error, http1.RemoteProtocolError):
        return library.error("RemoteProtocolError")(str(error))
    return library.error("ReadError" if isinstance(error, aio.Disconnected) else "ConnectError")(str(cause or error))


async def _respond(exchange: aio.Exchange, call: Call, trace: Trace | None, keeps: bool) -> Any:
    """Make the Response; where all of it is there already, the connection goes back before anybody reads."""
    library, head, connection = call.library, exchange.head, exchange.connection
    assert connection is not None
    network = AsyncNetworkStream(library, connection.link.sock, connection.link.session)
    stream: Any
    if isinstance(connection, Connection) and is_tunnel(head, call.method):
        exchange.forget()
        network.take_over(connection)
        stream = Stream(exchange, call, trace, network)
    else:
        if isinstance(connection, Ride):
            connection.keeps = keeps
        elif not keeps or call.fields.close:
            connection.aged = 0.0  # too old to go back
        if exchange.ready and trace is None:
            stream = library.bytes(await exchange.read())
        else:
            stream = Stream(exchange, call, trace, None)
    extensions = extensions_of(head, network)
    if exchange.stream_id is not None:
        extensions["stream_id"] = exchange.stream_id
    return library.response(head.status, headers=head.raw_fields(), stream=stream, extensions=extensions)


class Stream(AsyncByteStream):
    """The body of a response as it comes; after 101 it has none, and the connection is that of *network*.

    It is its own iterator, so that nothing is left behind by who stops in the middle.
    """

    def __init__(
        self, exchange: aio.Exchange, call: Call, trace: Trace | None, network: AsyncNetworkStream | None
    ) -> None:
        self._exchange = exchange
        self._call = call
        self._trace = trace
        self._network = network
        self._over = False
        self._protocol = "http2" if exchange.stream_id is not None else "http11"
        self._reading: _Told | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._over:
            raise self._call.library.error("StreamClosed")()
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise self._call.library.error("StreamClosed")()
        if self._trace is not None and self._reading is None:
            self._reading = await _Told(
                self._trace, f"{self._protocol}.receive_response_body", {"request": self._call.traced()}
            ).__aenter__()
        try:
            piece = b"" if self._network is not None else await self._piece()
        except BaseException as error:
            await self._end(error)
            raise
        if not piece:
            await self._end(None)
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        if self._over:
            return
        self._over = True
        async with _Told(self._trace, f"{self._protocol}.response_closed", {}) if self._trace else _SILENT:
            if self._network is not None:
                await self._network.aclose()
            else:
                await self._exchange.release()

    async def _end(self, error: BaseException | None) -> None:
        if self._reading is not None:
            await self._reading.__aexit__(type(error) if error else None, error, None)
        await self.aclose()

    async def _piece(self) -> bytes:
        exchange, library = self._exchange, self._call.library
        try:
            return await exchange.piece()
        except http1.Truncated as error:
            raise cut_short(library, error.got, exchange.length) from error
        except ENGINE as error:
            raise translated(library, error) from error


class _BodyFailed(Exception):
    """What the caller's own body raised, past those who would take it for an error of the connection."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(error)


async def _counted(call: Call) -> AsyncIterator[bytes]:
    """Give the pieces of a request body as long as they are no more than was announced."""
    sent = 0
    pieces = aiter(call.request.stream)
    try:
        async for piece in pieces:
            call.framed(piece, sent)
            sent += len(piece)
            yield piece
        call.framed_end(sent)
    except Exception as error:
        raise _BodyFailed(error) from error
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


class _Told:
    """A step of which a callback is told when it begins and ends, with the *value* that came of it."""

    def __init__(self, trace: Trace, name: str, info: dict[str, Any]) -> None:
        self._trace = trace
        self._name = name
        self._info = info
        self.value: object = None

    async def __aenter__(self) -> _Told:
        await self._tell(started(self._name, self._info))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._tell(complete(self._name, self.value) if error is None else failed(self._name, error))

    async def _tell(self, step: Step) -> None:
        await self._trace(step.name, step.info)
