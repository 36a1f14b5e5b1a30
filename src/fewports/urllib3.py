"""urllib3's classes, with every socket behind the gate: the same arguments, results and exceptions.

What is kept is not bounded by maxsize but by the budget and by time: connections beyond maxsize are
kept for a few seconds more, because to discard one costs its port for a minute.

Long, because it follows urllib3's three nouns, connection, pool and manager, which know each other.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - else the first request imports it, and a fork meanwhile copies the lock
import logging
import queue
import socket
import sys
import weakref
from collections.abc import Callable, Iterable
from http.client import _CS_IDLE  # type: ignore[attr-defined]
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import urllib3
from urllib3.connection import port_by_scheme
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    EmptyPoolError,
    FullPoolError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    PoolError,
)
from urllib3.util import Timeout, connection, parse_url

from . import errors
from .address import Destination, Origin
from .budget import Budget
from .dial import To
from .events import CloseReason
from .gated import GatedSocket, gated, pass_on
from .kernel import facts, options
from .ledger.account import Lease, Waiter
from .ledger.local import Ledger
from .ledger.shared import shared_ledger
from .pool import AGE_LIMIT, IDLE_LIMIT, Limits, Place, Pool, PoolClosed
from .source import Sources
from .sync.dial import Alarm, dial, resolve
from .sync.timer import timer
from .tcp import pick_sources

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection
    from urllib3.response import BaseHTTPResponse

__all__ = [
    "BudgetExhausted",
    "HTTPConnection",
    "HTTPConnectionPool",
    "HTTPSConnection",
    "HTTPSConnectionPool",
    "NoUsableSource",
    "PoolManager",
    "ProxyManager",
    "connection_from_url",
    "proxy_from_url",
]


log = logging.getLogger("fewports")


class BudgetExhausted(errors.BudgetExhausted, PoolError):
    """No port within the budget. A PoolError, as when a bounded pool is empty; urllib3 does not retry it."""

    def __init__(self, error: errors.BudgetExhausted, pool: object = None) -> None:
        errors.BudgetExhausted.__init__(self, error.usage, next_due=error.next_due, waited=error.waited)
        self.pool = cast("urllib3.connectionpool.ConnectionPool", pool)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        plain = errors.BudgetExhausted(self.usage, next_due=self.next_due, waited=self.waited)
        return type(self), (plain,)


class NoUsableSource(errors.NoUsableSource, HTTPError):
    """No source address reaches the destination."""


class Gate:
    """What a manager, a pool or a session was configured with: its own budget, sources and ledger."""

    def __init__(
        self,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
    ) -> None:
        self.budget = None if budget is None else Budget.of(budget)
        self.sources = None if sources is None else Sources.of(sources)
        self.own_ledger = ledger
        for name, value in (("idle_limit", idle_limit), ("max_age", max_age)):
            if not value > 0:
                raise errors.InvalidOption(f"{name}={value!r} is not a time in seconds; give more than 0")
        self.idle_limit = idle_limit
        self.max_age = max_age

    @property
    def ledger(self) -> Ledger:
        return self.own_ledger or shared_ledger()

    def limits(self, maxsize: int, block: bool) -> Limits:
        return Limits(maxsize, maxsize if block else None, self.idle_limit, self.max_age)

    def to(self, origin: Origin, source_address: tuple[str, int] | None) -> To:
        """Say how to reach *origin*; raises InvalidOption or OSError for a bad source address."""
        ledger = self.ledger
        sources, port = pick_sources(ledger, self.sources if source_address is None else None, source_address)
        return To(origin, ledger, sources, self.budget, self if self.budget else None, port)


_open_gate = Gate()


class HTTPConnection(urllib3.connection.HTTPConnection):
    """urllib3's connection on a leased port.

    It may take over the socket of an idle connection that comes free while it waits for a port.
    """

    gate: Gate = _open_gate
    home: Pool[HTTPConnection] | None = None
    lease: Lease | None = None
    idle_since: float = 0.0
    expires: float = inf
    wait: float | None = None  # seconds in line for a port; None: as long as the budget says
    _dialled: GatedSocket | None = None
    _failure: Exception | None = None

    def connect(self) -> None:
        """Connect, or take over an idle connection of the pool that comes free first."""
        if type(self)._new_conn not in _OURS:
            super().connect()  # a subclass that opens its own sockets: they are beyond the gate
            return
        try:
            outcome = self._dial()
            while isinstance(outcome, HTTPConnection) and connection.is_connection_dropped(outcome):
                outcome.end(CloseReason.PEER_CLOSED)  # before it was our turn
                if self.home is not None:
                    self.home.drop_place()
                outcome = self._dial()
        except Exception as error:
            self._failure = error
            super().connect()  # urllib3 cleans up after _new_conn(), which raises it
            raise AssertionError("connect() goes through _new_conn()") from error
        if isinstance(outcome, HTTPConnection):
            self._take_over(outcome)
            return
        self._dialled = outcome
        outcome.passing = True
        if outcome.lease is not None and outcome.lease.pressed and facts.features().linger2:
            options.skip_time_wait(outcome)  # if the handshake fails, it is ssl that closes it
        lease = outcome.lease
        try:
            super().connect()
            outcome.passing = False
            pass_on(outcome, self.sock)
        except BaseException:
            outcome.passing = False
            outcome.close()  # gives the lease back, if the descriptor has gone elsewhere and is closed
            raise
        self.lease = lease
        if self.home is not None:
            self.expires = self.home.expiry(monotonic())

    def close(self) -> None:
        """Close the socket; its port is given back when the last reader of a response is done, too."""
        self.lease = None
        super().close()

    def end(self, reason: CloseReason) -> None:
        """Close, and say why."""
        if sock := gated(self.sock):
            sock.reason = reason
        self.close()

    def give_way(self) -> None:
        self.end(CloseReason.GAVE_WAY)

    @property
    def settled(self) -> bool:
        """Say whether no response is under way, so that another request may follow."""
        # http.client keeps these to itself. By the state of the socket one cannot tell: a body may be yet to come.
        response = getattr(self, "_HTTPConnection__response", None)
        begun = getattr(self, "_HTTPConnection__state", _CS_IDLE) != _CS_IDLE
        return not begun and (response is None or response.isclosed())

    def leave_to_response(self) -> None:
        """Forget the socket: it is closed when the response that is under way has been read, or dropped."""
        sock, self.sock, self.lease = self.sock, None, None
        sock.close()

    def fileno(self) -> int:
        sock = self.sock  # read once: another thread may close
        return sock.fileno() if sock is not None else -1

    def _new_conn(self) -> socket.socket:
        sock, self._dialled = self._dialled, None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if sock is None:  # called by a subclass, which has no use for a whole connection
            home, self.home = self.home, None
            try:
                sock = cast(GatedSocket, self._dial())
            finally:
                self.home = home
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock

    @property
    def peer(self) -> Origin:
        """What to connect to: the host, or its proxy."""
        scheme = "https" if isinstance(self, urllib3.connection.HTTPSConnection) else "http"
        return Origin(scheme, self._dns_host, self.port)

    def _dial(self) -> GatedSocket | HTTPConnection:
        peer = self.peer
        try:
            destinations = _resolve(peer.host, peer.port)
            to = self.gate.to(peer, self.source_address)
            return dial(
                to,
                destinations,
                timeout=_seconds(self.timeout),
                wait=self.wait,
                options=self.socket_options or (),
                pool=self.home,
            )
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            message = f"Connection to {self.host} timed out. (connect timeout={self.timeout})"
            raise ConnectTimeoutError(self, message) from error
        except OSError as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error
        except errors.BudgetExhausted as error:
            raise BudgetExhausted(error, self) from error
        except errors.NoUsableSource as error:
            if self.source_address:  # urllib3's own argument, urllib3's own exception
                raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error
            raise NoUsableSource(error.destination, error.reasons) from error
        except PoolClosed as error:
            raise ClosedPoolError(cast(Any, self), "Pool is closed.") from error

    def _take_over(self, other: HTTPConnection) -> None:
        """Go on with the socket of *other*, which came back to the pool while this one waited."""
        self.sock, other.sock = other.sock, None
        self.lease, other.lease = other.lease, None
        self.expires = other.expires
        self.is_verified = other.is_verified
        self.proxy_is_verified = other.proxy_is_verified
        self._has_connected_to_proxy = other._has_connected_to_proxy
        self.sock.settimeout(_seconds(self.timeout))
        if self.home is not None:
            self.home.adopted()


_OURS: set[Callable[..., socket.socket]] = {HTTPConnection._new_conn}  # and those that build on it


class HTTPSConnection(HTTPConnection, urllib3.connection.HTTPSConnection):
    """urllib3's TLS connection on a leased port."""


