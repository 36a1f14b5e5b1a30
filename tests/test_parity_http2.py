"""What HTTP/2 has of its own, on threads, asyncio, uvloop and trio, plain and over TLS, with the same results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faces import BODY, Door, counts
from http2_peer import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, block, data, frame, goaway, head, rst
from kinds import H2_PLAIN, H2_TLS, TLS, Kind
from support.sampler import client_rows
from support.scripted_h2 import H2Peer, ScriptedH2
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Timeout
from ways import Http, Way, told, trusting, ways_and_kinds

import fewports

REFUSED_STREAM = 7


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case on each loop, over TLS and plain."""
    pairs = ways_and_kinds(metafunc.function.__name__, (H2_PLAIN, H2_TLS))
    metafunc.parametrize(("way", "kind"), pairs, ids=[f"{name}-{kind}" for name, kind in pairs], indirect=["way"])


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


@pytest.fixture
def server(kind: Kind) -> Iterator[Door]:
    with kind.server() as running:
        yield running


def serving(peer: H2Peer) -> None:
    """Answer every request with its path."""
    peer.greet()
    peer.serve()


def talking(kind: Kind, *scripts: Callable[[H2Peer], None]) -> ScriptedH2:
    return ScriptedH2(*scripts, tls=kind.tls)


async def answer(http: Http, method: str, url: str, *, streamed: bool = False, **options: Any) -> object:
    """Return the body, read at once or in pieces, or what was raised instead."""
    try:
        response = await http.request(method, url, preload_content=not streamed, **options)
        return b"".join(await response.stream(100)) if streamed else response.data
    except HTTPError as error:
        return told(error)


# Where a body ends.

ENDS: dict[str, Callable[[int], bytes]] = {
    "with the last of it": lambda stream: data(stream, b"x", end=True),
    "after the last of it": lambda stream: data(stream, b"x") + data(stream, end=True),
    "with a trailer": lambda stream: (
        data(stream, b"x") + frame(HEADERS, END_HEADERS | END_STREAM, stream, block([("x-sum", "1")]))
    ),
    "with padding": lambda stream: frame(DATA, END_STREAM | PADDED, stream, b"\3x" + bytes(3)),
}


@pytest.mark.parametrize("end", ENDS)
def test_where_a_body_ends(way: Way, kind: Kind, end: str) -> None:
    """A body of no known length ends with its stream, and the connection goes on."""

    def serve(peer: H2Peer) -> None:
        peer.greet()
        for _ in range(3):
            stream = peer.request().stream
            fields = head(stream, (":status", "200"), ("x-a", "1"), ("x-a", "2"))
            peer.send(fields, *[data(stream, b"x" * 10_000)] * 3, ENDS[end](stream))
        peer.end()

    async def case() -> None:
        with talking(kind, serve) as peer:
            async with way.manager(**trusting(kind)) as http:
                whole = await http.get(peer.url)
                streamed = await http.get(peer.url, preload_content=False)

                assert whole.data == b"".join(await streamed.stream(4096)) == b"x" * 30_001
                assert (whole.status, whole.version) == (200, 20)
                assert whole.headers["x-a"] == "1, 2"
                assert whole.headers.getlist("X-A") == ["1", "2"]
                in_pieces = await http.get(peer.url, preload_content=False)
                assert [len(await in_pieces.read(20_000)) for _ in range(3)] == [20_000, 10_001, 0]
            assert peer.accepted == 1

    way.run(case)


SHORT: dict[str, Callable[[H2Peer, int], None]] = {
    "the connection ends": lambda peer, stream: None,
    "GOAWAY and the end": lambda peer, stream: peer.send(goaway(stream)),
    "the stream is reset": lambda peer, stream: peer.send(rst(stream, 2)),
    "the stream is reset with no error": lambda peer, stream: peer.send(rst(stream, 0)),
}


