"""HTTP/2 under httpx and httpx2 through fewports.httpx.Transport, beside their own transports."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from types import ModuleType
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest
from faces import Aside, Door, counts, fresh_server, until
from http2_peer import data, goaway, head, rst
from support.scripted import Peer, Scripted
from support.scripted_h2 import H2Peer, ScriptedH2
from support.servers import H2Server, HttpProxy
from test_httpx import both, events, pieces, trusting

import fewports
from fewports.httpx import AsyncTransport, Transport

BOTH: dict[str, Any] = {"http2": True}
ONLY: dict[str, Any] = {"http1": False, "http2": True}
INTERNAL, REFUSED, CANCEL = 2, 7, 8


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def lib(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture(scope="module")
def secure() -> Iterator[H2Server]:
    with H2Server(tls=True) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[H2Server]:
    with H2Server() as running:
        yield running


@pytest.fixture(scope="module")
def old() -> Iterator[Door]:
    with fresh_server(tls=True) as running:
        yield running


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
def test_requests_and_responses_are_those_of_the_library(
    lib: ModuleType, secure: H2Server, plain: H2Server, tls: bool
) -> None:
    """What arrives, and what comes back, is what it is with the library's own transport."""
    url = (secure if tls else plain).url

    def work(client: Any) -> list[object]:
        found: list[object] = []
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", "/headers?a=%20b", {"headers": [("X-A", "1"), ("x-a", "2"), ("Connection", "keep-alive")]}),
            ("POST", "/echo", {"json": {"a": 1}}),
            ("POST", "/echo", {"content": pieces()}),
            ("PUT", "/echo", {"content": b"x" * 200_000}),
            ("POST", "/headers", {}),
            ("HEAD", "/bytes?n=10", {}),
            ("GET", "/bytes?n=1000000", {}),
            ("GET", "/trailer", {}),
            ("GET", "/interim?n=2", {}),
            ("GET", "/status?code=404", {}),
        ]
        for method, path, options in calls:
            response = client.request(method, url + path, **options)
            fields = [field for field in response.headers.raw if field[0] != b"date"]
            content = sorted(response.json().items()) if path.startswith("/headers") and method != "HEAD" else b""
            found += [response.status_code, fields, response.http_version, response.reason_phrase, content]
            found += [sorted(response.extensions), response.extensions["stream_id"]]
            found.append(response.content if path.startswith(("/echo", "/bytes", "/trailer")) else None)
        return found

    stock, ours = both(lib, work, verify=False, **(BOTH if tls else ONLY))

    for mine, theirs in zip(ours, stock, strict=True):  # type: ignore[call-overload]
        assert _comparable(mine) == _comparable(theirs)


def _comparable(value: object) -> object:
    """Leave out which connection it was, and how long the echoed request was said to be."""
    return [pair for pair in value if pair[0] != "client"] if isinstance(value, list) and value else value


def test_threads_share_one_connection(lib: ModuleType, secure: H2Server) -> None:
    """Sixteen threads are served by one connection, and bodies that are not read keep nobody from it."""
    book = fewports.Ledger()
    before = secure.stats()["accepted"]
    with lib.Client(transport=Transport(verify=trusting(secure), ledger=book, **BOTH)) as client:
        client.get(secure.url + "/hello")
        with client.stream("GET", secure.url + "/bytes?n=3000000") as response:
            work = [
                Aside(lambda: [client.get(secure.url + "/hello").http_version for _ in range(10)]) for _ in range(16)
            ]
            assert [thread.result() for thread in work] == [["HTTP/2"] * 10] * 16
            assert len(response.read()) == 3_000_000
        assert counts(book)[:2] == (0, 1)
    assert secure.stats()["accepted"] - before == 1


