"""Between what is decided and the loops: two implementations, asyncio's in asyncio_loop.py, trio's in trio_loop.py.

A ``Loop`` waits; a ``Link`` moves the bytes of one connection. Everything above is the same for both.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from ..events import CloseReason
from ..gated import GatedSocket

RECEIVE = 65536  # bytes asked for at once; above 128 KiB malloc() maps pages and unmaps them again each time


class Tls(NamedTuple):
    """How to make a connection secure: *check* looks at what the handshake cannot, and raises CertificateError.

    *offer* are the protocols that the peer may choose from (ALPN); the context's own if it is empty.
    """

    context: ssl.SSLContext
    hostname: str | None
    check: Callable[[ssl.SSLObject], None] | None = None
    offer: tuple[str, ...] = ()

    def prepare(self) -> ssl.SSLContext:
        """Return the context with the offer, for the handshake that begins."""
        # The context may be the user's, and serve others as well: what they offer is theirs. What was chosen is what is
        # spoken.
        if self.offer:
            self.context.set_alpn_protocols(list(self.offer))
        return self.context


class Receiver(Protocol):
    """Who is told what comes in on a link, in the loop of the link."""

    @property
    def answered(self) -> bool:
        """Say whether there is no use in sending more."""
        ...

    def received(self, data: bytes) -> None:
        """Take in *data*."""
        ...

    def ended(self, error: Exception | None) -> None:
        """Learn that nothing more comes: the peer has closed, or there was an *error*. May be told twice."""
        ...

    def abandon(self) -> None:
        """Close: the loop ends."""
        ...


class Sharer(Receiver, Protocol):
    """Who is told what comes in on a link that many tasks use: they wait elsewhere."""

    def rang(self) -> None:
        """Learn that the time of remind() has come, or that of another before it."""
        ...

    def drained(self) -> None:
        """Learn that there is room again after write() said False."""
        ...


class Pause(Protocol):
    """Lets one task sleep until set_result(), which is called in its loop; a future, or what does for one."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> object: ...

    def __await__(self) -> Generator[Any, Any, None]: ...


class Link(Protocol):
    """The bytes of one connection. One task waits at a time.

    ``patience`` bounds, in seconds, each wait for the peer; ``deadline`` (monotonic) all of them.
    """

    sock: GatedSocket
    receiver: Receiver
    patience: float | None
    deadline: float | None
    closed: bool
    lost: bool  # the peer has closed, or it broke
    session: ssl.SSLObject | None  # of TLS, the innermost

    @property
    def loop(self) -> Loop: ...

    async def open(self) -> None:
        """Begin to move bytes."""
        ...

    def silent(self) -> bool:
        """Ask the system whether nothing has come that was not told yet."""
        ...

    def write(self, data: bytes | memoryview) -> bool:
        """Send *data*, or keep it to be sent; False if flush() should be waited for before there is more.

        Raises BrokenPipeError if nothing is sent any more and not a byte of it was.
        """
        ...

    async def flush(self) -> bool:
        """Wait until more may be written; False if there is no use in it any more.

        Raises TimeoutError, or BrokenPipeError if it broke.
        """
        ...

    def wait(self) -> Awaitable[None]:
        """Wait until wake(), while what comes in is told to the receiver; raises TimeoutError."""
        ...

    def wake(self) -> None:
        """Let wait() return; called in the loop."""
        ...

    def hold(self) -> None:
        """Take nothing in for now."""
        ...

    def resume(self) -> None:
        """Take in again."""
        ...

    async def secure(self, tls: Tls) -> None:
        """Speak TLS from now on, within TLS if that is spoken already."""
        ...

    def share(self, sharer: Sharer) -> None:
        """Tell *sharer* what comes in, whoever waits or not, from now on; nobody calls wait() any more."""
        ...

    def remind(self, when: float) -> None:
        """Have the sharer's rang() called at *when* (monotonic), or earlier if that was asked for before."""
        ...

    def close(self, reason: CloseReason) -> None:
        """Close, from any thread. In the loop's own the port is given back before this returns, where that can be."""
        ...


class Alarm(Protocol):
    """Lets one task sleep until somebody calls wake(), in any thread, early, late or twice."""

    def wake(self) -> None: ...

    def wait(self, seconds: float | None) -> Awaitable[None]: ...


class Loop(Protocol):
    """One event loop, of the process *pid*, and what waiting is there."""

    pid: int

    @property
    def here(self) -> bool:
        """Say whether this is the loop that is running."""
        ...

    def alarm(self) -> Alarm: ...

    def pause(self) -> Pause: ...

    def soon(self, work: Callable[[], object]) -> None:
        """Have *work* done when the tasks that can go on now have had their turn; called in the loop."""
        ...

    async def writable(self, sockets: Sequence[GatedSocket], until: float) -> list[GatedSocket]:
        """Wait until one of *sockets* is writable; return those that are, none if *until* (monotonic) came first."""
        ...

    def link(self, sock: GatedSocket, receiver: Receiver) -> Link:
        """Make a link of a connected socket, which it owns from then on."""
        ...

    def call(self, work: Callable[[], object]) -> bool:
        """Have *work* done in the loop, from any thread or finalizer; False where that has ended."""
        ...

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
        """Begin *work* in a task of its own, which raises nothing; return what cancels it."""
        ...

    async def keep(self, receiver: Receiver) -> None:
        """Have *receiver* told when the loop ends."""
        ...

    async def rest(self) -> None:
        """Let what was begun by a close come to its end."""
        ...


def here() -> Loop:
    """Return the loop that is running; raises RuntimeError if there is none."""
    running = asyncio._get_running_loop()
    if running is not None:
        from .asyncio_loop import AsyncioLoop

        return AsyncioLoop(running)
    if "trio" not in sys.modules:
        raise RuntimeError("no event loop is running: await this on asyncio or trio")
    from .trio_loop import TrioLoop

    return TrioLoop()
