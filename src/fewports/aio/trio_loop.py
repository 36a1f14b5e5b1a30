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
from typing import Any
from weakref import WeakSet

import anyio
import anyio.lowlevel
import trio

from ..events import CloseReason
from ..gated import GatedSocket
from ..pool import Pool
from .seam import RECEIVE, Receiver, Tls, close_idle

_pools: trio.lowlevel.RunVar[WeakSet[Pool[Any]] | None] = trio.lowlevel.RunVar("fewports pools", None)


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

    def call(self, work: Callable[[], object]) -> None:
        try:
            self.token.run_sync_soon(work)
        except trio.RunFinishedError:
            work()

    async def keep(self, pool: Pool[Any]) -> None:
        pools = _pools.get()
        if pools is None:
            pools = WeakSet()
            _pools.set(pools)
            trio.lowlevel.spawn_system_task(_keep, pools, name="fewports keeper")
        pools.add(pool)

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
        *("_poll", "_tls", "_unsent", "_woken"),
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
        self._tls: Session | None = None
        self._poll: select.poll | None = None

    async def open(self) -> None:
        self.sock.setblocking(False)

    def silent(self) -> bool:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        return not (self._tls and self._tls.ahead) and not self._poll.poll(0)

    def write(self, data: bytes | memoryview) -> bool:
        if self.lost or self.closed:
            raise BrokenPipeError("the connection is closed")
        if self._tls is not None:
            data = self._tls.seal(data)
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
        self._woken = False

    async def secure(self, tls: Tls) -> str | None:
        session = Session(tls)
        while not session.shake():
            if data := session.out.read():
                await self._send(data)
            if session.ended:
                raise ConnectionResetError("the peer closed in the TLS handshake")
            await anyio.wait_readable(self.sock)
            with contextlib.suppress(BlockingIOError):
                session.take_in(self.sock.recv(RECEIVE))
        if data := session.out.read():
            await self._send(data)
        if tls.check is not None:
            tls.check(session.object)
        self._tls = session
        return session.object.selected_alpn_protocol()

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
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost = True
            self.receiver.ended(error)
            return
        if self._tls is None:
            if data:
                self.receiver.received(data)
            else:
                self.lost = True
                self.receiver.ended(None)
            return
        self._tls.take_in(data)
        try:
            while plain := self._tls.open():
                self.receiver.received(plain)
        except ssl.SSLError as error:
            self.lost = True
            self.receiver.ended(error)
            return
        if self._tls.ended:
            self.lost = True
            self.receiver.ended(None)
        elif reply := self._tls.out.read():  # a key update
            with contextlib.suppress(OSError):
                self.sock.send(reply)

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            await anyio.wait_writable(self.sock)
            with contextlib.suppress(BlockingIOError):
                left = left[self.sock.send(left) :]

    def _deadline(self) -> float:
        """Return when a wait that begins now is over, in trio's time."""
        due = inf if self.patience is None else self.patience
        if self.deadline is not None:
            due = min(due, self.deadline - monotonic())
        return inf if due == inf else trio.current_time() + max(0.0, due)


class Session:
    """TLS over memory: bytes in, bytes out. All that was taken in is opened at once, so nothing is left unseen."""

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
        else:
            self.ended = True
            self.into.write_eof()

    def seal(self, data: bytes | memoryview) -> bytes:
        self.object.write(data)
        return self.out.read()

    def open(self) -> bytes:
        """Return what is readable; b"" if there is no more, and ``ended`` if there never will be."""
        try:
            data = self.object.read(RECEIVE)
        except ssl.SSLWantReadError:
            return b""
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # without a goodbye, and with one
            data = b""
        if not data:
            self.ended = True
        return data


async def _first_writable(sock: GatedSocket, scope: anyio.CancelScope) -> None:
    await anyio.wait_writable(sock)
    scope.cancel()


async def _keep(pools: WeakSet[Pool[Any]]) -> None:
    """Be cancelled with the run, when all its tasks have ended: that is how its end is noticed."""
    try:
        await trio.sleep_forever()
    finally:
        close_idle(list(pools))
