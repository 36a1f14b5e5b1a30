"""What happens although nobody asks: idle connections are retired and closed, and the thread that does it ends."""

from __future__ import annotations

import gc
import socket
import threading
import time
from typing import Any

import pytest
from faces import BODY, Aside, counts, fresh_server, states, until

import fewports
from fewports.address import Destination, Flow
from fewports.events import CloseReason, ConnectionClosed, ConnectionOpened, ConnectionRetired
from fewports.kernel.diag import State
from fewports.sync.timer import Timer, timer
from fewports.testing import Captured, ManualClock, ScriptedKernel
from fewports.urllib3 import HTTPConnectionPool, PoolManager


def timers() -> list[str]:
    # A thread whose start() a KeyboardInterrupt broke off is enumerated for ever, although it never ran.
    return [thread.name for thread in threading.enumerate() if thread.name == "fewports-timer" and thread.is_alive()]


def watched(**options: Any) -> tuple[PoolManager, Captured]:
    book = fewports.Ledger()
    events = Captured()
    book.subscribe(events)
    return PoolManager(ledger=book, **options), events


def test_what_the_server_closed_is_noticed_within_a_second() -> None:
    """Idle connections that the server closes are closed without any request: nothing held, nothing in TIME_WAIT."""
    http, events = watched()
    with fresh_server(keepalive_timeout=0.2) as server, http:
        asides = [Aside(lambda: http.request("GET", server.url + "/meet?n=5").status) for _ in range(5)]
        assert [aside.result() for aside in asides] == [200] * 5
        began = time.monotonic()
        assert until(lambda: len(events.of(ConnectionClosed)) == 5)

        assert time.monotonic() - began < 3  # not at idle_limit, after most of a minute
        assert {(event.reason, event.time_wait) for event in events.of(ConnectionClosed)} == {
            (CloseReason.PEER_CLOSED, False)
        }
        assert until(lambda: states(server.port) == {})
        assert http.gate.ledger.usage() == []


def test_idle_connections_are_retired_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """After idle_limit a connection is not used again but stays, so that the server closes it and has the TIME_WAIT."""
    monkeypatch.setattr("fewports.sync.timer.CHECK", 0.2)
    http, events = watched(idle_limit=0.15)
    with fresh_server(keepalive_timeout=2.0) as server, http:
        assert http.request("GET", server.url + "/").json() == BODY
        assert until(lambda: events.of(ConnectionRetired))
        (opened,) = events.of(ConnectionOpened)
        assert [event.flow for event in events.of(ConnectionRetired)] == [opened.flow]
        assert states(server.port) == {"ESTABLISHED": 1}
        assert http.request("GET", server.url + "/").json() == BODY

        assert server.stats()["accepted"] == 2
        assert until(lambda: len(events.of(ConnectionClosed)) == 2)
        assert {event.reason for event in events.of(ConnectionClosed)} == {CloseReason.PEER_CLOSED}
        assert until(lambda: states(server.port) == {})


def test_a_retired_connection_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server does not close a retired connection, we do, and pay."""
    monkeypatch.setattr("fewports.pool.RETIREMENT", 0.2)
    http, events = watched(idle_limit=0.1)
    with fresh_server() as server, http:
        began = time.monotonic()
        assert http.request("GET", server.url + "/").json() == BODY
        assert until(lambda: events.of(ConnectionClosed))

        assert 0.25 < time.monotonic() - began < 3
        assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.IDLE]
        assert until(lambda: states(server.port) == {"TIME_WAIT": 1})


def test_a_retired_connection_gives_way_first() -> None:
    """Who needs a port gets that of a retired connection at once."""
    book = fewports.Ledger(fewports.Budget(1, wait=2))
    events = Captured()
    book.subscribe(events)
    with fresh_server() as server, PoolManager(ledger=book, idle_limit=0.1) as one, PoolManager(ledger=book) as two:
        assert one.request("GET", server.url + "/").json() == BODY
        assert until(lambda: events.of(ConnectionRetired))
        assert two.request("GET", server.url + "/").json() == BODY
        assert one.request("GET", server.url + "/").json() == BODY

        assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.GAVE_WAY] * 2


def test_a_connection_has_a_maximum_age() -> None:
    """After max_age a connection is given up although it is busy, between two requests."""
    http, events = watched(max_age=0.3)
    with fresh_server() as server, http:
        began = time.monotonic()
        while len(events.of(ConnectionOpened)) < 3 and time.monotonic() - began < 5:
            assert http.request("GET", server.url + "/slow?s=0.01", retries=False).json() == BODY

        assert time.monotonic() - began > 2 * 0.27  # a tenth of it is chance
        assert server.stats()["accepted"] == 3
        assert not events.of(ConnectionRetired)
        assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.AGE] * 2


def test_ages_differ() -> None:
    """The connections of one burst do not reach their maximum age at once: up to a tenth earlier."""
    with (
        fresh_server() as server,
        HTTPConnectionPool(server.host, server.port, ledger=fewports.Ledger(), max_age=100) as pool,
    ):
        asides = [Aside(lambda: pool.request("GET", "/meet?n=20").status) for _ in range(20)]
        assert [aside.result() for aside in asides] == [200] * 20
        ages = [connection.expires - time.monotonic() for connection in pool.home.quiet()]

        assert len(ages) == 20
        assert 89 < min(ages) < 97
        assert 93 < max(ages) <= 100


def test_an_old_idle_connection_is_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that reaches its maximum age while it is idle is retired by the timer."""
    monkeypatch.setattr("fewports.sync.timer.CHECK", 0.2)
    http, events = watched(max_age=0.2)
    with fresh_server(keepalive_timeout=2.0) as server, http:
        assert http.request("GET", server.url + "/").json() == BODY

        assert until(lambda: events.of(ConnectionRetired))
        assert until(lambda: http.gate.ledger.usage() == [])
        assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.PEER_CLOSED]


