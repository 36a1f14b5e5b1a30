"""One exchange of an HTTP/2 connection, as its owner sees it: what came, what may be sent, how it ended.

Sections are those of RFC 9113 unless another RFC is named. Two sides, each of which ends once:

side      goes on until                                                 then
ours      send(end=True), send_trailer(), open(end=True)                ``sent``
theirs    the peer's END_STREAM: head, body and trailer are whole       ``ended``
both      reset() by the owner; ``error`` by peer, rule or connection   ``closed``

A stream that has both ``sent`` and ``ended`` is ``closed`` too. A closed stream holds no seat; what came of the body
stays with it until it is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..http1 import MAX_INTERIM, MAX_LENGTH, Field
from .errors import Code, ConnectionFailed, LocalProtocolError, Malformed, ProtocolError, Unprocessed
from .fields import Block, Request, check_trailer

if TYPE_CHECKING:
    from .connection import Connection

SMALL = 2048  # bytes: smaller pieces of a body share a buffer, so that one-byte frames do not cost 40 bytes each
JOINED = 64 * 1024  # bytes of such a buffer

_NOT_IN_TRAILERS = frozenset(("content-length", "trailer"))  # RFC 9110, section 6.5.1: they would decide something


class Seat:
    """The right to open one stream. Used once: by open(), or given back by release()."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection

    def open(self, fields: Iterable[Field], *, end: bool) -> Stream:
        """Send a request head (pseudo-header fields first), and the end of the request with it if *end*.

        Raises LocalProtocolError for a head that must not be sent (the seat is kept), Unprocessed if the connection
        takes no new stream any more (the seat is gone).
        """
        return self._owner().open(fields, end=end, seat=self)

    def release(self) -> None:
        """Give the seat back unused. A second release raises LocalProtocolError."""
        self._owner()._give_back(self)

    def _owner(self) -> Connection:
        if self._connection is None:
            raise LocalProtocolError("this seat was used or given back before")
        return self._connection

    def __repr__(self) -> str:
        return f"<Seat {'held' if self._connection else 'gone'}>"


