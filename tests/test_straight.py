"""Requests that go straight, and where they leave the straight way: repeats, deadlines, faults, urllib3 itself."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import logging
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import requests
import urllib3
from faces import BODY, counts, fresh_server, until
from support.scripted import Peer, Scripted
from support.servers import HttpProxy, HttpServer, authority
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError
from urllib3.util import Retry, Timeout

import fewports
import fewports.requests
from fewports.urllib3 import BadLength, BadResponse, HTTPConnectionPool, PoolManager, ProxyManager, Response

NO_RETRY: dict[str, Any] = {"retries": False}


@contextlib.contextmanager
def talking(*handlers: Callable[[Peer], None], **options: Any) -> Iterator[tuple[HTTPConnectionPool, Scripted]]:
    """A pool of ours and the server that it talks to; afterwards no port is held."""
    book = fewports.Ledger()
    with Scripted(*handlers) as server:
        pool = HTTPConnectionPool("127.0.0.1", server.port, ledger=book, **options)
        try:
            yield pool, server
        finally:
            pool.close()
        assert until(lambda: counts(book)[:2] == (0, 0))


def serve(count: int, *fields: str, body: bytes = b"ok") -> Callable[[Peer], None]:
    """Answer so many requests, and close without a word."""

    def handler(peer: Peer) -> None:
        for _ in range(count):
            assert peer.request()
            peer.answer(body, *fields)

    return handler


def serve_on(peer: Peer) -> None:
    while peer.request():
        peer.answer()


def then(first: Callable[[Peer], None], second: Callable[[Peer], None]) -> Callable[[Peer], None]:
    def handler(peer: Peer) -> None:
        first(peer)
        second(peer)

    return handler


def read_and_close(peer: Peer) -> None:
    """Take a request and close: the client has seen an idle connection, sent, and gets no byte."""
    assert peer.request()


def read_and_reset(peer: Peer) -> None:
    assert peer.request()
    peer.reset()


# Safe repeats.


@pytest.mark.parametrize("end", [read_and_close, read_and_reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("body", [None, b"x" * 10, "text"], ids=["no body", "bytes", "str"])
def test_an_idempotent_request_is_repeated(end: Callable[[Peer], None], method: str, body: Any) -> None:
    """A kept connection that ends before a byte of the response costs no retry: the request goes out on a new one."""
    seen: list[bytes] = []

    def last(peer: Peer) -> None:
        seen.append(peer.request())
        peer.answer(b"")

    with talking(then(serve(1), end), last) as (pool, server):
        assert pool.urlopen("GET", "/", **NO_RETRY).data == b"ok"
        answer = pool.urlopen(method, "/again", body=body, **NO_RETRY)

        assert answer.status == 200
        assert server.accepted == 2
        assert seen[0].startswith(f"{method} /again ".encode())
        assert seen[0].endswith(
            b"\r\n\r\n"
            + (
                {None: b""}.get(body) or (body or "x")[:0] or b""
                if body is None
                else body.encode()
                if isinstance(body, str)
                else body
            )
        )


@pytest.mark.parametrize("end", [read_and_close, read_and_reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_have_had_an_effect_is_not_repeated(end: Callable[[Peer], None], method: str) -> None:
    """A POST whose bytes went out is never sent a second time, neither by us nor by urllib3's default retries."""
    with talking(then(serve(1), end), serve(1)) as (pool, server):
        pool.urlopen("GET", "/")
        with pytest.raises(ProtocolError, match="Connection aborted"):
            pool.urlopen(method, "/", body=b"order")

        assert server.accepted == 1
        assert pool.urlopen("GET", "/").data == b"ok"


def test_what_never_went_out_is_repeated() -> None:
    """Where not a byte of a POST was accepted by the kernel, it is sent on a new connection."""
    gone = threading.Event()

    def first(peer: Peer) -> None:
        peer.request()
        peer.answer()
        peer.reset()
        gone.set()

    with talking(first, serve(1)) as (pool, server):
        pool.urlopen("GET", "/")
        assert gone.wait(5)
        with mock.patch.object(fewports.sync.wire.Wire, "silent", True):  # it went between our look and our send
            answer = pool.urlopen("POST", "/", body=b"order", **NO_RETRY)

        assert answer.data == b"ok"
        assert server.accepted == 2


def test_a_new_connection_that_ends_is_no_reason_to_repeat() -> None:
    """On a connection that never answered, an end without a byte is the caller's to see."""
    with talking(read_and_close, serve(1)) as (pool, server):
        with pytest.raises(ProtocolError):
            pool.urlopen("GET", "/", **NO_RETRY)

        assert server.accepted == 1


@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_a_byte_of_the_response_ends_all_repeating(end: str) -> None:
    """Once a byte of the response came, the request is not sent again."""

    def stub(peer: Peer) -> None:
        peer.request()
        peer.send(b"H")
        if end == "RST":
            peer.reset()  # behind the byte, which is on its way

    with talking(then(serve(1), stub), serve(1)) as (pool, server):
        pool.urlopen("GET", "/")
        with pytest.raises(ProtocolError):
            pool.urlopen("GET", "/", **NO_RETRY)

        assert server.accepted == 1


