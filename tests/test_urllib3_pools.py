"""The pools of fewports.urllib3: places and bounds, closing, options of sockets, and budgets that are full."""

from __future__ import annotations

import contextlib
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import urllib3
from faces import BODY, Aside, Door, counts, fresh_h2, fresh_server, until, waiting
from support.listeners import free_port, listen
from support.sampler import client_rows, held
from urllib3.exceptions import (
    ClosedPoolError,
    EmptyPoolError,
    LocationValueError,
    MaxRetryError,
    NewConnectionError,
    PoolError,
    ProtocolError,
    ReadTimeoutError,
)

import fewports
from fewports import urllib3 as ours
from fewports.urllib3 import HTTPConnectionPool, PoolManager


@pytest.fixture(scope="module")
def server() -> Iterator[Door]:
    with fresh_server() as running:
        yield running


def pool_of(server: Door, maxsize: int = 2, **options: Any) -> HTTPConnectionPool:
    options.setdefault("ledger", fewports.Ledger())
    return HTTPConnectionPool(server.host, server.port, maxsize=maxsize, block=True, **options)


def broken() -> Iterator[bytes]:
    yield b"x"
    raise ArithmeticError("the body's own")


FAILURES: dict[str, tuple[type[Exception], str, Callable[[], dict[str, Any]]]] = {
    "killed": (ProtocolError, "/drop", lambda: {"retries": False}),
    "killed, retried": (MaxRetryError, "/drop", lambda: {"retries": 2}),
    "half a body": (ProtocolError, "/half", lambda: {"retries": False}),
    "too late": (ReadTimeoutError, "/slow?s=0.3", lambda: {"retries": False, "timeout": 0.02}),
    "a body that raises": (ArithmeticError, "/echo", lambda: {"body": broken()}),
    "a bad header": (ValueError, "/", lambda: {"headers": {"a\n": "b"}}),
    "a status": (MaxRetryError, "/status?code=500", lambda: {"retries": urllib3.Retry(1, status_forcelist=[500])}),
    "redirects": (MaxRetryError, "/redirect?n=9", lambda: {"retries": 3}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_places_are_not_lost_by_failures(server: Door, failure: str) -> None:
    """After three failures of any kind a pool of two places serves two requests at once, with nothing in use."""
    kind, path, options = FAILURES[failure]
    with pool_of(server) as pool:
        for _ in range(3):
            with pytest.raises(kind):
                pool.request("PUT", path, **options())

        assert pool.pool.qsize() == 2
        both = [Aside(lambda: pool.request("GET", "/slow?s=0.05", pool_timeout=1).status) for _ in range(2)]
        assert [one.result() for one in both] == [200, 200]
        assert pool.home.used == 0


def test_places_are_not_lost_where_nobody_listens() -> None:
    """Connections that are refused, and a full budget, cost no place either."""
    book = fewports.Ledger(fewports.Budget(1, when_full="refuse"))
    with (
        HTTPConnectionPool("127.0.0.1", 9, maxsize=1, block=True, ledger=book) as pool,
        listen(["127.0.0.1"])[0] as listener,
        fewports.create_connection(listener.getsockname(), ledger=book),
        HTTPConnectionPool(*listener.getsockname(), maxsize=1, block=True, ledger=book) as full,
    ):
        for _ in range(3):
            with pytest.raises(NewConnectionError):
                pool.request("GET", "/", retries=False, pool_timeout=0.1)
            with pytest.raises(fewports.BudgetExhausted):
                full.request("GET", "/", pool_timeout=0.1)

        assert (pool.pool.qsize(), full.pool.qsize()) == (1, 1)


def test_a_bounded_pool_is_waited_for(server: Door) -> None:
    """With block=True a request beyond maxsize waits for pool_timeout, then raises EmptyPoolError; or is served."""
    with pool_of(server, 1) as pool:
        response = pool.request("GET", "/", preload_content=False)
        began = time.monotonic()
        with pytest.raises(EmptyPoolError, match="can't be opened due to blocking mode"):
            pool.request("GET", "/", pool_timeout=0.1)

        assert 0.1 <= time.monotonic() - began < 3
        other = Aside(lambda: pool.request("GET", "/", pool_timeout=5).json())
        time.sleep(0.05)
        assert other.is_alive()
        assert response.json() == BODY
        assert other.result() == BODY
        assert pool.pool.qsize() == 1


def test_a_response_that_is_closed_gives_its_place_back(server: Door) -> None:
    """With block=True the next request is served, without release_conn(), over HTTP/1.1 and HTTP/2; and only once."""
    with fresh_h2(tls=False) as other:
        for door, path in ((server, "/bytes?n=5000000"), (other, "/drip?n=1000")):
            with pool_of(door, 1, http2=door is other) as pool:
                with pool.request("GET", path, preload_content=False) as response:
                    response.read(1)
                response.release_conn()
                response.close()
                after = pool.request("GET", "/", pool_timeout=0.5)
                held = pool.request("GET", path, preload_content=False, pool_timeout=0.5)
                with pytest.raises(EmptyPoolError):
                    pool.request("GET", "/", pool_timeout=0.01)
                held.close()

                assert after.json() == BODY
                assert pool.home.used == 0


@pytest.mark.filterwarnings("ignore:unclosed")  # as from urllib3, where nobody released the connection
@pytest.mark.parametrize("options", [{"preload_content": False}, {"release_conn": False}], ids=["unread", "read"])
@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
def test_a_response_that_is_dropped_gives_its_place_back(server: Door, kept: bool, options: dict[str, Any]) -> None:
    """A response that nobody reads, closes or releases takes no place in the pool with it, once or many times."""
    with pool_of(server) as pool:
        for _ in range(5):
            if kept:
                pool.request("GET", "/", pool_timeout=5)
            response = pool.request("GET", "/bytes?n=3000000", pool_timeout=5, **options)
            assert pool.home.used == 1
            del response

            assert pool.pool.qsize() == 2
        assert pool.home.used == 0
        assert until(lambda: counts(pool.gate.ledger)[0] == 0)


def test_without_a_bound_a_place_is_counted_as_in_urllib3(server: Door) -> None:
    """Where nobody waits for places, that of a response that was dropped stays counted, as urllib3's own tests want."""
    sizes = []
    for kind in (urllib3.HTTPConnectionPool, HTTPConnectionPool):
        with kind(server.host, server.port, maxsize=5) as pool:
            for _ in range(2):
                pool.urlopen("GET", "/", preload_content=False)
                pool.urlopen("GET", "/")
            assert pool.pool is not None
            sizes.append(pool.pool.qsize())

    assert sizes == [3, 3]


def test_who_waits_gets_the_place_of_a_response_that_is_dropped(server: Door) -> None:
    """Who is in line is served at once, in turn, before who comes later; the pool is watched as long as one waits."""
    with pool_of(server, maxsize=1) as pool:
        for _ in range(3):
            response = pool.request("GET", "/bytes?n=3000000", preload_content=False)
            asides = [Aside(lambda: pool.request("GET", "/", pool_timeout=5).json()) for _ in range(3)]
            assert until(lambda: len(pool.home._line) == 3)
            began = time.monotonic()
            del response

            assert [aside.result() for aside in asides] == [BODY] * 3
            assert time.monotonic() - began < 3
        assert pool.home.used == 0


def test_a_place_is_not_given_back_twice(server: Door) -> None:
    """A response that was closed or released, or whose connection the pool took back, has no place to lose."""
    with pool_of(server) as pool:
        held = pool.request("GET", "/bytes?n=3000000", preload_content=False)
        for end in ("close", "release_conn", "drain_conn"):
            response = pool.request("GET", "/bytes?n=3000000", preload_content=False)
            getattr(response, end)()
            del response
            with pytest.raises(ProtocolError):
                pool.request("GET", "/half", retries=False, preload_content=True)

            assert pool.pool.qsize() == 1
        held.close()
        assert pool.pool.qsize() == 2


def test_a_keyboard_interrupt_in_the_line_of_a_pool_leaves_nothing(server: Door) -> None:
    """Ctrl-C while waiting for a place of a bounded pool leaves no one in line, and no place lost."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pool_of(server, 1) as pool:
            response = pool.request("GET", "/", preload_content=False)
            for _ in range(3):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(KeyboardInterrupt):
                    pool.request("GET", "/")
            response.drain_conn()

            assert pool.request("GET", "/", pool_timeout=0.5).json() == BODY
            assert repr(pool.home) == "<Pool 0 in use, 1 idle, 0 retired, 0 waiting>"
    finally:
        signal.signal(signal.SIGALRM, before)


class Interrupting:
    """A pool's lock, after whose *number*-th release by the main thread a signal handler raises."""

    def __init__(self, lock: Any, number: int) -> None:
        self._lock, self.left = lock, number

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        self.left -= threading.current_thread() is threading.main_thread()
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
def test_a_keyboard_interrupt_as_a_place_changes_hands(server: Door, kept: bool) -> None:
    """Ctrl-C just after the pool has noted who has a place, or that it is back, costs none."""
    interrupted = 0
    for number in range(1, 20):
        with pool_of(server, 1) as pool:
            if kept:
                assert pool.request("GET", "/").json() == BODY
            pool.home._lock = lock = Interrupting(pool.home._lock, number)  # type: ignore[assignment]
            with contextlib.suppress(KeyboardInterrupt):
                assert pool.request("GET", "/").json() == BODY
            enough, lock.left = lock.left > 0, -1
            interrupted += not enough

            assert pool.request("GET", "/", pool_timeout=0.5).json() == BODY
            assert pool.home.used == 0
            if enough:
                break

    assert interrupted >= (2 if kept else 3)


def test_a_closed_pool_refuses(server: Door) -> None:
    """After close() requests raise ClosedPoolError, also those in line; what is in use is closed when it is done."""
    book = fewports.Ledger()
    pool = pool_of(server, 1, ledger=book)
    response = pool.request("GET", "/", preload_content=False)
    other = Aside(lambda: pool.request("GET", "/"))
    assert until(lambda: "1 waiting" in repr(pool.home))
    pool.close()
    with pytest.raises(ClosedPoolError, match="Pool is closed"):
        other.result()
    with pytest.raises(ClosedPoolError):
        pool.request("GET", "/")

    assert response.json() == BODY
    assert until(lambda: book.usage() == [])  # the peer may take 40 ms to acknowledge
    pool.close()


def test_a_pool_beyond_num_pools_is_closed(server: Door) -> None:
    """With num_pools=2 the pool used longest ago is dropped, and its idle connection closed without TIME_WAIT."""
    with fresh_server(ports=3) as three, PoolManager(num_pools=2, ledger=fewports.Ledger()) as http:
        responses = [http.request("GET", url + "/bytes?n=999999", preload_content=False) for url in three.urls]
        assert len(http.pools) == 2
        for response in responses:  # that of the pool that was dropped, too
            assert len(response.read()) == 999_999
        ports = [port for _, port in three.addresses]
        assert len(client_rows(*ports)) == 3
        del responses, response

        assert until(lambda: sum(held(*ports).values()) == 2)
        assert held(ports[0]) == {}


@pytest.mark.parametrize("host", ["127.0.0.5", "", "localhost"])
@pytest.mark.parametrize("given", [False, True], ids=["any port", "a port"])
def test_a_source_address(server: Door, host: str, given: bool) -> None:
    """source_address= is where the server sees the request from, with the port if one is given."""
    wanted = free_port(["127.0.0.1", "127.0.0.5"]) if given else 0
    with PoolManager(ledger=fewports.Ledger(), source_address=(host, wanted)) as http:
        source, port = http.request("GET", server.url + "/headers").json()["client"]

    assert source == ("127.0.0.5" if host == "127.0.0.5" else "127.0.0.1")
    assert wanted in (0, port)


@pytest.mark.parametrize("address", [("10.1.2.3", 0), ("no.such.host.invalid", 0), ("fd00::5", 0)])
def test_a_bad_source_address_fails_as_in_stock(server: Door, address: tuple[str, int]) -> None:
    """An address that is not ours, no name, or of the other IP version: the exception of urllib3, nothing held."""
    book = fewports.Ledger()
    with PoolManager(ledger=book, source_address=address) as http:
        for manager in (urllib3.PoolManager(source_address=address), http):
            with pytest.raises(NewConnectionError):
                manager.request("GET", server.url, retries=False)

        assert book.usage() == []


def test_a_source_port_that_is_taken(server: Door) -> None:
    """Two connections at once from one source port to one server: the second fails as with the stock classes."""
    with PoolManager(ledger=fewports.Ledger(), source_address=("127.0.0.6", free_port(["127.0.0.6"]))) as http:
        response = http.request("GET", server.url, preload_content=False)
        with pytest.raises(NewConnectionError):
            http.request("GET", server.url, retries=False)

        assert response.json() == BODY
        assert http.request("GET", server.url, retries=False).json() == BODY


def test_socket_options(server: Door) -> None:
    """socket_options= are set in place of the default, which is TCP_NODELAY; a bad one fails as in stock."""
    keepalive, nodelay = (socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for options, expected in ((None, (0, 0)), ([(*keepalive, 1)], (1, 0)), ("default", (0, 1))):
        given: dict[str, Any] = {} if options == "default" else {"socket_options": options}
        with HTTPConnectionPool(server.host, server.port, ledger=fewports.Ledger(), **given) as pool:
            pool.request("GET", "/")
            (conn,) = pool.home.quiet()

            assert tuple(bool(conn.sock.getsockopt(*option)) for option in (keepalive, nodelay)) == expected
    with PoolManager(ledger=fewports.Ledger(), socket_options=[(socket.SOL_SOCKET, 9999, 1)]) as http:
        with pytest.raises(NewConnectionError, match="Protocol not available"):
            http.request("GET", server.url, retries=False)
        assert http.gate.ledger.usage() == []


def test_sources_take_turns(server: Door) -> None:
    """sources= spreads the connections over the addresses given."""
    with fresh_server() as own, PoolManager(ledger=fewports.Ledger(), sources=["127.0.0.7", "127.0.0.8"]) as http:
        asides = [Aside(lambda: http.request("GET", own.url + "/meet?n=6").status) for _ in range(6)]
        assert [aside.result() for aside in asides] == [200] * 6

        assert own.stats()["sources"] == {"127.0.0.7": 3, "127.0.0.8": 3}
    with PoolManager(ledger=fewports.Ledger(), sources=["10.1.2.3"]) as http:
        with pytest.raises(fewports.NoUsableSource, match=r"10\.1\.2\.3: it is no address of this host") as raised:
            http.request("GET", server.url)
        assert isinstance(raised.value, urllib3.exceptions.HTTPError)


def test_a_full_budget_is_an_error_of_both(server: Door) -> None:
    """BudgetExhausted is ours and a PoolError, comes at once and unretried, has the numbers, and can be pickled."""
    book = fewports.Ledger(fewports.Budget(1, when_full="refuse"))
    with PoolManager(ledger=book) as http:
        response = http.request("GET", server.url + "/", preload_content=False)
        accepted = server.stats()["accepted"]
        began = time.monotonic()
        with pytest.raises(PoolError) as raised:
            http.request("GET", server.url + "/", retries=urllib3.Retry(5, backoff_factor=1))
        error = raised.value
        copy = pickle.loads(pickle.dumps(error))

        assert time.monotonic() - began < 1  # to try again would take 2 s at least
        assert isinstance(error, fewports.BudgetExhausted)
        assert (error.usage.budget, error.usage.active, error.usage.scope) == (1, 1, "ledger")
        assert (type(copy), copy.usage, str(copy)) == (ours.BudgetExhausted, error.usage, str(error))
        assert server.stats()["accepted"] == accepted
        assert counts(book) == (1, 0, 0)
        response.drain_conn()
        assert http.request("GET", server.url + "/").json() == BODY


def test_pool_timeout_bounds_the_line_for_a_port(server: Door) -> None:
    """pool_timeout= is how long a request stands in line for a port; without it the budget's own limit counts."""
    for options, wait, expected in (
        ({"pool_timeout": 0.1}, 9.0, 0.1),
        ({"timeout": urllib3.Timeout(total=0.15)}, 9.0, 0.15),
        ({}, 0.3, 0.3),
    ):
        with PoolManager(ledger=fewports.Ledger(fewports.Budget(1, wait=wait))) as http:
            response = http.request("GET", server.url + "/", preload_content=False)
            began = time.monotonic()
            with pytest.raises(fewports.BudgetExhausted):
                http.request("GET", server.url + "/", **options)

            assert expected <= time.monotonic() - began < 3
            assert waiting(http.gate.ledger) == 0
            response.drain_conn()


def test_a_clients_own_budget(server: Door) -> None:
    """A manager's budget= bounds what it alone holds, within the ledger's; the refusal says that it was its own."""
    book = fewports.Ledger(3)
    own = fewports.Budget(1, when_full="refuse")
    with PoolManager(ledger=book, budget=own) as one, PoolManager(ledger=book, budget=own) as two:
        responses = [http.request("GET", server.url + "/", preload_content=False) for http in (one, two)]
        with pytest.raises(fewports.BudgetExhausted, match="of this client's own budget") as raised:
            one.request("GET", server.url + "/")

        assert raised.value.usage.scope == "client"
        assert counts(book) == (2, 0, 0)
        for response in responses:
            response.drain_conn()


@pytest.mark.parametrize(
    "bad", [{"budget": 0}, {"sources": []}, {"idle_limit": 0}, {"max_age": -1}, {"budget": "lots"}]
)
def test_options_that_cannot_work(bad: dict[str, Any]) -> None:
    """A budget, sources or a time that could never work are refused when they are given."""
    for face in (PoolManager, ours.HTTPConnectionPool):
        with pytest.raises(fewports.InvalidOption):
            face("localhost", **bad) if face is not PoolManager else face(**bad)
    with pytest.raises(fewports.InvalidOption):
        ours.ProxyManager("http://localhost:1", **bad)
    with pytest.raises(LocationValueError):
        HTTPConnectionPool("")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_recorder_in_the_place_of_connections_gets_the_requests(tls: bool) -> None:
    """What vcrpy puts where urllib3's pools have their connections is asked, although one of ours is idle."""
    stock = urllib3.HTTPSConnectionPool if tls else urllib3.HTTPConnectionPool
    asked: list[str] = []

    class Recorder(stock.ConnectionCls):  # type: ignore[misc, name-defined]
        def request(self, method: str, url: str, *args: Any, **options: Any) -> None:
            asked.append(url)
            super().request(method, url, *args, **options)

    book = fewports.Ledger()
    with (
        fresh_server(tls=tls) as server,
        PoolManager(ledger=book, ca_certs=server.ca_path, maxsize=1, block=True) as http,
    ):
        http.request("GET", server.url + "/")
        pools = urllib3.HTTPConnectionPool, urllib3.HTTPSConnectionPool
        with (
            mock.patch.object(pools[0], "ConnectionCls", Recorder),
            mock.patch.object(pools[1], "ConnectionCls", Recorder),
        ):
            answers = [http.request("GET", server.url + path) for path in ("/echo", "/headers")]
        last = http.request("GET", server.url + "/")

        assert [answer.status for answer in (*answers, last)] == [200] * 3
        assert asked == ["/echo", "/headers"]
        assert counts(book)[:2] == (0, 1)
