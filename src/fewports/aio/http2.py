"""One HTTP/2 connection that many tasks of one loop use at once, each with a stream of its own.

What comes in goes to the engine where the loop tells of it, and wakes the tasks whose streams are ready. What goes out
in one turn of the loop goes out in one write. One timer serves all who wait.

State: ``_waiting`` are those who wait for a stream, ``_watching`` those who wait for the connection itself. All of it
belongs to the loop; any thread may call end() and give_way(), and ask what a pool asks.

Long, because reading, sending, waiting and parting share that state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import http2
from ..events import CloseReason
from ..http1 import Field
from ..http2 import Code, ConnectionFailed, Stream, Unprocessed
from ..http2.message import Heads
from ..http2.waiting import ANSWER, LINGER, LINGER_BYTES, QUIET, SUSPENSE, Ready, has_room
from ..ledger.account import Lease
from .request import FieldSets
from .seam import Link

if TYPE_CHECKING:
    from ..pool import Pool

SLACK = 0.001  # seconds by which a timer may be early


class Waiting:
    """A task that waits: until *due* at most, which moves on as its body comes; ``late`` if that has passed."""

    __slots__ = ("_deadline", "_timeout", "due", "late", "pause", "ready", "seen")

    def __init__(
        self, pause: Any, ready: Callable[..., bool], timeout: float | None, deadline: float | None, now: float
    ) -> None:
        self.pause = pause
        self.ready = ready
        self.seen = 0  # bytes of the body
        self.late = False
        self._timeout = inf if timeout is None else timeout
        self._deadline = inf if deadline is None else deadline
        self.begin(now)

    def begin(self, now: float) -> None:
        """Count from *now* again."""
        self.due = min(now + self._timeout, self._deadline)

    def wake(self) -> None:
        if not self.pause.done():
            self.pause.set_result(None)


class SharedConnection:
    """An HTTP/2 connection of a pool, over one link."""

    __slots__ = (
        *("__weakref__", "_asked", "_deaf", "_due", "_engine", "_flows", "_heard", "_leaves", "_loop", "_parting"),
        *("_waiting", "_watching", "capacity", "cause", "closed", "expires", "heads", "home", "idle_since", "lease"),
        *("link", "received_bytes", "sets"),
    )
    shared = True
    answered = False  # there is always use in sending more

    def __init__(self, home: Pool[Any], link: Link, lease: Lease | None, sets: FieldSets) -> None:
        self.home = home
        self.link = link
        self.lease = lease
        self.sets = sets
        self.heads = Heads()
        self.idle_since = 0.0
        self.expires = inf
        self.closed = False
        self.cause: Exception | None = None  # why it failed, if it was not the peer's closing
        self.received_bytes = 0
        self._loop = link.loop
        self._engine = http2.Connection()
        self._waiting: dict[Stream, Waiting] = {}
        self._watching: dict[Waiting, None] = {}
        self._leaves = False  # what is to be sent goes out at the end of this turn
        self._flows = True  # there is room for it
        self._deaf = False  # the peer takes no more
        self._parting = 0  # bytes that it may send until we close, after we have said goodbye
        self._due = inf  # when the timer rings
        self._heard = monotonic()  # when something came, or somebody began to wait where nobody did
        self._asked: float | None = None  # whether the peer is there
        self.capacity = self._engine.limit
        self._flush()

    # What the pool asks.

    @property
    def spent(self) -> bool:
        """Say whether no more requests can be sent."""
        return self.closed or self._engine.closing

    @property
    def sound(self) -> bool:
        """Say whether a request may go out at once."""
        engine = self._engine
        return not (self.closed or engine.closing or (engine.unanswered and not engine.active))

    def alive(self) -> bool:
        """Say whether it is still there, as far as the loop has told."""
        return not self.spent

    def end(self, reason: CloseReason) -> None:
        """Close, and say why; from any thread."""
        if self.closed:
            return
        self.closed = True
        self.capacity = 0
        if self._loop.here or not self._loop.call(partial(self._end, reason)):
            self._end(reason)

    def give_way(self) -> None:
        self.end(CloseReason.GAVE_WAY)

    def disown(self) -> None:
        """Forget it in a forked child: its socket and its loop are the parent's."""
        self.closed = True
        self.capacity = 0

    def tidy(self) -> None:
        """Do nothing: the loop takes in what comes."""

    def fileno(self) -> int:
        return -1 if self.link.closed else self.link.sock.fileno()

    # What a pool does with it before others may.

    async def greet(self, timeout: float | None) -> None:
        """Wait for the peer's SETTINGS, which say how many streams there may be; raises TimeoutError, ProtocolError."""
        engine = self._engine
        await self._watch(lambda: engine.greeted or engine.closing, timeout, None)
        if engine.error is not None:
            raise engine.error

    async def reassure(self) -> bool:
        """Say whether it can be used.

        Where a request got no answer, and the peer was asked whether it is there, a moment is left for that.
        """
        engine = self._engine
        if engine.unanswered and not engine.active and not self.spent:
            try:
                await self._watch(lambda: not engine.unanswered or engine.closing, SUSPENSE, None)
            except TimeoutError:
                self._fail(TimeoutError("the peer answered no PING"))
        return not self.spent

    # What one request does.

    def open(self, fields: tuple[Field, ...], *, whole: bool) -> Stream:
        """Send the head of a request, which is all of it if it is *whole*.

        Raises Unprocessed if it takes no more requests, LocalProtocolError for bad fields.
        """
        engine = self._engine
        if self.closed:
            raise Unprocessed("the connection takes no new streams")
        stream = engine.open(fields, end=whole)  # the pool counts its streams
        if engine.closing:
            self._measure()  # the last id
        self.soon()
        return stream

    async def send(
        self, stream: Stream, data: bytes, timeout: float | None, deadline: float | None, *, end: bool
    ) -> bool:
        """Send a part of a body, as the windows open; False if there is no use in sending more.

        Raises TimeoutError, ProtocolError.
        """
        view = memoryview(data).cast("B")
        while not stream.ended:
            if not self._flows:
                await self._watch(lambda: self._flows or stream.closed or stream.ended, timeout, deadline)
            count = stream.send(view, end=end)
            view = view[count:]
            if not view:
                self.soon()
                return True
            self._flush()
            if not stream.room:
                await self.wait(stream, has_room, timeout, deadline)
        return False

    async def wait(self, stream: Stream, ready: Ready, timeout: float | None, deadline: float | None) -> None:
        """Wait until *ready*: for *timeout* seconds since some body came, and to *deadline* (monotonic) at most.

        Raises TimeoutError.
        """
        if ready(stream):
            return
        now = monotonic()
        waiting = Waiting(self._loop.pause(), ready, timeout, deadline, now)
        waiting.seen = stream.got
        if not self._waiting:
            self._heard = now
        self._waiting[stream] = waiting
        self._remind(min(waiting.due, now + QUIET))
        before = self.received_bytes
        try:
            await waiting.pause
        finally:
            self._waiting.pop(stream, None)
        if waiting.late and not ready(stream):
            if self.received_bytes == before and not self._engine.unanswered:
                self._engine.ping()
                self.soon()
            raise TimeoutError("timed out")

    def leave(self, stream: Stream) -> None:
        """Reset a stream that nobody waits for any more, unless it has ended."""
        if not stream.closed or stream.buffered:
            stream.reset(Code.CANCEL)
            if (waiting := self._waiting.get(stream)) is not None:
                waiting.wake()  # another task's, which is to learn of it
            self._measure()
            self.soon()

    def soon(self) -> None:
        """Have what is to be sent go out with all else of this turn."""
        if not self._leaves and not self.closed:
            self._leaves = True
            self._loop.soon(self._flush)

    # What the link tells.

    def received(self, data: bytes) -> None:
        engine = self._engine
        if self._parting:
            self._part(len(data))
            return
        self.received_bytes += len(data)
        self._heard = monotonic()
        self._asked = None
        try:
            engine.receive(data)
        except ConnectionFailed:  # its streams know
            self._flush()
        self._tell()

    def ended(self, error: Exception | None) -> None:
        if self._parting:
            self._part(self._parting)
        self._fail(error)

    def drained(self) -> None:
        self._flows = True
        self._flush()
        self._look()

    def rang(self) -> None:
        """End the waits whose time has passed; ask a silent peer whether it is there, and end all if it is not."""
        now = monotonic()
        self._due = inf
        due = inf
        if self._parting:
            if now + SLACK < self._heard + LINGER:
                self._remind(self._heard + LINGER)
            else:
                self._part(self._parting)
            return
        for waiting in (*self._waiting.values(), *self._watching):
            if waiting.due <= now + SLACK:
                waiting.late = True
                waiting.wake()
            else:
                due = min(due, waiting.due)
        if self._waiting:
            if self._asked is not None and now + SLACK >= self._asked + ANSWER and self._engine.unanswered:
                self._fail(TimeoutError(f"the peer answered no PING for {ANSWER} s"))
                return
            if self._asked is None and now + SLACK >= self._heard + QUIET:
                self._asked = now
                self._engine.ping()
                self.soon()
            due = min(due, self._heard + QUIET if self._asked is None else self._asked + ANSWER)
        if due != inf:
            self._remind(due)

    def abandon(self) -> None:
        """Close, and all that is idle in the pool with it."""
        for other, reason in self.home.empty(for_good=True):
            other.end(reason)
        self.end(CloseReason.DONE)
        self.link.close(CloseReason.DONE)  # where another thread had it closed, and the loop did not come to that

    # Below: in the loop.

    def _tell(self) -> None:
        """Wake whom it concerns that something came, and have sent what is due for that."""
        for stream in self._engine.woken():
            waiting = self._waiting.get(stream)
            if waiting is None:
                continue
            if waiting.ready(stream):
                waiting.wake()
            elif stream.got != waiting.seen:
                waiting.seen = stream.got
                waiting.begin(self._heard)
        if self._watching:
            self._look()
        self.soon()
        self._measure()

    def _look(self) -> None:
        for waiting in self._watching:
            if waiting.ready():
                waiting.wake()

    async def _watch(self, ready: Callable[[], bool], timeout: float | None, deadline: float | None) -> None:
        """Wait until the connection is *ready*; raises TimeoutError."""
        if ready():
            return
        waiting = Waiting(self._loop.pause(), ready, timeout, deadline, monotonic())
        self._watching[waiting] = None
        self._remind(waiting.due)
        try:
            await waiting.pause
        finally:
            self._watching.pop(waiting, None)
        if waiting.late and not ready():
            raise TimeoutError("timed out")

    def _remind(self, when: float) -> None:
        if when < self._due:
            self._due = when
            self.link.remind(when)

    def _flush(self) -> None:
        """Send what is due. While there is no room it stays with the engine, which bounds it."""
        self._leaves = False
        if not self._flows or self.link.closed:
            return
        data = self._engine.pending()
        if data and not self._deaf:
            try:
                self._flows = self.link.write(data)
            except BrokenPipeError:
                self._deaf = True  # what the peer said before it closed is still to be read, a GOAWAY perhaps
        for stream in self._engine.woken():  # they waited for room
            waiting = self._waiting.get(stream)
            if waiting is not None and waiting.ready(stream):
                waiting.wake()

    def _measure(self) -> None:
        """Tell the pool how many streams there may be."""
        before, engine = self.capacity, self._engine
        self.capacity = 0 if self.closed or engine.closing else engine.limit
        if self.capacity > before or (self.capacity == 0 and before > 0):
            now = monotonic()
            self.home.widened(now)
            if self.capacity and self.home.crowded and self.home.remove(self):  # nobody uses it, for want of streams
                for other, reason in self.home.restore(self, now):
                    other.end(reason)
        if engine.closing and not self.closed and self.home.remove(self):
            self.end(CloseReason.PEER_CLOSED)  # nobody uses it

    def _fail(self, error: Exception | None) -> None:
        """End every stream: the connection is of no use any more."""
        if self.cause is None:
            self.cause = error
        self._engine.eof()
        for waiting in (*self._waiting.values(), *self._watching):
            waiting.wake()
        self._measure()

    def _end(self, reason: CloseReason) -> None:
        self._engine.close()
        if self._loop.here:
            self._flush()
        self.lease = None
        if self._loop.here and self._is_owed_a_reason():
            self._parting, self._heard = LINGER_BYTES, monotonic()
            self.link.sock.reason = reason
            self._remind(self._heard + LINGER)
        else:
            self.link.close(reason)
        if self._loop.here:
            self._fail(None)

    def _is_owed_a_reason(self) -> bool:
        """Say whether the peer broke a rule, and may still read our GOAWAY, which says which."""
        error = self._engine.error
        return error is not None and error.code is not None and not (self._deaf or self.link.lost)

    def _part(self, count: int) -> None:
        """Take *count* bytes less of a peer that was told to go; close with the last."""
        self._parting = max(0, self._parting - count)
        if not self._parting:
            self.link.close(self.link.sock.reason)
