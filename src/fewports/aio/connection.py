"""One HTTP/1.1 connection, and the exchange that is under way on it.

A connection is one of

state      whose it is                      what comes in
idle       the pool's                       ends it: nothing is due
busy       that of one exchange             goes to the reader, and to the pieces of the body
closed     nobody's                         is not read

It wakes the task of its exchange when what that waits for is there: the head, the whole body, or some of it.
Everything here runs in the loop of the link, but for end() and give_way(), which any thread may call.

Long, because sending, receiving and each way out of an exchange share that state.
"""

from __future__ import annotations

import ssl
from collections import deque
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from .. import http1
from ..alert import alert_in
from ..events import CloseReason
from ..http1 import LAST_CHUNK, LocalProtocolError, Preset, Reader, RemoteProtocolError, Truncated
from ..ledger.account import Lease
from ..pool import Pool, kept_until
from ..sync.timer import timer
from .errors import Disconnected, Stage, TimedOut
from .exchange import Exchange
from .request import Body, Fields, Presets, Request, Times, each
from .seam import Link

TOGETHER = 16384  # bytes of body that go out with the head in one call: one TLS record
PORTION = 262144  # bytes of a large body that are handed to the loop at once: it copies what it cannot send
HIGH, LOW = 262144, 65536  # bytes of body that nobody reads: nothing more is taken in, until so few are left
PARTING = 0.002  # seconds for the FIN of a peer that announced it; on its way it is 0.1 ms behind the response
ENDS = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)  # what says that the peer has ended it

_NOTHING, _HEAD, _SOME, _WHOLE, _END = range(5)  # what is waited for