class Shelf:
    """What urllib3 calls ``pool.pool``: the places that are left, as a queue of connections and Nones."""

    def __init__(self, pool: HTTPConnectionPool, maxsize: int) -> None:
        self._pool = weakref.ref(pool)
        self.maxsize = maxsize

    def qsize(self) -> int:
        pool = self._pool()
        return min(self.maxsize, max(0, self.maxsize - pool.home.used)) if pool else 0

    def empty(self) -> bool:
        return self.qsize() == 0

    def full(self) -> bool:
        return self.qsize() == self.maxsize

    def get(self, block: bool = True, timeout: float | None = None) -> HTTPConnection | None:
        """Take a place: with a connection if one is idle. Raises queue.Empty."""
        pool = self._pool()
        if pool is None or pool.home.closed or self.qsize() == 0:
            raise queue.Empty
        return pool.take(timeout)

    def get_nowait(self) -> HTTPConnection | None:
        return self.get(block=False)

    @property
    def queue(self) -> list[HTTPConnection | None]:
        """The places as a list, the next one last."""
        pool = self._pool()
        idle = pool.home.quiet() if pool else []
        return [*[None] * (self.qsize() - len(idle)), *idle]

    def put(self, item: HTTPConnection | None, block: bool = True, timeout: float | None = None) -> None:
        """Give a place back. Raises queue.Full."""
        pool = self._pool()
        if pool is None or self.full():
            raise queue.Full
        pool.give_back(item)


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    """urllib3's pool of one host, behind the gate.

    Beside urllib3's arguments: *budget* bounds the ports that this pool holds, within the budget of
    *ledger* (by default the process's own); *sources* are the addresses to connect from; a connection
    is kept for *idle_limit* seconds without use and for *max_age* seconds in all.
    """

    ConnectionCls: type[HTTPConnection] = HTTPConnection

    def __init__(
        self,
        *args: Any,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
        gate: Gate | None = None,
        **keywords: Any,
    ) -> None:
        self.gate = gate or Gate(budget, sources, ledger, idle_limit, max_age)
        super().__init__(*args, **keywords)
        maxsize = getattr(self.pool, "maxsize", 1)
        self.home: Pool[HTTPConnection] = Pool(self.gate.limits(maxsize, self.block))
        self.pool = cast(Any, Shelf(self, maxsize))
        self._shells: list[HTTPConnection] = []  # closed, to be connected again: making one costs 10 us
        weakref.finalize(self, _abandon, self.home).atexit = False  # sync.exit sees to that

    def close(self) -> None:
        """Close the idle connections now, and those in use when they come back."""
        self.pool = None
        _close(self.home)

    def take(self, timeout: float | None) -> HTTPConnection | None:
        """Take an idle connection that is alive, or a place: then None, or a closed connection to use again.

        Waits for *timeout* seconds at most, where the pool is bounded. Raises ClosedPoolError or EmptyPoolError.
        """
        while True:
            try:
                found, endings = self.home.take(monotonic())
            except PoolClosed:
                raise ClosedPoolError(self, "Pool is closed.") from None
            for other, reason in endings:
                other.end(reason)
            if found is None:
                found = self._wait_for_place(timeout)
            if isinstance(found, Place):
                try:
                    shell = self._shells.pop()
                except IndexError:
                    return None
                shell.close()  # forgets a request that was begun without a connection
                return shell
            try:
                if not connection.is_connection_dropped(found):
                    return found
                log.debug("Resetting dropped connection: %s", self.host)
                found.end(CloseReason.PEER_CLOSED)
            except BaseException:
                self.give_back(found)
                raise
            self._shells.append(found)
            self.home.drop_place()

    def give_back(self, conn: HTTPConnection | None) -> None:
        """Give back a place, with its connection if that is still open."""
        if conn is None or conn.sock is None:
            if conn is not None and len(self._shells) < self.home.limits.kept and not self.home.closed:
                self._shells.append(conn)
            elif conn is not None:
                conn.close()
            self.home.drop_place()
            return
        if not conn.settled:
            # Released unread. urllib3 keeps it, and may send a request before the rest of that response is here.
            conn.leave_to_response()
            self.home.drop_place()
            return
        for other, reason in self.home.give_back(conn, monotonic()):
            other.end(reason)
        timer.watch_pool(self.home)

    def _new_conn(self) -> BaseHTTPConnection:
        made = super()._new_conn()
        if isinstance(made, HTTPConnection):
            made.gate = self.gate
            made.home = self.home
        return made

    def _get_conn(self, timeout: float | None = None) -> BaseHTTPConnection:
        if self.pool is None:
            raise ClosedPoolError(self, "Pool is closed.")
        try:
            conn: BaseHTTPConnection | None = self.take(timeout)
        except EmptyPoolError:
            raise
        except BaseException:
            self.home.add_place()  # urlopen gives a place back after all errors but EmptyPoolError
            raise
        if conn is None:
            conn = self._new_conn()
        if isinstance(conn, HTTPConnection):
            conn.wait = timeout
        return conn

    def _make_request(self, conn: BaseHTTPConnection, *args: Any, **keywords: Any) -> BaseHTTPResponse:
        total = getattr(keywords.get("timeout"), "total", None)
        if isinstance(total, (int, float)) and isinstance(conn, HTTPConnection):
            # The time in line for a port is part of the whole; urllib3 takes it off the time to read.
            conn.wait = min(total, conn.wait) if isinstance(conn.wait, (int, float)) else total
        return super()._make_request(conn, *args, **keywords)

    def _put_conn(self, conn: BaseHTTPConnection | None) -> None:
        if self.home.used <= 0 and self.pool is not None:
            self._turn_away(conn)
        elif conn is None or isinstance(conn, HTTPConnection):
            self.give_back(conn)
        else:
            conn.close()
            self.home.drop_place()

    def _turn_away(self, conn: BaseHTTPConnection | None) -> None:
        """Close what was not taken from this pool, as urllib3 does."""
        if conn is not None:
            conn.close()
        if self.block:
            raise FullPoolError(self, "Pool reached maximum size and no more connections are allowed.")
        log.warning(
            "Connection pool is full, discarding connection: %s. Connection pool size: %s",
            self.host,
            self.home.limits.kept,
        )

    def _wait_for_place(self, timeout: float | None) -> HTTPConnection | Place:
        alarm = Alarm()
        waiter = Waiter(alarm.wake)
        outcome: object = None
        try:
            for other, reason in self.home.join(waiter, monotonic(), place=True):
                other.end(reason)
            if not waiter.decided:
                alarm.wait(timeout)
            outcome = waiter.leave()
        except PoolClosed:
            raise ClosedPoolError(self, "Pool is closed.") from None
        except BaseException:
            self._return(waiter.leave())
            raise
        finally:
            self.home.leave(waiter)
        if isinstance(outcome, (HTTPConnection, Place)):
            return outcome
        if self.home.closed:
            raise ClosedPoolError(self, "Pool is closed.")
        message = "Pool is empty and a new connection can't be opened due to blocking mode."
        raise EmptyPoolError(self, message)

    def _return(self, outcome: object) -> None:
        if isinstance(outcome, HTTPConnection):
            self.give_back(outcome)
        elif isinstance(outcome, Place):
            self.home.drop_place()