def test_a_response_that_is_closed_early_ends_its_stream_alone(lib: ModuleType, secure: H2Server) -> None:
    """Who leaves in the middle resets the stream; the connection goes on."""
    book = fewports.Ledger()
    before = secure.stats()
    with lib.Client(transport=Transport(verify=trusting(secure), ledger=book, **BOTH)) as client:
        for _ in range(3):
            with client.stream("GET", secure.url + "/bytes?n=5000000") as response:
                next(response.iter_raw())
        assert client.get(secure.url + "/hello").status_code == 200
        assert counts(book)[:2] == (0, 1)
    after = secure.stats()
    assert after["accepted"] - before["accepted"] == 1
    assert after["resets"][len(before["resets"]) :] == [CANCEL] * 3


def test_max_connections_bounds_connections_and_not_streams(lib: ModuleType, secure: H2Server) -> None:
    """With one connection allowed, many requests are under way at once on it."""
    limits = lib.Limits(max_connections=1)
    with lib.Client(transport=Transport(verify=trusting(secure), limits=limits, **BOTH)) as client:
        client.get(secure.url + "/hello")
        work = [Aside(lambda: client.get(secure.url + "/meet?n=8").status_code) for _ in range(8)]

        assert [thread.result() for thread in work] == [200] * 8
    assert secure.stats()["most_running"] >= 8


def test_limits_may_keep_nothing(lib: ModuleType, secure: H2Server) -> None:
    """With max_keepalive_connections=0 a shared connection ends with its last response."""
    book = fewports.Ledger()
    limits = lib.Limits(max_keepalive_connections=0)
    with lib.Client(transport=Transport(verify=trusting(secure), ledger=book, limits=limits, **BOTH)) as client:
        with client.stream("GET", secure.url + "/bytes?n=3000000") as response:
            client.get(secure.url + "/hello")
            assert len(response.read()) == 3_000_000
        assert counts(book)[:2] == (0, 0)


def test_a_server_without_http2_is_spoken_to_as_it_can(lib: ModuleType, old: Door) -> None:
    """With http2=True HTTP/1.1 is still what is spoken where the server chooses it; with http1=False it is an error."""
    with lib.Client(transport=Transport(verify=trusting(old), **BOTH)) as client:
        response = client.get(old.url)
        assert (response.http_version, "stream_id" in response.extensions) == ("HTTP/1.1", False)
    with lib.Client(transport=Transport(verify=trusting(old), **ONLY)) as client, pytest.raises(lib.TransportError):
        client.get(old.url)