def test_an_iterator_is_not_repeated_once_begun() -> None:
    """A body that can be read but once is not sent again after the first byte of it."""
    with talking(then(serve(1), read_and_close), serve(1)) as (pool, server):
        pool.urlopen("GET", "/")
        with pytest.raises(ProtocolError):
            pool.urlopen("PUT", "/", body=iter([b"a", b"b"]), headers={"Content-Length": "2"}, **NO_RETRY)

        assert server.accepted == 1


def test_through_a_proxy_the_tunnel_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that meets the end of a kept tunnel is sent again through a new one."""
    monkeypatch.setattr("fewports.sync.timer.CHECK", 60.0)  # the timer shall not find it first
    book = fewports.Ledger()
    with (
        HttpServer(tls=True, close_after_response=True, announce_close=False) as server,
        HttpProxy() as proxy,
        ProxyManager(proxy.url, ledger=book, ca_certs=server.ca_path) as http,
    ):
        assert http.request("GET", server.url + "/").json() == BODY
        (pool,) = (http.pools.get(key) for key in http.pools.keys())  # noqa: SIM118
        assert until(lambda: not pool.home.quiet()[0].alive())
        with mock.patch.object(fewports.sync.wire.Wire, "silent", True):  # it ends between our look and our send
            answer = http.request("GET", server.url + "/", **NO_RETRY)

        assert answer.json() == BODY
        assert server.stats()["accepted"] == 2


# Time-outs.


def drip(data: bytes, pause: float = 0.02, head: bytes = b"") -> Callable[[Peer], None]:
    """Send *head*, and *data* byte by byte."""

    def handler(peer: Peer) -> None:
        peer.request()
        peer.send(head)
        for number in range(len(data)):
            peer.send(data[number : number + 1])
            time.sleep(pause)  # the drip itself is what is tested
        peer.end()

    return handler


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize("where", ["interim", "head", "body", "chunks"])
def test_total_is_a_deadline_for_the_whole_exchange(where: str, kept: bool) -> None:
    """A server that drips, always a byte before the read time-out, cannot hold a request longer than total."""
    data = {
        "interim": b"HTTP/1.1 102 Processing\r\n\r\n" * 10,
        "head": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200,
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"x" * 200,
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50,
    }[where]
    server = then(serve(1), drip(data)) if kept else drip(data)
    with talking(server) as (pool, _):
        if kept:
            pool.urlopen("GET", "/")
        began = time.monotonic()
        with pytest.raises(ReadTimeoutError):
            pool.urlopen("GET", "/", timeout=Timeout(total=0.3, read=5), **NO_RETRY)

        assert 0.28 < time.monotonic() - began < 1.5


def test_without_preload_total_ends_with_the_head() -> None:
    """Who streams the body himself has the read time-out for each piece, as in urllib3."""
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"

    def handler(peer: Peer) -> None:
        peer.request()
        peer.send(data)
        drip(b"x" * 20)(peer)

    def whole(peer: Peer) -> None:
        peer.request()
        peer.send(data)
        for _ in range(20):
            peer.send(b"x")
            time.sleep(0.035)  # longer in all than total

    with talking(whole) as (pool, _):
        answer = pool.urlopen("GET", "/", timeout=Timeout(total=0.6), preload_content=False, **NO_RETRY)

        assert answer.read() == b"x" * 20


def test_with_requests_total_bounds_the_body_that_is_read_at_once() -> None:
    """A Session that does not stream reads the body before the deadline; one that streams has the read time-out."""
    dripping = drip(b"x" * 250, head=b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    with Scripted(dripping, dripping) as server, fewports.requests.Session(ledger=fewports.Ledger()) as session:
        began = time.monotonic()
        with pytest.raises(requests.ConnectionError, match="timed out"):
            session.get(server.url, timeout=Timeout(total=1.0, read=5))

        assert 0.9 < time.monotonic() - began < 3
        response = session.get(server.url, timeout=Timeout(total=1.0, read=5), stream=True)
        assert response.raw.read(60) == b"x" * 60  # 1.2 s
        response.close()


def test_a_deadline_is_forgotten_with_its_request() -> None:
    """After a request with a total, the next on the same connection has all the time that it asks for."""

    def slow(peer: Peer) -> None:
        peer.request()
        peer.answer()
        peer.request()
        time.sleep(0.8)  # longer than the total of the first
        peer.answer()

    with talking(slow) as (pool, server):
        assert pool.urlopen("GET", "/", timeout=Timeout(total=0.6)).data == b"ok"
        assert pool.urlopen("GET", "/", timeout=None, **NO_RETRY).data == b"ok"
        assert server.accepted == 1


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"X-Field: value\r\n",
        b"x" * 1000,
    ],
    ids=["interim", "fields", "line"],
)
def test_an_endless_head_ends_without_a_time_out(endless: bytes) -> None:
    """However long the server goes on with 1xx, fields or one line, a bound on bytes ends it."""

    def handler(peer: Peer) -> None:
        peer.request()
        if not endless.startswith(b"HTTP"):
            peer.send(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(100_000):
            peer.send(endless)

    with talking(handler) as (pool, _), pytest.raises(ProtocolError) as caught:
        pool.urlopen("GET", "/", timeout=None, **NO_RETRY)

    assert isinstance(caught.value.args[1], BadResponse)


@pytest.mark.parametrize("endless", [b"1;" + b"e" * 1000 + b"\r\nx\r\n", b"0\r\n" + b"X: y\r\n" * 20_000])
def test_endless_chunk_extensions_and_trailers_end(endless: bytes) -> None:
    """What is no data costs a bounded number of bytes, whatever the time-outs."""

    def handler(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            peer.send(endless)

    with talking(handler) as (pool, _), pytest.raises(ProtocolError):
        pool.urlopen("GET", "/", timeout=None, **NO_RETRY)


# Faults of the peer.


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["both", "space", "fold", "LF", "CR", "NUL", "upgrade", "chunk", "coding", "foreign"],
)
def test_a_broken_response_is_an_error_and_ends_its_connection(bad: bytes, kept: bool) -> None:
    """What two readers could understand differently is a ProtocolError; the next request has a new connection."""

    def break_rules(peer: Peer) -> None:
        peer.request()
        peer.send(bad)
        peer.end()

    first = then(serve(1), break_rules) if kept else break_rules
    with talking(first, serve(1)) as (pool, server):
        if kept:
            pool.urlopen("GET", "/")
        with pytest.raises(ProtocolError) as caught:
            pool.urlopen("GET", "/", **NO_RETRY)

        assert isinstance(caught.value.args[1], BadResponse)
        assert pool.urlopen("GET", "/", **NO_RETRY).data == b"ok"
        assert server.accepted == 2


def test_two_content_lengths_are_an_invalid_header() -> None:
    """A second Content-Length raises urllib3's InvalidHeader, as with stock urllib3; equal ones do, too."""
    for lengths in ("2\r\nContent-Length: 3", "2\r\nContent-Length: 2", "2, 2", "+2", "two"):

        def handler(peer: Peer, lengths: str = lengths) -> None:
            peer.request()
            peer.send(f"HTTP/1.1 200 OK\r\nContent-Length: {lengths}\r\n\r\nok".encode())
            peer.end()

        with talking(handler) as (pool, _), pytest.raises(BadLength) as caught:
            pool.urlopen("GET", "/", **NO_RETRY)
        assert isinstance(caught.value, urllib3.exceptions.InvalidHeader)