def test_the_thread_ends_by_itself() -> None:
    """The timer's thread runs while something is idle or waited for, and ends within seconds of the last of it."""
    gc.collect()  # connections that other tests left to the garbage collector keep it running, as they should
    assert until(lambda: timers() == []), (timer._pools, timer._ledgers)
    with fresh_server() as server:
        with PoolManager(ledger=fewports.Ledger()) as http:
            http.request("GET", server.url + "/")
            assert timers() == ["fewports-timer"]
        assert until(lambda: timers() == [])
        pool = HTTPConnectionPool(server.host, server.port, ledger=fewports.Ledger())
        pool.request("GET", "/")
        assert timers() == ["fewports-timer"]
        del pool
        assert until(lambda: timers() == [])
        book = fewports.Ledger(fewports.Budget(1, wait=0.1))
        with fewports.create_connection((server.host, server.port), ledger=book):
            with pytest.raises(fewports.BudgetExhausted):
                fewports.create_connection((server.host, server.port), ledger=book)
            assert until(lambda: timers() == [], seconds=2)


def test_requests_in_a_row_start_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes one request after the other, and so has no idle connection when the thread looks, has one thread."""
    started: list[str] = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    with fresh_server() as server, PoolManager(ledger=fewports.Ledger()) as http:
        for _ in range(200):
            assert http.request("GET", server.url + "/").status == 200

    assert started.count("fewports-timer") <= 1


def test_an_interrupt_as_the_thread_is_started_leaves_one_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread whose start() was broken off runs all the same: it does the work, or ends if another does."""
    gc.collect()
    assert until(lambda: timers() == [])
    start = threading.Thread.start

    def broken_off(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "fewports-timer":
            raise KeyboardInterrupt

    with fresh_server() as server, PoolManager(ledger=fewports.Ledger()) as http:
        with monkeypatch.context() as patches:
            patches.setattr(threading.Thread, "start", broken_off)
            with pytest.raises(KeyboardInterrupt):
                http.request("GET", server.url + "/")
        assert http.request("GET", server.url + "/").json() == BODY
        assert until(lambda: timers() == ["fewports-timer"]), timers()
    assert until(lambda: timers() == [])


def test_a_budget_is_served_by_the_timer() -> None:
    """Who waits for a port in TIME_WAIT gets it when the kernel lets go of it, without anybody closing anything."""
    book = fewports.Ledger(fewports.Budget(1, wait=5))
    with fresh_server() as server:
        began = time.monotonic()
        with fewports.create_connection((server.host, server.port), ledger=book) as first:
            first.shutdown(1)  # SHUT_WR: our FIN is first, whatever close() would choose under pressure
        assert counts(book) == (0, 0, 1)
        fewports.create_connection((server.host, server.port), ledger=book).close()

        assert 0.5 < time.monotonic() - began < 4  # TIME_WAIT on loopback is reused after 1 s


def test_who_waits_for_a_port_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller looks itself whether a port is free, and whether the thread can be started by now."""
    watch = Timer()
    monkeypatch.setattr("fewports.sync.dial.timer", watch)
    start, refusals = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "fewports-timer":
            refusals.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    kernel = ScriptedKernel(ManualClock(time.monotonic()))
    book = fewports.Ledger(fewports.Budget(1, wait=10.0), referee=kernel.referee)
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = server.getsockname()
        first = fewports.create_connection(name, ledger=book)
        flow = Flow("127.0.0.1", first.getsockname()[1], Destination(*name))
        kernel.keep(flow, 60.0, State.FIN_WAIT2)
        first.close()
        with monkeypatch.context() as patches:
            patches.setattr(threading.Thread, "start", refuse)
            second = Aside(lambda: fewports.create_connection(name, ledger=book))
            assert until(lambda: len(refusals) > 1)
            kernel.let_go(flow)
            sock = second.result(5.0)
        third = Aside(lambda: fewports.create_connection(name, ledger=book))
        assert until(lambda: watch.watch_ledger(book))
        sock.close()  # type: ignore[attr-defined]
        third.result(5.0).close()  # type: ignore[attr-defined]
