"""fewports.httpx.AsyncTransport beside the own transports of httpx and httpx2, on asyncio, uvloop and trio."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from types import ModuleType
from typing import Any

import anyio
import h11
import httpx
import httpx2
import pytest
from faces import Aside, Door, counts, fresh_server, states, until, waiting
from support.ns import in_namespace
from support.scripted import Peer, Scripted
from support.servers import HttpProxy, SocksProxy
from test_fork import forked
from test_httpx import (
    ENDS,
    REFUSED,
    REQUESTS,
    RESPONSES,
    answers_once,
    deaf,
    ended,
    hangs,
    over,
    pieces,
    recorded,
    resets,
    said,
    trusting,
    without_content_length,
)

import fewports
from fewports.aio import LoopChanged, connection
from fewports.errors import InvalidOption
from fewports.httpx import AsyncTransport, BudgetExhausted, NoUsableSource

WAYS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


# httpx leaves generators of its own unfinished, which trio does not like.
careless = pytest.mark.filterwarnings("ignore:.*ByteStream|.*BoundAsyncStream:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def lib(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server() -> Iterator[Door]:
    with fresh_server() as running:
        yield running


@pytest.fixture(scope="module")
def secure() -> Iterator[Door]:
    with fresh_server(tls=True) as running:
        yield running


def run(way: str, work: Callable[[], Awaitable[Any]]) -> Any:
    return anyio.run(work, **WAYS[way])


def with_client(way: str, lib: ModuleType, transport: Any, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Return what *work* does with a client of *transport*, in a loop of its own."""

    async def inside() -> Any:
        async with lib.AsyncClient(transport=transport, timeout=5) as client:
            return await work(client)

    return run(way, inside)


def both(way: str, lib: ModuleType, work: Callable[[Any], Awaitable[Any]], **options: Any) -> list[Any]:
    """Return what *work* does with a client of the library's own transport, and with one of ours."""
    transports = (lib.AsyncHTTPTransport(**options), AsyncTransport(**options))
    return [with_client(way, lib, transport, work) for transport in transports]


async def awaited(items: Any) -> AsyncIterator[bytes]:
    for item in items:
        yield item


async def raised(client: Any, *arguments: Any, **options: Any) -> BaseException:
    """Return what a request raises."""
    with pytest.raises(Exception, match=r".*") as caught:
        await client.request(*arguments, **options)
    return caught.value


async def settled(book: fewports.Ledger, active: int) -> None:
    """Wait until so many connections are in use, and none is idle: uvloop closes some steps later."""
    with anyio.fail_after(5):
        while counts(book)[0] != active or (active and counts(book)[1]):
            await anyio.sleep(0.005)


# What goes out, and what comes in.


@pytest.mark.parametrize("name", REQUESTS)
def test_what_goes_out_is_what_the_library_would_send(lib: ModuleType, name: str) -> None:
    """Requests are the same bytes: fields in their order and case, and nothing besides."""
    method, path, given = REQUESTS[name]
    options = dict(given)
    extensions, auth = options.pop("extensions", {}), options.pop("auth", None)
    requests: list[bytes] = []

    async def send(client: Any) -> None:
        body = {"content": awaited(pieces())} if callable(options.get("content")) else {}
        request = client.build_request(method, server.url + path, **{**options, **body})
        request.extensions = {**request.extensions, **extensions}
        await client.send(request, auth=auth)

    with Scripted(*[lambda peer: recorded(peer, requests)] * 2) as server:
        both("asyncio", lib, send)

    stock, ours = requests
    assert ours == (without_content_length(stock) if name == "chunked bytes" else stock)


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ([("Host", "a"), ("Content-Length", "1")], b"two"),
        ([("Host", "a"), ("Content-Length", "5")], b"two"),
        ([("Host", "a"), ("Content-Length", "1")], [b"two"]),
        ([("Host", "a"), ("Content-Length", "5")], [b"two"]),
        ([("Host", "a")], [b"two"]),
        ([("Host", "a"), ("X-A", "b\r\nX-C: d")], b""),
        ([("X-A", "b")], b""),
        ([("Host", "a"), ("X-A", " b")], b""),
        ([("Host", "a"), ("X-A", "b\t")], b""),
        ([("Host", "a"), ("X-A", " ")], b""),
        ([("Host", "a"), ("X-A", "b\x0bc")], b""),
        ([("Host", "a"), (" X-A", "b")], b""),
    ],
    ids=[
        "too much",
        "too little",
        "too many pieces",
        "too few",
        "unannounced",
        "value",
        "no host",
        "before",
        "after",
        "blank",
        "VT",
        "name",
    ],
)
def test_a_request_that_must_not_be_sent(
    lib: ModuleType, way: str, headers: list[tuple[str, str]], content: bytes | list[bytes]
) -> None:
    """What would not be one request with one meaning is a LocalProtocolError, of the library or of h11 in its own."""
    book = fewports.Ledger()

    async def send(client: Any) -> type[BaseException]:
        body = content if isinstance(content, bytes) else awaited(content)
        request = lib.Request("POST", server.url, content=body)
        request.headers = lib.Headers(headers)
        with pytest.raises(Exception, match=r".") as caught:
            await client.send(request)
        return caught.type

    with Scripted(*[ended] * 2) as server:
        stock = with_client("asyncio", lib, lib.AsyncHTTPTransport(), send)
        ours = with_client(way, lib, AsyncTransport(ledger=book), send)

        assert until(lambda: counts(book)[:2] == (0, 0))

    assert ours is lib.LocalProtocolError
    assert stock in (lib.LocalProtocolError, h11.LocalProtocolError)