@pytest.mark.parametrize(
    "extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\r\n", b"x"], ids=["response", "CRLF", "byte"]
)
def test_bytes_after_the_end_are_for_nobody(extra: bytes) -> None:
    """What comes after a response is never taken for the next one: the connection is not used again."""

    def handler(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + extra)
        peer.end()

    with talking(handler, serve(1, body=b"good")) as (pool, server):
        assert pool.urlopen("GET", "/", **NO_RETRY).data == b"ok"
        assert pool.urlopen("GET", "/", **NO_RETRY).data == b"good"
        assert server.accepted == 2


def test_a_response_before_the_request_ended() -> None:
    """An early response during an upload is returned, as by urllib3, and the connection is not used again."""

    def refuse(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.answer(b"too large", "Connection: close", status="413 Content Too Large")

    for kind in (HTTPConnectionPool, urllib3.HTTPConnectionPool):
        with Scripted(refuse, serve(1)) as server, kind("127.0.0.1", server.port) as pool:
            answer = pool.urlopen("POST", "/", body=iter([b"x" * 1_000_000] * 50), retries=False)

            assert (answer.status, answer.data) in ((413, b"too large"), (413, b""))
            assert pool.urlopen("GET", "/", **NO_RETRY).data == b"ok"
            assert server.accepted == 2


def test_a_server_that_says_how_long_it_keeps_is_heeded() -> None:
    """With Keep-Alive: timeout=N a connection is retired before the server closes it; without, it has its own time."""

    def handler(peer: Peer) -> None:
        for fields in (["Keep-Alive: timeout=9"], ["Keep-Alive: max=100, timeout=1"], []):
            peer.request()
            peer.answer(b"ok", *fields)
        peer.end()

    with talking(handler) as (pool, server):
        for kept in (8.0, 0.5, 55.0):
            began = time.monotonic()
            pool.urlopen("GET", "/", **NO_RETRY)
            due = pool.home.due()

            assert due is not None
            assert began + kept <= due <= time.monotonic() + kept
        assert server.accepted == 1


# Bodies.


def echo(peer: Peer) -> None:
    while data := peer.request():
        peer.answer(data.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 3_000_000])
