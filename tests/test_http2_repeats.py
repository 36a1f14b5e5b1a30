"""Which requests are sent again over HTTP/2: those that the server did not touch, and no others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

import pytest
from faces import Aside, until
from http2_faces import PATIENT, Client, client, each_way, serving, talking
from http2_peer import data, goaway, head, rst
from support.programs import Nginx
from support.scripted_h2 import Asked, H2Peer
from support.servers import H2Server
from urllib3.exceptions import HTTPError

__all__ = ["each_way"]
pytestmark = pytest.mark.usefixtures("each_way")

REFUSED, CALM = 7, 11
MANY = 50  # requests that are under way when the server leaves
ALL = 0x7FFFFFFF  # the last stream of a GOAWAY that only announces


def outcomes(made: Client, method: str) -> list[object]:
    """Make MANY requests at once, each with a path of its own; return bodies and errors in their order."""

    def ask(number: int) -> object:
        try:
            body = {"body": b"x" * 10} if method == "POST" else {}
            return made.request(method, f"/{number}", **body).data
        except HTTPError as error:
            return error

    asides = [Aside(lambda number=number: ask(number)) for number in range(MANY)]
    return [aside.result(20) for aside in asides]


class Work:
    """What a server did: which paths on which connection."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.by_connection: list[list[str]] = []

    def note(self, asked: list[Asked]) -> None:
        self.by_connection.append([one.path for one in asked])
        self.done.update(one.path for one in asked)

    def rest(self, peer: H2Peer) -> None:
        """Serve what comes to a connection that stays."""
        peer.greet(streams=100)
        mine: list[str] = []
        self.by_connection.append(mine)
        with contextlib.suppress(ConnectionError):
            while True:
                asked = peer.request()
                mine.append(asked.path)
                self.done[asked.path] += 1
                peer.answer(asked.stream, asked.path.encode())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("processed", [0, 1, 25, 49, 50])
def test_goaway_in_mid_flight(tls: bool, method: str, processed: int) -> None:
    """Of fifty requests under way those above the last stream are repeated, each once; the others are finished."""
    work = Work()

    def leaving(peer: H2Peer) -> None:
        peer.greet(streams=100)
        asked = sorted(peer.requests(MANY))
        mine, others = asked[:processed], asked[processed:]
        work.note(mine)
        peer.send(goaway(mine[-1].stream if mine else 0))
        assert len(others) == MANY - processed
        peer.quiet(0.05)  # nothing new may come
        for one in mine:
            peer.answer(one.stream, one.path.encode())
        peer.end()

    with talking(leaving, work.rest, tls=tls) as made:
        found = outcomes(made, method)

        assert found == [f"/{number}".encode() for number in range(MANY)]
        assert made.opened == (1 if processed == MANY else 2)
    assert work.done == Counter(f"/{number}" for number in range(MANY))
    assert list(map(len, work.by_connection)) == ([MANY] if processed == MANY else [processed, MANY - processed])


def test_a_goaway_that_only_announces() -> None:
    """The last stream 2^31-1 first, then the true one (RFC 9113, section 6.8): none lost, none twice."""
    work = Work()

    def leaving(peer: H2Peer) -> None:
        peer.greet(streams=100)
        asked = sorted(peer.requests(MANY))
        peer.send(goaway(ALL))
        peer.quiet(0.05)
        mine = asked[:30]
        work.note(mine)
        peer.send(goaway(mine[-1].stream))
        for one in mine:
            peer.answer(one.stream, one.path.encode())
        peer.end()

    with talking(leaving, work.rest) as made:
        assert outcomes(made, "POST") == [f"/{number}".encode() for number in range(MANY)]
    assert work.done == Counter(f"/{number}" for number in range(MANY))


@pytest.mark.parametrize("code", [0, 2, CALM])
def test_goaway_and_the_end_at_once(code: int) -> None:
    """Where the server closes right after GOAWAY, what it had begun fails, once; what it had not is repeated."""
    work = Work()

    def leaving(peer: H2Peer) -> None:
        peer.greet(streams=100)
        asked = sorted(peer.requests(MANY))
        for one in asked:
            peer.body(one.stream)  # else the kernel would close with a RST, and might destroy what was sent
        mine = asked[:20]
        work.note(mine)
        peer.send(
            *(head(one.stream) + data(one.stream, one.path.encode(), end=True) for one in mine[:10]),
            goaway(mine[-1].stream, code),
        )

    with talking(leaving, work.rest) as made:
        found = outcomes(made, "POST")
        failed = [one for one in found if isinstance(one, HTTPError)]

        assert len(failed) == 10
        assert sum(isinstance(one, bytes) for one in found) == MANY - 10
    assert work.done == Counter(f"/{number}" for number in range(MANY))