def test_a_server_that_does_not_know_http2(lib: ModuleType) -> None:
    """What answers a greeting in another protocol is a RemoteProtocolError."""

    def answer(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        peer.end()

    client = lib.Client(transport=Transport(**ONLY))
    with Scripted(answer) as server, client, pytest.raises(lib.RemoteProtocolError):
        client.get(server.url)


def test_http2_is_not_spoken_unasked(lib: ModuleType, secure: H2Server, old: Door) -> None:
    """Without http2=True no HTTP/2 is offered, as in the libraries."""
    with lib.Client(transport=Transport(verify=trusting(old))) as client:
        client.get(old.url)
        network = client.get(old.url).extensions["network_stream"]

        assert network.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


def test_a_trace_tells_of_streams(lib: ModuleType, secure: H2Server) -> None:
    """The steps are told under the names of HTTP/2."""
    with lib.Client(transport=Transport(verify=False, **BOTH)) as client:
        names = [events(client, secure.url + "/hello") for _ in range(2)]

    steps = ("send_request_headers", "send_request_body", "receive_response_headers", "receive_response_body")
    expected = [f"http2.{step}.{when}" for step in (*steps, "response_closed") for when in ("started", "complete")]
    connecting = [
        f"connection.{step}.{when}" for step in ("connect_tcp", "start_tls") for when in ("started", "complete")
    ]
    assert names == [connecting + expected, expected]


def test_through_a_tunnel(lib: ModuleType, secure: H2Server) -> None:
    """HTTP/2 is spoken through the tunnel of a proxy."""
    with HttpProxy() as proxy:
        transport = Transport(proxy=proxy.url, verify=trusting(secure), **BOTH)
        with lib.Client(transport=transport) as client:
            assert [client.get(secure.url + "/hello").http_version for _ in range(2)] == ["HTTP/2"] * 2
        assert proxy.stats()["accepted"] == 1


Fault = Callable[[H2Peer, int], object]


def _silence(peer: H2Peer, stream: int) -> None:
    peer.end()


NINE = (":status", "200"), ("content-length", "9")
FAULTS: dict[str, tuple[Fault, str]] = {
    "reset": (lambda peer, stream: peer.send(rst(stream, INTERNAL)), "RemoteProtocolError"),
    "reset in body": (
        lambda peer, stream: peer.send(head(stream), data(stream, b"x"), rst(stream, INTERNAL)),
        "RemoteProtocolError",
    ),
    "goaway": (lambda peer, stream: peer.send(goaway(stream, INTERNAL)), "RemoteProtocolError"),
    "close": (lambda peer, stream: peer.peer.sock.close(), "RemoteProtocolError"),
    "short": (lambda peer, stream: peer.send(head(stream, *NINE), data(stream, b"x", end=True)), "RemoteProtocolError"),
    "silence": (_silence, "ReadTimeout"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_is_the_librarys_error(lib: ModuleType, name: str) -> None:
    """Whatever ends a stream is an error of the library, and nothing stays in use."""
    fault, expected = FAULTS[name]

    def script(peer: H2Peer) -> None:
        peer.greet()
        fault(peer, peer.request().stream)

    book = fewports.Ledger()
    timeout = lib.Timeout(5, read=0.2 if name == "silence" else 5)
    client = lib.Client(transport=Transport(ledger=book, **ONLY), timeout=timeout)
    with ScriptedH2(script) as server, client:
        with pytest.raises(getattr(lib, expected)) as raised:
            client.post(server.url)
        assert raised.value.request.url == server.url
        assert until(lambda: counts(book)[0] == 0)


def test_what_a_server_has_not_looked_at_is_sent_again(lib: ModuleType) -> None:
    """A request that the server refused or never looked at is repeated, whatever its method."""

    def refuse(peer: H2Peer) -> None:
        peer.greet()
        peer.send(rst(peer.request().stream, REFUSED))
        peer.send(goaway(0))
        peer.end()

    def serve(peer: H2Peer) -> None:
        peer.greet()
        peer.serve()

    with ScriptedH2(refuse, serve, serve) as server, lib.Client(transport=Transport(**ONLY)) as client:
        assert client.post(server.url, content=b"x").status_code == 200


def test_a_server_that_never_looks_is_not_asked_for_ever(lib: ModuleType) -> None:
    """After some repeats the error is the caller's."""

    def refuse(peer: H2Peer) -> None:
        peer.greet()
        while True:
            peer.send(rst(peer.request().stream, REFUSED))

    client = lib.Client(transport=Transport(**ONLY))
    with ScriptedH2(refuse) as server, client, pytest.raises(lib.RemoteProtocolError):
        client.get(server.url)


# Tasks.


LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> dict[str, Any]:
    return LOOPS[request.param]


async def _together(number: int, work: Callable[[], Awaitable[object]]) -> list[object]:
    found: list[object] = []

    async def one() -> None:
        found.append(await work())

    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(one)
    return found


def test_tasks_share_one_connection(lib: ModuleType, loop: dict[str, Any], secure: H2Server) -> None:
    """Forty tasks are served by one connection, on which a body that nobody reads, and one left early, harm nobody."""
    before = secure.stats()

    async def case() -> None:
        book = fewports.Ledger()
        transport = AsyncTransport(verify=trusting(secure), ledger=book, **BOTH)
        async with lib.AsyncClient(transport=transport) as client:

            async def ask() -> tuple[str, bytes]:
                response = await client.post(secure.url + "/echo", content=b"x" * 1000)
                return response.http_version, response.content

            async with client.stream("GET", secure.url + "/bytes?n=5000000") as response:
                assert await _together(40, ask) == [("HTTP/2", b"x" * 1000)] * 40
                assert response.extensions["stream_id"] == 1
                network = response.extensions["network_stream"]
                assert network.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            assert (await client.get(secure.url + "/hello")).status_code == 200
            assert counts(book)[:2] == (0, 1)

    anyio.run(case, **loop)
    after = secure.stats()

    assert after["accepted"] - before["accepted"] == 1
    assert after["resets"][len(before["resets"]) :] == [CANCEL]
    assert until(lambda: secure.stats()["open"] == 0)


def test_tasks_over_a_plain_connection_and_a_tunnel(
    lib: ModuleType, loop: dict[str, Any], secure: H2Server, plain: H2Server
) -> None:
    """http1=False speaks HTTP/2 to http:// at once; through the tunnel of a proxy it is agreed on as elsewhere."""

    async def case(proxy: HttpProxy) -> None:
        async with lib.AsyncClient(transport=AsyncTransport(**ONLY)) as client:
            assert (await client.get(plain.url + "/hello")).http_version == "HTTP/2"
        transport = AsyncTransport(proxy=proxy.url, verify=trusting(secure), **BOTH)
        async with lib.AsyncClient(transport=transport) as client:
            assert [(await client.get(secure.url + "/hello")).http_version for _ in range(2)] == ["HTTP/2"] * 2

    with HttpProxy() as proxy:
        anyio.run(case, proxy, **loop)

        assert proxy.stats()["accepted"] == 1


def test_tasks_and_a_server_without_http2(lib: ModuleType, loop: dict[str, Any], old: Door) -> None:
    """With http2=True HTTP/1.1 is spoken where the server chooses it; with http1=False that is an error."""

    async def case() -> None:
        async with lib.AsyncClient(transport=AsyncTransport(verify=trusting(old), **BOTH)) as client:
            response = await client.get(old.url)
            assert (response.http_version, "stream_id" in response.extensions) == ("HTTP/1.1", False)
        async with lib.AsyncClient(transport=AsyncTransport(verify=trusting(old), **ONLY)) as client:
            with pytest.raises(lib.TransportError):
                await client.get(old.url)

    anyio.run(case, **loop)


def test_a_trace_tells_tasks_of_streams(lib: ModuleType, loop: dict[str, Any], secure: H2Server) -> None:
    """The steps are told under the names of HTTP/2, and nothing is kept where the limits keep nothing."""
    names: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        names.append(name)

    async def case() -> None:
        book = fewports.Ledger()
        limits = lib.Limits(max_keepalive_connections=0)
        transport = AsyncTransport(verify=trusting(secure), ledger=book, limits=limits, **BOTH)
        async with lib.AsyncClient(transport=transport) as client:
            await client.get(secure.url + "/hello", extensions={"trace": trace})
            for _ in range(5):  # uvloop closes a step later
                await anyio.lowlevel.checkpoint()
            assert counts(book)[:2] == (0, 0)

    anyio.run(case, **loop)
    steps = ("send_request_headers", "send_request_body", "receive_response_headers", "receive_response_body")
    told = [f"http2.{step}.{when}" for step in (*steps, "response_closed") for when in ("started", "complete")]

    assert names[-len(told) :] == told
    assert names[0] == "connection.connect_tcp.started"


@pytest.mark.parametrize("case", ["reset", "cut", "refused"])
def test_faults_are_told_to_tasks(lib: ModuleType, loop: dict[str, Any], case: str) -> None:
    """A stream that is reset, or cut off, is a RemoteProtocolError; one that is refused is asked for again."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        if case == "cut":
            peer.send(head(stream, *NINE), data(stream, b"four"))
            peer.peer.sock.shutdown(socket.SHUT_WR)
            peer.end()
            return
        peer.send(rst(stream, INTERNAL if case == "reset" else REFUSED))
        peer.serve()

    async def run(url: str) -> None:
        async with lib.AsyncClient(transport=AsyncTransport(**ONLY)) as client:
            if case == "refused":
                assert (await client.get(url + "/again")).content == b"/again"
            else:
                with pytest.raises(lib.RemoteProtocolError):
                    await client.get(url)

    with ScriptedH2(script) as server:
        anyio.run(run, server.url, **loop)
