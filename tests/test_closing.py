"""How connections are closed, as the kernel shows it: who pays with TIME_WAIT, and when nobody does."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from faces import BODY, Aside, Door, counts, fresh_server, states, until, waiting
from support.listeners import listen
from support.sampler import client_rows
from urllib3.exceptions import NewConnectionError

import fewports
from fewports.address import Flow
from fewports.events import CloseReason, ConnectionClosed, ConnectionOpened
from fewports.gated import ABORT
from fewports.kernel.diag import Row, State, look_up
from fewports.kernel.options import SO_BINDTODEVICE, SO_BINDTOIFINDEX
from fewports.ledger.closings import Referee, kernel_referee
from fewports.testing import Captured
from fewports.urllib3 import BudgetExhausted, HTTPConnection, HTTPConnectionPool, HTTPSConnection, PoolManager


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def server(request: pytest.FixtureRequest) -> Iterator[Door]:
    """A new server for each test: its port has no TIME_WAIT from before."""
    with fresh_server(tls=request.param) as running:
        yield running


def manager(server: Door, book: fewports.Ledger, **options: Any) -> PoolManager:
    return PoolManager(ledger=book, ca_certs=server.ca_path, **options)


def burst(http: PoolManager, server: Door, number: int) -> None:
    """Open so many connections and leave them idle."""
    path = f"/meet?n={number}"
    asides = [Aside(lambda: http.request("GET", server.url + path).status) for _ in range(number)]
    assert [aside.result() for aside in asides] == [200] * number
    assert states(server.port) == {"ESTABLISHED": number}


def closed(events: Captured) -> list[tuple[CloseReason, bool]]:
    return [(event.reason, event.time_wait) for event in events.of(ConnectionClosed)]


def test_a_close_by_its_user_leaves_a_time_wait() -> None:
    """Without pressure a connection that its user closes first is closed in full: one TIME_WAIT, counted."""
    book = fewports.Ledger()
    events = Captured()
    book.subscribe(events)
    with fresh_server() as server:
        connection = HTTPConnection(server.host, server.port)
        connection.gate = PoolManager(ledger=book).gate
        connection.request("GET", "/")
        assert connection.getresponse().json() == BODY
        connection.close()

        assert until(lambda: states(server.port) == {"TIME_WAIT": 1})
        assert counts(book) == (0, 0, 1)
        assert closed(events) == [(CloseReason.DONE, True)]


@pytest.mark.parametrize("device", [(SO_BINDTODEVICE, b"lo"), (SO_BINDTOIFINDEX, 1)], ids=["name", "index"])
def test_a_port_of_a_socket_bound_to_a_device(device: tuple[int, int | bytes]) -> None:
    """It counts for as long as the kernel has the connection in TIME_WAIT, as any other does."""
    book = fewports.Ledger(fewports.Budget(3, when_full="refuse"))
    gate = PoolManager(ledger=book).gate
    with fresh_server() as server:

        def connection() -> HTTPConnection:
            made = HTTPConnection(server.host, server.port, socket_options=[(socket.SOL_SOCKET, *device)])
            made.gate = gate
            try:
                made.connect()
            except BudgetExhausted:
                made.close()
                raise
            return made

        try:
            first = connection()
        except NewConnectionError as error:
            pytest.skip(f"sockets cannot be bound to a device: {error}")
        first.close()
        others = [connection(), connection()]
        try:
            with pytest.raises(BudgetExhausted, match="1 in TIME_WAIT"):
                connection()
            assert states(server.port) == {"ESTABLISHED": 2, "TIME_WAIT": 1}
        finally:
            for other in others:
                other.close()


def test_under_pressure_a_close_leaves_nothing() -> None:
    """Where more than 60 % of a budget are held, a connection that is closed leaves no TIME_WAIT."""
    book = fewports.Ledger(3)
    with fresh_server() as server:
        sockets = [fewports.create_connection((server.host, server.port), ledger=book) for _ in range(2)]
        sockets.pop().close()

        assert until(lambda: states(server.port) == {"ESTABLISHED": 1})
        assert until(lambda: counts(book) == (1, 0, 0))
        sockets.pop().close()
        assert until(lambda: states(server.port) == {"TIME_WAIT": 1})


@pytest.mark.parametrize("how", ["clear", "with", "close", "dropped", "num_pools"])
def test_to_close_a_pool_leaves_nothing(server: Door, how: str) -> None:
    """clear(), with, close() and the garbage collector close idle connections without any TIME_WAIT."""
    book = fewports.Ledger()
    events = Captured()
    book.subscribe(events)
    http = manager(server, book, num_pools=1)
    burst(http, server, 4)
    pool = http.connection_from_url(server.url)
    if how == "clear":
        http.clear()
    elif how == "with":
        with http:
            pass
    elif how == "close":
        pool.close()
    elif how == "dropped":
        del http, pool
    else:
        del pool
        http.connection_from_url("http://another.test")

    assert until(lambda: states(server.port) == {})
    assert until(lambda: book.usage() == [])
    assert closed(events) == [(CloseReason.POOL_CLOSED, False)] * 4


def test_a_cleared_manager_closes_pools_that_others_hold(server: Door) -> None:
    """A response that is read but referred to keeps no connection open once the manager is closed."""
    with manager(server, fewports.Ledger()) as http:
        response = http.request("GET", server.url + "/")

    assert until(lambda: states(server.port) == {})
    assert response.json() == BODY
    assert http.request("GET", server.url + "/").json() == BODY


def test_what_gives_way_leaves_nothing(server: Door) -> None:
    """Idle connections closed for another client's sake leave no TIME_WAIT: a budget of 4 is whole at once."""
    book = fewports.Ledger(4)
    events = Captured()
    book.subscribe(events)
    with manager(server, book) as first, manager(server, book) as second:
        burst(first, server, 4)
        burst(second, server, 4)

        assert closed(events) == [(CloseReason.GAVE_WAY, False)] * 4
        assert counts(book) == (0, 4, 0)


