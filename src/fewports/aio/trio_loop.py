"""trio, by what anyio has to wait for a descriptor.

Not anyio's own streams: trio's sockets refuse a subclass of socket.socket, which ours are, so that a port is given back
when it is really closed; and a TLS stream does not say what it has read ahead, which must be known before a connection
is used again.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import select
import ssl
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from time import monotonic
from typing import Any
from weakref import WeakSet

import anyio
import anyio.lowlevel
import trio

from ..events import CloseReason
from ..gated import GatedSocket
from .seam import RECEIVE, Receiver, Sharer, Tls
from .session import Session, Sessions
from .trio_sleep import Rings, TrioAlarm, TrioPause

_receivers: trio.lowlevel.RunVar[WeakSet[Receiver] | None] = trio.lowlevel.RunVar("fewports receivers", None)


class TrioLoop:
    """One run of trio."""

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.pid = os.getpid()
        self.rings = Rings()

    @property
    def here(self) -> bool:
        try:
            return trio.lowlevel.current_trio_token() is self.token
        except RuntimeError:
            return False

    def alarm(self) -> TrioAlarm:
        return TrioAlarm(self)

    def pause(self) -> TrioPause:
        return TrioPause()

    def soon(self, work: Callable[[], object]) -> None:
        self.token.run_sync_soon(work)

    async def writable(self, sockets: Sequence[GatedSocket], until: float) -> list[GatedSocket]:
        with anyio.move_on_after(None if until == inf else max(0.0, until - monotonic())):
            if len(sockets) == 1:
                await anyio.wait_writable(sockets[0])
            else:
                async with anyio.create_task_group() as group:
                    for sock in sockets:
                        group.start_soon(_first_writable, sock, group.cancel_scope)
        poll = select.poll()
        for sock in sockets:
            poll.register(sock, select.POLLOUT)
        found = {number for number, _ in poll.poll(0)}
        return [sock for sock in sockets if sock.fileno() in found]

    def link(self, sock: GatedSocket, receiver: Receiver) -> TrioLink:
        return TrioLink(self, sock, receiver)

    def call(self, work: Callable[[], object]) -> bool:
        try:
            self.token.run_sync_soon(work)
        except trio.RunFinishedError:
            return False
        return True

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await work()

        trio.lowlevel.spawn_system_task(run, name="fewports opening", context=contextvars.copy_context())
        return scope.cancel

    async def keep(self, receiver: Receiver) -> None:
        receivers = _receivers.get()
        if receivers is None:
            receivers = WeakSet()
            _receivers.set(receivers)
            trio.lowlevel.spawn_system_task(_keep, receivers, name="fewports keeper")
        receivers.add(receiver)

    async def rest(self) -> None:
        await anyio.lowlevel.checkpoint()


class TrioLink:
    """See Link. What comes is read by the task that waits for it, or that waits to send.

    On a link that is shared a task of its own reads, and another sends what there was no room for.
    """

    __slots__ = (
        *("_due", "_held", "_poll", "_scope", "_sessions", "_sharer", "_unsent", "_woken", "_writing"),
        *("closed", "deadline", "loop", "lost", "patience", "receiver", "session", "sock"),
    )

    def __init__(self, loop: TrioLoop, sock: GatedSocket, receiver: Receiver) -> None:
        self.loop = loop
        self.sock = sock
        self.receiver = receiver
        self.patience: float | None = None
        self.deadline: float | None = None
        self.session: ssl.SSLObject | None = None
        self.closed = self.lost = False
        self._held = self._woken = False
        self._unsent = bytearray()
        self._sessions = Sessions()
        self._poll: select.poll | None = None
        self._sharer: Sharer | None = None
        self._scope: trio.CancelScope | None = None  # of the wait of the task that reads
        self._due = inf  # when it is to ring
        self._writing = False

    async def open(self) -> None:
        self.sock.setblocking(False)

    def silent(self) -> bool:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        if self._poll.poll(0):
            # With TLS it may be a word between the two ends, such as a ticket for another session.
            return bool(self._sessions) and not self._received() and not self.lost
        return not self._sessions.ahead

    def write(self, data: bytes | memoryview) -> bool:
        if self.lost or self.closed:
            raise BrokenPipeError("the connection is closed")
        data = self._sessions.seal(data)
        if self._unsent:
            try:
                del self._unsent[: self.sock.send(self._unsent)]
            except BlockingIOError:
                pass
            except ConnectionError as error:
                raise BrokenPipeError("the connection is closed") from error
        if not self._unsent:
            try:
                count = self.sock.send(data)
            except BlockingIOError:
                count = 0
            except ConnectionError as error:
                raise BrokenPipeError("the connection is closed") from error
            if count == len(data):
                return self._sharer is not None or not self._sessions.stuck  # HTTP/2 forbids to negotiate anew
            data = memoryview(data)[count:]
        self._unsent += data
        if self._sharer is not None and not self._writing:
            self._writing = True
            trio.lowlevel.spawn_system_task(self._write_rest, name="fewports writer")
        return False

    async def flush(self) -> bool:
        while self._unsent or self._sessions.stuck:
            with trio.CancelScope(deadline=self._deadline()) as scope:
                await self._movable()
            if scope.cancelled_caught:
                raise TimeoutError("timed out")
            if self.lost or self.receiver.answered:
                return False
            try:
                del self._unsent[: self.sock.send(self._unsent)]
            except BlockingIOError:
                continue
            except ConnectionError as error:
                self.lost = True
                self._unsent.clear()
                raise BrokenPipeError("the connection broke") from error
        return True

    async def _movable(self) -> None:
        """Wait until more can be sent; take in what comes meanwhile, which may be the answer."""
        async with anyio.create_task_group() as group:
            if not self._held or self._sessions.stuck:
                group.start_soon(self._hear, group.cancel_scope)
            if self._unsent:
                await anyio.wait_writable(self.sock)
                group.cancel_scope.cancel()

    async def _hear(self, scope: anyio.CancelScope) -> None:
        await anyio.wait_readable(self.sock)
        self._receive()
        scope.cancel()

    async def wait(self) -> None:
        while not self._woken:
            with trio.CancelScope(deadline=self._deadline()) as scope:
                try:
                    await trio.lowlevel.wait_readable(self.sock)
                except trio.ClosedResourceError:  # by another task, which has told the receiver why
                    break
            if scope.cancelled_caught:
                raise TimeoutError("timed out")
            self._receive()
        self._woken = False

    def wake(self) -> None:
        self._woken = True

    def hold(self) -> None:
        self._held = True

    def resume(self) -> None:
        self._held = False

    async def secure(self, tls: Tls) -> None:
        session = Session(tls)
        while not session.shake():
            await self._reply(session)
            await anyio.wait_readable(self.sock)
            session.take_in(self._opened())
            if self.lost and not session.into.pending:
                raise ConnectionResetError("the peer closed in the TLS handshake")
        await self._reply(session)
        self._sessions.add(session)
        self.session = session.object

    def share(self, sharer: Sharer) -> None:
        self.receiver = self._sharer = sharer
        trio.lowlevel.spawn_system_task(self._read, name="fewports reader")

    def remind(self, when: float) -> None:
        if when < self._due:
            self._due = when
            if self._scope is not None:
                self._scope.deadline = trio.current_time() + max(0.0, when - monotonic())

    def close(self, reason: CloseReason) -> None:
        here = self.loop.here
        if self.closed and not here:
            return
        self.closed = True
        self.sock.reason = reason
        # The task that reads must be told before the descriptor is another's.
        if here or self._sharer is None or not self.loop.call(self._close):
            self._close()

    def _close(self) -> None:
        if self.sock.fileno() >= 0:
            if self.loop.here:
                trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    async def _read(self) -> None:
        """Tell what comes in until nothing more does; ring when that is due."""
        sharer = self._sharer
        assert sharer is not None
        try:
            self._tell(self._unsealed(b""))  # TLS may have read ahead
            while not (self.closed or self.lost):
                left = self._due - monotonic()
                with trio.CancelScope(deadline=inf if left == inf else trio.current_time() + left) as self._scope:
                    await trio.lowlevel.wait_readable(self.sock)
                late = self._scope.cancelled_caught
                self._scope = None
                if not late:
                    self._receive()
                elif self._due <= monotonic():
                    self._due = inf
                    sharer.rang()
        except trio.ClosedResourceError:
            pass
        except Exception as error:  # it would end the program, where it is to end this connection
            self.lost = True
            sharer.ended(error)

    async def _write_rest(self) -> None:
        """Send what there was no room for, as soon as there is."""
        sharer = self._sharer
        assert sharer is not None
        try:
            while self._unsent and not self.closed:  # as it may be before this begins
                await trio.lowlevel.wait_writable(self.sock)
                with contextlib.suppress(BlockingIOError):
                    del self._unsent[: self.sock.send(self._unsent)]
        except (trio.ClosedResourceError, OSError):
            self._unsent.clear()  # what reads will see why
        finally:
            self._writing = False
        sharer.drained()

    def _receive(self) -> None:
        """Receive once, and tell."""
        try:
            data = self._opened()
        except OSError as error:
            self.lost = True
            self.receiver.ended(error)
            return
        self._tell(data)

    def _tell(self, data: bytes) -> None:
        if data:
            self.receiver.received(data)
        if self.lost:
            self.receiver.ended(self._sessions.failure)

    def _received(self) -> bytes:
        """Receive while nothing is due; what came is not for us, so it is enough to know that it did."""
        try:
            return self._opened()
        except OSError:
            self.lost = True
            return b""

    def _opened(self) -> bytes:
        """Receive once; return what it means, b"" if that is nothing yet, or nothing more: then it is lost."""
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return b""
        self.lost = not data
        return self._unsealed(data)

    def _unsealed(self, data: bytes) -> bytes:
        """Return what *data* means, and what TLS has read ahead."""
        data = self._sessions.open(data)
        self.lost = self.lost or self._sessions.ended
        if reply := self._sessions.reply():
            self._append(reply)
        return data

    def _append(self, record: bytes | memoryview) -> None:
        """Send a record of TLS behind what waits to be sent: in the middle of another it would break the session."""
        self._unsent += record
        with contextlib.suppress(OSError):  # what reads will see why
            del self._unsent[: self.sock.send(self._unsent)]
        if self._unsent and self._sharer is not None and not self._writing:
            self._writing = True
            trio.lowlevel.spawn_system_task(self._write_rest, name="fewports writer")

    async def _reply(self, session: Session) -> None:
        """Send what a handshake has to say, through the sessions around it."""
        if data := session.out.read():
            self.write(data)
            await self.flush()

    def _deadline(self) -> float:
        """Return when a wait that begins now is over, in trio's time."""
        due = inf if self.patience is None else self.patience
        if self.deadline is not None:
            due = min(due, self.deadline - monotonic())
        return inf if due == inf else trio.current_time() + max(0.0, due)


async def _first_writable(sock: GatedSocket, scope: anyio.CancelScope) -> None:
    await anyio.wait_writable(sock)
    scope.cancel()


async def _keep(receivers: WeakSet[Receiver]) -> None:
    """Be cancelled with the run, when all its tasks have ended: that is how its end is noticed."""
    try:
        await trio.sleep_forever()
    finally:
        for receiver in list(receivers):
            receiver.abandon()
