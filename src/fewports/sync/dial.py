"""Open a connection through the gate, or take one over: the one place where a thread waits for a port."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import threading
from collections.abc import Iterable, Sequence
from math import inf
from time import monotonic
from typing import TypeVar

from ..address import Destination, family_of, from_sockaddr
from ..dial import To, Way, way_to
from ..dialing import Connect, Dialing, Limits, Queue, Step, close_failed, stands
from ..gated import CallFailed, GatedSocket, SocketOption, open_socket
from ..ledger.account import Holder, Lease, Waiter, Want
from ..ledger.local import Ledger
from ..pool import Pool
from ..standing import Floor, Standing, Turn, followed
from . import exit, fork  # noqa: F401 - what is to happen at exit and in a forked child
from .timer import Idle, timer

C = TypeVar("C", bound=Idle)
FLOOR = Floor(monotonic, timer.watch_ledger)
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
    if known := literal(host, port, family):
        return [known]
    found = []
    for kind, _, _, _, name in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
        if kind == socket.AF_INET:
            # Linux connects to this host for the unspecified address; it would be counted apart.
            address = "127.0.0.1" if name[0] == "0.0.0.0" else name[0]
            found.append(Destination(address, name[1]))  # type: ignore[arg-type]
        elif kind == socket.AF_INET6:
            found.append(_ipv6(*from_sockaddr(name)))  # type: ignore[arg-type]
    return found


def literal(host: str, port: int, family: int = socket.AF_UNSPEC) -> Destination | None:
    """Return the address that *host* is, so that nobody has to be asked; None if it is a name."""
    return _literal(host, port, family) if socket.getaddrinfo is _stock_getaddrinfo else None


def dial(
    to: To,
    destinations: Iterable[Destination],
    *,
    timeout: float | None = None,
    wait: float | None = None,
    options: Sequence[SocketOption] = (),
    pool: Pool[C] | None = None,
    failures: list[Exception] | None = None,
    ticket: int | Turn | None = None,
) -> GatedSocket | C:
    """Return a connected socket with its lease, or a connection of *pool* that came free first.

    *destinations* are not looked at before it is our turn. *timeout* bounds each attempt to connect, *wait* the time in
    line for a port (the budget's own bound holds, too); both in seconds. *ticket* is that of who has stood in line
    before, or the turn that came of it. *failures* takes the errors of all attempts. Raises BudgetExhausted,
    NoUsableSource, PoolClosed, TimeoutError or the OSError of the last attempt. The socket has *timeout* as its
    time-out.
    """
    if not isinstance(ticket, Turn):
        if pool is None or not (wants := followed(pool, monotonic())):
            return _dial(to, destinations, Limits(timeout, wait, ticket), options, pool, failures)
        outcome = follow(wants, to.ledger, pool, wait, ticket)
        if not isinstance(outcome, Turn):
            return outcome
        ticket = outcome
    try:
        return _dial(to, destinations, Limits(timeout, wait, turn=ticket), options, pool, failures)
    finally:
        to.ledger.give_up(ticket.lease, monotonic())  # it was broken off before dialing saw to it


def follow(
    wants: Sequence[Want], ledger: Ledger, pool: Pool[C], wait: float | None, ticket: int | None = None
) -> Turn | C:
    """Stand in line for *wants* behind others of *pool*; raises BudgetExhausted or PoolClosed."""
    alarm = Alarm()
    standing = Standing(Waiter(alarm.wake, pool), ledger, pool, FLOOR)
    if ticket is not None:
        standing.waiter.ticket = ticket
    try:
        standing.begin(wants, wait, 0.0)
        while (pause := standing.pause()) > 0:
            alarm.wait(pause)
        outcome: Lease | C = standing.end(0.0)
        found = standing.turn(outcome) if isinstance(outcome, Lease) else outcome
        standing.leave(outcome)
        return found
    except BaseException:  # a KeyboardInterrupt may come behind the end, too
        standing.leave(None)
        raise


def _dial(
    to: To,
    destinations: Iterable[Destination],
    limits: Limits,
    options: Sequence[SocketOption],
    pool: Pool[C] | None,
    failures: list[Exception] | None,
) -> GatedSocket | C:
    failure, timeout = None, limits.timeout
    destinations = list(destinations)
    if len(destinations) == 1 and limits.turn is None:
        now = monotonic()
        if way := way_to(to, destinations[0], now):
            outcome = _at_once(to.ledger, way, timeout, options, pool, now)
            if isinstance(outcome, GatedSocket):
                return outcome
            failure = outcome
    alarm = Alarm()
    dialing = Dialing(to, destinations, limits, alarm.wake, FLOOR, options=options, pool=pool)
    if failures is not None:
        dialing.plan.errors = failures
    if failure is not None:
        dialing.learn(*failure)
    return _drive(dialing, alarm, timeout)


def _at_once(
    ledger: Ledger, way: Way, timeout: float | None, options: Sequence[SocketOption], holder: Holder | None, now: float
) -> GatedSocket | Failure | None:
    """Connect the one way there is, if it has room; None if not. What Dialing does, without its preparations."""
    lease = Lease(ledger, way.want, holder, now)
    sock = None
    try:
        if not ledger.take(lease, now):
            return None
        sock = open_socket(lease, way.recipe, options)
        if timeout is not None or sock.gettimeout() is not None:
            sock.settimeout(timeout)
        sock.connect(way.name)
        stands(lease, sock, monotonic())
        return sock
    except CallFailed as failure:
        ledger.release(lease, monotonic())
        return lease, failure.call, failure.error
    except OSError as error:
        assert sock is not None
        close_failed(lease, sock, error, monotonic)
        return lease, "connect", error
    except BaseException:
        if sock is not None:
            sock.close()
        else:
            ledger.give_up(lease, monotonic())
        raise


def _drive(dialing: Dialing[C], alarm: Alarm, timeout: float | None) -> GatedSocket | C:
    """Take the steps of *dialing*."""
    steps = dialing.steps()
    try:
        step = next(steps)
        while True:
            try:
                ready = _take(step, alarm, timeout)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(ready)
    except StopIteration as end:
        outcome: GatedSocket | C = end.value
    finally:
        steps.close()  # a KeyboardInterrupt may have come between two steps
    if isinstance(outcome, GatedSocket) and outcome.gettimeout() != timeout:
        outcome.settimeout(timeout)
    return outcome


def _take(step: Step, alarm: Alarm, timeout: float | None) -> Sequence[GatedSocket]:
    if isinstance(step, Connect):
        if timeout != step.sock.gettimeout():
            step.sock.settimeout(timeout)
        step.sock.connect(step.name)
        return ()
    if isinstance(step, Queue):
        alarm.wait(step.seconds)
        return ()
    poll = select.poll()
    by_number = {sock.fileno(): sock for sock in step.sockets}
    for number in by_number:
        poll.register(number, select.POLLOUT)
    ready = poll.poll(None if step.until == inf else max(0.0, step.until - monotonic()) * 1000)
    return [by_number[number] for number, _ in ready]


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
