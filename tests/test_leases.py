"""The lease follows the connection: through TLS, into responses, to the garbage collector, and into strange classes."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from typing import Any, Self

import pytest
import socks
import urllib3.contrib.socks as stock
from faces import BODY, Aside, Door, counts, fresh_h2, fresh_server, states, until
from support.sampler import client_rows
from support.servers import SocksProxy

import fewports
from fewports import urllib3 as ours
from fewports.address import Destination, PortSpace
from fewports.dialing import stands
from fewports.gated import GatedSocket, Recipe, open_socket
from fewports.kernel.diag import State
from fewports.ledger.account import Lease
from fewports.ledger.local import Ledger
from fewports.sync.timer import timer
from fewports.urllib3 import HTTPConnection, HTTPConnectionPool, HTTPSConnection, HTTPSConnectionPool, PoolManager


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def server(request: pytest.FixtureRequest) -> Iterator[Door]:
    with fresh_server(tls=request.param) as running:
        yield running


def flows(book: Ledger) -> set[tuple[str, int]]:
    return {(lease.flow.source, lease.flow.port) for lease in book._leases if lease.flow}


def test_ledger_and_kernel_name_the_same_ports(server: Door) -> None:
    """While connections are open the ledger has exactly the flows that the kernel has, used and idle apart."""
    book = fewports.Ledger()
    with PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        used = [http.request("GET", server.url + "/bytes?n=3000000", preload_content=False) for _ in range(4)]
        asides = [Aside(lambda: http.request("GET", server.url + "/meet?n=3").status) for _ in range(3)]
        assert [aside.result() for aside in asides] == [200] * 3

        assert flows(book) == {(row.source, row.source_port) for row in client_rows(server.port)}
        assert counts(book) == (4, 3, 0)
        for response in used:
            response.drain_conn()
        assert counts(book) == (0, 7, 0)


def test_a_last_response_keeps_the_port_until_it_is_read(server: Door) -> None:
    """After "Connection: close" the pool has the connection no more, but its port counts until the body is read."""
    book = fewports.Ledger()
    with PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        headers = {"Connection": "close"}
        response = http.request("GET", server.url + "/bytes?n=2000000", preload_content=False, headers=headers)
        read = len(response.read(1000))
        assert counts(book) == (1, 0, 0)
        read += len(response.read())

        assert read == 2_000_000
        assert until(lambda: book.usage() == [])
        assert "ESTABLISHED" not in states(server.port)


def test_a_response_that_is_dropped_unread_gives_its_port_back(server: Door) -> None:
    """The garbage collector returns the port of a response that nobody read or closed, with "close" and without."""
    book = fewports.Ledger()
    with PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        for headers in ({}, {"Connection": "close"}):
            response = http.request("GET", server.url + "/bytes?n=3000000", preload_content=False, headers=headers)
            assert counts(book) == (1, 0, 0)
            del response
            gc.collect()

            assert until(lambda: book.usage() == [])
            assert "ESTABLISHED" not in states(server.port)


def test_a_response_that_is_kept_keeps_its_port(server: Door) -> None:
    """Neither the end of the manager nor of its pool takes the port from a response that is still being read."""
    book = fewports.Ledger()
    http = PoolManager(ledger=book, ca_certs=server.ca_path)
    response = http.request("GET", server.url + "/bytes?n=3000000", preload_content=False)
    http.clear()
    del http
    gc.collect()

    assert counts(book) == (1, 0, 0)
    assert len(response.read()) == 3_000_000
    del response
    assert until(lambda: book.usage() == [])


def test_a_closed_response_gives_its_port_back(server: Door) -> None:
    """close() on a response that is not read to its end closes the connection."""
    book = fewports.Ledger()
    with PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        with http.request("GET", server.url + "/bytes?n=3000000", preload_content=False) as response:
            response.read(10)

        assert until(lambda: book.usage() == [])


class Sweeping:
    """A lock in whose hold the garbage collector runs, as it may at any allocation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.locked = self._lock.locked
        self.sweeps = 0

    def __enter__(self) -> Self:
        self._lock.acquire()
        self.sweeps += gc.collect() > 0
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.filterwarnings("ignore:unclosed")  # as from urllib3, where a cycle has a response
@pytest.mark.parametrize("garbage", ["manager", "pool", "response", "socket", "file"])
def test_the_garbage_collector_may_come_at_any_time(server: Door, garbage: str) -> None:
    """What is collected in the middle of the ledger's work deadlocks with nothing, and its port is given back."""
    book = fewports.Ledger()
    found: list[Any] = []
    http = PoolManager(ledger=book, ca_certs=server.ca_path)
    gc.disable()
    try:
        if garbage in ("manager", "pool"):
            lost = PoolManager(ledger=book, ca_certs=server.ca_path)
            lost.request("GET", server.url + "/")
            found.append(lost if garbage == "manager" else lost.connection_from_url(server.url))
            del lost
        elif garbage == "response":
            found.append(http.request("GET", server.url + "/bytes?n=3000000", preload_content=False))
        else:
            sock = fewports.create_connection((server.host, server.port), ledger=book)
            found.append(sock if garbage == "socket" else sock.makefile("rb"))
            if garbage == "file":
                sock.close()
            del sock
        found.append(found)
        del found
        book._lock = lock = Sweeping()  # type: ignore[assignment]
        assert Aside(lambda: http.request("GET", server.url + "/").json()).result(3) == BODY
    finally:
        gc.enable()

    assert lock.sweeps
    assert until(lambda: counts(book)[:2] == (0, 1))
    http.clear()
    assert until(lambda: "ESTABLISHED" not in states(server.port))


