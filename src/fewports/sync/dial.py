"""Open a connection through the gate, or take one over: the one place where a thread waits for a port.

Long, because each way out gives back what was taken, and all of them are to be seen at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import threading
from collections.abc import Iterable, Sequence
from math import inf
from time import monotonic
from typing import Generic, TypeVar, cast

from ..address import Destination, Flow, family_of, from_sockaddr, sockaddr
from ..dial import ATTEMPT_DELAY, DialPlan, Meaning, To, Way, way_to
from ..events import DialFailed
from ..gated import CallFailed, GatedSocket, SocketOption, open_socket, recipe
from ..kernel.facts import port_range
from ..ledger.account import Account, Holder, Lease, Waiter, Want
from ..ledger.local import Ledger
from ..ledger.promises import ACKNOWLEDGED
from ..pool import Pool, PoolClosed
from . import exit, fork  # noqa: F401 - what is to happen at exit and in a forked child
from .timer import Idle, timer

NETWORK_TRIES = 16  # times as many addresses of a network are asked for a port before a caller stands in line

C = TypeVar("C", bound=Idle)
Failure = tuple[Lease, str, OSError]  # of which the call
_stock_getaddrinfo = socket.getaddrinfo


class Alarm:
    """Let one thread sleep until another calls wake(), which may come early, late or twice."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # woken already
            self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Sleep for *timeout* seconds at most; KeyboardInterrupt ends it."""
        if timeout is None or timeout > threading.TIMEOUT_MAX:
            return self._lock.acquire()
        return self._lock.acquire(timeout=max(0.0, timeout))


def resolve(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[Destination]:
    """Look up the addresses of *host*, in the system's order (RFC 6724); raises socket.gaierror."""
    if socket.getaddrinfo is _stock_getaddrinfo and (literal := _literal(host, port, family)):
        return [literal]
    found = []
    for kind, _, _, _, name in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
        if kind == socket.AF_INET:
            # Linux connects to this host for the unspecified address; it would be counted apart.
            address = "127.0.0.1" if name[0] == "0.0.0.0" else name[0]
            found.append(Destination(address, name[1]))  # type: ignore[arg-type]
        elif kind == socket.AF_INET6:
            found.append(_ipv6(*from_sockaddr(name)))  # type: ignore[arg-type]
    return found


def dial(
    to: To,
    destinations: Iterable[Destination],
    *,
    timeout: float | None = None,
    wait: float | None = None,
    options: Sequence[SocketOption] = (),
    pool: Pool[C] | None = None,
    failures: list[Exception] | None = None,
) -> GatedSocket | C:
    """Return a connected socket with its lease, or a connection of *pool* that came free first.

    *timeout* bounds each attempt to connect, *wait* the time in line for a port (the budget's own
    bound holds, too); both in seconds. Raises BudgetExhausted, NoUsableSource, PoolClosed, TimeoutError
    or the OSError of the last attempt; *failures* takes those of all. The socket has *timeout* as its time-out.
    """
    failure = None
    destinations = list(destinations)
    if len(destinations) == 1:
        now = monotonic()
        if way := way_to(to, destinations[0], now):
            outcome = _at_once(to.ledger, way, timeout, options, pool, now)
            if isinstance(outcome, GatedSocket):
                return outcome
            failure = outcome
    dialing = _Dialing(to, destinations, timeout, wait, options, pool)
    if failures is not None:
        dialing.plan.errors = failures
    if failure is not None:
        dialing.learn(*failure)
    return dialing.run()


