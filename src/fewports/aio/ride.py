"""One request on a shared connection and its response, with what an Exchange and a pool ask of a Connection."""

from __future__ import annotations

from time import monotonic

from ..alert import alert_in
from ..events import CloseReason
from ..http1 import IDEMPOTENT, RemoteProtocolError, Truncated
from ..http2 import ConnectionFailed, LocalProtocolError, ProtocolError, Stream, Unprocessed
from ..http2.message import request_fields
from ..http2.waiting import Ready, has_body, has_head, is_whole, may_repeat
from ..sync.timer import timer
from .errors import Disconnected, Stage, TimedOut
from .exchange import Exchange
from .http2 import SharedConnection
from .request import Request, Times, each
from .seam import Link

PIECE = 65536  # bytes of body that are handed out at once where no limit is given


class Ride:
    """A seat on a shared connection, for one exchange."""

    __slots__ = ("_times", "carrier", "encoded", "keeps", "length", "stream")
    chunked = False

    def __init__(self, carrier: SharedConnection) -> None:
        self.carrier = carrier
        self.stream: Stream | None = None
        self.encoded = False
        self.keeps = True  # else the connection closes with its last exchange
        self.length: int | None = None

    # What an Exchange and the pool ask.

    @property
    def reader(self) -> Ride:
        return self

    @property
    def link(self) -> Link:
        return self.carrier.link

    @property
    def stream_id(self) -> int | None:
        return None if self.stream is None else self.stream.id

    @property
    def done(self) -> bool:
        """Say whether the response has ended, and nobody waits for more of it."""
        stream = self.stream
        return stream is not None and stream.ended

    @property
    def whole(self) -> bool:
        """Say whether the response is here to its end."""
        return self.done

    @property
    def pending(self) -> bool:
        """Say whether some of the body is there that nobody has read."""
        return self.stream is not None and self.stream.buffered > 0

    @property
    def clean(self) -> bool:
        """Say whether nothing is left to be sent or read."""
        stream = self.stream
        return stream is None or (stream.closed and not stream.buffered)

    @property
    def begun(self) -> bool:
        """Say whether something of the request has been sent."""
        return self.stream is not None

    def give_back(self) -> None:
        """Give the seat back, with its place."""
        home = self.carrier.home
        if not self.keeps:
            self.carrier.expires = 0.0
        for other, reason in home.give_back(self.carrier, monotonic()):
            other.end(reason)
        timer.watch_pool(home)

    async def settle(self) -> None:
        """End the exchange: the stream is reset, if something is left of it."""
        self.discard()

    def discard(self, reason: CloseReason = CloseReason.DONE) -> None:
        """End the exchange, and give back the seat; the connection goes on."""
        try:
            if not self.clean and self.stream is not None:
                self.carrier.leave(self.stream)
        finally:
            self.give_back()

    def end(self, reason: CloseReason) -> None:
        """Close the whole connection."""
        self.carrier.end(reason)

    # What an exchange does.

    async def exchange(self, request: Request, times: Times, whole: bool) -> Exchange:
        """Send *request* and receive the head of its response, or the *whole* of it."""
        carrier, body, sets = self.carrier, request.body, self.carrier.sets
        self._times = times
        length = len(body) if isinstance(body, bytes) else None
        fields = request_fields(request.method, sets.scheme, request.target, sets[request.fields], length)
        stream = self.stream = carrier.open(fields, whole=not body)
        if body:
            try:
                if type(body) is bytes:
                    await carrier.send(stream, body, times.write, times.deadline, end=True)
                elif await each(body, self._put):
                    await carrier.send(stream, b"", times.write, times.deadline, end=True)
            except TimeoutError as error:
                raise TimedOut(Stage.WRITE) from error
            except LocalProtocolError:
                raise
            except ProtocolError:
                if stream.head is None:
                    failure = self._error()
                    raise failure from failure.__cause__
                # It has answered: that is worth more than the error.
        try:
            await carrier.wait(stream, is_whole if whole else has_head, times.read, times.deadline)
        except TimeoutError as error:
            raise TimedOut(Stage.READ) from error
        block = stream.head
        if block is None:
            raise self._error()
        known = carrier.heads.of(block)
        self.encoded = known.encoded
        self.length = known.length(request.method)
        return Exchange(self, known.head, await self._content(times.deadline) if whole else None)

    def unanswered(self, method: str, error: BaseException) -> bool:
        """Say whether the request that failed may be sent again."""
        if not isinstance(error, (ProtocolError, Disconnected)):
            return False
        return may_repeat(self.stream, error, idempotent=method in IDEMPOTENT)

    def fault(self, error: Exception) -> Exception:
        """Say in the words of this floor what ended an exchange."""
        return RemoteProtocolError(str(error), "the request") if isinstance(error, Unprocessed) else error

    async def piece(self, limit: int | None, *, whole: bool = False) -> bytes:
        """Return what is there of the body, *limit* bytes at most, or *whole*: all that is left; b"" at its end.

        Raises TimedOut, or what broke it off.
        """
        stream = self._opened()
        if whole:
            return await self._content(None)
        if not stream.buffered:
            await self._wait(stream, has_body, None)
        if not stream.buffered:
            if stream.ended:
                return b""
            raise self._broken()
        left = PIECE if limit is None else limit
        pieces = []
        while left > 0 and stream.buffered:
            pieces.append(stream.take(left))
            left -= len(pieces[-1])
        if not stream.ended:
            self.carrier.soon()  # the peer may send so much more
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # Below: of one exchange.

    def _opened(self) -> Stream:
        if self.stream is None:
            raise Unprocessed("no request was sent")
        return self.stream

    async def _put(self, piece: bytes) -> bool:
        if not piece:
            return True
        times = self._times
        return await self.carrier.send(self._opened(), piece, times.write, times.deadline, end=False)

    async def _content(self, deadline: float | None) -> bytes:
        """Take all that is left of the body."""
        stream = self._opened()
        pieces: list[bytes] = []
        while True:
            while stream.buffered:
                pieces.append(stream.take())
            if stream.ended:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if stream.closed:
                raise self._broken()
            self.carrier.soon()
            await self._wait(stream, is_whole, deadline)

    async def _wait(self, stream: Stream, ready: Ready, deadline: float | None) -> None:
        try:
            await self.carrier.wait(stream, ready, self._times.read, deadline)
        except TimeoutError as error:
            raise TimedOut(Stage.READ) from error

    def _broken(self) -> Exception:
        """Return why a body ends early."""
        stream = self._opened()
        error = stream.error
        if error is not None and not (isinstance(error, ConnectionFailed) and error.code is None):
            return self.fault(error)
        if (alert := alert_in(self.carrier.cause)) is not None:
            failure = Disconnected(True)
            failure.__cause__ = alert
            return failure
        return Truncated("the body", stream.got, None if self.length is None else self.length - stream.got)

    def _error(self) -> Exception:
        """Return why there is no response."""
        stream = self._opened()
        error = stream.error
        if isinstance(error, ConnectionFailed) and error.code is None:
            failure = Disconnected(stream.interim > 0)
            cause = self.carrier.cause
            failure.__cause__ = None if cause is None else alert_in(cause) or ConnectionResetError(str(cause))
            return failure
        return error or RemoteProtocolError("the end of the stream", "front of any response")
