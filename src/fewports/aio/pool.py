"""The connections to one origin, and who gets which: the same decisions as for threads, waited for in a task.

A connection belongs to the loop that made it, and so does a pool. While it is not known whether the peer speaks HTTP/2,
or known that it does, one connection is opened at a time, and the others wait for what comes of it.

Long, because each step on the way to a connection has to give back what those before it took.
"""

from __future__ import annotations

import socket
import ssl
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from time import monotonic
from typing import NamedTuple

import anyio
import anyio.to_thread

from ..address import Destination, Origin
from ..alert import alert_in
from ..dialing import Limits as DialLimits
from ..events import CloseReason
from ..gated import GatedSocket
from ..http1 import RemoteProtocolError
from ..http2 import ConnectionFailed, Unprocessed
from ..http2.waiting import REPEATS
from ..ledger.account import Lease, Waiter, Want
from ..pool import Ending, Limits, Pool, PoolClosed
from ..sharing import ALONE, PLACE, Place, Search
from ..standing import Standing, Turn, followed
from ..sync.dial import literal, resolve
from ..sync.timer import timer
from .connection import Connection
from .dial import FLOOR, dial
from .errors import (
    Disconnected,
    ExchangeError,
    LoopChanged,
    NotConnected,
    NotOffered,
    NotResolved,
    PlaceTimedOut,
    Stage,
    TimedOut,
    TlsFailed,
    TunnelRefused,
)
from .exchange import Exchange
from .http2 import SharedConnection
from .opening import Opening
from .prelude import Prelude
from .request import FieldSets, Presets, Request, Times
from .ride import Ride
from .route import H2, OFFERS, Route, Tunnel
from .seam import Link, Loop, Tls
from .socks import Socks, shake

_FOREVER = Times()

Pooled = Connection | SharedConnection