@pytest.mark.parametrize("kind", ["bytes", "str", "bytearray", "file", "iterator"])
def test_uploads_arrive_whole(size: int, kind: str) -> None:
    """Bodies of all kinds and sizes go out as they are, on new and on kept connections."""
    data = b"a" * size
    with talking(echo) as (pool, server):
        for _ in range(2):
            body = {
                "bytes": data,
                "str": data.decode(),
                "bytearray": bytearray(data),
                "file": io.BytesIO(data),
                "iterator": iter([data[: size // 2], data[size // 2 :]]),
            }[kind]
            fields = {} if kind in ("bytes", "str", "bytearray") else {"Content-Length": str(size)}

            assert pool.urlopen("PUT", "/", body=body, headers=fields, **NO_RETRY).data == data
        assert server.accepted == 1


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with fresh_server() as one:
        yield one


WAYS: dict[str, Callable[[Any], bytes]] = {
    "data": lambda response: response.data,
    "read": lambda response: response.read(),
    "read by 7000": lambda response: b"".join(iter(lambda: response.read(7000), b"")),
    "read by 100,000": lambda response: b"".join(iter(lambda: response.read(100_000), b"")),
    "read1": lambda response: b"".join(iter(lambda: response.read1(5000), b"")),
    "stream": lambda response: b"".join(response.stream(4096)),
    "iterate": lambda response: b"".join(response),
    "buffered": lambda response: io.BufferedReader(response).read(),
    "raw": lambda response: response.read(decode_content=False),
    "some and rest": lambda response: response.read(10) + response.read1(10) + response.read(),
}


@pytest.mark.parametrize("path", ["/bytes?n=1", "/bytes?n=200000", "/chunked?n=200000", "/"])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_read_gives_the_whole_body(server: Any, path: str, way: str) -> None:
    """However a body is read, it is the one that stock urllib3 reads, and the connection is used again after it."""
    book = fewports.Ledger()
    with urllib3.PoolManager() as stock, PoolManager(ledger=book) as http:
        expected = WAYS[way](stock.request("GET", server.url + path, preload_content=False))
        for _ in range(2):
            response = http.request("GET", server.url + path, preload_content=False)

            assert WAYS[way](response) == expected
            assert response.closed
            assert until(lambda: counts(book)[:2] == (0, 1))


@pytest.mark.parametrize("reads", [(50, None), (3, 50, None), (50, 50), (3, 50, 1, None), (None, None)])
@pytest.mark.parametrize("decode", [True, False], ids=["decoded", "raw"])  # requests asks for it raw
@pytest.mark.parametrize("coding", [False, True], ids=["plain", "gzip"])
def test_what_came_before_a_break_is_there_for_who_reads_on(
    coding: bool, decode: bool, reads: tuple[int | None, ...]
) -> None:
    """After the error of a body that broke off each read() gives what it gives in urllib3."""
    body = gzip.compress(b"hello" * 9)[:25] if coding else b"hello"

    def cut_off(peer: Peer) -> None:
        peer.request()
        field = "Content-Encoding: gzip\r\n" if coding else ""
        peer.send(f"HTTP/1.1 200 OK\r\n{field}Content-Length: 100\r\n\r\n".encode() + body)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.end()

    def given(http: Any) -> list[object]:
        found: list[object] = []
        response = http.request("GET", server.url, preload_content=False, retries=False, decode_content=decode)
        for amount in reads:
            try:
                found.append(response.read(amount))
            except ProtocolError as error:
                found.append((type(error), str(error)))
        return [*found, response.tell(), response.length_remaining]

    with Scripted(cut_off, cut_off) as server, urllib3.PoolManager() as stock, PoolManager() as ours:
        expected = given(stock)

        assert given(ours) == expected
        assert any(isinstance(found, tuple) for found in expected)


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize(
    ("method", "fields", "body"),
    [
        ("HEAD", b"Transfer-Encoding: Chunked", b""),
        ("HEAD", b"Content-Length: 3", b""),
        ("GET", b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
        ("GET", b"Content-Length: 3", b"abc"),
        ("GET", b"X-A: to the end", b"abc"),
    ],
)
def test_what_a_response_says_of_its_framing(method: str, fields: bytes, body: bytes, preload: bool) -> None:
    """chunked is what the fields say, to HEAD too; a body that ends with the connection says that this will close."""

    def answer(peer: Peer) -> None:
        for _ in range(2):
            peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\n" + body)
            if fields.startswith(b"X-A"):
                break

    def said(http: Any) -> object:
        found = []
        for _ in range(2):
            response = http.request(method, server.url, preload_content=preload, retries=False)
            closing = None if preload else response._original_response.will_close
            found.append((response.chunked, closing, list(response.stream(2)), response.data))
        return found

    with Scripted(*[answer] * 4) as server, urllib3.PoolManager() as stock, PoolManager() as ours:
        expected = said(stock)
        before = server.accepted

        assert said(ours) == expected
        assert server.accepted == 2 * before


@pytest.mark.parametrize("amount", [None, 3_000_000])
def test_a_large_body_that_is_cut_off_says_how_much_is_missing(amount: int | None) -> None:
    """The numbers in IncompleteRead are those of urllib3, for a body that is received in many pieces, too."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + bytes(4_000_000))

    told = []
    with Scripted(serve, serve) as door:
        for http in (urllib3.PoolManager(), PoolManager(ledger=fewports.Ledger())):
            with http:
                response = http.request("GET", door.url, preload_content=False)
                with pytest.raises(ProtocolError, match="IncompleteRead") as caught:
                    list(iter(lambda: response.read(amount), b""))  # noqa: B023
                told.append(str(caught.value))

    assert told[0] == told[1]
    assert "1000000 more expected" in told[1]


def test_a_stream_needs_no_memory_for_the_body(server: Any) -> None:
    """A body of 30 MB that is streamed takes less than 1 MB of memory at any time."""
    with PoolManager(ledger=fewports.Ledger()) as http:
        response = http.request("GET", server.url + "/bytes?n=30000000", preload_content=False)
        tracemalloc.start()
        try:
            size = sum(map(len, response.stream(65536)))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert size == 30_000_000
        assert peak < 1_000_000


def test_a_whole_body_is_in_memory_once(server: Any) -> None:
    """A body that is read at once is received into the very bytes that are returned."""
    with PoolManager(ledger=fewports.Ledger()) as http:
        tracemalloc.start()
        try:
            body = http.request("GET", server.url + "/bytes?n=30000000").data
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert len(body) == 30_000_000
        assert peak < 32_000_000


# What is urllib3's.


def test_a_response_is_urllib3s(server: Any) -> None:
    """The straight way gives urllib3's response: its type, its fields, and all that is made when somebody looks."""
    with urllib3.PoolManager() as stock, PoolManager(ledger=fewports.Ledger()) as http:
        for manager in (stock, http):
            manager.request("GET", server.url + "/")  # the next goes straight
        theirs, ours = (manager.request("GET", server.url + "/") for manager in (stock, http))

        assert type(ours) is Response
        assert isinstance(ours, urllib3.HTTPResponse)
        assert isinstance(ours.headers, urllib3.HTTPHeaderDict)
        names = "status reason version version_string data url closed chunked msg length_remaining decode_content"
        for name in names.split():
            assert getattr(ours, name) == getattr(theirs, name), name
        for call in ("json", "geturl", "tell", "isclosed", "get_redirect_location", "readable", "read", "getheaders"):
            given, expected = getattr(ours, call)(), getattr(theirs, call)()
            assert (given if call != "getheaders" else set(given)) == (
                expected if call != "getheaders" else set(expected)
            ), call
        assert ours.json() == BODY
        assert ours.retries.total == theirs.retries.total  # type: ignore[union-attr]
        assert [*ours.stream()] == [*theirs.stream()] == []
        for one in (ours, theirs):
            with pytest.raises(RuntimeError):
                one.shutdown()


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "429 Slow Down", "301 Moved", "204 No Content"])
def test_statuses_end_as_in_urllib3(status: str) -> None:
    """Retries, redirects and their absence come out as with stock urllib3, from the straight way, too."""
    seen = []
    for kind in (HTTPConnectionPool, urllib3.HTTPConnectionPool):

        def handler(peer: Peer) -> None:
            while peer.request():
                body = b"" if status.startswith("204") else b"body"
                peer.answer(body, "Location: /there", "Retry-After: 0", status=status)

        with Scripted(handler, handler, handler) as server, kind("127.0.0.1", server.port) as pool:
            for policy in (None, False, 1, Retry(2, status_forcelist=[500]), Retry(1, redirect=False)):
                for redirect in (True, False):
                    try:
                        answer = pool.urlopen("GET", "/", retries=policy, redirect=redirect)
                        told = [entry[1:] for entry in answer.retries.history]  # type: ignore[union-attr]
                        seen.append((answer.status, answer.data, len(told), answer.geturl()))
                    except HTTPError as error:
                        seen.append((type(error), type(getattr(error, "reason", None))))
    half = len(seen) // 2

    assert seen[:half] == seen[half:]
    assert half == 10


class Asked(HTTPConnectionPool):
    """A subclass that has a hand in each request."""

    def _make_request(self, conn: Any, method: str, url: str, *args: Any, **keywords: Any) -> Any:
        return super()._make_request(conn, method, url + "?asked", *args, **keywords)


def test_a_subclass_is_asked_each_time() -> None:
    """Where a subclass, an object or a patch replaces a step of urllib3, that step is taken for every request."""
    lines: list[bytes] = []

    def handler(peer: Peer) -> None:
        while data := peer.request():
            lines.append(data.partition(b"\r\n")[0])
            peer.answer()

    with Scripted(handler) as server, Asked("127.0.0.1", server.port) as pool:
        for _ in range(3):
            pool.urlopen("GET", "/")

        assert lines == [b"GET /?asked HTTP/1.1"] * 3
    with talking(handler) as (pool, _):
        pool.urlopen("GET", "/")
        with mock.patch.object(pool, "_make_request", wraps=pool._make_request) as step:
            pool.urlopen("GET", "/")
        with mock.patch.object(
            HTTPConnectionPool, "_get_conn", autospec=True, side_effect=HTTPConnectionPool._get_conn
        ) as take:
            pool.urlopen("GET", "/")

        assert (step.call_count, take.call_count) == (1, 1)


def test_only_the_same_request_has_the_same_bytes() -> None:
    """A request that differs in method, target, fields or body from the one before is sent as it is."""
    asked: list[tuple[str, str, dict[str, str], bytes | None]] = [
        (method, target, fields, body)
        for method in ("GET", "DELETE")
        for target in ("/", "/?more")
        for fields in ({}, {"X": "1"}, {"X": "2"}, {"x": "2"})
        for body in (None, b"", b"data")
    ]
    asked = [request for one in asked for request in (one, one)]  # each is sent twice
    seen: list[bytes] = []

    def handler(peer: Peer) -> None:
        while data := peer.request():
            seen.append(data)
            peer.answer()

    with talking(handler) as (pool, server):
        for method, target, fields, body in asked:
            pool.urlopen(method, target, body=body, headers=fields)

        assert server.accepted == 1
        for data, (method, target, fields, body) in zip(seen, asked, strict=True):
            lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            assert lines[0] == f"{method} {target} HTTP/1.1"
            assert [line for line in lines if line[:2] in ("X:", "x:")] == [f"{n}: {v}" for n, v in fields.items()]
            assert data.endswith(b"\r\n\r\n" + (body or b""))


def test_a_pool_that_is_gone_is_not_asked_again(server: Any) -> None:
    """A manager makes a new pool for the URL that it was asked for last, when the one that it had was taken from it."""
    takes: tuple[Callable[[PoolManager], object], ...] = (
        lambda http: http.pools.clear(),
        lambda http: setattr(http, "pools", type(http.pools)(10)),
        lambda http: http.clear(),
    )
    for take_away in takes:
        with PoolManager(ledger=fewports.Ledger()) as http:
            before = http.request("GET", server.url + "/")._pool
            take_away(http)
            after = http.request("GET", server.url + "/")

            assert after.json() == BODY
            assert len(http.pools) == 1
            assert http.connection_from_url(server.url) is not before
            before.close()


def test_what_a_manager_was_told_in_between_counts(server: Any) -> None:
    """A manager whose arguments or headers are changed between two requests uses the new ones at once."""
    with PoolManager(ledger=fewports.Ledger()) as http:
        for _ in range(2):
            http.request("GET", server.url + "/")
        http.connection_pool_kw["maxsize"] = 3
        http.request("GET", server.url + "/")
        assert len(http.pools) == 2
        http.connection_pool_kw["socket_options"] = options = [(6, 1, 1)]
        http.request("GET", server.url + "/")
        options.append((1, 9, 1))
        http.request("GET", server.url + "/")

        assert len(http.pools) == 4
        http.clear()
        assert http.request("GET", server.url + "/").json() == BODY
        assert len(http.pools) == 1


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"X": "a\r\nEvil: b"}, ValueError),
        ({"X\r\nEvil": "b"}, ValueError),
        ({"X": "a\nb"}, ValueError),
        ({"X": "\u20ac"}, UnicodeEncodeError),
        ({"X": None}, TypeError),
    ],
    ids=["value", "name", "LF", "not latin-1", "None"],
)
def test_bad_fields_are_refused_as_in_urllib3(headers: Any, error: type[Exception]) -> None:
    """What would forge a request raises what stock urllib3 raises, and the connection is not lost for others."""
    with talking(serve(1), serve(1)) as (pool, _):
        pool.urlopen("GET", "/")
        with pytest.raises(error):
            pool.urlopen("GET", "/", headers=headers, **NO_RETRY)

        assert pool.urlopen("GET", "/").data == b"ok"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "other", "User-Agent": "me", "Accept-Encoding": "gzip"},
        {"host": urllib3.util.SKIP_HEADER, "user-agent": urllib3.util.SKIP_HEADER},
        {"X": b"bytes", b"Y": "z"},
        {"X": "caf\xe9"},
        {"X": 5},
        urllib3.HTTPHeaderDict([("A", "1"), ("A", "2"), ("b", "3")]),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST", "get", "PURGE"])
