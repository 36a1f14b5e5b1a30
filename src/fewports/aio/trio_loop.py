"""trio, by what anyio has to wait for a descriptor.

Not anyio's own streams: trio's sockets refuse a subclass of socket.socket, which ours are, so that a port is given back
when it is really closed; and a TLS stream does not say what it has read ahead, which must be known before a connection
is used again.
"""

from __future__ import annotations

import contextlib
import select
import ssl
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from weakref import WeakSet

import anyio
import anyio.lowlevel
import trio

from ..events import CloseReason
from ..gated import GatedSocket
from .seam import RECEIVE, Receiver, Tls

_receivers: trio.lowlevel.RunVar[WeakSet[Receiver] | None] = trio.lowlevel.RunVar("fewports receivers", None)


class TrioLoop:
    """One run of trio."""

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()

    @property
    def here(self) -> bool:
        try:
            return trio.lowlevel.current_trio_token() is self.token
        except RuntimeError:
            return False

    def alarm(self) -> TrioAlarm:
        return TrioAlarm(self)

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

    async def keep(self, receiver: Receiver) -> None:
        receivers = _receivers.get()
        if receivers is None:
            receivers = WeakSet()
            _receivers.set(receivers)
            trio.lowlevel.spawn_system_task(_keep, receivers, name="fewports keeper")
        receivers.add(receiver)

    async def rest(self) -> None:
        await anyio.lowlevel.checkpoint()


class TrioAlarm:
    """See Alarm."""

    __slots__ = ("_event", "_loop")

    def __init__(self, loop: TrioLoop) -> None:
        self._loop = loop
        self._event = trio.Event()

    def wake(self) -> None:
        if self._loop.here:
            self._event.set()
        else:
            with contextlib.suppress(trio.RunFinishedError):
                self._loop.token.run_sync_soon(self._event.set)

    async def wait(self, seconds: float | None) -> None:
        if seconds is None or seconds == inf:
            await self._event.wait()
        else:
            with trio.move_on_after(max(0.0, seconds)):
                await self._event.wait()
        if self._event.is_set():
            self._event = trio.Event()


class TrioLink:
    """See Link. What comes is read by the task that waits for it: nobody reads ahead, so hold() has nothing to do."""

    __slots__ = (
        *("_poll", "_sessions", "_unsent", "_woken"),
        *("closed", "deadline", "loop", "lost", "patience", "receiver", "sock"),
    )

    def __init__(self, loop: TrioLoop, sock: GatedSocket, receiver: Receiver) -> None:
        self.loop = loop
        self.sock = sock
        self.receiver = receiver
        self.patience: float | None = None
        self.deadline: float | None = None
        self.closed = self.lost = False
        self._woken = False
        self._unsent = bytearray()
        self._sessions: list[Session] = []  # of TLS, the outer one first
        self._poll: select.poll | None = None

    async def open(self) -> None:
        self.sock.setblocking(False)

    def silent(self) -> bool:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        if self._poll.poll(0):
            # With TLS it may be a word between the two ends, such as a ticket for another session.
            return bool(self._sessions) and not self._received() and not self.lost
        return not any(session.ahead for session in self._sessions)

    def write(self, data: bytes | memoryview) -> bool:
        if self.lost or self.closed:
            raise BrokenPipeError("the connection is closed")
        for session in reversed(self._sessions):
            data = session.seal(data)
        if not self._unsent:
            try:
                count = self.sock.send(data)
            except BlockingIOError:
                count = 0
            except ConnectionError as error:
                raise BrokenPipeError("the connection is closed") from error
            if count == len(data):
                return True
            data = memoryview(data)[count:]
        self._unsent += data
        return False

    async def flush(self) -> bool:
        while self._unsent:
            with trio.CancelScope(deadline=self._deadline()) as scope:
                await anyio.wait_writable(self.sock)
            if scope.cancelled_caught:
                raise TimeoutError("timed out")
            try:
                del self._unsent[: self.sock.send(self._unsent)]
            except BlockingIOError:
                continue
            except ConnectionError as error:
                self.lost = True
                self._unsent.clear()
                raise BrokenPipeError("the connection broke") from error
        return True

    async def wait(self) -> None:
        while not self._woken:
            with trio.CancelScope(deadline=self._deadline()) as scope:
                await anyio.wait_readable(self.sock)
            if scope.cancelled_caught:
                raise TimeoutError("timed out")
            self._receive()
        self._woken = False

    def wake(self) -> None:
        self._woken = True

    def hold(self) -> None:
        """Do nothing: nobody reads ahead."""

    def resume(self) -> None:
        """Do nothing, likewise."""

    async def secure(self, tls: Tls) -> ssl.SSLObject:
        session = Session(tls)
        while not session.shake():
            await self._reply(session)
            await anyio.wait_readable(self.sock)
            session.take_in(self._opened())
            if self.lost and not session.into.pending:
                raise ConnectionResetError("the peer closed in the TLS handshake")
        await self._reply(session)
        self._sessions.append(session)
        return session.object

    def close(self, reason: CloseReason) -> None:
        if self.closed:
            return
        self.closed = True
        self.sock.reason = reason
        if self.sock.fileno() >= 0:
            if self.loop.here:
                trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def _receive(self) -> None:
        """Receive once, and tell."""
        try:
            data = self._opened()
        except OSError as error:  # TLS' own among them
            self.lost = True
            self.receiver.ended(error)
            return
        if data:
            self.receiver.received(data)
        if self.lost:
            self.receiver.ended(None)

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
        for session in self._sessions:
            session.take_in(data)
            data = session.open()
            self.lost = self.lost or session.ended
        if self._sessions and (reply := self._sessions[-1].out.read()):  # a key update
            for session in reversed(self._sessions[:-1]):
                reply = session.seal(reply)
            with contextlib.suppress(OSError):
                self.sock.send(reply)
        return data

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


class Session:
    """TLS over memory: bytes in, bytes out. All that was taken in is opened at once, so that nothing is left unseen."""

    def __init__(self, tls: Tls) -> None:
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = tls.context.wrap_bio(self.into, self.out, server_hostname=tls.hostname)
        self.ended = False

    @property
    def ahead(self) -> bool:
        """Say whether something was read that nobody has seen."""
        return bool(self.object.pending() or self.into.pending)

    def shake(self) -> bool:
        """Go on with the handshake; say whether it is done."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take_in(self, data: bytes) -> None:
        if data:
            self.into.write(data)

    def seal(self, data: bytes | memoryview) -> bytes:
        self.object.write(data)
        return self.out.read()

    def open(self) -> bytes:
        """Return all that is readable; ``ended`` when the peer has said goodbye."""
        pieces = []
        try:
            while data := self.object.read(RECEIVE):
                pieces.append(data)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


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
