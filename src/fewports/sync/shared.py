"""The bytes of one HTTP/2 connection, moved by the threads that use it. It has no thread of its own.

Who waits for a response reads for all, until its own is there; then the next who waits does. Who has something to
send sends what others have put there meanwhile, too. No lock is held while a thread waits for the network:

lock         guards
_lock        the engine (http2.Connection), and who waits, leads or writes
_io          the TLS object, which is not for two threads at once; held for calls that do not block

State: ``_leader`` reads; ``_waiting`` are the others, each by its stream; ``_writing`` is one thread's right to send;
``_unsent`` is what the kernel had no room for.

Long, because reading, writing, waiting and failing share that state.
"""

from __future__ import annotations

import _socket
import contextlib
import select
import ssl
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from .. import http2
from ..alert import alert_in
from ..events import CloseReason
from ..gated import gated
from ..http1 import Field
from ..http2 import Code, ConnectionFailed, Stream
from ..http2.message import Heads
from ..http2.waiting import ANSWER, LINGER, LINGER_BYTES, QUIET, SUSPENSE, Ready, ended, has_room
from ..ledger.account import Lease
from .patience import GREETING, Patience, Waiting, always
from .timer import timer

if TYPE_CHECKING:
    import socket

    from ..pool import Pool

RECEIVE = 65536  # bytes asked for at once
TOGETHER = 256 * 1024  # bytes received before anybody is told: a large body comes in few turns
LAST_WORDS = 10  # milliseconds for a thread that is sending when the connection is closed
RELIEF = 0.05  # seconds between two looks at whether somebody still reads, while the kernel takes no more
STEP = 0.005  # seconds between two looks at whether a peer has closed that broke a rule
MAX_UNSENT = 256 * 1024  # bytes that the kernel has no room for: then bodies wait
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SharedWire:
    """One connection that many threads use at once, each with a stream of its own."""

    shared = True
    _parts = 0.0  # when it closes, if the peer has not, after it broke a rule
    _left = LINGER_BYTES  # which it may send until then

    def __init__(self, sock: socket.socket, home: Pool[Any] | None = None) -> None:
        self.sock = sock
        self.home = home
        self.lease: Lease | None = None
        self.idle_since = 0.0
        self.expires = inf
        self.capacity = 0
        self.closed = False
        self.origin = ("", "")  # scheme and authority
        self.flags: tuple[Any, ...] = ()  # what the face keeps with it
        self.presets: dict[tuple[tuple[str, str], ...], tuple[Field, ...]] = {}
        self._engine = http2.Connection()
        self.received = 0  # bytes
        self.heads = Heads()
        self._lock = threading.Lock()
        self._io: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)
        if self._pending is not None:
            self._io = threading.Lock()
        self.cause: Exception | None = None  # why it failed, if it was not the peer's closing
        self._forsaken: deque[Stream] = deque()  # nobody will read them; filled where no lock may be taken
        self._leader: Waiting | None = None
        self._waiting: dict[Stream, Waiting] = {}
        self._writing = 0
        self._deaf = False  # the peer takes no more
        self._unsent = b""
        sock.settimeout(0)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._measure()
        self._flush()

    @property
    def spent(self) -> bool:
        """Say whether no more requests can be sent."""
        return self.closed or self._engine.closing

    @property
    def busy(self) -> bool:
        """Say whether somebody uses it, and reads what the peer sends."""
        return self._engine.active > 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def greet(self, timeout: float | None, deadline: float | None) -> None:
        """Wait for the peer's SETTINGS, which say how many streams there may be.

        Raises TimeoutError, ProtocolError, or an SSLError from one.
        """
        self.wait(GREETING, lambda _: self._engine.greeted or self._engine.closing, timeout, deadline)
        if (error := self._engine.error) is not None:
            if (alert := alert_in(self.cause)) is not None:
                raise alert from error
            raise error

    def tidy(self) -> None:
        """Do what is due while it is in use: reset what nobody will read, answer the peer if nobody reads."""
        now = monotonic()
        while self._forsaken:
            self.leave(self._forsaken.popleft())
            if self.home is not None:
                for connection, reason in self.home.leave_seat(self, now):
                    connection.end(reason)
        if self._unsent:
            self._flush()
        self._look(0.0)

    def forsake(self, stream: Stream) -> None:
        """Learn that nobody will read *stream*. Takes no lock: the garbage collector may call."""
        self._forsaken.append(stream)

    def alive(self) -> bool:
        """Say whether the connection, which nobody uses, is still there; take in what came.

        Where a request got no answer, and the peer was asked whether it is there, a moment is left for that.
        """
        self._look(SUSPENSE if self._engine.unanswered else 0.0)
        if self._engine.unanswered and not self._leader:
            self._fail(TimeoutError("the peer answered no PING"))
        return not self.spent

    def end(self, reason: CloseReason) -> None:
        """Close, and say why: to the peer with a GOAWAY."""
        if self.closed:
            return
        with self._lock:
            self.closed = True
            self.capacity = 0
            self._engine.close()
        with contextlib.suppress(OSError):
            self._flush()
            for _ in range(LAST_WORDS):
                if not self._writing:
                    break
                sleep(0.001)  # another thread has our GOAWAY in hand
        if sock := gated(self.sock):
            sock.reason = reason
        error = self._engine.error
        self._fail(None)
        if error is not None and error.code is not None and not self._deaf:
            self._parts = monotonic() + LINGER  # to read our GOAWAY, which says what was wrong
            if timer.watch_parting(self):
                return
        self.sock.close()

    def part(self, now: float) -> float | None:
        """Close if a peer that broke a rule has closed, or its time is over; say when to look again, None if never."""
        sock = gated(self.sock)
        with contextlib.suppress(OSError, ValueError):
            if self._unsent:
                self._flush()
            try:
                while sock is not None and now < self._parts and self._left > 0 and not self._deaf:
                    data = _socket.socket.recv(sock, RECEIVE)  # as it comes, whatever TLS would make of it
                    self._left -= len(data) or self._left
            except BlockingIOError:
                return now + STEP
        self.sock.close()
        return None

    def give_way(self) -> None:
        self.end(CloseReason.GAVE_WAY)

    def disown(self) -> None:
        """Forget it in a forked child: the parent's threads hold its locks, and have its peer."""
        self._lock = threading.Lock()
        self._io = threading.Lock()
        self.closed = True
        self.capacity = 0
        self._engine.eof()

    def open(self, fields: tuple[Field, ...], *, whole: bool) -> Stream:
        """Send a request that has no body if it is *whole*; else send() follows, and finish().

        Raises Unprocessed if it takes no more requests, LocalProtocolError for bad fields.
        """
        mine = threading.get_ident()
        try:
            with self._lock:
                stream = self._engine.open(fields, end=whole)
                if self._engine.closing:
                    self._measure()  # the last id
                due = self._due(mine)
            if due:
                self._write(due)
        except BaseException:
            self._drop_out(mine)
            raise
        return stream

    def send(self, stream: Stream, data: bytes | memoryview, timeout: float | None, deadline: float | None) -> None:
        """Send a part of a body, as the windows open; the end is finish()."""
        view = memoryview(data).cast("B")
        while view:
            with self._lock:
                count = stream.send(view) if len(self._unsent) < MAX_UNSENT else 0
                if count < len(view) and stream.ended:
                    stream.stop()  # the peer has answered, and need not read the rest
            self._flush()
            view = view[count:]
            if self._unsent:
                self._drain(stream, timeout, deadline)
            if view and not count and len(self._unsent) < MAX_UNSENT:
                self.wait(stream, has_room, timeout, deadline)

    def finish(self, stream: Stream) -> None:
        """Send the end of a request."""
        with self._lock:
            stream.send(b"", end=True)
        self._flush()

    def take(self, stream: Stream, limit: float = inf) -> list[bytes]:
        """Return the pieces of body that are here, *limit* bytes at most."""
        pieces = []
        if stream.closed and limit == inf:  # nobody else has a hand in it any more
            while stream.buffered:
                pieces.append(stream.take())
            return pieces
        with self._lock:
            while limit > 0 and stream.buffered:
                piece = stream.take() if limit == inf else stream.take(int(limit))
                pieces.append(piece)
                limit -= len(piece)
        self._flush()
        return pieces

    def leave(self, stream: Stream) -> None:
        """Reset a stream that nobody waits for any more, unless it has ended."""
        with self._lock:
            if not stream.closed or stream.buffered:
                stream.reset(Code.CANCEL)
            waiting = self._waiting.pop(stream, None)
            if waiting is not None:
                waiting.wake()  # another thread's, which is to learn of it
            elif (leader := self._leader) is not None and leader.stream is stream:
                self._engine.ping()  # it sleeps in poll(): the answer wakes it
            self._measure()
        with contextlib.suppress(OSError):
            self._flush()

    def wait(self, stream: Stream, ready: Ready, timeout: float | None, deadline: float | None) -> None:
        """Wait until *ready*: for *timeout* seconds since something happened to the stream, and to *deadline* at most.

        Raises TimeoutError.
        """
        me = Waiting(stream, ready)
        patience = Patience(stream, timeout, deadline)
        before = self.received
        try:
            with self._lock:
                if ready(stream):
                    return
                if self._leader is None:
                    self._leader = me
                else:
                    me.queue()
                    self._waiting[stream] = me
            while self._leader is not me:
                if me.sleep(patience.left()):
                    if self._leader is not me:
                        return
                elif self._is_over(me, patience):
                    return
            self._lead(me, patience)
        except BaseException as error:
            with self._lock:
                self._waiting.pop(stream, None)
                if isinstance(error, TimeoutError) and self.received == before and not self._engine.unanswered:
                    self._engine.ping()
            self._flush()
            raise
        finally:
            self._resign(me)

    # Below: a turn at reading or writing. The lock is taken in there.

    def _look(self, pause: float) -> None:
        """Take in what came, if nobody else reads; wait for *pause* seconds for the answer to a PING."""
        me = Waiting(GREETING, always)
        with self._lock:
            if self.closed or self._leader is not None or self._waiting:
                return
        try:
            with self._lock:
                if self._leader is not None:
                    return
                self._leader = me
            until = monotonic() + pause
            while not self.spent and (
                (self._pending and self._pending()) or self._poll.poll(max(0.0, until - monotonic()) * 1000)
            ):
                self._receive(None)
                if not self._engine.unanswered:
                    until = 0.0
        finally:
            self._resign(me)

    def _is_over(self, me: Waiting, patience: Patience) -> bool:
        """Look again after a time-out: True if we were served after all."""
        with self._lock:
            if me.ready(me.stream):
                self._waiting.pop(me.stream, None)
                return True
        patience.look()
        return False

    def _lead(self, me: Waiting, patience: Patience) -> None:
        """Read for all until *me* is ready."""
        asked: float | None = None
        heard = monotonic()
        before = -1
        while True:
            pause = min(patience.left(), QUIET)
            # Where others wait too, something has mostly come already: to look first would be a system call more.
            likely = self.received != before and self._engine.active > 1
            if likely or (self._pending and self._pending()) or self._poll.poll(pause * 1000 + 0.999):
                before = self.received
                if self._receive(me):
                    return
                if self.received != before:
                    asked, heard = None, monotonic()
            else:
                with self._lock:
                    if me.ready(me.stream):
                        return
                    now = monotonic()
                    if asked is not None and now - asked >= ANSWER and self._engine.unanswered:
                        error = TimeoutError(f"the peer answered no PING for {ANSWER} s")
                    else:
                        error = None
                        if asked is None and now - heard >= QUIET:
                            asked = now
                            self._engine.ping()
                if error is not None:
                    self._fail(error)
                    return
                self._flush()
            patience.look()

    def _resign(self, me: Waiting) -> None:
        """Read no more for others. Twice, as a signal handler may raise in the first."""
        try:
            if self._leader is me:
                self._hand_over()
        finally:
            if self._leader is me:
                self._hand_over()

    def _hand_over(self) -> None:
        """Have the next who waits read."""
        with self._lock:
            for stream, waiting in self._waiting.items():
                del self._waiting[stream]
                self._leader = waiting
                waiting.wake()
                return
            self._leader = None

    def _receive(self, me: Waiting | None) -> bool:
        """Receive once and tell whom it concerns; say whether *me* is ready."""
        try:
            return self._take_in(me)
        except BaseException:
            self._fail(None)  # bytes that came may be lost: nothing can follow
            raise

    def _take_in(self, me: Waiting | None) -> bool:
        error: Exception | None = None
        data = b""
        try:
            with self._io:
                data = self.sock.recv(RECEIVE)
                if len(data) >= 8192:
                    data = self._receive_more(data)
        except _LATER:
            return me is not None and me.ready(me.stream)
        except (OSError, ValueError) as failure:
            error = failure
        wake: list[Waiting] = []
        with self._lock:
            engine = self._engine
            if data:
                self.received += len(data)
                with contextlib.suppress(ConnectionFailed):  # its streams know
                    engine.receive(data)
            elif error is None:
                engine.eof()
            for stream in engine.woken():
                waiting = self._waiting.get(stream)
                if waiting is not None and waiting.ready(stream):
                    del self._waiting[stream]
                    wake.append(waiting)
            widened = self._measure()
            served = me is not None and me.ready(me.stream)
        for waiting in wake:
            waiting.wake()
        if engine.owes or self._unsent:
            self._flush()
        if widened and self.home is not None:
            self.home.widened(monotonic())
        if error is not None:
            self._fail(error)
            return me is not None and me.ready(me.stream)
        return served

    def _receive_more(self, data: bytes) -> bytes:
        """Receive the rest of what is there, as a large body comes."""
        pieces = [data]
        size = len(data)
        with contextlib.suppress(*_LATER):
            # To ask whether there is more costs less than the exception that says that there is not.
            while size < TOGETHER and self._has_more() and (data := self.sock.recv(RECEIVE)):
                pieces.append(data)
                size += len(data)
        return b"".join(pieces)

    def _has_more(self) -> bool:
        return bool((self._pending and self._pending()) or self._poll.poll(0))

    def _flush(self) -> None:
        """Send what is due, unless somebody does."""
        if self._writing:
            return  # whoever does looks again under the lock
        mine = threading.get_ident()
        try:
            with self._lock:
                due = self._due(mine)
            if due:
                self._write(due)
        except BaseException:
            self._drop_out(mine)
            raise

    def _drop_out(self, mine: int) -> None:
        """Fail if we had the right to send when an exception came: what was taken may be lost."""
        if self._writing == mine:
            self._writing = 0
            self._fail(None)

    def _write(self, data: bytes) -> None:
        """Send *data*, and what comes to be due meanwhile: the right to do so is ours."""
        try:
            while data:
                try:
                    with self._io:
                        count = self.sock.send(data)
                except _LATER:
                    count = 0
                with self._lock:
                    if count < len(data):
                        self._unsent = data[count:] + self._engine.pending()
                        data = b""
                    else:
                        data = self._engine.pending()
                    if not data:
                        self._writing = 0
        except (OSError, ValueError):
            # The peer has closed. What it said before is still to be read, a GOAWAY perhaps; then comes the end.
            with self._lock:
                self._deaf = True
                self._writing = 0
        except BaseException:
            self._writing = 0  # half a record may be out: nothing can follow
            self._fail(None)
            raise

    def _drain(self, stream: Stream, timeout: float | None, deadline: float | None) -> None:
        """Wait until the kernel takes what it had no room for, or the answer is here; read meanwhile, if nobody does.

        The peer may read no more before we do.
        """
        until = min(inf if timeout is None else monotonic() + timeout, inf if deadline is None else deadline)
        me = Waiting(GREETING, always)
        while self._unsent and not self.closed and not ended(stream):
            leads = False
            try:
                with self._lock:
                    if self._leader is None:
                        self._leader, leads = me, True
                poll = select.poll()
                poll.register(self.sock, select.POLLOUT | (select.POLLIN if leads else 0))
                left = until - monotonic()
                if left <= 0:
                    raise TimeoutError("timed out")
                # Who reads may stop at any time, and the peer may take nothing before somebody reads.
                events = poll.poll(min(left, QUIET if leads else RELIEF) * 1000 + 0.999)
                if leads and events and events[0][1] & ~select.POLLOUT:
                    self._receive(None)
            finally:
                self._resign(me)
            self._flush()

    def _fail(self, error: Exception | None) -> None:
        """End every stream: the connection is of no use any more."""
        with self._lock:
            self._engine.eof()
            self.cause = self.cause or error  # what comes after the first says less
            self._measure()
            wake = list(self._waiting.values())
            self._waiting.clear()
        for waiting in wake:
            waiting.wake()
        if self.home is not None:
            self.home.widened(monotonic())

    # Below: the lock is held.

    def _due(self, mine: int) -> bytes:
        """Take what is to be sent, and the right to send it; b"" if somebody has that, or nothing is due."""
        if self._writing:
            return b""
        data = self._engine.pending()
        if self._deaf:
            return b""
        if self._unsent:
            data = self._unsent + data
            self._unsent = b""
        self._writing = mine if data else 0
        return data

    def _measure(self) -> bool:
        """Tell the pool how many streams there may be; say whether it is to look."""
        before = self.capacity
        self.capacity = 0 if self.closed or self._engine.closing else self._engine.limit
        return self.capacity > before or (self.capacity == 0 and before > 0)