def _at_once(
    ledger: Ledger, way: Way, timeout: float | None, options: Sequence[SocketOption], holder: Holder | None, now: float
) -> GatedSocket | Failure | None:
    """Connect the one way there is, if it has room; None if not. What _Dialing does, without its preparations."""
    lease = Lease(ledger, way.want, holder, now)
    sock = None
    try:
        if not ledger.take(lease, now):
            return None
        sock = open_socket(lease, way.recipe, options)
        if timeout is not None or sock.gettimeout() is not None:
            sock.settimeout(timeout)
        sock.connect(way.name)
        _stands(ledger, sock, lease)
        return sock
    except CallFailed as failure:
        ledger.release(lease, monotonic())
        return lease, failure.call, failure.error
    except OSError as error:
        assert sock is not None
        _close_failed(ledger, sock, lease, error)
        return lease, "connect", error
    except BaseException:
        if sock is not None:
            sock.close()
        else:
            ledger.give_up(lease, monotonic())
        raise


def _stands(ledger: Ledger, sock: GatedSocket, lease: Lease) -> None:
    space = lease.want.space
    ledger.opened(lease, Flow(space.source, sock.getsockname()[1], space.destination), monotonic())


def _close_failed(ledger: Ledger, sock: GatedSocket, lease: Lease, error: OSError, port: int = 0) -> None:
    """Close after a failed connect()."""
    if error.errno == errno.EADDRNOTAVAIL and not port:
        sock.lease = None
        sock.close()
        ledger.refused(lease, monotonic())
    else:
        sock.close()


