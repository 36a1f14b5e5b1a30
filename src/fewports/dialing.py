"""One connection on its way: the line, then one attempt, or several that race. Waits for nothing and reads no clock.

What has to be waited for is handed out as a step, and whoever drives the steps, a thread or a task, sends back
what came of it, or throws what went wrong into it. Every way out gives back what was taken: this is in one place,
``steps()``, for threads and event loops alike.

State: the attempts on their way by descriptor, and the place in line.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from math import inf
from typing import Generic, NamedTuple, TypeVar, cast

from .address import Destination, Flow, from_sockaddr, sockaddr
from .dial import ATTEMPT_DELAY, DialPlan, Meaning, To, routes
from .events import DialFailed
from .gated import CallFailed, GatedSocket, SocketName, SocketOption, open_socket, recipe
from .kernel.facts import port_range
from .ledger.account import Account, Lease, Waiter, Want
from .pool import Pool, PoolClosed
from .standing import Endable, Floor, Standing, Turn, lead, leave, reclaim

NETWORK_TRIES = 16  # times as many addresses of a network are asked for a port before a caller stands in line

C = TypeVar("C", bound=Endable)


class Connect(NamedTuple):
    """Connect *sock* to *name*, within the time for one attempt; an OSError is thrown in."""

    sock: GatedSocket
    name: SocketName


class Watch(NamedTuple):
    """Wait until one of *sockets* is writable, or until a time (inf: for ever); send those that are."""

    sockets: Sequence[GatedSocket]
    until: float


class Queue(NamedTuple):
    """Wait until the waiter is woken, *seconds* at most."""

    seconds: float


Step = Connect | Watch | Queue
Steps = Generator[Step, Sequence[GatedSocket], GatedSocket | C]


class Limits(NamedTuple):
    """*timeout* bounds each attempt to connect, *wait* the time in line beside the budget's own; both in seconds.

    *ticket* is the place in line of who has stood in one before; *turn* is that of who was given a lease there.
    """

    timeout: float | None = None
    wait: float | None = None
    ticket: int | None = None
    turn: Turn | None = None


def stands(lease: Lease, sock: GatedSocket, now: float) -> None:
    """Note that the connection of *lease* stands."""
    space = lease.want.space
    name = sock.getsockname()
    source = space.source
    if name[0] != source and "%" not in source:
        # The system's choice has changed since Routes asked for it. Its port is charged to the old choice, but the
        # kernel will be asked about the flow that there is.
        source = from_sockaddr(name)[0]
        routes.forget()
    lease.ledger.opened(lease, Flow(source, name[1], space.destination), now)


def close_failed(lease: Lease, sock: GatedSocket, error: OSError, clock: Callable[[], float], port: int = 0) -> None:
    """Close after a failed connect()."""
    if error.errno == errno.EADDRNOTAVAIL and not port:
        sock.lease = None
        sock.close()
        lease.ledger.refused(lease, clock())
    else:
        sock.close()


class Dialing(Generic[C]):
    """All that is decided between a wish for a connection and a socket, or a connection that came free first."""

    __slots__ = ("_floor", "_flying", "_limits", "_lined", "_options", "_pool", "_waited", "_waiter", "ledger", "plan")

    def __init__(
        self,
        to: To,
        destinations: Iterable[Destination],
        limits: Limits,
        wake: Callable[[], object],
        floor: Floor,
        *,
        options: Sequence[SocketOption] = (),
        pool: Pool[C] | None = None,
    ) -> None:
        self.plan = DialPlan(to, destinations, floor.clock())
        self.ledger = to.ledger
        self._limits = limits
        self._floor = floor
        self._options = options
        self._pool = pool
        self._waiter = Waiter(wake, pool)
        if limits.ticket is not None:
            self._waiter.ticket = limits.ticket
        self._lined = False  # stood in line
        self._waited = 0.0
        if (turn := limits.turn) is not None:
            self._waiter.ticket, self._waited = turn.ticket, turn.waited
            self._waiter.deliver(turn.lease)
        self._flying: dict[int, tuple[GatedSocket, Lease, float]] = {}  # by descriptor, with the deadline

    def steps(self) -> Steps[C]:
        """Hand out what has to be waited for; return a connected socket, or a connection of the pool."""
        won: GatedSocket | C | None = None
        try:
            won = yield from (self._race() if self.plan.more(1) else self._straight())
            return won
        finally:
            # Every way out gives back what was taken: losers, a crossed grant, the place in line.
            if self._flying:
                for sock, _, _ in self._flying.values():
                    sock.close()
            if won is None or self._lined:
                self._leave(won)

    def _straight(self) -> Steps[C]:
        """Connect to the one destination there is."""
        clock = self._floor.clock
        while True:
            now = clock()
            crowded = self._pool is not None and self._pool.crowded
            outcome: object = self._brought() or (None if crowded else self._best(now))
            if outcome is None:
                wants = self.plan.wants(now)
                if refusal := self._refused(wants, now):
                    yield from self._wait(*refusal)
                outcome = self._delivered()
            if not isinstance(outcome, Lease):
                return cast(C, outcome)
            if (sock := self._open(outcome, now)) is None:
                continue
            destination = outcome.want.space.destination
            try:
                yield Connect(sock, sockaddr(destination.address, destination.port))
                stands(outcome, sock, clock())
                return sock
            except OSError as error:
                self._fail(sock, outcome, error)
            except BaseException:
                sock.close()
                raise

    def _race(self) -> Steps[C]:
        """Try the destinations one after the other, each a moment after the one before (RFC 8305)."""
        clock = self._floor.clock
        next_at = 0.0
        while True:
            now = clock()
            if now >= next_at or not self._flying:
                outcome = yield from self._launch(now)
                if outcome is not None:
                    return outcome
                next_at = clock() + ATTEMPT_DELAY
            if self._flying and (sock := (yield from self._watch(next_at))):
                return sock

    def _launch(self, now: float) -> Generator[Step, Sequence[GatedSocket], C | None]:
        """Begin one attempt more; wait for a port only while nothing else is on its way."""
        while True:
            flying = [lease.space.destination for _, lease, _ in self._flying.values()]
            outcome: object = self._brought() or self._best(now, flying)
            if outcome is None:
                wants = self.plan.wants(now, flying)
                if self._flying and (not wants or self.ledger.reserve(self._waiter, wants, now)):
                    return None
                if self._waiter.outcome is None and (refusal := self._refused(wants, now)):
                    yield from self._wait(*refusal)
                outcome = self._delivered()
            if not isinstance(outcome, Lease):
                return cast(C, outcome)
            if (sock := self._open(outcome, now)) is not None:
                self._waiter = self._waiter.again()
                destination = outcome.space.destination
                deadline = inf if self._limits.timeout is None else now + self._limits.timeout
                self._flying[sock.fileno()] = (sock, outcome, deadline)
                sock.setblocking(False)
                code = sock.connect_ex(sockaddr(destination.address, destination.port))
                if code in (0, errno.EINPROGRESS):
                    return None
                del self._flying[sock.fileno()]
                self._fail(sock, outcome, OSError(code, os.strerror(code)))
            now = self._floor.clock()

    def _watch(self, next_at: float) -> Generator[Step, Sequence[GatedSocket], GatedSocket | None]:
        """Wait until an attempt has an end or the next one is due; return the socket that won."""
        until = min(deadline for _, _, deadline in self._flying.values())
        if self.plan.more(len(self._flying)):
            until = min(until, next_at)
        ready = yield Watch([sock for sock, _, _ in self._flying.values()], until)
        for found in ready:
            sock, lease, _ = self._flying[found.fileno()]
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                stands(lease, sock, self._floor.clock())
                del self._flying[sock.fileno()]
                return sock
            del self._flying[sock.fileno()]
            self._fail(sock, lease, OSError(code, os.strerror(code)))
        now = self._floor.clock()
        for number, (sock, lease, deadline) in list(self._flying.items()):
            if deadline <= now:
                del self._flying[number]
                self._fail(sock, lease, TimeoutError("timed out"))
        return None

    def _brought(self) -> Lease | None:
        """Return the lease that came of an earlier stand in line, if it is still ours, for one of our destinations."""
        turn, lease = self._limits.turn, self._waiter.outcome
        if turn is None or lease is not turn.lease:
            return None
        lease = turn.lease
        if lease.state == Lease.DIALING and self.plan.goes(lease.space.destination):
            return lease
        # The name means something else by now; or it took so long to look it up that the ledger gave up on us.
        self._waiter = self._waiter.again()
        self.ledger.give_up(lease, self._floor.clock())
        return None

    def _best(self, now: float, flying: Sequence[Destination] = ()) -> Lease | None:
        """Return a lease for the best that would do, if it has room."""
        if not (wants := self.plan.best(now, flying)) or self.ledger.reserve(self._waiter, wants, now, ask=False):
            return None
        return cast("Lease | None", self._waiter.outcome)

    def _refused(self, wants: Sequence[Want], now: float) -> tuple[Sequence[Want], Account] | None:
        """Have a lease delivered, or say what to wait for, and who refuses it after all else was tried."""
        if not wants:
            raise self.plan.error or OSError(errno.EADDRNOTAVAIL, "name resolution gave no address")
        if self._pool is not None and self._pool.crowded and (refuser := self.ledger.refuser(wants, now)):
            return wants, refuser  # those who are in line before us have tried
        refuser = self.ledger.reserve(self._waiter, wants, now)
        for _ in range(NETWORK_TRIES if refuser and self.plan.bound.foreign else 0):
            wants = self.plan.wants(now)  # other addresses of the network
            if (refuser := self.ledger.reserve(self._waiter, wants, now)) is None:
                break
        while refuser and reclaim(self._waiter, wants, self.ledger, self._pool, now):
            now = self._floor.clock()
            refuser = self.ledger.reserve(self._waiter, wants, now)
        return (wants, refuser) if refuser else None

    def _delivered(self) -> Lease | C:
        """Return a lease, or a connection that came free first."""
        outcome = self._waiter.outcome
        if outcome is None:
            raise PoolClosed("the pool was closed while a request waited for a connection")
        return outcome  # type: ignore[return-value]

    def _open(self, lease: Lease, now: float) -> GatedSocket | None:
        try:
            return open_socket(lease, recipe(lease.want.space.source, self.plan.bound, port_range(now)), self._options)
        except CallFailed as failure:
            self.ledger.release(lease, self._floor.clock())
            self.learn(lease, failure.call, failure.error)
            return None

    def _fail(self, sock: GatedSocket, lease: Lease, error: OSError) -> None:
        """Close after a failed connect() and learn from it."""
        close_failed(lease, sock, error, self._floor.clock, self.plan.to.port)
        self.learn(lease, "connect", error)

    def learn(self, lease: Lease, call: str, error: OSError) -> None:
        """Draw conclusions from an attempt that failed in *call*; raise *error* if no other can succeed."""
        self._waiter = self._waiter.again()  # the lease that was delivered is spent
        meaning = self.plan.failed(lease.space, call, error, self._floor.clock())
        if meaning is not Meaning.PORTS:
            self.ledger.emit(DialFailed(lease.space, call, error))
        if meaning is Meaning.FATAL:
            raise error

    def _wait(self, wants: Sequence[Want], refuser: Account) -> Generator[Step, Sequence[GatedSocket], None]:
        """Stand in line until there is an outcome; raise BudgetExhausted when the time is over."""
        if refuser.budget.refuses:
            raise self.ledger.exhausted(refuser, self._floor.clock(), self._waited)
        self._lined = True
        if self._pool is not None and self.plan.common:
            self._pool.lead = lead(wants, self._floor.clock())
        standing = Standing(self._waiter, self.ledger, self._pool, self._floor)
        standing.begin(wants, self._limits.wait, self._waited, refuser)
        while (pause := standing.pause()) > 0:
            yield Queue(pause)
        standing.end(self._waited)
        self._waited += standing.waited()
        if self._pool is not None:
            self._pool.leave(standing.waiter)

    def _leave(self, won: GatedSocket | C | None) -> None:
        leave(self._waiter, self.ledger, self._pool, won, self._floor.clock())
