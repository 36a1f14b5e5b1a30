"""The hook: what a subscriber of a ledger is told in the life of real connections, and what it cannot break."""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest
from faces import BODY, Aside, Door, counts, fresh_server, until, waiting

import fewports
from fewports.events import (
    BudgetRefused,
    CloseReason,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRetired,
    DialFailed,
    Event,
    Level,
    LevelCrossed,
    PortFreed,
    PortReserved,
    WaitEnded,
    WaitStarted,
)
from fewports.kernel.diag import look_up
from fewports.testing import Captured
from fewports.urllib3 import HTTPConnection, PoolManager


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def server(request: pytest.FixtureRequest) -> Iterator[Door]:
    with fresh_server(tls=request.param) as running:
        yield running


def listening(book: fewports.Ledger) -> Captured:
    events = Captured()
    book.subscribe(events)
    return events


def kinds(events: Sequence[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_the_life_of_a_connection_in_order() -> None:
    """Reserved, opened, closed, and freed when its TIME_WAIT is over: once each, with the same flow."""
    book = fewports.Ledger()
    events = listening(book)
    with fresh_server() as server:
        connection = HTTPConnection(server.host, server.port)
        connection.gate = PoolManager(ledger=book).gate
        for _ in range(3):
            connection.request("GET", "/")
            assert connection.getresponse().json() == BODY
        assert kinds(events) == ["PortReserved", "ConnectionOpened"]
        connection.close()
        assert until(lambda: book.usage() == [])  # TIME_WAIT on loopback is reused after 1 s

    reserved, opened, closed, freed = events
    assert isinstance(reserved, PortReserved)
    assert isinstance(opened, ConnectionOpened)
    assert closed == ConnectionClosed(opened.flow, CloseReason.DONE, True)
    assert freed == PortFreed(opened.flow)
    assert reserved.space == opened.flow.space
    assert 0 < opened.seconds < 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened.seconds = 0.0  # type: ignore[misc]


def test_reuse_is_no_event(server: Door) -> None:
    """Ten requests over one connection are told as one connection: reserved, opened, closed without TIME_WAIT."""
    book = fewports.Ledger()
    events = listening(book)
    with PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        for _ in range(10):
            http.request("GET", server.url + "/")
    assert until(lambda: book.usage() == [])

    assert kinds(events)[:3] == ["PortReserved", "ConnectionOpened", "ConnectionClosed"]
    assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.POOL_CLOSED]


def test_a_close_by_the_server_is_told_as_such() -> None:
    """A connection that the server closed first is PEER_CLOSED, without TIME_WAIT, and its port free at once."""
    book = fewports.Ledger()
    events = listening(book)
    with fresh_server() as server, PoolManager(ledger=book) as http:
        response = http.request("GET", server.url + "/close", preload_content=False)
        (opened,) = events.of(ConnectionOpened)
        assert until(lambda: kernel_state(opened) == "CLOSE_WAIT")
        assert response.json() == BODY

    assert events[2:] == [ConnectionClosed(opened.flow, CloseReason.PEER_CLOSED, False)]
    assert book.usage() == []


def kernel_state(opened: ConnectionOpened) -> str:
    row = look_up(opened.flow)
    return row.state.name if row else ""


def test_waiting_is_told(server: Door) -> None:
    """Who waits for a port is told of when it joins the line and when it leaves, served or refused."""
    book = fewports.Ledger(fewports.Budget(1, wait=0.2))
    events = listening(book)
    with PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        response = http.request("GET", server.url + "/", preload_content=False)
        with pytest.raises(fewports.BudgetExhausted):
            http.request("GET", server.url + "/")
        other = Aside(lambda: http.request("GET", server.url + "/", pool_timeout=5).json())
        assert until(lambda: waiting(book))
        response.drain_conn()
        assert other.result() == BODY

    told = [event for event in events if isinstance(event, (WaitStarted, WaitEnded, BudgetRefused))]
    assert kinds(told) == ["WaitStarted", "BudgetRefused", "WaitEnded", "WaitStarted", "WaitEnded"]
    first, second = events.of(WaitEnded)
    assert (first.served, second.served) == (False, True)
    assert first.seconds >= 0.2
    assert (told[0].usage.active, told[0].usage.budget) == (1, 1)  # type: ignore[union-attr]
    assert len(events.of(ConnectionOpened)) == 1  # the second took over the connection of the first


def test_a_failed_attempt_is_told() -> None:
    """An attempt that fails is told with the system call and its error; the port was given back."""
    book = fewports.Ledger()
    events = listening(book)
    with pytest.raises(ConnectionRefusedError):
        fewports.create_connection(("127.0.0.1", 9), ledger=book)

    reserved, failed = events
    assert isinstance(reserved, PortReserved)
    assert isinstance(failed, DialFailed)
    assert (failed.space, failed.call, type(failed.error)) == (reserved.space, "connect", ConnectionRefusedError)


def test_levels_are_told_both_ways() -> None:
    """60 % and 80 % of a budget are told when they are reached, and when fewer are held again."""
    book = fewports.Ledger(10)
    events = listening(book)
    with fresh_server() as server:
        sockets = [fewports.create_connection(server.addresses[0], ledger=book) for _ in range(10)]
        while len(sockets) > 5:
            sockets.pop().close()  # under pressure: its port is free at once
            assert until(lambda: counts(book) == (len(sockets), 0, 0))
        assert [(event.before, event.after, event.held) for event in events.of(LevelCrossed)] == [
            (Level.NORMAL, Level.WARNING, 6),
            (Level.WARNING, Level.CRITICAL, 8),
            (Level.CRITICAL, Level.WARNING, 7),
            (Level.WARNING, Level.NORMAL, 5),
        ]
        assert {(event.account, event.budget) for event in events.of(LevelCrossed)} == {
            (f"127.0.0.1:{server.port}", 10)
        }
        for sock in sockets:
            sock.close()


def test_a_broken_subscriber_is_logged_once(server: Door, caplog: pytest.LogCaptureFixture) -> None:
    """What a subscriber raises reaches no request and no other subscriber; the log has it once, with its traceback."""
    book = fewports.Ledger()

    def broken(event: Event) -> None:
        raise ZeroDivisionError("the subscriber's own")

    book.subscribe(broken)
    events = listening(book)
    with caplog.at_level(logging.DEBUG, logger="fewports"), PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        for _ in range(3):
            assert http.request("GET", server.url + "/close").json() == BODY
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]

    assert len(logged) == 1
    assert "this is logged once" in logged[0].getMessage()
    assert logged[0].exc_info
    assert len(events.of(ConnectionClosed)) == 3


