"""asyncio, and uvloop: a protocol that reads into a kept buffer, and one timer for each connection.

Cancel scopes and streams would cost more than all the rest of a request. What came is told in the callback
of the loop that read it, so a response takes one wake-up of its task.

Long, because what the loop calls and what a connection calls share the state of a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import ssl
from asyncio import AbstractEventLoop, Future, TimerHandle, _get_running_loop
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from math import inf
from time import monotonic
from typing import Any
from weakref import WeakSet

from ..events import CloseReason
from ..gated import GatedSocket, entrust
from .asyncio_sleep import SLACK, AsyncioAlarm, Rings, ring
from .seam import RECEIVE, Receiver, Sharer, Tls
from .session import Session, Sessions

SEALED = 262144  # bytes asked for at once of TLS: HTTP/2 takes a fifth less CPU time for large bodies than with 64 KiB

_keepers: dict[AbstractEventLoop, tuple[AsyncGenerator[None, None], WeakSet[Receiver]]] = {}


class AsyncioLoop:
    """An event loop of asyncio."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self._rings = Rings(loop)
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly
        # These read as soon as they have asked where to, and what came is copied out at once: one buffer does for all
        # connections. Another loop, as that of Windows, may read into several at a time.
        self.direct = isinstance(loop, asyncio.SelectorEventLoop)
        self.at_once = self.direct or type(loop).__module__.partition(".")[0] == "uvloop"
        self._buffer = memoryview(bytearray(RECEIVE)) if self.at_once else None

    @property
    def here(self) -> bool:
        return _get_running_loop() is self.loop

    def alarm(self) -> AsyncioAlarm:
        return AsyncioAlarm(self._rings)

    def pause(self) -> Future[None]:
        return self.loop.create_future()

    def soon(self, work: Callable[[], object]) -> None:
        self.loop.call_soon(work)

    def buffer(self, size: int) -> memoryview:
        """Return memory to read into, *size* bytes."""
        if self._buffer is None:
            return memoryview(bytearray(size))
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        return self._buffer[:size]

    async def writable(self, sockets: Sequence[GatedSocket], until: float) -> list[GatedSocket]:
        future: Future[None] = self.loop.create_future()
        numbers = [sock.fileno() for sock in sockets]
        for number in numbers:
            self.loop.add_writer(number, ring, future)
        timer = None if until == inf else self.loop.call_later(max(0.0, until - monotonic()), ring, future)
        try:
            await future
        finally:
            for number in numbers:
                self.loop.remove_writer(number)
            if timer is not None:
                timer.cancel()
        poll = select.poll()
        for number in numbers:
            poll.register(number, select.POLLOUT)
        found = {number for number, _ in poll.poll(0)}
        return [sock for sock, number in zip(sockets, numbers, strict=True) if number in found]

    def link(self, sock: GatedSocket, receiver: Receiver) -> AsyncioLink:
        return AsyncioLink(self, sock, receiver)

    def call(self, work: Callable[[], object]) -> bool:
        try:
            self.loop.call_soon_threadsafe(work)
        except RuntimeError:  # it is closed
            return False
        return True

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
        task = self.loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task.cancel

    async def keep(self, receiver: Receiver) -> None:
        for loop in [loop for loop in _keepers if loop.is_closed()]:
            del _keepers[loop]
        if self.loop not in _keepers:
            receivers: WeakSet[Receiver] = WeakSet()
            keeper = _keep(self.loop, receivers)
            _keepers[self.loop] = keeper, receivers
            await anext(keeper)
        _keepers[self.loop][1].add(receiver)

    async def rest(self) -> None:
        for _ in range(2):  # a transport closes its socket one step after it was told to, uvloop's two
            await asyncio.sleep(0)