def kernel_after(acknowledged: threading.Event) -> Referee:
    """Return a kernel that tells of a closed connection's end only after the event."""

    def ask(flow: Flow) -> Row | None:
        return look_up(flow) if acknowledged.is_set() else Row(State.FIN_WAIT1, flow, None, 0, 0)

    return kernel_referee()._replace(ask=ask)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("newcomers", [1, 4])
def test_no_more_gives_way_than_is_needed(newcomers: int, late: bool) -> None:
    """Each newcomer costs another client one idle connection, also while the peer's acknowledgement takes a while."""
    acknowledged = threading.Event()
    if not late:
        acknowledged.set()
    book = fewports.Ledger(10, referee=kernel_after(acknowledged))
    events = Captured()
    book.subscribe(events)
    with fresh_server() as server, manager(server, book) as first, manager(server, book) as second:
        burst(first, server, 10)
        url = f"{server.url}/meet?n={newcomers}"
        asides = [Aside(lambda: second.request("GET", url).status) for _ in range(newcomers)]
        assert until(lambda: len(closed(events)) == newcomers)
        acknowledged.set()
        assert [aside.result() for aside in asides] == [200] * newcomers

        assert closed(events) == [(CloseReason.GAVE_WAY, False)] * newcomers
        assert counts(book) == (0, 10, 0)
        (pool,) = first.pools._container.values()
        assert len(pool.home) == 10 - newcomers


@pytest.mark.parametrize("newcomers", [1, 4])
def test_no_more_gives_way_among_busy_connections(newcomers: int) -> None:
    """Whose port is on its way is given no other: requests that end meanwhile keep their connections."""
    acknowledged = threading.Event()
    book = fewports.Ledger(10, referee=kernel_after(acknowledged))
    events = Captured()
    book.subscribe(events)
    with fresh_server() as server, manager(server, book) as first, manager(server, book) as second:
        burst(first, server, 10)
        url = f"{server.url}/meet?n={newcomers}"
        asides = [Aside(lambda: second.request("GET", url).status) for _ in range(newcomers)]
        assert until(lambda: len(closed(events)) == newcomers)
        assert waiting(book) == newcomers
        for _ in range(10):
            assert first.request("GET", server.url + "/").json() == BODY
        assert waiting(book) == newcomers
        acknowledged.set()
        assert [aside.result() for aside in asides] == [200] * newcomers

        assert closed(events) == [(CloseReason.GAVE_WAY, False)] * newcomers
        assert counts(book) == (0, 10, 0)