class Connection:
    """One HTTP/1.1 connection of a pool."""

    __slots__ = (
        *("__weakref__", "_ended", "_failure", "_held", "_pieces", "_presets", "_sent", "_streamed", "_wants"),
        *("_announced", "aged", "busy", "expires", "home", "idle_since", "lease", "link", "reader", "used"),
    )
    link: Link
    shared = spent = False  # it is of one exchange at a time
    capacity = 1
    stream_id = None

    def __init__(self, home: Pool[Any], presets: Presets, lease: Lease | None) -> None:
        self.home = home
        self.lease = lease
        self._presets = presets
        self.reader = Reader()
        self.idle_since = 0.0
        self.expires = self.aged = inf  # when it is too old; the server may have asked for less
        self.busy = True  # with the exchange that it was made for
        self.used = False  # a response came before
        self._pieces: deque[bytes | memoryview] = deque()  # of the body, not read yet
        self._held = 0  # bytes of them
        self._failure: Exception | None = None
        self._ended = False
        self._sent = False  # something of the request
        self._streamed = 0  # bytes of its body
        self._announced: int | None = None  # by a Content-Length of the caller's
        self._wants = _NOTHING

    # What the pool asks.

    def alive(self, method: str) -> bool:
        """Say whether a request may go out, after being idle."""
        # The loop has told what it knows. What may not be repeated asks the system as well.
        link = self.link
        if link.closed or link.lost or not self.reader.reusable:
            return False
        return method in http1.IDEMPOTENT or link.silent()

    def end(self, reason: CloseReason) -> None:
        """Close, and say why; from any thread."""
        self.lease = None
        self.link.close(reason)

    def give_way(self) -> None:
        self.end(CloseReason.GAVE_WAY)

    def disown(self) -> None:
        """Do nothing in a forked child: the socket is gone."""

    def tidy(self) -> None:
        """Do nothing: the loop takes in what comes."""

    def fileno(self) -> int:
        return -1 if self.link.closed else self.link.sock.fileno()

    @property
    def clean(self) -> bool:
        """Say whether the exchange has ended with nothing behind it, so that another may follow."""
        return self.reader.reusable and not self._pieces and not self._ended and self._failure is None

    @property
    def begun(self) -> bool:
        """Say whether something of the request has been sent."""
        return self._sent

    @property
    def whole(self) -> bool:
        """Say whether the response is here to its end."""
        return self.reader.done and self._failure is None

    @property
    def pending(self) -> bool:
        """Say whether some of the body is there that nobody has read."""
        return bool(self._pieces)

    def give_back(self) -> None:
        """Go back to the pool, or to who is next in its line."""
        now = monotonic()
        limit = self.reader.idle_limit
        self.expires = self.aged if limit is None else kept_until(self.aged, limit, now)
        self.busy = False
        for other, reason in self.home.give_back(self, now):
            other.end(reason)
        if len(self.home):  # else it went to who is next: the timer would begin, find nothing, and end
            timer.watch_pool(self.home)

    async def settle(self) -> None:
        """Go back to the pool if nothing is left of the exchange; else close."""
        if self.clean:
            self.give_back()
            return
        try:
            await self.part()
        finally:
            self.home.drop_place()

    def discard(self, reason: CloseReason = CloseReason.DONE) -> None:
        """Close in the middle of an exchange, and give the place back; a task that reads is told."""
        if self._failure is None:
            self._failure = Disconnected(self.reader.started)
        self.link.wake()
        self.end(reason)
        self.home.drop_place()

    async def part(self) -> None:
        """Close after a whole response that is the last; a moment later than the peer, if it is as good as its word.

        Who closes first has the TIME_WAIT: a port for 60 s.
        """
        reader, link = self.reader, self.link
        try:
            if reader.done and not self._ended and not reader.persists and not reader.excess and not link.closed:
                link.patience, link.deadline = PARTING, None
                self._wants = _END
                while not self._ended:
                    await link.wait()
        except TimeoutError:
            pass
        finally:
            self.end(CloseReason.DONE)

    # What the link tells.

    @property
    def answered(self) -> bool:
        return self.reader.done or self._failure is not None

    def received(self, data: bytes) -> None:
        reader = self.reader
        try:
            reader.receive(data)
            while piece := reader.take():
                self._pieces.append(piece)
                self._held += len(piece)
        except RemoteProtocolError as error:
            self._failure = error
        if not self.busy:
            self._stray()
            return
        wants = self._wants
        if (
            reader.done  # who still sends is to know, too
            or self._failure is not None
            or (wants == _HEAD and reader.head is not None)
            or (wants == _SOME and self._pieces)
        ):
            self.link.wake()
        if self._held >= HIGH and wants != _WHOLE:
            self.link.hold()

    def ended(self, error: Exception | None) -> None:
        told, self._ended = self._ended, True
        if not self.busy:
            self._stray()
            return
        if not (told or self.reader.done or self._failure):
            if error is None:
                try:
                    self.reader.eof()
                except RemoteProtocolError as fault:
                    self._failure = fault
            else:
                self._failure = error
        elif not (told or self.used or self._failure):
            self._failure = alert_in(error)  # it came before the request: our certificate is refused
        self.link.wake()

    def abandon(self) -> None:
        """Close, and all that is idle in the pool with it."""
        for other, reason in self.home.empty(for_good=True):
            other.end(reason)
        self.end(CloseReason.DONE)

    # What an exchange does.

    async def exchange(self, request: Request, times: Times, whole: bool) -> Exchange:
        """Send *request* and receive the head of its response, or the *whole* of it."""
        reader, link, body = self.reader, self.link, request.body
        self._sent = False
        preset = self._presets[request.fields]
        link.deadline = times.deadline
        link.patience = times.write
        if body is None and not preset.framed:
            data = http1.request_head(request.method, request.target, (), preset)
            reader.begin(request.method, upgrade=request.upgrade)
            try:
                flows = link.write(data)
            except BrokenPipeError as error:
                raise await self._why(error) from None
            self._sent = True
            if not flows:
                await self._flush()
        else:
            await self._send(request, preset, body or b"")
        link.patience = times.read
        self._wants = _WHOLE if whole else _HEAD
        try:
            while not reader.done and self._failure is None and (whole or reader.head is None):
                await link.wait()
        except TimeoutError as error:
            raise TimedOut(Stage.READ) from error
        finally:
            self._wants = _NOTHING
        head = reader.head
        if self._failure is not None and (whole or head is None):
            raise self._failure
        assert head is not None
        self.used = True
        if whole:
            return Exchange(self, head, self._content())
        link.deadline = None  # it is for what is waited for in one go; who reads on has the time-outs of each wait
        return Exchange(self, head, None)

    def unanswered(self, method: str, error: BaseException) -> bool:
        """Say whether the request that failed may be sent again: it met the end of a connection that was kept."""
        if not self.used or not isinstance(error, (*ENDS, Truncated)):
            return False
        return http1.may_repeat(self.reader, method, sent=self._sent)

    def fault(self, error: Exception) -> Exception:
        """Say in the words of this floor what ended an exchange."""
        if isinstance(error, Truncated) and not self.reader.started and not self.reader.interim:
            return Disconnected(False)
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return Disconnected(self.reader.started)
        return error

    async def piece(self, limit: int | None, *, whole: bool = False) -> bytes:
        """Return what is there of the body, *limit* bytes at most, or *whole*: all that is left; b"" at its end.

        Raises TimedOut, Disconnected or what http1 does.
        """
        reader, link = self.reader, self.link
        if not self._pieces or whole:
            self._wants = _WHOLE if whole else _SOME
            try:
                while not reader.done and self._failure is None and (whole or not self._pieces):
                    link.resume()
                    await link.wait()
            except TimeoutError as error:
                raise TimedOut(Stage.READ) from error
            finally:
                self._wants = _NOTHING
        if self._failure is not None and (whole or not self._pieces):
            if (fault := self.fault(self._failure)) is not self._failure:
                raise fault from self._failure
            raise fault
        if whole:
            return self._content()
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if limit is not None and len(piece) > limit:
            view = memoryview(piece)
            self._pieces.appendleft(view[limit:])
            piece = view[:limit]
        self._held -= len(piece)
        if self._held <= LOW:
            link.resume()
        return piece if type(piece) is bytes else bytes(piece)

    # Below: of one exchange.

    def _content(self) -> bytes:
        """Take all pieces there are."""
        pieces, self._held = self._pieces, 0
        self.link.resume()  # for the next response
        if len(pieces) == 1:
            piece = pieces.popleft()
            return piece if type(piece) is bytes else bytes(piece)
        content = b"".join(pieces)
        pieces.clear()
        return content

    def _stray(self) -> None:
        """Close, as something came while nothing was due, if only the end."""
        if self.home.remove(self):
            self.end(CloseReason.PEER_CLOSED)

    async def _flush(self) -> bool:
        try:
            return await self.link.flush()
        except TimeoutError as error:
            raise TimedOut(Stage.WRITE) from error
        except BrokenPipeError:
            return False  # it may have answered before it closed

    async def _why(self, error: BrokenPipeError) -> Exception:
        """Return why nothing can be sent: the peer may refuse our certificate once the handshake is over (TLS 1.3)."""
        link = self.link
        if not self.used and link.session is not None:
            link.patience, link.deadline = PARTING, None
            with suppress(TimeoutError):
                while not self._ended and self._failure is None:
                    await link.wait()
        return self._failure if isinstance(self._failure, ssl.SSLError) else error

    async def _put(self, data: bytes | memoryview) -> bool:
        """Send *data*; False if there is no use in sending more, because there is an answer, or will be none."""
        try:
            flows = self.link.write(data)
        except BrokenPipeError as error:
            if not self._sent:
                raise await self._why(error) from None
            return False
        self._sent = True
        return flows or await self._flush()

    async def _send(self, request: Request, preset: Preset, body: Body) -> None:
        reader = self.reader
        framed = preset.framed
        if type(body) is bytes and (not framed or "content-length" in preset.names):
            if framed:
                preset.check(len(body))
            length = None if framed else len(body)
            head = http1.request_head(request.method, request.target, (), preset, length)
            reader.begin(request.method, sending=True, upgrade=request.upgrade)
            if len(body) <= TOGETHER:
                if await self._put(head + body):
                    reader.sent()
                return
            flows = await self._put(head)
            view = memoryview(body)
            while flows and view:
                flows = await self._put(view[:PORTION])
                view = view[PORTION:]
            if not view:
                reader.sent()
            return
        chunked = "content-length" not in preset.names
        more = (("Transfer-Encoding", "chunked"),) if not framed else ()
        head = http1.request_head(request.method, request.target, more, preset)
        self._announced = None if chunked else _length(request.fields)
        reader.begin(request.method, sending=True, upgrade=request.upgrade)
        if await self._put(head) and await self._stream(body, chunked):
            reader.sent()

    async def _stream(self, body: Body, chunked: bool) -> bool:
        """Send *body* piece by piece; say whether all of it went out."""
        self._streamed = 0
        if not await each(body, self._put_chunk if chunked else self._put_piece):
            return False
        if chunked:
            return await self._put(LAST_CHUNK)
        self._check(self._streamed == self._announced)
        return True

    def _check(self, fits: bool) -> None:
        if not fits:
            raise LocalProtocolError(f"the body has {self._streamed} bytes, and Content-Length says {self._announced}")

    async def _put_piece(self, piece: bytes) -> bool:
        self._streamed += len(piece)
        self._check(self._announced is not None and self._streamed <= self._announced)
        return not piece or await self._put(piece)

    async def _put_chunk(self, piece: bytes) -> bool:
        return not piece or await self._put(b"%b%b\r\n" % (http1.chunk_head(len(piece)), piece))


def _length(fields: Fields) -> int:
    """Return what Content-Length says; raises LocalProtocolError if that is no number."""
    value = next(value for name, value in fields if _text(name).lower() == "content-length")
    text = _text(value) if isinstance(value, (str, bytes)) else str(value)
    if not text.strip(" \t").isdecimal():
        raise LocalProtocolError(f"Content-Length says {text}, which is no number")
    return int(text)


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("latin-1")