class AsyncioLink(asyncio.BufferedProtocol):
    """See Link."""

    __slots__ = (
        *("_buffer", "_due", "_future", "_held", "_paused", "_poll", "_sessions", "_shaking", "_sharer", "_timer"),
        *("_transport", "closed", "deadline", "loop", "lost", "patience", "receiver", "session", "sock"),
    )

    def __init__(self, loop: AsyncioLoop, sock: GatedSocket, receiver: Receiver) -> None:
        self.loop = loop
        self._buffer = loop.buffer(RECEIVE)
        self.sock = sock
        self.receiver = receiver
        self.patience: float | None = None
        self.deadline: float | None = None
        self.session: ssl.SSLObject | None = None
        self.closed = self.lost = False
        self._held = self._paused = False
        self._future: Future[None] | None = None
        self._sharer: Sharer | None = None
        self._timer: TimerHandle | None = None
        self._due = inf
        self._poll: select.poll | None = None
        self._transport: Any = None
        # Not asyncio's TLS: when a send fails, that forgets what the peer said before it closed. And it takes 256 KiB
        # for each connection.
        self._sessions: Sessions | None = None
        self._shaking: Session | None = None  # whose handshake is under way

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.patience is not None and self._future is not None:
            self._due = self._next_due()
        if self._sessions is None:
            self.receiver.received(bytes(self._buffer[:nbytes]))
        else:
            self._unseal(self._buffer[:nbytes])

    def eof_received(self) -> bool:
        self.lost = True
        self.receiver.ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.closed and self.loop.at_once:
            self._last_words()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not (self.closed or self.loop.direct):
            entrust(self.sock)  # uvloop closes it next
        self.lost = True
        if not self.closed:
            self.receiver.ended(exc)
        if self._future is not None:
            ring(self._future)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._sharer is not None:
            self._sharer.drained()
        elif self._future is not None:
            ring(self._future)

    # What a connection calls.

    async def open(self) -> None:
        await self.loop.loop.create_connection(lambda: self, sock=self.sock)

    def silent(self) -> bool:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        return not self._poll.poll(0)

    def write(self, data: bytes | memoryview) -> bool:
        transport, sessions = self._transport, self._sessions
        if self.lost or transport.is_closing():
            raise BrokenPipeError("the connection is closed")
        transport.write(data if sessions is None else sessions.seal(data))
        if transport.is_closing():  # it was tried at once, and failed
            raise BrokenPipeError("the connection is closed")
        return not (self._paused or (sessions is not None and sessions.stuck))

    async def flush(self) -> bool:
        while self._stopped and not self.lost and not self.receiver.answered:
            await self.wait()
        return not (self._stopped or self.lost)

    @property
    def _stopped(self) -> bool:
        return self._paused or (self._sessions is not None and self._sessions.stuck)

    def wait(self) -> Awaitable[None]:
        future = self._future = self.loop.loop.create_future()
        if self.patience is not None or self.deadline is not None:
            self._due = due = self._next_due()
            # One timer for many waits: the one that runs is right if it comes no later than is due.
            if self._timer is None or self._timer.when() > due + SLACK:
                if self._timer is not None:
                    self._timer.cancel()
                self._arm(due)
        else:
            self._due = inf
        return future

    def wake(self) -> None:
        if self._future is not None:
            ring(self._future)
            self._future = None

    def hold(self) -> None:
        if not self._held and not self.lost:
            self._held = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._held:
            self._held = False
            if not self.lost and not self._transport.is_closing():
                self._transport.resume_reading()

    async def secure(self, tls: Tls) -> None:
        if self._sessions is None:
            self._sessions = Sessions()
            self._buffer = self.loop.buffer(SEALED)
        session = self._shaking = Session(tls)
        try:
            while not session.shake():
                self._reply(session)
                if self.lost:
                    raise ConnectionResetError("the peer closed in the TLS handshake")
                await self.wait()
            self._reply(session)
        finally:
            self._shaking = None
        self._sessions.add(session)
        self.session = session.object
        self._unseal(b"")  # what came with the end of the handshake

    def share(self, sharer: Sharer) -> None:
        self.receiver = self._sharer = sharer
        self.patience = self.deadline = None
        self._future = None
        self._due = inf

    def remind(self, when: float) -> None:
        if when < self._due and not self.closed:
            self._due = when
            if self._timer is None or self._timer.when() > when + SLACK:
                if self._timer is not None:
                    self._timer.cancel()
                self._arm(when)

    def close(self, reason: CloseReason) -> None:
        if self.closed:
            return
        self.closed = True
        self.sock.reason = reason
        if self.sock.fileno() < 0:  # in a forked child: the loop, and what it watches, are the parent's
            return
        if self.loop.here or not self.loop.call(self._close):
            self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is None:
            self.sock.close()
            return
        if not self.loop.direct:
            entrust(self.sock)
        try:
            self._transport.abort()
        except RuntimeError:  # the loop is closed, and never comes to it
            self.sock.close()
            with contextlib.suppress(AttributeError):
                self._transport._sock = None  # else it would warn of a socket that is closed
        if self.loop.direct:
            # The loop has let go of it. Its own close comes a step later, when who waits for the port waits already.
            self.sock.close()

    def _next_due(self) -> float:
        due = inf if self.patience is None else monotonic() + self.patience
        return due if self.deadline is None else min(due, self.deadline)

    def _arm(self, due: float) -> None:
        loop = self.loop.loop
        self._timer = loop.call_at(loop.time() + max(0.0, due - monotonic()), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        future, sharer = self._future, self._sharer
        if self._due == inf or (sharer is None and (future is None or future.done())):
            return
        if self._due > monotonic() + SLACK:
            self._arm(self._due)
        elif sharer is not None:
            self._due = inf
            sharer.rang()
        elif future is not None:
            future.set_exception(TimeoutError("timed out"))

    def _last_words(self) -> None:
        """Take in what the peer said before it closed on us: a send that failed kept the loop from reading it."""
        with contextlib.suppress(OSError):
            while count := self.sock.recv_into(self._buffer):
                self.buffer_updated(count)

    def _unseal(self, data: bytes | memoryview) -> None:
        """Tell what *data* means, answer what TLS has asked, and let a handshake go on."""
        sessions, shaking = self._sessions, self._shaking
        assert sessions is not None
        stuck = sessions.stuck
        plain = sessions.open(data)
        if shaking is not None:
            shaking.take_in(plain)
            self.wake()
        elif plain:
            self.receiver.received(plain)
        if (reply := sessions.reply()) and not self._transport.is_closing():
            self._transport.write(reply)
        if stuck and not (sessions.stuck or self._paused):
            self.resume_writing()
        if sessions.ended and not self.lost:
            self.lost = True
            self.receiver.ended(sessions.failure)
            self.wake()

    def _reply(self, session: Session) -> None:
        """Send what a handshake has to say, through the sessions around it."""
        if data := session.out.read():
            self.write(data)


async def _keep(loop: AbstractEventLoop, receivers: WeakSet[Receiver]) -> AsyncGenerator[None, None]:
    """Be closed with the loop's other asynchronous generators, by asyncio.run(): that is how its end is noticed."""
    try:
        yield
    finally:
        _keepers.pop(loop, None)
        for receiver in list(receivers):
            receiver.abandon()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