def test_a_body_of_an_iterator_is_not_sent_twice() -> None:
    """What was taken from an iterator cannot be sent again: the caller is told, and the iterator is drained once."""
    taken: list[int] = []

    def body() -> object:
        for number in range(3):
            taken.append(number)
            yield b"x"

    def refusing(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        peer.body(stream)
        peer.send(rst(stream, REFUSED))
        peer.serve()

    with talking(refusing, serving) as made:
        with pytest.raises(HTTPError):
            made.request("POST", "/", body=body())

        assert taken == [0, 1, 2]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refused_stream_is_repeated(method: str) -> None:
    """REFUSED_STREAM says that nothing was done: the request is made again, and costs no retry."""
    work = Work()

    def refusing(peer: H2Peer) -> None:
        peer.greet()
        peer.send(rst(peer.request().stream, REFUSED))
        with contextlib.suppress(ConnectionError):
            while True:
                asked = peer.request()
                work.note([asked])
                peer.answer(asked.stream, asked.path.encode())

    with talking(refusing, work.rest) as made:
        body = {"body": b"x"} if method == "POST" else {}

        assert made.request(method, "/once", **body).data == b"/once"
    assert work.done == {"/once": 1}


def test_a_server_that_refuses_for_ever() -> None:
    """Repeats come to an end: a clear error, after a bounded number of streams and connections."""
    refused: list[str] = []

    def refusing(peer: H2Peer) -> None:
        peer.greet()
        with contextlib.suppress(ConnectionError):
            while True:
                asked = peer.request()
                refused.append(asked.path)
                peer.send(rst(asked.stream, REFUSED))

    with talking(*[refusing] * 20) as made:
        began = time.monotonic()
        with pytest.raises(HTTPError):
            made.get("/")

        assert time.monotonic() - began < 5
        assert 1 <= len(refused) <= 20
        assert made.opened <= 10


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("code", [2, 8, CALM])
def test_what_may_have_had_an_effect_is_not_repeated(method: str, code: int) -> None:
    """Any other reset ends the request: a POST is never sent twice."""
    seen: list[str] = []

    def resetting(peer: H2Peer) -> None:
        peer.greet()
        with contextlib.suppress(ConnectionError):
            while True:
                asked = peer.request()
                seen.append(asked.path)
                peer.send(rst(asked.stream, code))

    with talking(resetting, resetting) as made:
        with pytest.raises(HTTPError):
            made.request(method, "/once", body=b"x", retries=None)

        assert seen == ["/once"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", ["103", "200"])
@pytest.mark.parametrize("leaves", [False, True], ids=["RST_STREAM", "GOAWAY"])
def test_what_was_answered_is_not_repeated(leaves: bool, status: str, method: str) -> None:
    """A server that begins to answer, and then says that it has not looked at the request, contradicts itself: the
    request may have had its effect."""
    seen: list[str] = []

    def contradicting(peer: H2Peer) -> None:
        peer.greet()
        with contextlib.suppress(ConnectionError):
            while True:
                asked = peer.request()
                seen.append(asked.path)
                end = goaway(0) if leaves else rst(asked.stream, REFUSED)
                peer.send(head(asked.stream, (":status", status)) + end)

    with talking(contradicting, contradicting) as made:
        with pytest.raises(HTTPError):
            made.request(method, "/once", **({"body": b"x"} if method == "POST" else {}))

        assert seen == ["/once"]


def test_a_kept_connection_that_has_ended_unseen() -> None:
    """The server closes a connection while it is idle: the next request, a POST too, goes out on a new one."""
    gone = threading.Event()

    def closing(peer: H2Peer) -> None:
        peer.greet()
        peer.answer(peer.request().stream)
        peer.quiet(0.05)
        peer.peer.sock.close()
        gone.set()

    with talking(closing, serving) as made:
        assert made.get("/").data == b"ok"
        assert gone.wait(PATIENT)
        time.sleep(0.02)

        assert made.request("POST", "/after", body=b"x").data == b"/after"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_server_that_ends_each_connection_after_some_requests(tls: bool) -> None:
    """nginx leaves after keepalive_requests: 16 threads with 20 requests each notice nothing."""
    with Nginx(tls=tls, http2=True, requests=50) as server, client(server) as made:
        asides = [
            Aside(lambda: [made.request("POST", "/hello", body=b"x").status for _ in range(20)]) for _ in range(16)
        ]

        assert [aside.result(20) for aside in asides] == [[200] * 20] * 16
        assert 320 // 50 <= server.accepted() <= 320 // 50 + 5


def test_a_server_that_leaves_again_and_again() -> None:
    """The same with a Python server, which counts: each request was worked on exactly once."""
    with H2Server(requests=20) as server, client(server) as made:

        def work(thread: int) -> list[int]:
            return [
                made.request("POST", "/echo", body=b"x", headers={"x-id": f"{thread}-{number}"}).status
                for number in range(20)
            ]

        asides = [Aside(lambda thread=thread: work(thread)) for thread in range(16)]
        assert [aside.result(20) for aside in asides] == [[200] * 20] * 16
        assert until(lambda: server.stats()["running"] == 0)
        stats = server.stats()

        assert stats["processed"] == {f"{thread}-{number}": 1 for thread in range(16) for number in range(20)}
        assert stats["flaws"] == []
        assert 16 <= stats["accepted"] <= 24