@pytest.mark.parametrize("short", SHORT)
def test_a_body_without_its_end(way: Way, kind: Kind, short: str) -> None:
    """What has no END_STREAM is not whole: a ProtocolError, read at once or in pieces; the next request is served."""

    def serve(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        peer.send(head(stream), data(stream, b"x" * 1000))
        SHORT[short](peer, stream)
        if "reset" in short:
            peer.serve()

    async def case() -> None:
        for streamed in (False, True):
            with talking(kind, serve, serving) as peer:
                async with way.manager(**trusting(kind)) as http:
                    assert await answer(http, "GET", peer.url, streamed=streamed) == ["ProtocolError"]
                    assert (await http.get(peer.url + "/next")).data == b"/next"
                assert peer.accepted == (1 if "reset" in short else 2)

    way.run(case)


def test_a_server_that_never_greets(way: Way, kind: Kind) -> None:
    """To learn how many requests a server takes belongs to the attempt to connect, TLS handshake done or not."""

    def silent(peer: H2Peer) -> None:
        peer.peer.end()

    async def case() -> None:
        with talking(kind, silent, silent) as peer:
            async with way.manager(**trusting(kind)) as http:
                for timeout in (Timeout(connect=0.2, read=5), Timeout(total=0.2)):
                    began = time.monotonic()
                    assert await answer(http, "GET", peer.url, timeout=timeout) == ["ConnectTimeoutError"]
                    assert 0.19 <= time.monotonic() - began < 1.5

    way.run(case)


# What the server has not looked at, and what it has.


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_goaway_in_front_of_a_request(way: Way, kind: Kind, method: str) -> None:
    """A request that the server says it has not looked at is made again on another connection, whatever its method."""
    bodies: list[bytes] = []

    def leave(peer: H2Peer) -> None:
        peer.greet()
        peer.answer(peer.request().stream)
        peer.request()
        peer.send(goaway(1))

    def note(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        bodies.append(peer.body(stream))
        peer.answer(stream, b"again")
        peer.end()

    async def case() -> None:
        with talking(kind, leave, note) as peer:
            async with way.manager(**trusting(kind)) as http:
                assert (await http.get(peer.url)).data == b"ok"
                assert (await http.request(method, peer.url, body=b"once")).data == b"again"
            assert peer.accepted == 2

    way.run(case)

    assert bodies == [b"once"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_stream_that_is_refused(way: Way, kind: Kind, method: str) -> None:
    """REFUSED_STREAM is as much: the request is made again, and the connection goes on."""

    def refuse(peer: H2Peer) -> None:
        peer.greet()
        for _ in range(2):
            peer.send(rst(peer.request().stream, REFUSED_STREAM))
        peer.serve()

    async def case() -> None:
        with talking(kind, refuse) as peer:
            async with way.manager(**trusting(kind)) as http:
                assert (await http.request(method, peer.url + "/a", body=b"once")).data == b"/a"
            assert peer.accepted == 1

    way.run(case)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_the_server_has_begun(way: Way, kind: Kind, method: str) -> None:
    """A request that the server may have looked at ends with it where it says so, and is not made again."""

    def begin(peer: H2Peer) -> None:
        peer.greet()
        peer.answer(peer.request().stream)
        peer.send(goaway(peer.request().stream))

    async def case() -> None:
        with talking(kind, begin, serving) as peer:
            async with way.manager(**trusting(kind)) as http:
                assert (await http.get(peer.url)).data == b"ok"
                assert await answer(http, method, peer.url, body=b"x") == ["ProtocolError"]
                assert (await http.get(peer.url + "/next")).data == b"/next"
            assert peer.accepted == 2

    way.run(case)


def test_goaway_among_requests(way: Way, kind: Kind) -> None:
    """Of those at once the server finishes what it has begun, and the others are made again elsewhere."""

    def leave(peer: H2Peer) -> None:
        peer.greet()
        first, *_ = peer.requests(5)
        peer.send(goaway(first.stream))
        peer.answer(first.stream, b"first")
        peer.end()

    async def case() -> None:
        with talking(kind, leave, serving) as peer:
            async with way.manager(**trusting(kind)) as http:
                found = await way.all([lambda: answer(http, "POST", peer.url + "/again")] * 5)

                assert sorted(found) == [b"/again"] * 4 + [b"first"]
            assert peer.accepted == 2

    way.run(case)


def test_goaway_in_the_middle_of_a_response(way: Way, kind: Kind) -> None:
    """A response that has begun comes to its end; the next request goes out on another connection meanwhile."""
    goes_on = threading.Event()

    def leave(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        peer.send(head(stream), data(stream, b"a"), goaway(stream))
        assert goes_on.wait(10)
        peer.send(data(stream, b"b", end=True))
        peer.end()

    async def case() -> None:
        book = fewports.Ledger()
        with talking(kind, leave, serving) as peer:
            async with way.manager(ledger=book, **trusting(kind)) as http:
                response = await http.get(peer.url, preload_content=False)
                assert await response.read(1) == b"a"
                assert (await http.request("POST", peer.url + "/next")).data == b"/next"
                goes_on.set()
                assert await response.read() == b"b"
                await response.release()
                assert await way.until(lambda: counts(book)[:2] == (0, 1))
            assert peer.accepted == 2

    way.run(case)


# What is one stream's, and leaves the others alone.


def test_what_ends_one_stream_alone(way: Way, kind: Kind, server: Door) -> None:
    """A reset in the middle of a body and a time-out are their request's; the others on the connection are served."""

    async def case() -> None:
        async with way.manager(**trusting(kind)) as http:
            await http.get(server.url)  # the connection is there
            began = time.monotonic()
            found = await way.all(
                [
                    lambda: answer(http, "GET", server.url + "/half"),
                    lambda: http.get(server.url + "/slow?s=5", timeout=0.1),
                    *[lambda: answer(http, "GET", server.url + "/slow?s=0.2")] * 3,
                ]
            )

            assert time.monotonic() - began < 3
            assert found[0] == ["ProtocolError"]
            assert isinstance(found[1], ReadTimeoutError)
            assert found[2] == found[3] == found[4] == (await http.get(server.url)).data
            assert len(client_rows(server.port)) == 1
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_what_comes_beside_a_response(way: Way, kind: Kind, server: Door) -> None:
    """1xx in front, a trailer behind, and leave to go on with a body: the response is the one that counts."""

    async def case() -> None:
        async with way.manager(**trusting(kind)) as http:
            assert (await http.get(server.url + "/interim?n=3")).json() == BODY
            assert (await http.get(server.url + "/trailer")).data == b"with a trailer"
            expecting = {"Expect": "100-continue"}
            assert (await http.request("POST", server.url + "/echo", body=b"xyz", headers=expecting)).data == b"xyz"
            assert (await http.request("PUT", server.url + "/early", body=b"x" * 3_000_000)).status == 413
            assert (await http.get(server.url)).json() == BODY
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_what_speaks_of_one_connection(way: Way, kind: Kind, server: Door) -> None:
    """Connection: close closes nothing where requests share a connection, and is not sent."""

    async def case() -> None:
        async with way.manager(**trusting(kind)) as http:
            closing = {"Connection": "close", "Keep-Alive": "timeout=5", "X-A": "1"}
            for _ in range(3):
                sent = (await http.get(server.url + "/headers", headers=closing)).json()["headers"]

                assert {name for name, _ in sent} & {"connection", "keep-alive", "x-a"} == {"x-a"}
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_what_is_agreed_on(way: Way, kind: Kind) -> None:
    """Where TLS leads to HTTP/1.1 alone, http2=True is an error; http2=False never speaks HTTP/2."""

    async def case() -> None:
        with TLS.server() as old, kind.server() as new:
            async with way.manager(**trusting(TLS)) as http:
                assert (await http.get(old.url)).version == 11
            async with way.manager(**trusting(TLS, http2=True)) as http:
                assert await answer(http, "GET", old.url) == ["ProtocolError"]
            async with way.manager(**{**trusting(kind), "http2": False}) as http:
                assert await answer(http, "GET", new.url) == ["ProtocolError"]

    way.run(case)