class HTTPSConnectionPool(HTTPConnectionPool, urllib3.HTTPSConnectionPool):  # type: ignore[misc]
    """urllib3's pool of one HTTPS host, behind the gate; see HTTPConnectionPool."""

    ConnectionCls: type[HTTPConnection] = HTTPSConnection  # type: ignore[assignment]


class PoolManager(urllib3.PoolManager):
    """urllib3's PoolManager, behind the gate.

    Beside urllib3's arguments: *budget* bounds the ports that this manager holds per destination, within
    the budget of *ledger* (by default the process's own); *sources* are the addresses to connect from;
    a connection is kept for *idle_limit* seconds without use and for *max_age* seconds in all.
    """

    def __init__(
        self,
        num_pools: int = 10,
        headers: Any = None,
        *,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
        gate: Gate | None = None,
        **connection_pool_kw: Any,
    ) -> None:
        self.gate = gate or Gate(budget, sources, ledger, idle_limit, max_age)
        super().__init__(num_pools, headers, **connection_pool_kw)
        self.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}

    def clear(self) -> None:
        """Close all idle connections now, also those of pools that somebody still refers to, and forget the pools."""
        pools = [self.pools.get(key) for key in self.pools.keys()]  # noqa: SIM118 - it cannot be iterated
        for pool in pools:
            if isinstance(pool, HTTPConnectionPool):
                _end(pool.home.empty())
        super().clear()

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> urllib3.HTTPConnectionPool:
        # The gate is no part of the key by which pools are found: it is the manager's, the same for all.
        if issubclass(self.pool_classes_by_scheme[scheme], HTTPConnectionPool):
            request_context = dict(self.connection_pool_kw if request_context is None else request_context)
            request_context["gate"] = self.gate
        return super()._new_pool(scheme, host, port, request_context)


