"""How many ports a crowd takes whose HTTP/2 connections are slow to open: others wait for what one opens."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from http2_faces import serving
from support.scripted_h2 import H2Peer, ScriptedH2
from support.servers import H2Server
from urllib3 import Timeout
from urllib3.exceptions import HTTPError
from ways import Way

import fewports
from fewports.events import ConnectionClosed, ConnectionOpened
from fewports.pool import Limits, Pool
from fewports.sharing import ALONE, MOST_ABREAST, TURN, Search

CROWD = 50
SHORT = 0.4  # seconds: a time-out that is meant to pass


@pytest.fixture(params=["threads", "asyncio", "trio"])
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


class Ports:
    """Counts the connections of a ledger: ``opened``, and ``most`` at once."""

    def __init__(self, book: fewports.Ledger) -> None:
        self.opened = self.most = self._open = 0
        book.subscribe(self._note)

    def _note(self, event: object) -> None:
        if isinstance(event, ConnectionOpened):
            self.opened += 1
            self._open += 1
            self.most = max(self.most, self._open)
        elif isinstance(event, ConnectionClosed):
            self._open -= 1


def test_a_crowd_at_a_server_that_stalls(way: Way) -> None:
    """Each of fifty who meet no TLS handshake fails in its own time, and they take a port or two, not fifty."""
    book = fewports.Ledger()
    ports = Ports(book)
    took: list[float] = []

    async def case() -> None:
        with ScriptedH2() as server:  # accepts, and says nothing
            url = server.url.replace("http:", "https:")
            async with way.manager(ledger=book, maxsize=CROWD, retries=False, timeout=Timeout(connect=SHORT)) as http:

                async def ask() -> None:
                    began = time.monotonic()
                    with pytest.raises(HTTPError, match="timed out"):
                        await http.get(url)
                    took.append(time.monotonic() - began)

                assert await way.all([ask] * CROWD) == [None] * CROWD

    way.run(case)
    assert len(took) == CROWD
    assert SHORT * 0.9 <= min(took)
    assert max(took) < SHORT + 1.0
    assert ports.most <= 5  # threads begin one after the other, and have as much time left


def test_a_crowd_for_whom_there_are_no_seats(way: Way) -> None:
    """Where all streams are taken and another connection stalls, few are opened at once, not one for each who waits."""
    book = fewports.Ledger()
    ports = Ports(book)
    taken = threading.Event()

    def full(peer: H2Peer) -> None:
        peer.greet(streams=1)
        peer.request()
        taken.set()
        peer.end()

    async def case() -> None:
        with ScriptedH2(full, tls=True) as server:
            times = Timeout(connect=SHORT, read=2)
            trusting = {"ca_certs": server.ca_path, "timeout": times, "retries": False}
            async with way.manager(ledger=book, maxsize=CROWD + 1, **trusting) as http:

                async def hold() -> None:
                    with pytest.raises(HTTPError):
                        await http.get(server.url)

                async def ask() -> None:
                    assert await way.until(taken.is_set)
                    with pytest.raises(HTTPError, match="timed out"):
                        await http.get(server.url)

                assert await way.all([hold, *[ask] * CROWD]) == [None] * (CROWD + 1)

    way.run(case)
    assert ports.most <= 1 + MOST_ABREAST


def test_a_crowd_that_is_not_to_wait_for_ports(way: Way) -> None:
    """Who is refused at once where the ports are used up still waits for the connection that another opens."""
    book = fewports.Ledger(budget=fewports.Budget(100, when_full="refuse"))
    ports = Ports(book)

    async def case() -> None:
        with H2Server(tls=True) as server:
            async with way.manager(ledger=book, maxsize=CROWD, ca_certs=server.ca_path) as http:
                answers = await way.all([lambda: http.get(server.url)] * CROWD)
                assert [answer.status for answer in answers] == [200] * CROWD

    way.run(case)
    assert ports.opened == 1


def test_the_first_of_a_crowd_that_fails(way: Way) -> None:
    """Where the one that opens for all meets an error, the next opens, and carries all others."""
    book = fewports.Ledger()

    def leaving(peer: H2Peer) -> None:
        """Close before the greeting."""

    async def case() -> None:
        with ScriptedH2(leaving, *[serving] * CROWD, tls=True) as server:
            async with way.manager(ledger=book, maxsize=CROWD, retries=False, ca_certs=server.ca_path) as http:
                outcomes = await way.all([lambda: http.get(server.url + "/x")] * CROWD)
                assert sum(isinstance(outcome, HTTPError) for outcome in outcomes) == 1
                assert server.accepted <= 3

    way.run(case)


def test_how_long_one_waits_for_what_others_open() -> None:
    """As long as for a connection of one's own; for a seat, where there are any, as long as for a port."""
    search, riding = Search(0.5, 30.0, 100.0), Search(0.5, 30.0, 100.0)

    assert search.pause(100.0, False) == 0.5
    assert search.left(100.3, False) == (pytest.approx(0.2), 30.0)
    assert not search.late(100.4, False)
    assert search.late(100.5, False)
    assert riding.pause(100.0, True) == 30.0
    assert not riding.late(100.5, True)
    assert riding.left(110.0, True) == (0.5, 20.0)


