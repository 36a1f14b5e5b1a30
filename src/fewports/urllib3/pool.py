"""urllib3's pools of one host, behind the gate.

Long, because the straight way of a request stands beside the ways that it leaves to urllib3.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from functools import partial
from http.client import HTTPException
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import urllib3
from urllib3.connection import _ResponseOptions, port_by_scheme
from urllib3.connectionpool import log as stock_log
from urllib3.exceptions import ClosedPoolError, EmptyPoolError, FullPoolError
from urllib3.util import Retry, Timeout, parse_url, ssl_
from urllib3.util.timeout import _DEFAULT_TIMEOUT

from .._own import own
from ..budget import Budget
from ..events import CloseReason
from ..http2.waiting import REPEATS
from ..ledger.account import Waiter
from ..ledger.local import Ledger
from ..pool import AGE_LIMIT, IDLE_LIMIT, Pool, PoolClosed
from ..sharing import ALONE, PLACE, Place
from ..source import Sources
from ..sync.dial import Alarm
from ..sync.shared import SharedWire
from ..sync.timer import timer
from .connection import OURS, HTTPConnection, HTTPSConnection, Kept
from .gate import Gate
from .patched import recorder, untouched
from .response import Response
from .shelf import Shelf
from .times import Times, times_of
from .turns import take_turn

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection
    from urllib3.response import BaseHTTPResponse

log = logging.getLogger("fewports")
_asked = partial(tuple.__new__, _ResponseOptions)  # its own __new__() is a function in Python, and takes twice as long
RIDERS = 256  # connections without a socket, of 2 KB each, that are kept for those who will be at once on a shared one
REDIRECTS = frozenset(urllib3.HTTPResponse.REDIRECT_STATUSES)


class Begun:
    """A request on its way when urllib3's urlopen() takes over: on which connection, and what came of it so far.

    It goes through urllib3 as the ``pool_timeout`` of the request, which it carries; who asks for a connection first
    takes it.
    """

    __slots__ = ("conn", "pool_timeout")

    def __init__(self, conn: HTTPConnection, outcome: Response | Exception | None, pool_timeout: Any) -> None:
        self.conn: HTTPConnection | None = conn
        conn.outcome = outcome
        self.pool_timeout = pool_timeout


class Answer(NamedTuple):
    """A response that a manager has already, as the ``pool_timeout`` of the request that urllib3 goes on with."""

    response: BaseHTTPResponse
    pool_timeout: Any


# What APM agents and others wrap. Where one of them is not as it came, requests go its way.
_POOLING = ("_get_conn", "_put_conn", "_make_request")
_pooling = attrgetter("ConnectionCls", "urlopen", *_POOLING)
_stock_pooling = (
    urllib3.HTTPConnectionPool.ConnectionCls,
    *(own("urllib3", urllib3.HTTPConnectionPool, step) for step in ("urlopen", *_POOLING)),
)
OUR_CONNECTIONS = (HTTPConnection, HTTPSConnection)


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    """urllib3's pool of one host, behind the gate.

    Beside urllib3's arguments: *budget* bounds the ports that this pool holds, within the budget of
    *ledger* (by default the process's own); *sources* are the addresses to connect from; a connection
    is kept for *idle_limit* seconds without use and for *max_age* seconds in all.
    """

    ConnectionCls: type[HTTPConnection] = HTTPConnection
    _PRIVATE = frozenset(("_get_conn", "_put_conn", "_make_request", "urlopen"))  # if replaced in an object

    def __init__(
        self,
        *args: Any,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
        ledger: Ledger | None = None,
        idle_limit: float = IDLE_LIMIT,
        max_age: float = AGE_LIMIT,
        http2: bool | str = "auto",
        gate: Gate | None = None,
        **keywords: Any,
    ) -> None:
        self.gate = gate or Gate(budget, sources, ledger, idle_limit, max_age, http2)
        super().__init__(*args, **keywords)
        maxsize = getattr(self.pool, "maxsize", 1)
        self.home: Pool[Kept] = Pool(self.gate.limits(maxsize, self.block), merges=self._may_share())
        self.pool = cast(Any, Shelf(self, maxsize))
        self._shells: list[HTTPConnection] = []  # closed, to be connected again: making one costs 10 us
        self._riders: list[HTTPConnection] = []  # the same, of those that had a seat on a shared one
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
            found: Kept | Place | None = None
            try:
                found, endings = self.home.take(monotonic())
                end_all(endings)
                if found is None and self.block:
                    found = self._wait_for_place(timeout)
                elif found is None:  # its connect() waits for a way, and knows for how long
                    self.home.add_place()
                    found = PLACE
                if isinstance(found, Place):
                    shell = self._shell()
                    if shell is not None:
                        shell.alone = found is ALONE
                    elif found is ALONE:
                        self.home.not_opened(failed=False)  # its connect() asks again
                    return shell
                if isinstance(found, SharedWire):
                    if (shell := self._board(found)) is not None:
                        return shell
                elif found.alive():
                    return found
                else:
                    log.debug("Resetting dropped connection: %s", self.host)
                    found.end(CloseReason.PEER_CLOSED)
            except PoolClosed:
                raise ClosedPoolError(self, "Pool is closed.") from None
            except BaseException:
                self._return(found)
                raise
            self._return(found)

    def _may_share(self) -> bool:
        """Say whether connections may turn out to be HTTP/2, which many use at once."""
        wanted = self.gate.http2
        if wanted is False or not issubclass(self.ConnectionCls, HTTPConnection) or not self.ConnectionCls._plain:
            return False
        if self.ConnectionCls._new_conn not in OURS or ssl_.IS_PYOPENSSL:
            return False
        if self.scheme != "https":
            return wanted is True and self.proxy is None
        if self.proxy is None:
            return True
        forwards = self.proxy_config is not None and self.proxy_config.use_forwarding_for_https
        return not forwards

    def _shell(self) -> HTTPConnection | None:
        """Return a closed connection to use again; None: make one."""
        try:
            shell = self._shells.pop()
        except IndexError:
            return None
        shell.close()  # forgets a request that was begun without a connection
        return shell

    def _board(self, carrier: SharedWire) -> HTTPConnection | None:
        """Return a connection for the seat on *carrier* that was taken; None if that is at its end.

        Then, or if it raises, the seat is still to be given back.
        """
        if not carrier.busy and not carrier.alive():
            return None
        try:
            shell = self._riders.pop()
        except IndexError:
            shell = cast(HTTPConnection, self._new_conn())
        shell.board(carrier)
        return shell

    def give_back(self, conn: HTTPConnection | None) -> None:
        """Give back a place, with its connection if that is still open."""
        if conn is not None:
            conn.lost = None
        if conn is not None and (rider := conn.rider) is not None:
            conn.rider = None
            if len(self._riders) < RIDERS and not self.home.closed:
                self._riders.append(conn)
            rider.give_back()
            return
        if conn is None or conn.sock is None:
            if conn is not None:
                conn.idle_since = 0.0
            if conn is not None and len(self._shells) < self.home.limits.kept and not self.home.closed:
                self._shells.append(conn)
            elif conn is not None:
                conn.close()
            self.home.drop_place()
            return
        since = conn.idle_since
        try:
            if not conn.settled():
                # Released unread. urllib3 keeps it, and may send a request before the rest of that response is here.
                conn.leave_to_response()
            else:
                now = monotonic()
                conn.heed(now)
                for other, reason in self.home.give_back(conn, now):
                    other.end(reason)
        except BaseException:  # of a signal handler: the pool has it, or nobody would give back its place
            if conn.idle_since == since:
                conn.idle_since = 0.0
                conn.close()
                self.home.drop_place()
            raise
        if conn.sock is None and conn.idle_since == since:
            self.give_back(conn)
            return
        timer.watch_pool(self.home)

    def _new_conn(self) -> BaseHTTPConnection:
        made = super()._new_conn()
        if isinstance(made, HTTPConnection):
            made.gate = self.gate
            made.home, made.shells = self.home, self._shells
        return made

    def _get_conn(self, timeout: Any = None) -> BaseHTTPConnection:
        if isinstance(timeout, Begun):
            begun, timeout = timeout, timeout.pool_timeout
            if begun.conn is not None:
                found, begun.conn = begun.conn, None
                found.wait = timeout
                return found
        if self.pool is None:
            raise ClosedPoolError(self, "Pool is closed.")
        try:
            conn: BaseHTTPConnection | None = self.take(timeout)
        except EmptyPoolError:
            raise
        except BaseException:
            self.home.add_place()  # urlopen gives a place back after all errors but EmptyPoolError
            raise
        if self.ConnectionCls in OUR_CONNECTIONS and (recorded := recorder(self)) is not None:
            if conn is not None:
                conn.close()
            return recorded
        conn = conn or self._new_conn()
        if isinstance(conn, HTTPConnection):
            conn.wait = timeout
        return conn

    def urlopen(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        retries: Any = None,
        redirect: bool = True,
        assert_same_host: bool = True,
        timeout: Any = _DEFAULT_TIMEOUT,
        pool_timeout: Any = None,
        release_conn: bool | None = None,
        chunked: bool = False,
        body_pos: Any = None,
        preload_content: bool = True,
        decode_content: bool = True,
        **response_kw: Any,
    ) -> BaseHTTPResponse:
        """Make a request, with the arguments, results and exceptions of urllib3.

        The common case goes straight: a plain request on an idle connection, whose response is the last word.
        What is not common is left to urllib3 at the point that was reached.
        """
        if pool_timeout is not None:
            if type(pool_timeout) is Answer:
                return pool_timeout.response
            if type(pool_timeout) is Begun:  # urllib3 tries again
                pool_timeout = pool_timeout.pool_timeout
        begun = None
        if (
            not (chunked or response_kw)
            and body_pos is None
            and (release_conn is None or release_conn is preload_content)
        ):
            policy = self.retries if retries is None else retries
            if not isinstance(policy, Retry):
                policy = Retry.from_int(policy, redirect=redirect)
            asked = _asked((method, url, preload_content, decode_content, True))
            conn = None
            since, rode = 0.0, False
            try:
                conn = self._take_idle(timeout, pool_timeout)
                if conn is not None:
                    since, rode = conn.idle_since, conn.rider is not None
                    outcome = self._straight(conn, asked, body, self.headers if headers is None else headers, timeout)
                    if isinstance(outcome, Response) and self._ours(outcome, policy, redirect):
                        if preload_content:
                            self.give_back(conn)
                        else:
                            conn.lost = self.home.lost
                        return outcome
                    begun = Begun(conn, outcome, pool_timeout)
            except BaseException:
                given = rode and conn is not None and conn.rider is None
                if conn is not None and conn.idle_since == since and not given:  # it was not given back
                    conn.close()
                    self.give_back(conn)
                raise
        try:
            response = super().urlopen(
                method,
                url,
                body,
                headers,
                retries,
                redirect,
                assert_same_host,
                timeout,
                cast(Any, begun or pool_timeout),
                release_conn,
                chunked,
                body_pos,
                preload_content,
                decode_content,
                **response_kw,
            )
            if isinstance(lent := getattr(response, "_connection", None), HTTPConnection):
                lent.lost = self.home.lost
            return response
        finally:
            if begun is not None and (conn := begun.conn) is not None:  # urllib3 refused the request
                if conn.outcome is not None or conn.is_closed:
                    conn.close()
                conn.outcome = begun.conn = None
                self.give_back(conn)

    def _straight(
        self, conn: HTTPConnection, asked: _ResponseOptions, body: Any, headers: Any, timeout: Any
    ) -> Response | Exception | None:
        """Make a plain request on *conn*; None if it is not plain, or is to be made again on a new connection."""
        method, url, preload = asked[:3]
        if conn.is_closed:
            return None  # it is our turn to dial
        try:
            times = self._times(timeout)
            data = conn.encode(method, url, body, headers)
        except Exception:
            return None  # urllib3 says what is wrong with it
        if times is None or data is None or not conn._plain:
            return None
        if self.scheme == "https" and not conn.is_verified:
            return None  # urllib3 warns each time
        try:
            response = conn.exchange(data, asked, times)
        except Exception as error:
            if not conn.unanswered(method, error):
                self.num_requests += 1
                return error
            conn.end(CloseReason.PEER_CLOSED)
            conn.until = times.deadline
            return None
        self.num_requests += 1
        response._pool = self
        if not preload:
            response._connection = conn
        if stock_log.isEnabledFor(logging.DEBUG):
            self._log(asked, response)
        return response

    def _ours(self, response: Response, policy: Retry, redirect: bool) -> bool:
        """Say whether urllib3 would return *response* as it is, and give it what it was asked with."""
        if policy.history:
            response.retries = policy
        else:
            response._retries = policy
        status = response.status
        if type(policy) is not Retry or policy.status_forcelist or status in policy.RETRY_AFTER_STATUS_CODES:
            return False
        return not (redirect and status in REDIRECTS)

    def _times(self, timeout: Any) -> Times | None:
        """Return what *timeout* means for a request on a connection that stands; None if it is no plain value."""
        if timeout is _DEFAULT_TIMEOUT:
            timeout = self.timeout
        elif timeout is None or type(timeout) in (int, float):
            timeout = Timeout.from_float(timeout)
        if type(timeout) is not Timeout:
            return None
        return times_of(timeout)

    def _take_idle(self, timeout: Any, pool_timeout: Any) -> HTTPConnection | None:
        """Take an idle connection that is alive, for a request that may go straight; None if there is none.

        Where others wait for a port, it stands in line behind them: one without a socket has the turn to dial.
        """
        if _own_pooling(type(self)) != _ours or _pooling(urllib3.HTTPConnectionPool) != _stock_pooling:
            return None
        if not untouched() or self.proxy is not None or not self.__dict__.keys().isdisjoint(self._PRIVATE):
            return None
        found: Kept | None = None
        try:
            found = self.home.take_now(monotonic())
            if found is None:
                found = take_turn(self, timeout, pool_timeout)
            if found is None or (isinstance(found, HTTPConnection) and found.is_closed):
                return found
            if isinstance(found, SharedWire):
                if (shell := self._board(found)) is not None:
                    return shell
            elif found.alive():
                return found
            else:
                log.debug("Resetting dropped connection: %s", self.host)
                found.end(CloseReason.PEER_CLOSED)
        except BaseException:
            if isinstance(found, HTTPConnection):
                found.close()
            self._return(found)
            raise
        self._return(found)
        return None

    def _make_request(
        self, conn: BaseHTTPConnection, method: str, url: str, *args: Any, **keywords: Any
    ) -> BaseHTTPResponse:
        if not isinstance(conn, HTTPConnection):
            return super()._make_request(conn, method, url, *args, **keywords)
        outcome, conn.outcome = conn.outcome, None
        if isinstance(outcome, (Response, Exception)):
            return self._go_on(conn, outcome, url)
        until, conn.until = conn.until, None
        timeout = keywords.get("timeout")
        total = timeout.total if isinstance(timeout, Timeout) else None
        conn.deadline = None
        if isinstance(total, (int, float)):
            # The time in line for a port is part of the whole; urllib3 takes it off the time to read.
            conn.wait = min(total, conn.wait) if isinstance(conn.wait, (int, float)) else total
            conn.deadline = monotonic() + total
            if isinstance(until, float):
                keywords["timeout"], conn.deadline = _left(timeout, until), until
        for _ in range(REPEATS):
            try:
                return super()._make_request(conn, method, url, *args, **keywords)
            except (OSError, HTTPException) as error:
                if not _repeatable(args, keywords, conn) or not conn.unanswered(method, error):
                    raise
            self._reconnect(conn, keywords)
        return super()._make_request(conn, method, url, *args, **keywords)

    def _reconnect(self, conn: HTTPConnection, keywords: dict[str, Any]) -> None:
        """Prepare to repeat a request: the connection that was kept had come to its end."""
        deadline = conn.deadline
        tunnelled = conn.proxy_is_tunneling
        conn.end(CloseReason.PEER_CLOSED)
        if deadline is not None:
            keywords["timeout"] = _left(keywords["timeout"], deadline)
        if tunnelled:
            self._prepare_proxy(cast(Any, conn))
        conn.deadline = deadline

    def _go_on(self, conn: HTTPConnection, outcome: Response | Exception, url: str) -> BaseHTTPResponse:
        """Have urllib3 see what came of a request as if it had just made it."""
        if isinstance(outcome, Response):
            return outcome
        if isinstance(outcome, OSError) and conn.receiving:
            self._raise_timeout(outcome, url, cast(Any, conn.timeout))
        raise outcome

    def _log(self, asked: _ResponseOptions, response: Response) -> None:
        stock_log.debug(
            '%s://%s:%s "%s %s %s" %s %s',
            self.scheme,
            self.host,
            self.port,
            asked.request_method,
            asked.request_url,
            response.version_string,
            response.status,
            response.length_remaining,
        )

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

    def _wait_for_place(self, timeout: float | None) -> Kept | Place:
        alarm = Alarm()
        waiter = Waiter(alarm.wake)
        outcome: object = None
        try:
            for other, reason in self.home.join(waiter, monotonic(), place=True):
                other.end(reason)
            if not waiter.decided:
                timer.watch_line(self.home)
                alarm.wait(timeout)
            outcome = waiter.leave()
        except PoolClosed:
            raise ClosedPoolError(self, "Pool is closed.") from None
        except BaseException:
            self._return(waiter.leave())
            raise
        finally:
            self.home.leave(waiter)
        if isinstance(outcome, (HTTPConnection, SharedWire, Place)):
            return outcome
        if self.home.closed:
            raise ClosedPoolError(self, "Pool is closed.")
        message = "Pool is empty and a new connection can't be opened due to blocking mode."
        raise EmptyPoolError(self, message)

    def _return(self, outcome: object) -> None:
        if outcome is ALONE:
            self.home.not_opened(failed=False)
        if isinstance(outcome, SharedWire):
            end_all(self.home.give_back(outcome, monotonic()))
        elif isinstance(outcome, HTTPConnection):
            self.give_back(outcome)
        elif isinstance(outcome, Place):
            self.home.drop_place()


_own_pooling = attrgetter(*_POOLING)
_ours = _own_pooling(HTTPConnectionPool)


class HTTPSConnectionPool(HTTPConnectionPool, urllib3.HTTPSConnectionPool):  # type: ignore[misc]
    """urllib3's pool of one HTTPS host, behind the gate; see HTTPConnectionPool."""

    ConnectionCls: type[HTTPConnection] = HTTPSConnection  # type: ignore[assignment]


def connection_from_url(url: str, **kw: Any) -> HTTPConnectionPool:
    """Return a pool for the host of *url*."""
    scheme, _, host, port, *_ = parse_url(url)
    scheme = scheme or "http"
    kind = HTTPSConnectionPool if scheme == "https" else HTTPConnectionPool
    return kind(host, port=port or port_by_scheme.get(scheme, 80), **kw)


def _left(timeout: Any, deadline: float) -> Timeout:
    """Return *timeout* with what is left until *deadline* as its total."""
    return Timeout(max(0.001, deadline - monotonic()), timeout._connect, timeout._read)


def _repeatable(args: tuple[Any, ...], keywords: dict[str, Any], conn: HTTPConnection) -> bool:
    """Say whether the body of a request is still there to be sent again."""
    body = keywords.get("body", args[0] if args else None)
    return body is None or isinstance(body, (bytes, str)) or not conn._sent


def _close(home: Pool[Kept]) -> None:
    end_all(home.close())
    timer.kick()


def _abandon(home: Pool[Kept]) -> None:
    # The garbage collector may call, in the middle of anything: no lock may be taken. While something is idle the
    # timer runs; and nothing else is in the pool of a face that is gone.
    home.abandoned = True
    timer.kick()


def end_all(endings: Iterable[tuple[Kept, CloseReason]]) -> None:
    for other, reason in endings:
        other.end(reason)