class ProxyManager(urllib3.ProxyManager, PoolManager):
    """urllib3's ProxyManager, behind the gate; see PoolManager."""


def connection_from_url(url: str, **kw: Any) -> HTTPConnectionPool:
    """Return a pool for the host of *url*."""
    scheme, _, host, port, *_ = parse_url(url)
    scheme = scheme or "http"
    kind = HTTPSConnectionPool if scheme == "https" else HTTPConnectionPool
    return kind(host, port=port or port_by_scheme.get(scheme, 80), **kw)


def proxy_from_url(url: str, **kw: Any) -> ProxyManager:
    """Return a manager that sends all through the proxy at *url*."""
    return ProxyManager(proxy_url=url, **kw)


def _close(home: Pool[HTTPConnection]) -> None:
    _end(home.close())
    timer.kick()


def _abandon(home: Pool[HTTPConnection]) -> None:
    # The garbage collector may call, in the middle of anything: no lock may be taken. While something is idle the
    # timer runs; and nothing else is in the pool of a face that is gone.
    home.abandoned = True
    timer.kick()


def _end(endings: Iterable[tuple[HTTPConnection, CloseReason]]) -> None:
    for other, reason in endings:
        other.end(reason)


def _resolve(host: str, port: int) -> list[Destination]:
    try:
        host.encode("idna")
    except UnicodeError:
        raise LocationParseError(f"'{host}', label empty or too long") from None
    return resolve(host.strip("[]"), port, connection.allowed_gai_family())


def _seconds(timeout: object) -> float | None:
    return Timeout.resolve_default_timeout(cast(Any, timeout))