class OriginPool:
    """Make exchanges with one origin, in one loop.

    A connection of HTTP/1.1 is of one exchange at a time. Of HTTP/2 each exchange has a Ride, which has a seat on a
    connection that is shared; it is asked for exchange(), clean, give_back() and discard() as the other is.
    """

    kind: type[Connection] = Connection
    ride: type[Ride] = Ride
    presets: type[Presets] = Presets

    def __init__(self, loop: Loop, route: Route, limits: Limits) -> None:
        self.loop = loop
        self.route = route
        self.home: Pool[Pooled] = Pool(limits, merges=route.may_share)
        self._presets = self.presets()
        self._orphans: set[Opening[Made | Pooled]] = set()  # whose beginners have left
        self._standing = 0  # tasks in line, for whom they go on
        self._sets = FieldSets("http" if route.tls is None else "https")
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
        repeats = 0
        while True:
            found, endings = self.home.take(monotonic())
            for other, reason in endings:
                other.end(reason)
            endings = ()  # ten thousand may wait, and each would keep the list
            if found is None:
                found = await self._place(times)
            turn = None
            if found is PLACE and (wants := followed(self.home, monotonic())):
                outcome = await self._follow(wants, times)
                if isinstance(outcome, Turn):
                    turn = outcome
                else:
                    found = outcome
            connection: Connection | Ride
            if isinstance(found, Connection) and found.alive(method):
                connection = found
                connection.busy = True
            elif isinstance(found, SharedConnection) and found.sound:
                connection = self.ride(found)
            else:
                connection = await self._obtain(found, method, times, turn)
            try:
                exchange = await connection.exchange(request, times, whole)
            except BaseException as error:
                unsent = connection.clean and not connection.begun
                if unsent and not isinstance(error, Unprocessed):  # what was asked for cannot be sent
                    connection.give_back()
                    raise
                again = repeats < REPEATS and connection.unanswered(method, error) and _is_there(request, connection)
                connection.discard(CloseReason.PEER_CLOSED if again else CloseReason.DONE)
                if again:
                    repeats += isinstance(connection, Ride)
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

    async def _obtain(
        self, found: Pooled | Place, method: str, times: Times, turn: Turn | None = None
    ) -> Connection | Ride:
        """Wait for a connection to put in the place that is *found*, where that of the pool is at an end.

        *turn* brings a lease of a port for it, if there is one already.
        """
        try:
            while True:
                if (ready := await self._ready(found, method)) is not None:
                    return ready
                try:
                    outcome = await self._open(found is ALONE, times, turn)
                    if isinstance(outcome, Made):
                        return outcome.connection
                except BaseException:
                    self.home.drop_place()
                    raise
                self.home.adopted()
                found, turn = outcome, None
        finally:
            if turn is not None:  # once dialing has begun, that sees to it
                self.route.to.ledger.give_up(turn.lease, monotonic())
            self._end_orphans()

    async def _ready(self, found: Pooled | Place, method: str) -> Connection | Ride | None:
        """Return what a request can go out on; None for a place, or where only the place of a connection is left."""
        if isinstance(found, Connection):
            if found.alive(method):
                found.busy = True
                return found
            found.end(CloseReason.PEER_CLOSED)
        elif isinstance(found, SharedConnection):
            try:
                if await found.reassure():
                    return self.ride(found)
            except BaseException:
                self._return(found)
                raise
            _end_all(self.home.leave_seat(found, monotonic()))
        return None

    async def _open(self, alone: bool, times: Times, turn: Turn | None) -> Made | Pooled:
        """Open a connection, or take one over that came free first. If *alone*, others wait for what comes of it."""
        ticket = None
        if self.home.merges and not alone and turn is None:
            found, ticket, times = await self._way(times)
            if not isinstance(found, Place):
                return found
            alone = found is ALONE
        if alone:
            return await self._open_for_all(times, ticket)
        outcome = await self._dial(times, ticket, turn)
        return Made(await self._furnish(outcome, times, False)) if isinstance(outcome, GatedSocket) else outcome

    async def _open_for_all(self, times: Times, ticket: int | None) -> Made | Pooled:
        """Open a connection for which others wait as well.

        It goes on for them when this is cancelled: if nobody had the time for it alone, it would never be there.
        """

        async def work() -> Made | Pooled:
            try:
                outcome = await self._dial(times, ticket)
                if isinstance(outcome, GatedSocket):
                    return Made(await self._furnish(outcome, times, True))
            except BaseException:
                self.home.not_opened(failed=True)
                raise
            self.home.not_opened(failed=False)
            return outcome

        def settle(outcome: Made | Pooled | None) -> None:
            self._orphans.discard(opening)
            if isinstance(outcome, Made):
                outcome.connection.give_back()
                return
            if outcome is not None:
                self._return(outcome)
            self.home.drop_place()

        def leave() -> bool:
            self.home.add_place()  # for the opening; who leaves gives back his own
            self._orphans.add(opening)
            return self._standing > 0

        opening = Opening(self.loop, work, settle)
        return await opening.result(leave, lambda: self.home.not_opened(failed=False))

    async def _follow(self, wants: Sequence[Want], times: Times) -> Pooled | Turn:
        """Stand in line for *wants* behind others, with a place; that is for a lease: a connection has its own."""
        home, alarm = self.home, self.loop.alarm()
        standing = Standing(Waiter(alarm.wake, home), self.route.to.ledger, home, FLOOR)
        outcome: Lease | Pooled | None = None
        try:
            standing.begin(wants, times.within(times.pool, monotonic()), 0.0)
            while (pause := standing.pause()) > 0:
                await alarm.wait(pause)
            outcome = standing.end(0.0)
            return standing.turn(outcome) if isinstance(outcome, Lease) else outcome
        finally:
            standing.leave(outcome)
            if not isinstance(outcome, Lease):
                home.drop_place()

    async def _place(self, times: Times) -> Pooled | Place:
        """Wait until a connection, or the place for one, comes free."""
        if self.home.limits.bound is None:
            self.home.add_place()  # there are always more: what is waited for is a way
            return PLACE
        outcome, _ = await self._stand(times.pool, times, place=True)
        if outcome is not None:
            return outcome
        raise PlaceTimedOut(f"all {self.home.limits.bound} connections of the pool to {self.origin} are in use")

    async def _way(self, times: Times) -> tuple[Pooled | Place, int | None, Times]:
        """Wait for a connection that carries this request too; PLACE: open one, ALONE: and others wait for it.

        With it come the place in line and what is left of *times*. Raises TimedOut.
        """
        home = self.home
        began = now = monotonic()
        found, endings = home.retake(now)
        _end_all(endings)
        ticket = None
        if found is not None:
            return found, ticket, times
        wait = self.route.to.ledger.budget.wait
        search = Search(times.connect, wait if times.pool is None else min(wait, times.pool), now)
        while found is None:
            pause = search.pause(now, bool(home.riding()))
            found, ticket = await self._stand(pause, times, place=False, ticket=ticket)
            now = monotonic()
            over = times.deadline is not None and now >= times.deadline
            if over or search.late(now, bool(home.riding())):
                if found is None or isinstance(found, Place):  # what is begun now would never be there
                    self._return(found, place=False)
                    raise TimedOut(Stage.CONNECT)
            elif found is None and search.turned(now):
                found = home.insist(search.turns)
                if found is None and times.pool is not None:
                    raise TimedOut(Stage.CONNECT)
        connect, pool = search.left(now, bool(home.riding()))
        if times.pool is not None:
            pool = min(pool, max(0.0, times.pool - (now - began)))
        return found, ticket, times._replace(connect=connect, pool=pool)

    async def _stand(
        self, seconds: float | None, times: Times, *, place: bool, ticket: int | None = None
    ) -> tuple[Pooled | Place | None, int]:
        """Stand in line, for a *place* as well, or with one; return what was given, and the ticket."""
        alarm = self.loop.alarm()
        waiter = Waiter(alarm.wake)
        if ticket is not None:
            waiter.ticket = ticket
        self._standing += 1
        try:
            now = monotonic()
            _end_all(self.home.join(waiter, now, place=place, opens=True))
            if not waiter.decided:
                await alarm.wait(times.within(seconds, now))
            outcome = waiter.leave()
        except BaseException:
            self._return(waiter.leave(), place=place)
            raise
        finally:
            self.home.leave(waiter)
            self._standing -= 1
            self._end_orphans()
        if isinstance(outcome, (Connection, SharedConnection, Place)):
            return outcome, waiter.ticket
        if self.home.closed:
            raise PoolClosed("the pool was closed while a request waited for a connection")
        return None, waiter.ticket

    def _end_orphans(self) -> None:
        """Give up what is being opened for others when there are none any more."""
        if self._orphans and not self._standing:
            for opening in tuple(self._orphans):
                opening.cancel()

    def _return(self, outcome: object, *, place: bool = True) -> None:
        """Give back what came too late, and the *place* that came with it."""
        if outcome is ALONE:
            self.home.not_opened(failed=False)
        if isinstance(outcome, (Connection, SharedConnection)):
            _end_all(self.home.give_back(outcome, monotonic()))
        elif isinstance(outcome, Place) and place:
            self.home.drop_place()

    async def _dial(self, times: Times, ticket: int | None = None, turn: Turn | None = None) -> GatedSocket | Pooled:
        """Dial, or take over a connection that comes free while this waits for a port."""
        to, now = self.route.to, monotonic()
        limits = DialLimits(times.within(times.connect, now), times.within(times.pool, now), ticket, turn)
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

    async def _furnish(self, sock: GatedSocket, times: Times, alone: bool) -> Connection | Ride:
        """Make a connection of a socket that was dialled: a tunnel first, if that is the way, and TLS."""
        route = self.route
        connection = self.kind(self.home, self._presets, sock.lease)
        prelude = Prelude()
        connection.link = link = self.loop.link(sock, prelude)
        try:
            await link.open()
            await self.loop.keep(connection)
            if route.tunnel is not None:
                if route.tunnel.tls is not None:
                    await self._secure(connection, route.tunnel.tls._replace(offer=OFFERS[False]), times)
                if isinstance(route.tunnel, Socks):
                    await self._shake(connection, route.tunnel, times)
                else:
                    await self._tunnel(connection, route.tunnel, times)
                link.receiver = prelude
            if route.tls is not None:
                await self._secure(connection, route.tls._replace(offer=OFFERS[route.http2]), times)
            if self._speaks_h2(link):
                return await self._share(connection, prelude, times, alone)
            if route.http2 is True:
                raise NotOffered
            prelude.pass_on(link, connection)
        except BaseException:
            connection.end(CloseReason.DONE)
            raise
        connection.expires = connection.aged = self.home.expiry(monotonic())
        if alone:
            self.home.opened(None, monotonic())
        return connection

    def _speaks_h2(self, link: Link) -> bool:
        if link.session is None or self.route.tls is None:
            return self.route.http2 is True
        return link.session.selected_alpn_protocol() == H2

    async def _share(self, plain: Connection, prelude: Prelude, times: Times, alone: bool) -> Ride:
        """Make a shared connection of what speaks HTTP/2, with a seat on it, and let others on."""
        now = monotonic()
        shared = SharedConnection(self.home, plain.link, plain.lease, self._sets)
        shared.expires = self.home.expiry(now)
        try:
            await self.loop.keep(shared)
            plain.link.share(shared)
            prelude.pass_on(plain.link, shared)
            await shared.greet(times.within(times.connect, now))
        except BaseException as error:
            shared.end(CloseReason.DONE)
            if isinstance(error, TimeoutError):
                raise TimedOut(Stage.CONNECT) from error
            if isinstance(error, ConnectionFailed) and error.code is None:
                raise Disconnected(False) from alert_in(shared.cause) or error
            raise
        if alone:
            self.home.opened(shared, monotonic())
        else:
            self.home.introduce(shared, monotonic())
        timer.watch_pool(self.home)
        return self.ride(shared)

    async def _secure(self, connection: Connection, tls: Tls, times: Times) -> None:
        link = connection.link
        try:
            with anyio.fail_after(times.within(times.connect, monotonic())):
                await link.secure(tls)
            if tls.check is not None and link.session is not None:
                tls.check(link.session)
        except TimeoutError as error:
            raise TimedOut(Stage.TLS) from error
        except OSError as error:
            raise (TlsFailed(str(error)) if isinstance(error, ssl.SSLError) else Disconnected(False)) from error
        except Exception as error:  # of the check
            raise TlsFailed(str(error)) from error

    async def _shake(self, connection: Connection, socks: Socks, times: Times) -> None:
        """Have a SOCKS proxy connect us."""
        link = connection.link
        link.patience, link.deadline = times.connect, times.deadline
        try:
            await shake(link, socks)
        except TimeoutError as error:
            raise TimedOut(Stage.CONNECT) from error
        except OSError as error:
            raise NotConnected(str(error)) from error
        link.patience = link.deadline = None

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
        link.patience = link.deadline = None


class Made(NamedTuple):
    """A connection that is new, and nobody else's."""

    connection: Connection | Ride


def _end_all(endings: Iterable[Ending[Pooled]]) -> None:
    for connection, reason in endings:
        connection.end(reason)


def _is_there(request: Request, connection: Connection | Ride) -> bool:
    """Say whether the body of a request is still there to be sent again."""
    return request.body is None or isinstance(request.body, bytes) or not connection.begun


def _abandon(home: Pool[Pooled]) -> None:
    # As for threads: the garbage collector may call, and no lock may be taken.
    home.abandoned = True
    timer.kick()
