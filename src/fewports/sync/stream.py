"""One request on a shared connection and its response, with what a response reads from a Wire and its Reader."""

from __future__ import annotations

from math import inf
from time import monotonic

from ..alert import alert_in
from ..http1 import Field, Head, RemoteProtocolError, Truncated
from ..http2 import ConnectionFailed, ProtocolError, Stream, Unprocessed
from ..http2.waiting import PREFETCH, ended, has_body, has_head, is_whole, may_repeat
from .shared import SharedWire
from .timer import timer

TOGETHER = 64 * 1024  # bytes of body that are sent with the head: the first window (RFC 9113, section 6.9.2)


class StreamWire:
    """The bytes of one stream, which its thread waits for. It has a seat until give_up_seat()."""

    chunked = excess = False
    persists = True
    idle_limit = None
    seated = False  # until the end of __init__(), in which a signal handler may raise

    def __init__(self, carrier: SharedWire, method: str) -> None:
        self.carrier = carrier
        self.stream: Stream | None = None
        self.method = method
        self.timeout: float | None = None  # seconds for which nothing may happen
        self.deadline: float | None = None
        self.failure: Exception | None = None  # why a body ended early
        self.closed = self.parted = self.encoded = self.preloads = False
        self.seated = True
        self.length: int | None = None

    def __del__(self) -> None:
        if self.seated and self.stream is not None:
            self.carrier.forsake(self.stream)
            timer.kick()

    # What a Wire says.

    @property
    def reader(self) -> StreamWire:
        return self

    @property
    def sock(self) -> StreamWire:
        """Stand for a socket: what is shut down is this stream."""
        return self

    def shutdown(self, how: int) -> None:
        """End the stream; who waits for it is told."""
        if self.stream is not None:
            self.carrier.leave(self.stream)

    def fileno(self) -> int:
        return self.carrier.fileno()

    def unhurried(self) -> None:
        """Forget the deadline."""
        self.deadline = None

    # What a Reader says.

    @property
    def started(self) -> bool:
        stream = self.stream
        return stream is not None and (stream.head is not None or stream.interim > 0)

    @property
    def interim(self) -> int:
        return self.stream.interim if self.stream is not None else 0

    @property
    def done(self) -> bool:
        stream = self.stream
        return stream is None or (stream.ended and not stream.buffered)

    @property
    def got(self) -> int:
        return self.stream.got if self.stream is not None else 0

    @property
    def reusable(self) -> bool:
        return True

    @property
    def ready(self) -> int:
        stream = self.stream
        return stream.buffered if stream is not None else 0

    @property
    def expects(self) -> int:
        """How many bytes of body are still to come, where the length is known."""
        stream = self.stream
        if stream is None or self.length is None:
            return self.ready
        return max(0, self.length - stream.got) + stream.buffered

    def take(self, limit: int | None = None) -> bytes:
        """Return what is here of the body, *limit* bytes at most."""
        stream = self.stream
        if stream is None or not stream.buffered:
            return b""
        pieces = self.carrier.take(stream, inf if limit is None else limit)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def whole(self) -> bytes | None:
        """Return the whole body if all of it is here, as long as it was said to be."""
        stream = self.stream
        if stream is None or not stream.ended or (self.length is not None and self.length != stream.buffered):
            return None
        self.length = stream.buffered
        return self.take()

    # What the face does.

    def ask(self, fields: tuple[Field, ...], body: bytes) -> None:
        """Send a request; raises Unprocessed, LocalProtocolError, TimeoutError."""
        carrier = self.carrier
        if not body:
            self.stream = carrier.open(fields, whole=True)
            return
        self.stream = carrier.open(fields, whole=False)
        self.send(body, end=True)

    def begin(self, fields: tuple[Field, ...]) -> None:
        """Send the head of a request whose body follows."""
        self.stream = self.carrier.open(fields, whole=False)

    def send(self, data: bytes | memoryview, *, end: bool = False) -> None:
        """Send a part of the body. What comes after the peer has answered, and wants no more, is dropped."""
        stream = self._opened()
        try:
            if data:
                self.carrier.send(stream, data, self.timeout, self.deadline)
            if end:
                self.carrier.finish(stream)
        except ProtocolError as error:
            if stream.head is None:
                raise (error if stream.error is None else self._error()) from None
            # It has answered: that is worth more than the error.

    def head(self) -> Head:
        """Wait for the head of the final response; where it ``preloads``, for the body too, if it is not large."""
        stream = self._opened()
        self.carrier.wait(stream, is_whole if self.preloads else has_head, self.timeout, self.deadline)
        block = stream.head
        if block is None:
            raise self._error()
        known = self.carrier.heads.of(block)
        self.encoded = known.encoded
        self.length = known.length(self.method)
        return known.head

    def read(self, size: int | None = None) -> bytes:
        """Return *size* bytes of body, or all that is left; less only at its end, and then see ``failure``."""
        stream = self._opened()
        pieces: list[bytes] = []
        left: float = inf if size is None else size
        while left > 0:
            if stream.buffered < left and not stream.ended and not stream.closed:
                self._wait_for(stream, min(left, PREFETCH))
            found = self.carrier.take(stream, left)
            pieces += found
            left -= sum(map(len, found))
            if stream.ended or (stream.closed and not stream.buffered and self._broken()):
                break
        if left > 0 and stream.buffered:  # it came just before the end
            pieces += self.carrier.take(stream, left)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wait_for(self, stream: Stream, count: float) -> None:
        """Wait until *count* bytes of body are here, or its end."""
        self.carrier.wait(stream, lambda it: it.buffered >= count or ended(it), self.timeout, self.deadline)

    def read_some(self, size: int | None = None) -> bytes:
        """Return what is there of the body, *size* bytes at most; wait only for the first of it."""
        stream = self._opened()
        if not stream.buffered:
            self.carrier.wait(stream, has_body, self.timeout, self.deadline)
        if not stream.buffered and not stream.ended:
            self._broken()
            return b""
        return self.take(65536 if size is None else size)

    def read_into(self, view: memoryview) -> int:
        """Fill the front of *view* with body; 0 at its end."""
        data = self.read_some(len(view))
        view[: len(data)] = data
        return len(data)

    def repeatable(self, error: BaseException, *, idempotent: bool) -> bool:
        """Say whether the request may be sent again: the peer did nothing with it, or that does no harm."""
        return may_repeat(self.stream, error, idempotent=idempotent)

    @property
    def over(self) -> bool:
        """Say whether nothing is left to be sent or read."""
        stream = self.stream
        return stream is None or (stream.closed and not stream.buffered)

    def part(self) -> None:
        """Give up the seat after a whole response that had it for itself."""
        if self.parted:
            self.leave()

    def close(self) -> None:
        """End the exchange: the peer is told, if it is not over."""
        self.closed = True
        if not self.over:
            self.carrier.leave(self._opened())
        if self.parted:
            self.leave()

    def leave(self) -> None:
        """End the exchange, and give up the seat."""
        if not self.closed:
            self.close()
        if self.seated:
            self.seated = False
            leave_seat(self.carrier)

    def _opened(self) -> Stream:
        if self.stream is None:
            raise Unprocessed("no request was sent")
        return self.stream

    def _broken(self) -> bool:
        """Note why a body ends early; raise where it is not the end of the connection."""
        stream = self._opened()
        if stream.error is None:
            if not (stream.closed and not stream.ended):
                return False
            self.failure = Truncated("the body", stream.got, None)
            return True
        if not isinstance(stream.error, ConnectionFailed) or stream.error.code is not None:
            raise stream.error
        if (alert := alert_in(self.carrier.cause)) is not None:
            raise alert
        expected = None if self.length is None else self.length - stream.got
        self.failure = Truncated("the body", stream.got, expected)
        return True

    def _error(self) -> Exception:
        """Return why there is no response."""
        stream = self._opened()
        error = stream.error
        if isinstance(error, ConnectionFailed) and error.code is None:
            if (cause := self.carrier.cause) is not None:
                return alert_in(cause) or ConnectionResetError(str(cause))
            return Truncated("front of any response", 0, None)
        return error or RemoteProtocolError("the end of the stream", "front of any response")


def leave_seat(carrier: SharedWire) -> None:
    """Give back a seat on *carrier*; the place goes another way."""
    if carrier.home is not None:
        for connection, reason in carrier.home.leave_seat(carrier, monotonic()):
            connection.end(reason)