class _Dialing(Generic[C]):
    """One connection on its way: the line, then one attempt, or several that race."""

    __slots__ = (*("flying", "ledger", "lined", "options", "plan", "pool", "timeout", "wait", "waited", "waiter"),)

    def __init__(
        self,
        to: To,
        destinations: Iterable[Destination],
        timeout: float | None,
        wait: float | None,
        options: Sequence[SocketOption],
        pool: Pool[C] | None,
    ) -> None:
        self.plan = DialPlan(to, destinations, monotonic())
        self.ledger = to.ledger
        self.timeout = timeout
        self.wait = wait
        self.options = options
        self.pool = pool
        self.waiter = Waiter(_nobody, pool)
        self.lined = False  # stood in line
        self.waited = 0.0
        self.flying: dict[int, tuple[GatedSocket, Lease, float]] = {}  # by descriptor, with the deadline

    def run(self) -> GatedSocket | C:
        won: GatedSocket | C | None = None
        try:
            won = self._race() if self.plan.more(1) else self._straight()
            return won
        finally:
            # Every way out gives back what was taken: losers, a crossed grant, the place in line.
            if self.flying:
                for sock, _, _ in self.flying.values():
                    sock.close()
            if won is None or self.lined:
                self._leave(won)

    def _straight(self) -> GatedSocket | C:
        """Connect to the one destination there is."""
        while True:
            now = monotonic()
            best = self._best(now)
            outcome = best if best is not None else self._reserve(self.plan.wants(now), now)
            if not isinstance(outcome, Lease):
                return outcome
            if (sock := self._open(outcome, now)) is None:
                continue
            destination = outcome.want.space.destination
            try:
                if self.timeout != sock.gettimeout():
                    sock.settimeout(self.timeout)
                sock.connect(sockaddr(destination.address, destination.port))
                _stands(self.ledger, sock, outcome)
                return sock
            except OSError as error:
                self._fail(sock, outcome, error)
            except BaseException:
                sock.close()
                raise

    def _race(self) -> GatedSocket | C:
        """Try the destinations one after the other, each a moment after the one before (RFC 8305)."""
        next_at = 0.0
        while True:
            now = monotonic()
            if now >= next_at or not self.flying:
                outcome = self._launch(now)
                if outcome is not None:
                    return outcome
                next_at = monotonic() + ATTEMPT_DELAY
            if self.flying and (sock := self._watch(next_at)):
                return sock

    def _launch(self, now: float) -> C | None:
        """Begin one attempt more; wait for a port only while nothing else is on its way."""
        while True:
            flying = [lease.space.destination for _, lease, _ in self.flying.values()]
            outcome: object = self._best(now, flying)
            if outcome is None:
                wants = self.plan.wants(now, flying)
                if self.flying and (not wants or self.ledger.reserve(self.waiter, wants, now)):
                    return None
                outcome = self.waiter.outcome or self._reserve(wants, now)
            if not isinstance(outcome, Lease):
                return cast(C, outcome)
            if (sock := self._open(outcome, now)) is not None:
                self.waiter = self.waiter.again()
                destination = outcome.space.destination
                deadline = inf if self.timeout is None else now + self.timeout
                self.flying[sock.fileno()] = (sock, outcome, deadline)
                sock.setblocking(False)
                code = sock.connect_ex(sockaddr(destination.address, destination.port))
                if code in (0, errno.EINPROGRESS):
                    return None
                del self.flying[sock.fileno()]
                self._fail(sock, outcome, OSError(code, os.strerror(code)))
            now = monotonic()

    def _best(self, now: float, flying: Sequence[Destination] = ()) -> Lease | None:
        """Return a lease for the best that would do, if it has room."""
        if not (wants := self.plan.best(now, flying)) or self.ledger.reserve(self.waiter, wants, now, ask=False):
            return None
        return cast("Lease | None", self.waiter.outcome)

    def _reserve(self, wants: Sequence[Want], now: float) -> Lease | C:
        """Return a lease, or a connection that came free first; wait for either."""
        if not wants:
            raise self.plan.error or OSError(errno.EADDRNOTAVAIL, "name resolution gave no address")
        refuser = self.ledger.reserve(self.waiter, wants, now)
        for _ in range(NETWORK_TRIES if refuser and self.plan.bound.foreign else 0):
            wants = self.plan.wants(now)  # other addresses of the network
            if (refuser := self.ledger.reserve(self.waiter, wants, now)) is None:
                break
        while refuser and self._reclaim(wants, now):
            now = monotonic()
            refuser = self.ledger.reserve(self.waiter, wants, now)
        if refuser:
            self._wait(wants, refuser)
        outcome = self.waiter.outcome
        if outcome is None:
            raise PoolClosed("the pool was closed while a request waited for a connection")
        return outcome  # type: ignore[return-value]

    def _open(self, lease: Lease, now: float) -> GatedSocket | None:
        try:
            return open_socket(lease, recipe(lease.want.space.source, self.plan.bound, port_range(now)), self.options)
        except CallFailed as failure:
            self.ledger.release(lease, monotonic())
            self.learn(lease, failure.call, failure.error)
            return None

    def _watch(self, next_at: float) -> GatedSocket | None:
        """Wait until an attempt has an end or the next one is due; return the socket that won."""
        now = monotonic()
        until = min(deadline for _, _, deadline in self.flying.values())
        if self.plan.more(len(self.flying)):
            until = min(until, next_at)
        poll = select.poll()
        for number in self.flying:
            poll.register(number, select.POLLOUT)
        for number, _ in poll.poll(None if until == inf else max(0.0, until - now) * 1000):
            sock, lease, _ = self.flying[number]
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                _stands(self.ledger, sock, lease)
                sock.settimeout(self.timeout)
                del self.flying[number]
                return sock
            del self.flying[number]
            self._fail(sock, lease, OSError(code, os.strerror(code)))
        now = monotonic()
        for number, (sock, lease, deadline) in list(self.flying.items()):
            if deadline <= now:
                del self.flying[number]
                self._fail(sock, lease, TimeoutError("timed out"))
        return None

    def _fail(self, sock: GatedSocket, lease: Lease, error: OSError) -> None:
        """Close after a failed connect() and learn from it."""
        _close_failed(self.ledger, sock, lease, error, self.plan.to.port)
        self.learn(lease, "connect", error)

    def learn(self, lease: Lease, call: str, error: OSError) -> None:
        """Draw conclusions from an attempt that failed in *call*; raise *error* if no other can succeed."""
        self.waiter = self.waiter.again()  # the lease that was delivered is spent
        meaning = self.plan.failed(lease.space, call, error, monotonic())
        if meaning is not Meaning.PORTS:
            self.ledger.emit(DialFailed(lease.space, call, error))
        if meaning is Meaning.FATAL:
            raise error

    def _reclaim(self, wants: Sequence[Want], now: float) -> bool:
        """Have one idle connection of another pool give way to us, unless the port of one is on its way."""
        promise = self.ledger.seek(self.waiter, wants, now)
        if promise is None:
            return False
        victim = lease = None
        try:
            for account, holders in self.ledger.rivals(wants, now):
                for holder in holders:
                    # What is idle in our own pool is ours as it is: join() finds it. What is retired is not.
                    if victim := holder.surrender(account, idle=holder is not self.pool):
                        lease = victim.lease
                        return True
            return False
        finally:
            self.ledger.found(promise, lease)
            if victim:
                victim.give_way()

    def _wait(self, wants: Sequence[Want], refuser: Account) -> None:
        """Stand in line until there is an outcome; raise BudgetExhausted when the time is over."""
        began = monotonic()
        if refuser.budget.refuses:
            raise self.ledger.exhausted(refuser, began, self.waited)
        self.lined = True
        limit = refuser.budget.wait if self.wait is None else min(refuser.budget.wait, self.wait)
        deadline = began + limit - self.waited
        alarm = Alarm()
        waiter = self.waiter
        waiter.wake = alarm.wake
        if self.pool is not None:
            for connection, reason in self.pool.join(waiter, began, place=False):
                connection.end(reason)
        if not waiter.decided:
            self.ledger.join(waiter, wants, began)
            timer.watch_ledger(self.ledger)
            if not waiter.decided:
                self._reclaim(wants, began)  # again: who became idle in between saw nobody in line
        while not waiter.decided and (left := deadline - monotonic()) > 0:
            # Not for longer: a connection may have given way to us, and its port not be free after all.
            alarm.wait(min(left, ACKNOWLEDGED))
            if not waiter.decided:
                # Another account keeps us waiting now, or the port that was promised does not come.
                self._reclaim(waiter.wants, monotonic())
        now = monotonic()
        self.waited += now - began
        # First of all it is passed over in every line: what comes free now is for others.
        unserved = not waiter.decided and waiter.leave() is None
        if self.pool is not None:
            self.pool.leave(waiter)
        if unserved:
            raise self.ledger.exhausted(self.ledger.refuser(waiter.wants, now) or refuser, now, self.waited)

    def _leave(self, won: GatedSocket | C | None) -> None:
        now = monotonic()
        outcome = self.waiter.leave()
        if self.pool is not None:
            self.pool.leave(self.waiter)
            if outcome is not None and outcome is not won and not isinstance(outcome, Lease):
                for connection, reason in self.pool.give_back(cast(C, outcome), now):
                    connection.end(reason)
        self.ledger.leave(self.waiter, now, served=won is not None)


def _ipv6(address: str, port: int) -> Destination:
    """Give an address its one name: a mapped one is IPv4's, the unspecified one is this host."""
    if address.startswith("::ffff:") and "." in address:
        return Destination(address[7:], port)
    return Destination("::1" if address == "::" else address, port)


@functools.lru_cache(maxsize=1024)
def _literal(host: str, port: int, family: int) -> Destination | None:
    """Read an address as getaddrinfo() would; None if it is none, or written in another way than the system's."""
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        return None
    kind = family_of(host)
    try:
        if family not in (socket.AF_UNSPEC, kind) or socket.inet_ntop(kind, socket.inet_pton(kind, host)) != host:
            return None
    except (OSError, ValueError):
        return None
    if kind == socket.AF_INET:
        return Destination("127.0.0.1" if host == "0.0.0.0" else host, port)
    return _ipv6(host, port)


def _nobody() -> None:
    """Wake nobody: the waiter is not in line yet."""