class Stream:
    """A request on its way and its response.

    ``head``: the final one; ``interim``: so many with 1xx came, ``continued``: 100 among them. ``trailer``: its
    fields, once ``ended``. ``got``: so many bytes of body came, ``buffered``: so many of them wait to be taken.
    ``repeatable``: the peer certainly did nothing with the request. ``kept``: when it was opened, the connection had
    answered another.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_offset",
        "_returned",
        "_to_come",
        "_to_send",
        "_window",
        "buffered",
        "closed",
        "continued",
        "ended",
        "error",
        "got",
        "head",
        "id",
        "interim",
        "kept",
        "method",
        "repeatable",
        "sent",
        "trailer",
    )

    def __init__(self, connection: Connection, number: int, request: Request) -> None:
        self._connection = connection
        self._body: deque[bytes | bytearray] = deque()
        self._offset = 0  # of the first piece: so much was taken
        self._returned = 0  # bytes that the peer may send again, and is not told yet
        self._window = connection.stream_window  # bytes that it may send
        self._to_come: int | None = None  # bytes of the body, if they were announced
        self._to_send = request.length
        self.id = number
        self.method = request.method
        self.head: Block | None = None
        self.trailer: tuple[tuple[str, str], ...] = ()
        self.interim = self.got = self.buffered = 0
        self.continued = self.sent = self.ended = self.closed = self.repeatable = False
        self.error: ProtocolError | None = None
        self.kept = connection.answered

    @property
    def unheard(self) -> bool:
        """Whether it met the end of a connection that was kept, and nothing came that says what became of it."""
        if self.head is not None or self.interim or self._connection.told_last:
            return False
        return self.kept and isinstance(self.error, ConnectionFailed) and self.error.code is None

    def take(self, limit: int = MAX_LENGTH) -> bytes:
        """Return up to *limit* bytes of the body, or b"" if none are here: then look at ``ended``.

        What came before an error is given first; then the error is raised.
        """
        if not self._body:
            if self.error is not None:
                raise self.error
            return b""
        piece = self._body[0]
        if not self._offset and len(piece) <= limit:
            self._body.popleft()
            data = bytes(piece)
        else:
            data = bytes(memoryview(piece)[self._offset : self._offset + limit])
            self._offset += len(data)
            if self._offset == len(piece):
                self._body.popleft()
                self._offset = 0
        self.buffered -= len(data)
        self._give_back(len(data))
        return data

    def send(self, data: bytes | bytearray | memoryview, *, end: bool = False) -> int:
        """Send what the windows allow of a part of the body; return how many bytes that was.

        The request ends with *data* if *end*, and all of it was accepted. If fewer bytes were, offer the others again
        when the stream wakes. Once the response has ended and the peer wants no more, everything is accepted.
        """
        if self._unwanted():
            return len(data)
        if self._to_send is not None and (len(data) > self._to_send or (end and len(data) < self._to_send)):
            raise LocalProtocolError(f"{len(data)} bytes of body where Content-Length leaves {self._to_send}")
        count = self._connection._send(self, data, end)
        if self._to_send is not None:
            self._to_send -= count
        return count

    @property
    def room(self) -> int:
        """How many bytes send() would accept now, if it is more than 0."""
        return 0 if self.closed else self._connection._room(self)

    def send_trailer(self, fields: Iterable[Field]) -> None:
        """Send trailer fields and end the request."""
        checked = check_trailer(fields)
        if self._unwanted():
            return
        if self._to_send:
            raise LocalProtocolError(f"a trailer where Content-Length leaves {self._to_send} bytes of body")
        self._connection._send_trailer(self, checked)

    def reset(self, code: Code = Code.CANCEL) -> None:
        """Leave before the end: the peer is told, unless both sides have ended. What came and was not taken is gone."""
        self._body.clear()
        self._offset = self.buffered = 0
        self._connection._leave(self, code)

    def stop(self) -> None:
        """Send no more of the request; what came, and was not taken, stays."""
        self._connection._leave(self, Code.CANCEL)

    def __repr__(self) -> str:
        status = self.head.status if self.head else "no head"
        state = "closed" if self.closed else "ended" if self.ended else "sent" if self.sent else "open"
        return f"<Stream {self.id} {self.method.decode()} {status}, {state}, {self.got} bytes, {self.buffered} waiting>"

    # Below: called by the connection, when a frame has come. A flaw that is returned ends the stream.

    def _take_head(self, block: Block, ends: bool) -> str | None:
        """Take a head (section 8.1)."""
        if block.flaw is not None:
            return block.flaw
        status = block.status
        if status is None:
            return "no :status"
        if status < 200:
            self.interim += 1
            self.continued = self.continued or status == 100
            if ends:
                return "the end with a 1xx"
            return f"more than {MAX_INTERIM} responses with 1xx" if self.interim > MAX_INTERIM else None
        self.head = block
        if self.method == b"HEAD" or status in (204, 304):
            self._to_come = 0
        elif not (self.method == b"CONNECT" and status < 300):
            self._to_come = block.length
        return None

    def _take_trailer(self, block: Block, ends: bool) -> str | None:
        if not ends:
            return "a trailer that is not the end"
        if block.flaw is not None:
            return block.flaw
        if block.status is not None:
            return "a :status in the trailer"
        self.trailer = tuple(field for field in block.fields if field[0] not in _NOT_IN_TRAILERS)
        return None

    def _take_data(self, data: bytes) -> str | None:
        """Take a part of the body; the window for it stays closed until it is taken from here."""
        if not data:
            return None
        self.got += len(data)
        if self._to_come is not None and self.got > self._to_come:
            return f"more than the {self._to_come} bytes of body that were announced"
        self.buffered += len(data)
        if len(data) > SMALL:
            self._body.append(data)
            return None
        last = self._body[-1] if self._body else None
        if isinstance(last, bytearray) and len(last) < JOINED:
            last += data
        else:
            self._body.append(bytearray(data))
        return None

    def _take_end(self) -> str | None:
        if self._to_come is not None and self.got != self._to_come:
            return f"the end after {self.got} of {self._to_come} bytes of body"
        self.ended = True
        return None

    def _give_back(self, count: int) -> None:
        """Let the peer send so many bytes more, told in large steps (section 6.9)."""
        self._returned += count
        if not self.ended and not self.closed and self._returned >= self._connection.stream_step:
            self._connection._widen(self.id, self._returned)
            self._window += self._returned
            self._returned = 0

    def _fail(self, error: ProtocolError, repeatable: bool) -> None:
        self.error = error
        self.repeatable = repeatable or isinstance(error, Unprocessed)

    # Above: what came. Below: what the owner may do.

    def _unwanted(self) -> bool:
        """Say whether what is sent is of no use; raise if it must not be sent."""
        if self.error is not None:
            raise self.error
        if self.sent:
            raise LocalProtocolError("the request has ended before")
        if self.closed and not self.ended:
            raise LocalProtocolError("the stream was reset before")
        return self.closed

    def _malformed(self, flaw: str) -> Malformed:
        return Malformed(flaw, f"the response on stream {self.id}")