def test_the_timer_may_meet_the_garbage_collector() -> None:
    """A pool that is collected while the timer looks at it is closed all the same."""
    book = fewports.Ledger()
    gc.disable()
    try:
        with fresh_server() as server:
            pool = HTTPConnectionPool(server.host, server.port, ledger=book)
            pool.request("GET", "/")
            pool.home._lock = lock = Sweeping()  # type: ignore[assignment]
            cycle = [pool]
            cycle.append(cycle)  # type: ignore[arg-type]
            del pool, cycle
            timer.kick()

            assert until(lambda: book.usage() == [])
            assert lock.sweeps
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize("meets", ["pool", "pool over HTTP/2", "connection over HTTP/2"])
def test_the_garbage_collector_may_meet_a_pool(meets: str) -> None:
    """A response that is collected while its pool, or its connection, is at work gives its place back all the same."""
    over_h2 = meets.endswith("HTTP/2")
    unread = "/drip?n=1000" if over_h2 else "/bytes?n=20000000"  # few frames: the collector runs at each
    options: dict[str, Any] = {"maxsize": 2, "block": True, "ledger": fewports.Ledger()}
    gc.disable()
    try:
        with (
            fresh_h2(tls=True) if over_h2 else fresh_server(tls=True) as server,
            HTTPSConnectionPool(server.host, server.port, ca_certs=server.ca_path, **options) as pool,
        ):
            pool.request("GET", "/hello")
            meeting: Any = pool.home if meets.startswith("pool") else pool.home.quiet()[0]
            meeting._lock = lock = Sweeping()
            cycle: list[Any] = [pool.request("GET", unread, preload_content=False)]
            cycle.append(cycle)
            del cycle

            assert Aside(lambda: pool.request("GET", "/hello").data).result(3)
            assert lock.sweeps
            assert until(lambda: pool.pool.qsize() == 2)
    finally:
        gc.enable()


# Below: the SOCKS classes of urllib3.contrib, on our classes instead of the stock ones, and the other way round.


class TunnelConnection(stock.SOCKSConnection, HTTPConnection):
    """urllib3's SOCKS connection opens its own socket, whatever class it is mixed into."""


class TunnelHTTPSConnection(TunnelConnection, HTTPSConnection):
    pass


class TunnelPool(HTTPConnectionPool):
    ConnectionCls = TunnelConnection


class TunnelHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = TunnelHTTPSConnection


class Tunnels(stock.SOCKSProxyManager, PoolManager):
    """A manager written as urllib3's SOCKSProxyManager is, on ours."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.pool_classes_by_scheme = {"http": TunnelPool, "https": TunnelHTTPSPool}


class Mixed(PoolManager):
    """A manager with urllib3's own pool classes."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.pool_classes_by_scheme = stock.SOCKSProxyManager.pool_classes_by_scheme


def test_subclasses_that_open_their_own_sockets(server: Door) -> None:
    """Classes that override _new_conn(), and stock pools in our manager, work as in urllib3, beyond the gate."""
    book = fewports.Ledger()
    with SocksProxy() as proxy:
        options = {
            "socks_version": socks.PROXY_TYPE_SOCKS5,
            "proxy_host": proxy.host,
            "proxy_port": proxy.port,
            "username": None,
            "password": None,
            "rdns": False,
        }
        for http in (
            Tunnels(proxy.url, ledger=book, ca_certs=server.ca_path),
            Mixed(_socks_options=options, ledger=book, ca_certs=server.ca_path),
        ):
            with http:
                for _ in range(3):
                    assert http.request("GET", server.url + "/", retries=False).json() == BODY

        assert proxy.stats()["tunnels"] == [f"{server.host}:{server.port}"] * 2
        assert book.usage() == []


class Own(ours.HTTPConnectionPool):
    """A pool whose connections are of a class of the user's."""

    class ConnectionCls(HTTPConnection):
        connected = False

        def connect(self) -> None:
            super().connect()
            self.connected = True


def test_subclasses_of_our_connection(server: Door) -> None:
    """A subclass of our connection that overrides connect() stays behind the gate."""
    book = fewports.Ledger()
    with fresh_server() as plain, Own(plain.host, plain.port, ledger=book) as pool:
        assert pool.request("GET", "/").json() == BODY
        assert [getattr(connection, "connected", None) for connection in pool.home.quiet()] == [True]
        assert counts(book) == (0, 1, 0)


def dialled(book: Ledger, server: Door) -> tuple[Lease, GatedSocket]:
    """Take a lease for the server's port space, and open a socket that owns it."""
    lease = Lease(book, book.want(PortSpace("127.0.0.1", Destination(*server.addresses[0])), 0.0), None, 0.0)
    assert book.take(lease, 0.0)
    return lease, open_socket(lease, Recipe(socket.AF_INET, (), None), ())


def test_an_answer_that_comes_as_we_give_up_leaves_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that stood just after it was seen in SYN_SENT is reset by the close: its port was given back."""
    book = fewports.Ledger()
    with fresh_server() as server:
        _, sock = dialled(book, server)
        sock.connect(server.addresses[0])
        monkeypatch.setattr("fewports.kernel.options.tcp_state", lambda sock: State.SYN_SENT)  # a moment ago
        sock.close()

        assert states(server.port) == {}
        assert book.usage() == []


def test_the_flow_is_the_one_that_the_kernel_has() -> None:
    """Where the system's choice of a source has changed, the ledger asks about the flow that there is."""
    book = fewports.Ledger()
    with fresh_server() as server:
        lease, sock = dialled(book, server)
        sock.bind(("127.0.0.77", 0))
        sock.connect(server.addresses[0])
        stands(lease, sock, 0.0)

        assert flows(book) == {(row.source, row.source_port) for row in client_rows(server.port)}
        sock.close()
        book.usage()
        assert states(server.port) == {} or counts(book) == (0, 0, 1)
