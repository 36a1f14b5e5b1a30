"""The connections to one origin, and who gets which: the same decisions as for threads, waited for in a task.

A connection belongs to the loop that made it, and so does a pool.
"""

from __future__ import annotations

import socket
import ssl
import weakref
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import NamedTuple

import anyio
import anyio.to_thread

from ..address import Destination, Origin
from ..dial import To
from ..dialing import Limits as DialLimits
from ..events import CloseReason
from ..gated import GatedSocket, SocketOption
from ..http1 import Field, RemoteProtocolError
from ..ledger.account import Waiter
from ..pool import Limits, Place, Pool, PoolClosed
from ..sync.dial import literal, resolve
from ..sync.timer import timer
from .connection import Connection
from .dial import dial
from .errors import (
    Disconnected,
    ExchangeError,
    LoopChanged,
    NotConnected,
    NotResolved,
    PlaceTimedOut,
    Stage,
    TimedOut,
    TlsFailed,
    TunnelRefused,
)
from .exchange import Exchange
from .request import Presets, Request, Times
from .seam import Loop, Tls

_FOREVER = Times()


class Tunnel(NamedTuple):
    """How a proxy is asked for a connection to *authority* (host:port), with CONNECT and *fields*."""

    authority: str
    fields: tuple[Field, ...]
    tls: Tls | None = None  # towards the proxy, which is what is dialled


class Route(NamedTuple):
    """How the origin is reached: *to* dials it, or the proxy; *tls* is with whom the requests are for."""

    to: To
    tls: Tls | None = None
    tunnel: Tunnel | None = None
    options: Sequence[SocketOption] = ()
    family: socket.AddressFamily | int = socket.AF_UNSPEC