def test_what_the_peer_closes_is_the_peers(server: Door) -> None:
    """After "Connection: close" the port is free at once, and the TIME_WAIT the server's."""
    book = fewports.Ledger(fewports.Budget(1, wait=2))
    with manager(server, book) as http:
        for _ in range(20):
            assert http.request("GET", server.url + "/close").json() == BODY

        assert server.stats()["accepted"] == 20
        assert until(lambda: states(server.port) == {})
        assert until(lambda: book.usage() == [])


def test_a_surplus_of_places_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond maxsize serve the next burst; only after some seconds they are retired, then closed."""
    monkeypatch.setattr("fewports.pool.SURPLUS_LIMIT", 1.0)
    monkeypatch.setattr("fewports.pool.RETIREMENT", 0.1)
    book = fewports.Ledger()
    with fresh_server() as server, PoolManager(ledger=book, maxsize=2) as http:
        burst(http, server, 6)
        burst(http, server, 6)
        assert server.stats()["accepted"] == 6

        assert until(lambda: states(server.port).get("ESTABLISHED") == 2)
        assert counts(book)[:2] == (0, 2)


def test_an_idle_connection_that_was_closed_is_not_used() -> None:
    """A request right after the server closed the idle connection goes over a new one, without a retry."""
    with fresh_server(keepalive_timeout=0.1) as fleeting, PoolManager(ledger=fewports.Ledger()) as http:
        for _ in range(3):
            assert http.request("GET", fleeting.url + "/", retries=False).json() == BODY
            assert until(lambda: "ESTABLISHED" not in states(fleeting.port))

        assert fleeting.stats()["accepted"] == 3


def test_a_late_byte_makes_a_connection_unfit() -> None:
    """A connection on which something arrives while it is idle is closed, not used."""
    with listen(["127.0.0.1"])[0] as listener:
        pool = HTTPConnectionPool(*listener.getsockname(), ledger=fewports.Ledger())
        other = Aside(lambda: pool.request("GET", "/").data)
        peer, _ = listener.accept()
        peer.recv(1000)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert other.result() == b"ok"
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

        other = Aside(lambda: pool.request("GET", "/", retries=False).data)
        second, _ = listener.accept()
        second.recv(1000)
        second.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
        assert other.result() == b"good"
        assert len(client_rows(listener.getsockname()[1])) == 1
        for sock in (peer, second):
            sock.close()
        pool.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_reset_before_the_handshake_closes_the_socket() -> None:
    """A connection that the server resets before TLS begins is closed with the error, not when the error is dropped."""
    book = fewports.Ledger()
    with listen(["127.0.0.1"])[0] as listener:

        def reset(event: object) -> None:
            if isinstance(event, ConnectionOpened):
                peer, _ = listener.accept()
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                peer.close()
                assert until(lambda: not client_rows(listener.getsockname()[1]))

        book.subscribe(reset)
        connection = HTTPSConnection(*listener.getsockname())
        connection.gate = PoolManager(ledger=book).gate
        before = descriptors()
        with pytest.raises(ConnectionResetError) as caught:
            connection.connect()
        assert descriptors() == before, caught  # it keeps all that its frames have
        assert book.usage() == []


def test_an_interrupt_in_the_handshake_closes_the_socket() -> None:
    """A KeyboardInterrupt in the middle of the TLS handshake leaves no connection, although its traceback lives."""
    book = fewports.Ledger()
    interrupted: list[int] = []

    def interrupt(number: int, _: object) -> None:
        if not interrupted:
            interrupted.append(number)
            raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.main_thread().ident
    assert main is not None
    with listen(["127.0.0.1"])[0] as listener:

        def break_in() -> bytes:
            peer, _ = listener.accept()
            with peer:
                hello = peer.recv(1000)
                while not interrupted:  # a signal just before the call that waits does not end it
                    signal.pthread_kill(main, signal.SIGUSR1)
                    time.sleep(0.001)
                return hello + b"".join(iter(lambda: peer.recv(1000), b""))

        aside = Aside(break_in)
        try:
            connection = HTTPSConnection(*listener.getsockname())
            connection.gate = PoolManager(ledger=book).gate
            with pytest.raises(KeyboardInterrupt) as caught:
                connection.connect()
            assert aside.result(), caught  # the server has seen the end
        finally:
            signal.signal(signal.SIGUSR1, former)
        assert until(lambda: book.usage() == [])