def test_the_wait_for_a_seat_is_not_one_for_a_connection() -> None:
    """Who waited for a seat has all the time to connect that there is from when the seats are gone."""
    search = Search(0.5, 30.0, 100.0)

    assert search.pause(100.0, True) == 30.0
    assert not search.late(110.0, False)
    assert search.left(110.0, False) == (0.5, 30.0)
    assert search.pause(110.0, False) == 0.5
    assert search.left(110.2, False) == (pytest.approx(0.3), 30.0)
    assert search.late(110.5, False)


def test_a_connection_that_ends_while_others_wait_for_a_seat(way: Way) -> None:
    """Who waited for a seat for longer than it may take to connect does not time out when it is to open one itself."""
    taken, waiting = threading.Event(), threading.Event()

    def ending(peer: H2Peer) -> None:
        peer.greet(streams=1)
        stream = peer.request().stream
        taken.set()
        assert waiting.wait(5)
        time.sleep(2 * SHORT)
        peer.answer(stream, b"first")
        peer.end()

    def leaving(peer: H2Peer) -> None:
        """Close before the greeting."""

    async def case() -> None:
        book = fewports.Ledger(budget=1)
        with ScriptedH2(ending, leaving, serving, tls=True) as server:
            options: dict[str, Any] = {"max_age": SHORT, "timeout": Timeout(connect=SHORT, read=5), "retries": False}
            async with way.manager(ledger=book, maxsize=3, ca_certs=server.ca_path, **options) as http:

                async def ask() -> bytes:
                    return (await http.get(server.url)).data

                async def ask_later() -> bytes:
                    assert await way.until(taken.is_set)
                    waiting.set()
                    return await ask()

                first, *others = await way.all([ask, ask_later, ask_later])
                assert first == b"first"
                assert b"/" in others
                assert "timed out" not in str(others)

    way.run(case)


def test_when_one_more_is_opened() -> None:
    """After each turn, once; who is refused where there is no port has turns as well."""
    search, refused = Search(None, 5.0, 0.0), Search(None, 0.0, 0.0)

    assert [search.turned(now) for now in (4.9, 5.0, 5.1, 9.9, 10.0)] == [False, True, False, False, True]
    assert search.pause(12.0, False) == 3.0
    assert search.left(12.0, True) == (None, 0.0)
    assert refused.pause(0.0, True) == TURN


def test_how_many_are_opened_at_once() -> None:
    """One; more for those who have waited for long, twice as many each time they have waited again."""
    pool: Pool[Any] = Pool(Limits(), merges=True)

    assert pool.take(0.0)[0] is ALONE
    assert pool.take(0.0)[0] is None
    assert [pool.insist(1) for _ in range(MOST_ABREAST)] == [ALONE] * (MOST_ABREAST - 1) + [None]
    assert [pool.insist(2) for _ in range(MOST_ABREAST + 1)] == [ALONE] * MOST_ABREAST + [None]
    assert pool.insist(1000) is ALONE