class OriginPool:
    """Make exchanges with one origin, in one loop.

    Connections are exclusive: one exchange at a time. ``_furnish`` is where another kind would come from, by what
    ALPN says; it is asked for exchange(), alive(), clean and end() as this one is.
    """

    def __init__(self, loop: Loop, route: Route, limits: Limits) -> None:
        self.loop = loop
        self.route = route
        self.home: Pool[Connection] = Pool(limits)
        self._presets = Presets()
        weakref.finalize(self, _abandon, self.home).atexit = False  # sync.exit sees to that

    @property
    def origin(self) -> Origin:
        """What is dialled."""
        return self.route.to.origin

    async def exchange(self, request: Request, times: Times = _FOREVER, *, whole: bool = False) -> Exchange:
        """Send *request* and receive its response: the head of it, or the *whole*.

        Raises ExchangeError, RemoteProtocolError, LocalProtocolError, BudgetExhausted, NoUsableSource, PoolClosed,
        LoopChanged.
        """
        if not self.loop.here:
            raise LoopChanged("this client was used in another event loop: make one for each loop")
        method = request.method
        while True:
            found, endings = self.home.take(monotonic())
            for other, reason in endings:
                other.end(reason)
            if isinstance(found, Connection) and found.alive(method):
                connection = found
            else:
                connection = await self._obtain(found, method, times)
            connection.busy = True
            try:
                exchange = await connection.exchange(request, times, whole)
            except BaseException as error:
                if connection.clean and not connection.begun:  # what was asked for cannot be sent
                    connection.give_back()
                    raise
                again = connection.unanswered(method, error) and _is_there(request, connection)
                connection.discard(CloseReason.PEER_CLOSED if again else CloseReason.DONE)
                if again:
                    continue
                if isinstance(error, Exception) and (fault := connection.fault(error)) is not error:
                    raise fault from error
                raise
            if whole:
                if connection.clean:
                    connection.give_back()
                else:
                    await connection.settle()
            return exchange

    def close(self) -> None:
        """Refuse from now on; close what nobody uses now, and the rest when it comes back."""
        for connection, reason in self.home.close():
            connection.end(reason)
        timer.kick()

    def __repr__(self) -> str:
        return f"<OriginPool {self.origin} {self.home!r}>"

    # Below: what is not to be had at once.

    async def _obtain(self, found: Connection | Place | None, method: str, times: Times) -> Connection:
        """Wait for a place, and for a connection to put there. *found* is what the pool gave."""
        while True:
            if found is None:
                found = await self._place(times)
            if isinstance(found, Connection):
                if found.alive(method):
                    return found
                found.end(CloseReason.PEER_CLOSED)  # its place is ours
            try:
                outcome = await self._dial(times)
                if isinstance(outcome, GatedSocket):
                    return await self._furnish(outcome, times)
            except BaseException:
                self.home.drop_place()
                raise
            self.home.adopted()
            found = outcome

    async def _place(self, times: Times) -> Connection | Place:
        """Wait until a connection, or the place for one, comes free."""
        alarm = self.loop.alarm()
        waiter = Waiter(alarm.wake)
        outcome: object = None
        try:
            now = monotonic()
            for other, reason in self.home.join(waiter, now, place=True):
                other.end(reason)
            if not waiter.decided:
                await alarm.wait(times.within(times.pool, now))
            outcome = waiter.leave()
        except BaseException:
            self._return(waiter.leave())
            raise
        finally:
            self.home.leave(waiter)
        if isinstance(outcome, (Connection, Place)):
            return outcome
        if self.home.closed:
            raise PoolClosed("the pool was closed while a request waited for a connection")
        raise PlaceTimedOut(f"all {self.home.limits.bound} connections of the pool to {self.origin} are in use")

    def _return(self, outcome: object) -> None:
        if isinstance(outcome, Connection):
            for other, reason in self.home.give_back(outcome, monotonic()):
                other.end(reason)
        elif isinstance(outcome, Place):
            self.home.drop_place()

    async def _dial(self, times: Times) -> GatedSocket | Connection:
        """Dial, or take over a connection that comes free while this waits for a port."""
        to, now = self.route.to, monotonic()
        limits = DialLimits(times.within(times.connect, now), times.within(times.pool, now))
        try:
            destinations = await self._resolve(times)
            return await dial(self.loop, to, destinations, limits, options=self.route.options, pool=self.home)
        except socket.gaierror as error:
            raise NotResolved(str(error)) from error
        except TimeoutError as error:
            raise TimedOut(Stage.CONNECT) from error
        except OSError as error:
            raise NotConnected(str(error)) from error

    async def _resolve(self, times: Times) -> list[Destination]:
        host, port = to = self.origin.host, self.origin.port
        if found := literal(host, port, self.route.family):
            return [found]
        with anyio.fail_after(times.within(times.connect, monotonic())):
            return await anyio.to_thread.run_sync(partial(resolve, *to, self.route.family), abandon_on_cancel=True)

    async def _furnish(self, sock: GatedSocket, times: Times) -> Connection:
        """Make a connection of a socket that was dialled: a tunnel first, if that is the way, and TLS."""
        route = self.route
        connection = Connection(self.home, self._presets, sock.lease)
        connection.link = link = self.loop.link(sock, connection)
        try:
            await link.open()
            await self.loop.keep(connection)
            if route.tunnel is not None:
                if route.tunnel.tls is not None:
                    await self._secure(connection, route.tunnel.tls, times)
                await self._tunnel(connection, route.tunnel, times)
            if route.tls is not None:
                await self._secure(connection, route.tls, times)
        except BaseException:
            connection.end(CloseReason.DONE)
            raise
        connection.expires = connection.aged = self.home.expiry(monotonic())
        return connection

    async def _secure(self, connection: Connection, tls: Tls, times: Times) -> None:
        try:
            with anyio.fail_after(times.within(times.connect, monotonic())):
                session = await connection.link.secure(tls)
            if tls.check is not None:
                tls.check(session)
        except TimeoutError as error:
            raise TimedOut(Stage.TLS) from error
        except OSError as error:
            raise (TlsFailed(str(error)) if isinstance(error, ssl.SSLError) else Disconnected(False)) from error
        except Exception as error:  # of the check
            raise TlsFailed(str(error)) from error

    async def _tunnel(self, connection: Connection, tunnel: Tunnel, times: Times) -> None:
        """Have the proxy connect us; what follows on the link is another conversation."""
        link = connection.link
        asking = Connection(self.home, self._presets, None)
        asking.link, link.receiver = link, asking
        times = Times(times.connect, times.connect, times.connect, None, times.deadline)
        try:
            exchange = await asking.exchange(Request("CONNECT", tunnel.authority, tunnel.fields), times, False)
        except (ExchangeError, RemoteProtocolError, OSError) as error:
            raise asking.fault(error) from error
        exchange.forget()
        head = exchange.head
        if not 200 <= head.status < 300:
            raise TunnelRefused(head.status, head.reason)
        if asking.pending or asking.reader.excess:
            raise RemoteProtocolError("data before the TLS handshake", "the tunnel")
        link.receiver = connection
        link.patience = link.deadline = None


def _is_there(request: Request, connection: Connection) -> bool:
    """Say whether the body of a request is still there to be sent again."""
    return request.body is None or isinstance(request.body, bytes) or not connection.begun


def _abandon(home: Pool[Connection]) -> None:
    # As for threads: the garbage collector may call, and no lock may be taken.
    home.abandoned = True
    timer.kick()