@pytest.mark.parametrize("target", ["/", "/a%2fb?q=%c3%a9&x=[1]", "/\u00e9?\u00fc", "/a b", "//x/../y"])
def test_requests_have_the_fields_of_urllib3(headers: Any, method: str, target: str) -> None:
    """The request line and the fields are those that stock urllib3 sends, straight or not."""
    heads: list[list[bytes]] = []
    for kind in (HTTPConnectionPool, urllib3.HTTPConnectionPool):

        def handler(peer: Peer) -> None:
            while data := peer.request():
                line, *fields = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
                heads.append([line, *sorted(field for field in fields if not field.startswith(b"Host: 127."))])
                peer.answer()

        with Scripted(handler) as server, kind("127.0.0.1", server.port) as pool:
            for _ in range(2):
                pool.urlopen(method, target, body=b"abc" if method == "POST" else None, headers=headers)

    assert heads[0] == heads[1] == heads[2] == heads[3]


# What an attack found.


def silent(peer: Peer) -> None:
    peer.request()
    peer.end()


@pytest.mark.parametrize("timeout", [0.6, Timeout(total=0.6), Timeout(connect=5, read=0.6)], ids=str)
def test_a_time_out_is_no_reason_to_repeat(timeout: Any) -> None:
    """A kept connection on which nothing comes in time ends in ReadTimeoutError; the request went out once."""
    with talking(then(serve(1), silent), serve(1)) as (pool, server):
        pool.urlopen("GET", "/")
        began = time.monotonic()
        with pytest.raises(ReadTimeoutError):
            pool.urlopen("GET", "/", timeout=timeout, **NO_RETRY)

        assert time.monotonic() - began < 1.2  # not twice that
        assert server.accepted == 1