def test_an_error_of_the_body_itself_reaches_the_caller(lib: ModuleType, way: str) -> None:
    """What iterating a request body raises is raised as it is, and the connection is closed."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise FileNotFoundError("gone")

    book = fewports.Ledger()
    with Scripted(ended) as server:
        error = with_client(
            way, lib, AsyncTransport(ledger=book), lambda client: raised(client, "POST", server.url, content=broken())
        )

        assert until(lambda: counts(book)[:2] == (0, 0))
    assert (type(error), str(error)) == (FileNotFoundError, "gone")


@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize("name", RESPONSES)
def test_what_comes_in_is_what_the_library_would_see(lib: ModuleType, name: str, streamed: bool) -> None:
    """Responses are equal: status, fields in their order and case, body, version and reason."""

    async def get(client: Any) -> tuple[object, ...]:
        async with client.stream("GET", server.url) as response:
            raw = [piece async for piece in response.aiter_raw()] if streamed else [await response.aread()]
        return (
            *(response.status_code, response.headers.raw, b"".join(raw), response.is_closed),
            *(response.extensions["http_version"], response.extensions["reason_phrase"], response.num_bytes_downloaded),
        )

    with Scripted(*[said(RESPONSES[name])] * 2) as server:
        stock, ours = both("asyncio", lib, get)

    assert ours == stock


@pytest.mark.parametrize("name", ENDS)
def test_a_broken_response_is_the_librarys_error(lib: ModuleType, way: str, name: str) -> None:
    """What the peer breaks is a RemoteProtocolError of the library, with its request, and no port stays in use."""
    book = fewports.Ledger()
    with Scripted(said(ENDS[name])) as server:
        error = with_client(way, lib, AsyncTransport(ledger=book), lambda client: raised(client, "GET", server.url))

        assert until(lambda: counts(book)[:2] == (0, 0))

    assert isinstance(error, lib.RemoteProtocolError)
    assert error.request.url == server.url


@pytest.mark.parametrize(
    ("handler", "timeout", "content", "error"),
    [
        (resets(b""), (5, 5, 5, 5), None, "ReadError"),
        (resets(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"), (5, 5, 5, 5), None, "ReadError"),
        (hangs(b""), (5, 0.05, 5, 5), None, "ReadTimeout"),
        (hangs(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"), (5, 0.05, 5, 5), None, "ReadTimeout"),
        (deaf, (5, 5, 0.05, 5), b"x" * 20_000_000, "WriteTimeout"),
        (deaf, (5, 5, 0.05, 5), [b"x" * 20_000_000], "WriteTimeout"),
    ],
    ids=["reset", "reset in body", "read", "read in body", "write", "write pieces"],
)
def test_what_the_network_does_is_the_librarys_error(
    lib: ModuleType, way: str, handler: Any, timeout: Any, content: Any, error: str
) -> None:
    """Resets and time-outs are those of the library, and the time given for each is kept."""
    over.clear()
    book = fewports.Ledger()

    async def post(client: Any) -> BaseException:
        body = awaited(content) if isinstance(content, list) else content
        return await raised(client, "POST", server.url, content=body, timeout=lib.Timeout(timeout))

    with Scripted(handler) as server:
        found = with_client(way, lib, AsyncTransport(ledger=book), post)
        over.set()

        assert until(lambda: counts(book)[:2] == (0, 0))
    assert type(found) is getattr(lib, error)


def test_errors_in_connecting(lib: ModuleType, way: str) -> None:
    """Where no connection can be made, the error is the library's own."""

    async def errors(client: Any) -> list[type[BaseException]]:
        urls = (REFUSED, "http://nobody.invalid/", "ftp://127.0.0.1/", "//127.0.0.1/", "http://[::1]:9/")
        return [type(await raised(client, "GET", url)) for url in urls]

    stock, ours = both(way, lib, errors)

    assert ours == stock == [lib.ConnectError] * 2 + [lib.UnsupportedProtocol] * 2 + [lib.ConnectError]