def test_unsubscribe(server: Door) -> None:
    """What subscribe() returns ends it, also from within the subscriber, and for this one alone."""
    book = fewports.Ledger()
    other = fewports.Ledger()
    once: list[Event] = []

    def only_once(event: Event) -> None:
        once.append(event)
        stop()

    stop = book.subscribe(only_once)
    events, elsewhere = listening(book), listening(other)
    with PoolManager(ledger=book, ca_certs=server.ca_path) as http:
        http.request("GET", server.url + "/")

    assert kinds(once) == ["PortReserved"]
    assert kinds(events)[:3] == ["PortReserved", "ConnectionOpened", "ConnectionClosed"]
    assert elsewhere == []
    stop()


def test_a_subscriber_may_wait_in_the_timers_thread() -> None:
    """Who is told something by the timer, and waits for a port then, is served when the kernel lets go of one."""
    book, full = fewports.Ledger(), fewports.Ledger(fewports.Budget(1, wait=4))
    told: list[str] = []

    def dialling(event: Event) -> None:
        if isinstance(event, ConnectionRetired):
            told.append(threading.current_thread().name)
            fewports.create_connection(server.addresses[0], ledger=full).close()
            told.append("served")

    with fresh_server() as server, PoolManager(ledger=book, idle_limit=0.05) as http:
        with fewports.create_connection(server.addresses[0], ledger=full) as first:
            first.shutdown(socket.SHUT_WR)  # its TIME_WAIT will be ours
        book.subscribe(dialling)
        http.request("GET", server.url + "/")

        assert until(lambda: len(told) == 2), told
    assert told == ["fewports-timer", "served"]


def test_a_subscriber_may_call_back(server: Door) -> None:
    """A subscriber that asks for the usage, makes requests and closes pools deadlocks with nothing."""
    book = fewports.Ledger(8)
    seen: list[str] = []
    inner = threading.local()
    http = PoolManager(ledger=book, ca_certs=server.ca_path)

    def curious(event: Event) -> None:
        if getattr(inner, "busy", False):
            return
        inner.busy = True
        try:
            book.usage()
            repr(book)
            with PoolManager(ledger=book, ca_certs=server.ca_path) as mine:
                assert mine.request("GET", server.url + "/").json() == BODY
            seen.append(type(event).__name__)
        finally:
            inner.busy = False

    stop = book.subscribe(curious)
    asides = [Aside(lambda: [http.request("GET", server.url + "/").json() for _ in range(5)]) for _ in range(4)]
    assert [aside.result() for aside in asides] == [[BODY] * 5] * 4
    http.clear()
    stop()

    assert {"PortReserved", "ConnectionOpened", "ConnectionClosed"} <= set(seen)


def test_events_come_from_the_thread_in_which_they_happen(server: Door) -> None:
    """A subscriber runs in the thread of the request, and in the timer's for what nobody asked for."""
    book = fewports.Ledger()
    threads: dict[str, str] = {}

    def note(event: Event) -> None:
        threads.setdefault(type(event).__name__, threading.current_thread().name)

    book.subscribe(note)
    with PoolManager(ledger=book, ca_certs=server.ca_path, idle_limit=0.05) as http:
        http.request("GET", server.url + "/")
        assert until(lambda: "ConnectionRetired" in threads)

    here = threading.current_thread().name
    assert (threads["PortReserved"], threads["ConnectionOpened"]) == (here, here)
    assert threads["ConnectionRetired"] == "fewports-timer"