def test_chunks_that_are_yet_to_come_are_waited_for() -> None:
    """read(amt), readinto and drain_conn go on over chunks that come later, and over thousands that come at once."""

    def handler(peer: Peer) -> None:
        for _ in range(3):
            peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n")
            time.sleep(0.05)  # so that the rest is another packet
            peer.send(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")

    with talking(handler) as (pool, server):
        responses = [pool.urlopen("GET", "/", preload_content=False)]
        assert responses[0].read(5) == b"01234"
        assert responses[0].read(4000) == b"x" * 4000
        assert responses[0].read() == b"x" * 1000
        assert io.BufferedReader(pool.urlopen("GET", "/", preload_content=False), 100).read() == b"01234" + b"x" * 5000  # type: ignore[type-var, call-overload]
        pool.urlopen("GET", "/", preload_content=False).drain_conn()
        assert server.accepted == 1


def test_what_tls_has_read_ahead_is_for_nobody() -> None:
    """Bytes after the end that arrive in the last TLS record of a body are never taken for the next response."""
    keys = authority("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.chain, keys.key)

    def handler(peer: Peer) -> None:
        peer.secure(context)
        peer.request()
        body = b"x" * 100_000
        evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body + evil)
        peer.end()

    def second(peer: Peer) -> None:
        peer.secure(context)
        peer.request()
        peer.answer(b"good")

    with (
        Scripted(handler, second) as server,
        PoolManager(ledger=fewports.Ledger(), ca_certs=keys.ca_path) as http,
    ):
        url = f"https://127.0.0.1:{server.port}/"
        assert len(http.request("GET", url).data) == 100_000
        assert http.request("GET", url, **NO_RETRY).data == b"good"


@pytest.mark.parametrize(
    ("first", "last"),
    [(Timeout(total=0.6), Timeout(total=5)), (Timeout(connect=0.6, read=5), Timeout(connect=0.6, read=5))],
    ids=str,
)
def test_no_time_out_outlives_its_request(first: Timeout, last: Timeout) -> None:
    """After requests that went straight, one that urllib3 sends has the time-outs that it was given."""

    def handler(peer: Peer) -> None:
        for pause in (0, 0, 0.8):
            peer.request()
            time.sleep(pause)  # longer than the first requests had
            peer.answer()

    with talking(handler) as (pool, server):
        for _ in range(2):
            pool.urlopen("GET", "/", timeout=first)
        body, fields = iter([b"ab"]), {"Content-Length": "2"}

        assert pool.urlopen("POST", "/", body=body, headers=fields, timeout=last, **NO_RETRY).data == b"ok"
        assert server.accepted == 1


def test_total_bounds_an_upload_on_a_new_connection() -> None:
    """An iterator that goes on for ever is cut off at the deadline, however quickly each piece goes out."""

    def forever() -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield b"x"

    with talking(lambda peer: peer.end() and None) as (pool, _):
        began = time.monotonic()
        with pytest.raises(HTTPError):
            pool.urlopen("POST", "/", body=forever(), timeout=Timeout(total=0.3), **NO_RETRY)

        assert time.monotonic() - began < 5


def test_the_deadline_counts_for_a_repeat_too() -> None:
    """A request that is sent again has what is left of its total, and not all of it anew."""

    def late(peer: Peer) -> None:
        peer.request()
        time.sleep(0.9)

    with talking(then(serve(1), late), silent) as (pool, server):
        pool.urlopen("GET", "/")
        began = time.monotonic()
        with pytest.raises(ReadTimeoutError):
            pool.urlopen("GET", "/", timeout=Timeout(total=1.2), **NO_RETRY)

        assert 1.1 < time.monotonic() - began < 2.1
        assert server.accepted == 2


def test_what_wraps_urllib3_or_http_client_sees_each_request() -> None:
    """Agents that wrap urlopen(), putrequest() or getresponse() of the libraries see every request, kept or not."""
    for owner, name in (
        (urllib3.HTTPConnectionPool, "urlopen"),
        (http.client.HTTPConnection, "putrequest"),
        (http.client.HTTPConnection, "getresponse"),
    ):
        with talking(serve(4)) as (pool, server):
            pool.urlopen("GET", "/")
            with mock.patch.object(owner, name, autospec=True, side_effect=getattr(owner, name)) as wrapped:
                for _ in range(3):
                    assert pool.urlopen("GET", "/").data == b"ok"

            assert wrapped.call_count == 3, name
            assert server.accepted == 1


def test_a_request_within_a_request_has_its_own_connection_and_response() -> None:
    """What a logging handler asks of the same pool in the middle of a request is a request of its own."""
    seen: list[bytes] = []

    def handler(peer: Peer) -> None:
        while data := peer.request():
            line = data.partition(b"\r\n")[0]
            seen.append(line)
            moved = b"GET /moved" in line
            peer.answer(
                line.split()[1], *(["Location: /there"] if moved else []), status="302 Found" if moved else "200 OK"
            )

    class Asking(logging.Handler):
        asked: Any = None

        def emit(self, record: logging.LogRecord) -> None:
            if self.asked is None:
                self.asked = 0
                self.asked = pool.urlopen("POST", "/log", redirect=False).data

    with talking(handler, handler, maxsize=3) as (pool, _):
        pool.urlopen("GET", "/warm")
        logger, asking = logging.getLogger("urllib3"), Asking()
        logger.addHandler(asking)
        level = logger.level
        logger.setLevel(logging.DEBUG)
        try:
            answer = pool.urlopen("GET", "/moved", retries=2)
        finally:
            logger.setLevel(level)
            logger.removeHandler(asking)

        assert (answer.data, asking.asked) == (b"/there", b"/log")
        assert sorted(seen) == [
            b"GET /moved HTTP/1.1",
            b"GET /there HTTP/1.1",
            b"GET /warm HTTP/1.1",
            b"POST /log HTTP/1.1",
        ]


def test_a_mistake_of_the_caller_costs_no_connection() -> None:
    """A request that is refused before it is sent leaves the idle connection as it was."""
    with talking(serve(2)) as (pool, server):
        pool.urlopen("GET", "/")
        for url in ("http://other.example/x", None):
            with pytest.raises((HTTPError, AttributeError)):
                pool.urlopen("GET", url, **NO_RETRY)  # type: ignore[arg-type]
        with pytest.raises(urllib3.exceptions.UnrewindableBodyError):
            pool.urlopen("GET", "/", body_pos=3, **NO_RETRY)

        assert pool.urlopen("GET", "/").data == b"ok"
        assert server.accepted == 1


def test_a_raising_log_filter_loses_no_place() -> None:
    """An exception from the caller's logging is his; the bounded pool has its place back."""

    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError("filter")

    with talking(serve_on, serve_on, maxsize=1, block=True) as (pool, _):
        pool.urlopen("GET", "/")
        logger = logging.getLogger("urllib3.connectionpool")
        level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addFilter(refuse)
        try:
            with pytest.raises(ValueError, match="filter"):
                pool.urlopen("GET", "/", **NO_RETRY)
        finally:
            logger.removeFilter(refuse)
            logger.setLevel(level)

        assert pool.urlopen("GET", "/", pool_timeout=1).data == b"ok"


def test_debuglevel_changes_nothing_but_the_output(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With http.client's debuglevel requests are printed, and redirects followed as without it."""
    with (
        mock.patch.object(http.client.HTTPConnection, "debuglevel", 1),
        PoolManager(ledger=fewports.Ledger()) as manager,
    ):
        for _ in range(2):
            answer = manager.request("GET", server.url + "/redirect?n=2")

            assert (answer.status, answer.json()) == (200, BODY)
    assert "send: b'GET /redirect" in capsys.readouterr().out


def test_the_sockets_default_time_out_bounds_no_total() -> None:
    """socket.setdefaulttimeout() is for requests without a time-out; a total stands for itself."""

    def handler(peer: Peer) -> None:
        peer.request()
        peer.answer()
        peer.request()
        time.sleep(0.8)  # longer than the default
        peer.answer()

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.6)
    try:
        with talking(handler) as (pool, _):
            pool.urlopen("GET", "/", timeout=Timeout(total=5))

            assert pool.urlopen("GET", "/", timeout=Timeout(total=5), **NO_RETRY).data == b"ok"
    finally:
        socket.setdefaulttimeout(before)