@in_namespace(drop_all=True)
def test_a_connect_timeout_is_that_of_the_library() -> None:
    """A host that does not answer gives the library's ConnectTimeout, after the time given."""
    book = fewports.Ledger()
    for way in WAYS:
        for lib in (httpx, httpx2):
            timeout = lib.Timeout(5, connect=0.1)
            error = with_client(
                way,
                lib,
                AsyncTransport(ledger=book),
                lambda client: raised(client, "GET", "http://10.200.77.1/", timeout=timeout),  # noqa: B023
            )
            assert type(error) is lib.ConnectTimeout

    assert counts(book) == (0, 0, 0)


# TLS.


def test_tls(lib: ModuleType, way: str, secure: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """verify= and trust_env= are the library's; a certificate that is another's, or nobody's, is a ConnectError."""
    for verify in (trusting(secure), False):
        response = with_client(way, lib, AsyncTransport(verify=verify), lambda client: client.get(secure.url))
        assert response.json()["message"] == "hello"
    error = with_client(way, lib, AsyncTransport(), lambda client: raised(client, "GET", secure.url))
    assert isinstance(error, lib.ConnectError)
    assert "certificate verify failed" in str(error)

    monkeypatch.setenv("SSL_CERT_FILE", str(secure.ca_path))
    response = with_client(way, lib, AsyncTransport(), lambda client: client.get(secure.url))
    assert response.status_code == 200
    transport = AsyncTransport(trust_env=False)
    error = with_client(way, lib, transport, lambda client: raised(client, "GET", secure.url))
    assert isinstance(error, lib.ConnectError)

    async def named(client: Any) -> list[object]:
        url = secure.url.replace("127.0.0.1", "localhost")
        right = await client.get(url, extensions={"sni_hostname": "service.test"})
        wrong = await raised(client, "GET", url, extensions={"sni_hostname": "wrong.example"})
        return [right.status_code, type(wrong)]

    assert with_client(way, lib, AsyncTransport(verify=trusting(secure)), named) == [200, lib.ConnectError]


def test_a_peer_that_speaks_no_tls(lib: ModuleType, way: str) -> None:
    """A handshake that breaks off is a ConnectError."""

    def hang_up(peer: Peer) -> None:
        peer.sock.recv(100)

    def talk(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Scripted(hang_up, talk) as server:
        for _ in range(2):
            url = server.url.replace("http:", "https:")
            error = with_client(way, lib, AsyncTransport(), lambda client: raised(client, "GET", url))  # noqa: B023
            assert type(error) is lib.ConnectError


# Connections.


def test_a_connection_is_kept_and_used_again(lib: ModuleType, way: str, server: Door, secure: Door) -> None:
    """Requests one after the other share a connection, with TLS and without."""

    async def get(client: Any) -> None:
        for path in ("/", "/chunked?n=5000", "/bytes?n=200000", "/status?code=404"):
            await client.get(door.url + path)

    for door in (server, secure):
        before = door.stats()["accepted"]
        with_client(way, lib, AsyncTransport(verify=False), get)

        assert door.stats()["accepted"] - before == 1


@careless
def test_a_response_that_is_closed_early_gives_all_back(lib: ModuleType, way: str, server: Door) -> None:
    """Whoever leaves a response in the middle leaves no connection in use: it is closed, and the next one works."""
    book = fewports.Ledger()

    async def leave(client: Any) -> tuple[int, int]:
        async with client.stream("GET", server.url + "/bytes?n=5000000"):
            pass
        large = client.stream("GET", server.url + "/bytes?n=5000000")
        async with large as response, aclosing(response.aiter_raw()) as raw:
            await anext(raw)
        assert (await client.get(server.url)).status_code == 200
        return counts(book)[:2]

    transport = AsyncTransport(ledger=book, limits=lib.Limits(max_connections=1))
    assert with_client(way, lib, transport, leave) == (0, 1)


def test_a_body_is_not_to_be_had_twice(lib: ModuleType, way: str, server: Door) -> None:
    """The stream of a response that is over gives nothing: its connection is somebody else's by now."""

    async def twice(client: Any) -> tuple[int, BaseException]:
        request = client.build_request("GET", server.url + "/bytes?n=500000")
        response = await client._transport.handle_async_request(request)
        data = b"".join([piece async for piece in response.stream])
        with pytest.raises(lib.StreamClosed) as caught:
            [piece async for piece in response.stream]
        return len(data), caught.value

    assert with_client(way, lib, AsyncTransport(), twice)[0] == 500000


def test_a_small_body_gives_its_connection_back_before_it_is_read(lib: ModuleType, way: str, server: Door) -> None:
    """A response that came whole holds no connection, also while nobody reads it."""
    book = fewports.Ledger()

    async def look(client: Any) -> tuple[int, int, int]:
        async with client.stream("GET", server.url) as response:
            found = counts(book)
            assert await response.aread()
        return found

    assert with_client(way, lib, AsyncTransport(ledger=book), look) == (0, 1, 0)


@careless
def test_whoever_is_cancelled_leaves_nothing_in_use(lib: ModuleType, way: str, server: Door, secure: Door) -> None:
    """Requests that are cancelled at any point give everything back; as many as before can be made afterwards."""
    book = fewports.Ledger()
    chance = random.Random(7)

    async def torture(client: Any) -> list[int]:
        async def one(delay: float, path: str, streamed: bool) -> None:
            door = secure if chance.random() < 0.3 else server
            with anyio.move_on_after(delay):
                if not streamed:
                    await client.get(door.url + path)
                    return
                async with client.stream("GET", door.url + path) as response, aclosing(response.aiter_raw()) as raw:
                    async for _ in raw:
                        await anyio.sleep(0)

        async with anyio.create_task_group() as group:
            for _ in range(150):
                path = chance.choice(["/", "/bytes?n=300000", "/slow?s=0.05", "/chunked?n=20000"])
                group.start_soon(one, chance.uniform(0, 0.15), path, chance.random() < 0.5)
        await settled(book, 0)
        found = []
        async with anyio.create_task_group() as group:

            async def again() -> None:
                found.append((await client.get(server.url)).status_code)

            for _ in range(4):
                group.start_soon(again)
        return found

    transport = AsyncTransport(ledger=book, verify=False, limits=lib.Limits(max_connections=4))
    assert with_client(way, lib, transport, torture) == [200] * 4
    assert waiting(book) == 0


def test_what_came_whole_and_was_much_leaves_nothing_held(
    lib: ModuleType, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that is here before anybody reads, and too much to take in more, does not stop the next response."""
    monkeypatch.setattr(connection, "HIGH", 1000)  # bytes; a packet has them all

    def serve(peer: Peer) -> None:
        for size in (2000, 2):
            peer.request()
            peer.answer(b"x" * size)

    async def get(client: Any) -> list[int]:
        return [len((await client.get(server.url, timeout=2)).content) for _ in range(2)]

    with Scripted(serve) as server:
        assert with_client(way, lib, AsyncTransport(), get) == [2000, 2]


def test_a_connection_that_the_server_closed_is_not_the_callers_problem(lib: ModuleType, way: str) -> None:
    """A request that meets the end of a kept connection is sent again, if that is safe."""

    def once(peer: Peer) -> None:
        peer.request()
        peer.answer()

    def twice(peer: Peer) -> None:
        once(peer)
        peer.request()

    async def get(client: Any) -> list[object]:
        codes = [(await client.get(server.url)).status_code for _ in range(2)]
        assert until(lambda: not states(server.port).get("ESTABLISHED"))
        codes.append((await client.get(server.url)).status_code)
        return [*codes, type(await raised(client, "POST", server.url))]

    with Scripted(twice, once, twice) as server:
        assert with_client(way, lib, AsyncTransport(), get) == [200, 200, 200, lib.RemoteProtocolError]


def test_a_body_that_was_begun_is_not_sent_again(lib: ModuleType, way: str) -> None:
    """What can be iterated once, and was begun, is not sent again, however safe the method."""

    async def put(client: Any) -> BaseException:
        await client.get(server.url)
        error = await raised(client, "PUT", server.url, content=awaited([b"x" * 100_000] * 200))
        assert server.accepted == 1
        await client.get(server.url)
        return error

    with Scripted(answers_once, recorded) as server:
        assert isinstance(with_client(way, lib, AsyncTransport(), put), lib.TransportError)


@pytest.mark.parametrize(
    ("limits", "headers"),
    [({"max_keepalive_connections": 0}, {}), ({"keepalive_expiry": 0}, {}), ({}, {"Connection": "close"})],
)
def test_a_connection_is_kept_no_longer_than_it_may(
    lib: ModuleType, way: str, limits: dict[str, Any], headers: dict[str, str]
) -> None:
    """Where nothing is to be kept, or the request says so, a connection ends with its response."""
    book = fewports.Ledger()

    async def get(client: Any) -> int:
        for _ in range(2):
            await client.get(server.url, headers=headers)
            await settled(book, 0)
        return counts(book)[1]

    with Scripted(*[lambda peer: [peer.answer() for _ in range(2) if peer.request()]] * 2) as server:  # type: ignore[func-returns-value]
        assert with_client(way, lib, AsyncTransport(ledger=book, limits=lib.Limits(**limits)), get) == 0
        assert server.accepted == 2


def test_max_connections_bounds_all_hosts_together(lib: ModuleType, way: str) -> None:
    """No more than max_connections are open at once, over all hosts; idle ones give way, and others wait in line."""
    book = fewports.Ledger()

    async def work(client: Any) -> BaseException:
        for url in door.urls:
            assert (await client.get(url)).status_code == 200
        assert sum(states(port)["ESTABLISHED"] for _, port in door.addresses if states(port)) == 2

        codes: list[int] = []

        async def late() -> None:
            codes.append((await client.get(door.urls[2])).status_code)

        large = [client.stream("GET", url + "/bytes?n=5000000") for url in door.urls]
        async with anyio.create_task_group() as group, large[0], large[1]:
            error = await raised(client, "GET", door.urls[2], timeout=lib.Timeout(5, pool=0.05))
            group.start_soon(late)
            while not waiting(book):
                await anyio.sleep(0.005)
        assert codes == [200]
        return error

    with fresh_server(ports=3) as door:
        error = with_client(way, lib, AsyncTransport(ledger=book, limits=lib.Limits(max_connections=2)), work)

        assert isinstance(error, lib.PoolTimeout)
        assert isinstance(error, BudgetExhausted)
        assert str(error).startswith("all destinations holds 2 of 2 connections (2 active) after 0.1 s in line: ")
        assert error.request.url == door.urls[2]


def test_tasks_share_the_connections(lib: ModuleType, way: str, server: Door) -> None:
    """A hundred tasks on four connections are all served."""
    codes: list[int] = []

    async def work(client: Any) -> None:
        async def some() -> None:
            codes.extend([(await client.get(server.url)).status_code for _ in range(3)])

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(some)

    before = server.stats()["accepted"]
    with_client(way, lib, AsyncTransport(limits=lib.Limits(max_connections=4)), work)

    assert codes == [200] * 300
    assert server.stats()["accepted"] - before <= 4


def test_closing_ends_what_is_idle_now_and_the_rest_later(lib: ModuleType, way: str, server: Door) -> None:
    """aclose() closes idle connections at once, those in use when they come back; then it may be used again."""
    book = fewports.Ledger()
    transport = AsyncTransport(ledger=book)

    async def work(client: Any) -> int:
        await client.get(server.url)
        async with client.stream("GET", server.url + "/bytes?n=500000") as response:
            await client.get(server.url)
            await transport.aclose()
            await settled(book, 1)
            assert len(await response.aread()) == 500000
        await settled(book, 0)
        status: int = (await client.get(server.url)).status_code
        return status

    assert with_client(way, lib, transport, work) == 200
    assert until(lambda: counts(book)[:2] == (0, 0))


def test_a_transport_belongs_to_the_loop_that_it_was_first_used_in(way: str, server: Door) -> None:
    """In another event loop it says so, and leaves nothing open; after aclose() it may go to another."""
    book = fewports.Ledger()
    transport = AsyncTransport(ledger=book)
    client = httpx2.AsyncClient(transport=transport)

    async def get() -> int:
        status: int = (await client.get(server.url)).status_code
        return status

    assert run(way, get) == 200
    with pytest.raises(LoopChanged, match="another event loop"):
        run(way, get)
    run(way, transport.aclose)
    assert until(lambda: counts(book)[:2] == (0, 0))
    assert run(way, get) == 200
    run(way, client.aclose)


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_a_forked_child_starts_anew(server: Door, name: str) -> None:
    """A child may use the transport in a loop of its own; the parent reads on where it was."""
    client = httpx2.AsyncClient(transport=AsyncTransport())

    async def get() -> int:
        status: int = (await client.get(server.url)).status_code
        return status

    async def case() -> None:
        async with client, client.stream("GET", server.url + "/bytes?n=2000000") as response:
            assert await get() == 200
            with forked(lambda: Aside(lambda: asyncio.run(get())).result()) as answer:
                assert answer == 200
            assert len(await response.aread()) == 2_000_000
            assert await get() == 200

    run(name, case)


def test_one_transport_serves_both_libraries(way: str, server: Door, secure: Door) -> None:
    """One transport is at home in both libraries, each of which gets what is its own."""
    transport = AsyncTransport(verify=trusting(secure))

    async def work() -> None:
        for lib in (httpx, httpx2, httpx):
            assert isinstance(transport, lib.AsyncBaseTransport)
            client = lib.AsyncClient(transport=transport)
            for door in (server, secure):
                assert type(await client.get(door.url)) is lib.Response
            assert isinstance(await raised(client, "GET", REFUSED), lib.ConnectError)
        await transport.aclose()

    run(way, work)


# Options and extensions.


def test_budget_and_sources(lib: ModuleType, way: str, server: Door) -> None:
    """Our own arguments: a budget that refuses, source addresses, and errors that are the library's as well."""
    before = server.stats()["sources"].get("127.0.0.3", 0)

    async def exhaust(client: Any) -> BaseException:
        async with client.stream("GET", server.url + "/bytes?n=5000000"):
            return await raised(client, "GET", server.url)

    transport = AsyncTransport(budget=fewports.Budget(1, when_full="refuse"), sources=["127.0.0.3"])
    exhausted = with_client(way, lib, transport, exhaust)
    transport = AsyncTransport(sources=["203.0.113.77"])
    unusable = with_client(way, lib, transport, lambda client: raised(client, "GET", server.url))

    assert server.stats()["sources"]["127.0.0.3"] == before + 1
    assert isinstance(exhausted, BudgetExhausted)
    assert isinstance(exhausted, lib.PoolTimeout)
    assert isinstance(unusable, NoUsableSource)
    assert isinstance(unusable, lib.ConnectError)


def test_what_cannot_be_had_is_refused() -> None:
    """What cannot be had behind the gate, or not yet for tasks, is refused when the transport is made."""
    with pytest.raises(InvalidOption, match="uds= takes no port"):
        AsyncTransport(uds="/tmp/socket")


def test_options_of_a_socket(lib: ModuleType, way: str, server: Door) -> None:
    """local_address= and socket_options= are the library's."""
    before = dict(server.stats()["sources"])

    async def look(client: Any) -> int:
        response = await client.get(server.url)
        sock = response.extensions["network_stream"].get_extra_info("socket")
        found: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return found

    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    transport = AsyncTransport(local_address="127.0.0.2", socket_options=options)
    assert with_client(way, lib, transport, look) == 1

    sources = server.stats()["sources"]
    assert {name for name in sources if sources[name] > before.get(name, 0)} == {"127.0.0.2"}


def test_retries_are_for_connections_alone(lib: ModuleType, way: str) -> None:
    """retries= tries a connection again that could not be made, and nothing else."""
    names: list[str] = []

    async def trace(name: str, info: object) -> None:
        names.append(name)

    async def get(client: Any) -> list[type[BaseException]]:
        first = await raised(client, "GET", REFUSED, extensions={"trace": trace})
        return [type(first), type(await raised(client, "GET", server.url))]

    with Scripted(Peer.request) as server:
        found = with_client(way, lib, AsyncTransport(retries=1), get)

        assert server.accepted == 1
    assert found == [lib.ConnectError, lib.RemoteProtocolError]
    assert names.count("connection.connect_tcp.failed") == 2


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_trace_tells_the_same_steps(lib: ModuleType, way: str, server: Door, secure: Door, tls: bool) -> None:
    """The trace extension is told of the steps of the library's own transport, in their order."""
    url = (secure if tls else server).url

    async def events(client: Any) -> list[object]:
        names: list[object] = []

        async def trace(name: str, info: dict[str, Any]) -> None:
            names.append(name)
            if name.startswith("http11.") and name.endswith("headers.started"):
                names.append((info["request"].method, info["request"].url.target, len(info["request"].headers)))
            if name == "http11.receive_response_headers.complete":
                names.append(info["return_value"][1])
            if name == "connection.start_tls.complete":
                names.append(info["return_value"].get_extra_info("ssl_object").version())

        for _ in range(2):
            await client.get(url, extensions={"trace": trace})
            names.append("-")
        return names

    stock, ours = both("trio" if way == "trio" else "asyncio", lib, events, verify=False)

    assert ours == stock


def test_network_stream(lib: ModuleType, way: str, secure: Door) -> None:
    """The extension network_stream tells of the connection what the library's own would."""

    async def about(client: Any) -> list[object]:
        async with client.stream("GET", secure.url + "/bytes?n=1000000") as response:
            stream = response.extensions["network_stream"]
            return [
                stream.get_extra_info("ssl_object").version(),
                stream.get_extra_info("client_addr")[0],
                stream.get_extra_info("server_addr"),
                stream.get_extra_info("socket").family,
                stream.get_extra_info("invalid"),
            ]

    stock, ours = both("trio" if way == "trio" else "asyncio", lib, about, verify=False)

    assert ours == stock


def test_another_protocol_on_the_connection(lib: ModuleType, way: str) -> None:
    """After 101 the connection is the caller's, with what the server has said already, until the response is closed."""

    def switch(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhel")
        peer.send(b"lo")
        while data := peer.sock.recv(100_000):
            peer.send(data.upper())

    async def converse(client: Any) -> tuple[object, ...]:
        headers = {"Connection": "upgrade", "Upgrade": "echo"}
        async with client.stream("GET", server.url, headers=headers) as response:
            stream = response.extensions["network_stream"]
            heard = b""
            while len(heard) < 5:
                heard += await stream.read(3, timeout=5)
            await stream.write(b"abc", timeout=5)
            answer = await stream.read(100, timeout=5)
            with pytest.raises(Exception, match=r".*") as caught:
                await stream.read(1, timeout=0.01)
            much = 0

            async def listen() -> None:
                nonlocal much
                while much < 5_000_000:
                    much += len(await stream.read(65536, timeout=5))

            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                await stream.write(b"x" * 5_000_000, timeout=5)
            return response.status_code, heard, answer, caught.type, much

    book = fewports.Ledger()
    with Scripted(switch, switch) as server:
        ours = with_client(way, lib, AsyncTransport(ledger=book), converse)
        assert until(lambda: counts(book)[:2] == (0, 0))
        stock = with_client("trio" if way == "trio" else "asyncio", lib, lib.AsyncHTTPTransport(), converse)

    assert ours == stock


def test_another_protocol_that_nobody_hears(lib: ModuleType, way: str) -> None:
    """Of what comes on a connection that is the caller's no more is taken in than a window, until it is read."""
    much = 20_000_000
    taken: list[int] = []

    def switch(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: flood\r\n\r\n")
        peer.sock.settimeout(0.2)  # for which nothing goes out
        with contextlib.suppress(TimeoutError):
            while sum(taken) < much:
                taken.append(peer.sock.send(bytes(65536)))
        stands.set()
        peer.sock.settimeout(5)
        peer.send(bytes(much - sum(taken)))

    async def converse(client: Any) -> int:
        headers = {"Connection": "upgrade", "Upgrade": "flood"}
        async with client.stream("GET", server.url, headers=headers) as response:
            stream, heard = response.extensions["network_stream"], 0
            with anyio.fail_after(5):
                while not stands.is_set():
                    await anyio.sleep(0.01)
            while heard < much:
                heard += len(await stream.read(65536, timeout=5))
            return heard

    stands = threading.Event()
    with Scripted(switch) as server:
        heard = with_client(way, lib, AsyncTransport(ledger=fewports.Ledger()), converse)

    assert heard == much
    assert sum(taken) < much / 2


def test_what_another_protocol_cannot_say_in_time(lib: ModuleType, way: str) -> None:
    """Writing to a peer that does not read is a WriteTimeout of httpcore, and reading after the end gives nothing."""

    def switch(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        over.wait(5)

    async def write(client: Any) -> type[BaseException]:
        headers = {"Connection": "upgrade", "Upgrade": "echo"}
        async with client.stream("GET", server.url, headers=headers) as response:
            stream = response.extensions["network_stream"]
            with pytest.raises(Exception, match=r".*") as caught:
                await stream.write(b"x" * 20_000_000, timeout=0.05)
            over.set()
            return caught.type

    over.clear()
    with Scripted(switch) as server:
        found = with_client(way, lib, AsyncTransport(), write)

    assert (found.__name__, found.__module__.partition(".")[0]) == ("WriteTimeout", lib.__name__.replace("x", "core"))


# Proxies.


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_http_proxies(lib: ModuleType, way: str, server: Door, secure: Door, tls: bool) -> None:
    """A proxy forwards http and tunnels https; it is told who asks, and no more."""
    with HttpProxy(tls=tls, credentials=("user", "pa:ss")) as proxy:
        context = ssl.create_default_context(cafile=proxy.ca_path) if tls else None
        given = lib.Proxy(proxy.url.replace("://", "://user:pa%3Ass@"), ssl_context=context)

        async def get(client: Any) -> None:
            for door in (server, secure):
                for _ in range(2):
                    assert (await client.get(door.url)).json()["message"] == "hello"

        with_client(way, lib, AsyncTransport(proxy=given, verify=trusting(secure)), get)
        stats = proxy.stats()
        assert (stats["accepted"], stats["forwarded"], stats["tunnels"]) == (2, 2, [f"127.0.0.1:{secure.port}"])

        async def refused(client: Any) -> tuple[int, BaseException]:
            return (await client.get(server.url)).status_code, await raised(client, "GET", secure.url)

        wrong = AsyncTransport(proxy=lib.Proxy(proxy.url, ssl_context=context), verify=False)
        status, error = with_client(way, lib, wrong, refused)
        assert (status, type(error)) == (407, lib.ProxyError)
        assert str(error).startswith("407 ")


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_proxies(lib: ModuleType, way: str, server: Door, secure: Door, scheme: str) -> None:
    """Through a SOCKS proxy, which looks names up; a refusal of it is a ProxyError."""

    async def get(client: Any) -> BaseException:
        for url in (server.url, secure.url.replace("127.0.0.1", "localhost")):
            for _ in range(2):
                assert (await client.get(url)).json()["message"] == "hello"
        return await raised(client, "GET", REFUSED)

    with SocksProxy(credentials=("user", "pass")) as proxy:
        place = f"127.0.0.1:{proxy.port}"
        refused = with_client(
            way, lib, AsyncTransport(proxy=f"{scheme}://user:pass@{place}", verify=trusting(secure)), get
        )
        assert proxy.stats()["tunnels"] == [f"127.0.0.1:{server.port}", f"localhost:{secure.port}"]
        for who in ("", "user:wrong@"):
            transport = AsyncTransport(proxy=f"{scheme}://{who}{place}")
            error = with_client(way, lib, transport, lambda client: raised(client, "GET", server.url))
            assert type(error) is lib.ProxyError
    assert (type(refused), str(refused)) == (lib.ProxyError, "connection refused")


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400", b"\x05\x00"], ids=["nothing", "http", "half"])
def test_what_is_no_socks_proxy(lib: ModuleType, way: str, greeting: bytes) -> None:
    """Who speaks no SOCKS5, hangs up or says nothing more gives an error of the library, and leaves no connection."""
    book = fewports.Ledger()

    def answer(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(greeting)
        if greeting:
            peer.end()

    with Scripted(answer) as proxy:
        transport = AsyncTransport(proxy=f"socks5://127.0.0.1:{proxy.port}", ledger=book)
        timeout = lib.Timeout(5, connect=0.2)
        error = with_client(
            way, lib, transport, lambda client: raised(client, "GET", "http://a.test/", timeout=timeout)
        )
        assert until(lambda: counts(book)[:2] == (0, 0))

    assert (
        type(error)
        is {
            b"": lib.ProxyError,
            b"HTTP/1.1 400": lib.ProxyError,
            b"\x05\x00": lib.ConnectTimeout,
        }[greeting]
    )


def test_what_a_proxy_is_sent(lib: ModuleType, way: str) -> None:
    """The bytes to a proxy are the library's: the whole URL and the fields for the proxy in front, and CONNECT."""
    requests: list[bytes] = []

    def forward(peer: Peer) -> None:
        recorded(peer, requests)

    def refuse(peer: Peer) -> None:
        requests.append(peer.request())
        peer.answer(status="403 No Way")

    async def ask(client: Any) -> str:
        await client.post("http://example.com:81/x?y", content=b"z", headers={"x-p": "2"})
        return str(await raised(client, "GET", "https://example.com/"))

    with Scripted(forward, refuse, forward, refuse) as proxy:
        given = lib.Proxy(proxy.url, auth=("a", "b"), headers={"X-P": "1", "Accept": "no"})
        stock, ours = both("trio" if way == "trio" else "asyncio", lib, ask, proxy=given)

    assert ours == stock == "403 No Way"
    assert requests[:2] == requests[2:]


def test_a_loop_that_ends_with_connections_open(server: Door) -> None:
    """Whoever forgets aclose() leaves nothing open, when the loop has ended."""
    book = fewports.Ledger()

    async def forget() -> None:
        client = httpx2.AsyncClient(transport=AsyncTransport(ledger=book))
        await client.get(server.url)

    asyncio.run(forget())

    assert counts(book)[:2] == (0, 0)
