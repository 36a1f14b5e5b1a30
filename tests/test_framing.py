"""A Content-Length of the caller's own that is not the length of the body: no later request is read wrongly for it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from bridged import BridgedManager
from faces import fresh_h2
from support.scripted import Peer, Scripted

import fewports
from fewports.http1 import LocalProtocolError
from fewports.requests import Session
from fewports.urllib3 import HTTPConnection, PoolManager

SURPLUS = b"GET /not-asked HTTP/1.1\r\nHost: a\r\n\r\n"
LONG, SHORT = b"abc" + SURPLUS, b"ab"  # where 3 bytes are announced


def at_once(peer: Peer, seen: list[bytes]) -> None:
    """Answer each head when it is there, and read what it announces after that."""
    while True:
        while b"\r\n\r\n" not in peer._data:
            if not peer._more():
                return
        head, _, rest = peer._data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if b"http/1.1" not in lines[0]:
            return
        seen.append(lines[0])
        peer.answer(head.split(b" ")[1])
        peer._data = rest
        while len(peer._data) < length:
            if not peer._more():
                return
        peer._data = peer._data[length:]


@contextlib.contextmanager
def tasks(way: str, **options: Any) -> Iterator[BridgedManager]:
    made = BridgedManager(way, retries=False, timeout=5, ledger=fewports.Ledger(), **options)
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture
def seen() -> list[bytes]:
    return []


@pytest.fixture
def server(seen: list[bytes]) -> Iterator[Scripted]:
    with Scripted(*[lambda peer: at_once(peer, seen)] * 4) as running:
        yield running


KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda data: data,
    "str": lambda data: data.decode(),
    "file": io.BytesIO,
    "list": lambda data: [data[:2], data[2:]],
    "generator": lambda data: (piece for piece in (data[:2], data[2:])),
    "nothing": lambda data: None,
}
OWN = {"Content-Length": "3"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("before", [0, 1], ids=["new", "kept"])
def test_threads_send_it_and_use_the_connection_no_more(
    server: Scripted, seen: list[bytes], kind: str, data: bytes, before: int
) -> None:
    """It goes out as from urllib3; the next request goes over another connection, and gets its own answer."""
    with PoolManager(retries=False, timeout=5, ledger=fewports.Ledger()) as http:
        for _ in range(before):
            http.request("GET", server.url + "/before")
        assert http.request("POST", server.url + "/own", body=KINDS[kind](data), headers=OWN).data == b"/own"

        assert http.request("GET", server.url + "/next").data == b"/next"
        assert server.accepted == 2
        assert seen.count(b"get /next http/1.1") == 1  # a surplus may be read as well, on the connection before


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "3", "Transfer-Encoding": "chunked"},
        {"Content-Length": "3", b"Transfer-Encoding": "chunked"},
        {"Content-Length": "+3"},
        {"Transfer-Encoding": "gzip"},
        urllib3.HTTPHeaderDict([("Content-Length", "3"), ("content-length", "3")]),
    ],
    ids=["both", "bytes", "sign", "coding", "twice"],
)
def test_what_can_be_read_in_two_ways_ends_the_connection(server: Scripted, headers: Any) -> None:
    """So it is after fields that two readers could understand differently, whatever the body was."""
    with PoolManager(retries=False, timeout=5, ledger=fewports.Ledger()) as http:
        http.request("POST", server.url + "/own", body=b"abc", headers=headers)

        assert http.request("GET", server.url + "/next").data == b"/next"
        assert server.accepted == 2


@pytest.mark.parametrize("kind", ["bytes", "str", "file", "list"])
def test_a_length_that_is_right_keeps_the_connection(server: Scripted, kind: str) -> None:
    """Where the body is as long as its caller says, nothing is different, for threads and for tasks."""
    with PoolManager(retries=False, timeout=5, ledger=fewports.Ledger()) as http:
        for _ in range(2):
            http.request("POST", server.url + "/own", body=KINDS[kind](b"abc"), headers=OWN)
        assert server.accepted == 1
    with tasks("asyncio") as loop:
        for _ in range(2):
            loop.request("POST", server.url + "/own", body=KINDS[kind](b"abc"), headers=OWN)
        for headers in ({"Content-Length": "0"}, {"Transfer-Encoding": "chunked"}):
            loop.request("GET", server.url + "/none", headers=headers)
        assert server.accepted == 2


def test_a_connection_by_itself_connects_again(server: Scripted) -> None:
    """An HTTPConnection without a pool does so too, read by urllib3's own way or by ours."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    for level in (0, 1):
        connection.debuglevel = level
        connection.request("POST", "/own", body=SHORT, headers=OWN)
        assert connection.getresponse().data == b"/own"
        connection.request("GET", "/next")

        assert connection.getresponse().data == b"/next"
    connection.close()
    assert server.accepted == 3


def test_requests_sends_it_too(server: Scripted) -> None:
    """A body that is iterated, with a Content-Length; and one where there is none."""
    with Session(ledger=fewports.Ledger()) as session:
        for data in (iter([LONG]), iter([SHORT]), None):
            before = server.accepted
            session.post(server.url + "/own", data=data, headers=OWN)

            assert session.get(server.url + "/next").content == b"/next"
            assert server.accepted == before + (2 if before == 0 else 1)


@pytest.mark.parametrize("way", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [LONG, SHORT], ids=["long", "short"])
def test_tasks_refuse_it(server: Scripted, seen: list[bytes], way: str, kind: str, data: bytes) -> None:
    """AsyncPoolManager raises LocalProtocolError: of a body that is at hand nothing is sent, and never a surplus."""
    with tasks(way) as http:
        http.request("GET", server.url + "/before")
        with pytest.raises(LocalProtocolError, match="Content-Length says 3"):
            http.request("POST", server.url + "/own", body=KINDS[kind](data), headers=OWN)

        assert http.request("GET", server.url + "/next").data == b"/next"
        assert b"get /not-asked http/1.1" not in seen
        if kind in ("bytes", "str", "nothing"):
            assert seen == [b"get /before http/1.1", b"get /next http/1.1"]
            assert server.accepted == 1


@pytest.mark.parametrize("kind", ["bytes", "str", "file", "generator", "nothing"])
@pytest.mark.parametrize("data", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("way", ["threads", "asyncio", "trio"])
def test_over_http2_it_is_refused(way: str, kind: str, data: bytes) -> None:
    """HTTP/2 knows where a body ends: a server would have to reset the stream. Others on the connection go on."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(fresh_h2(tls=True))
        http: Any
        if way == "threads":
            http = PoolManager(retries=False, ledger=fewports.Ledger(), ca_certs=server.ca_path)
            stack.callback(http.clear)
        else:
            http = stack.enter_context(tasks(way, ca_certs=server.ca_path))
        http.request("GET", server.url + "/hello")
        with pytest.raises(LocalProtocolError):
            http.request("POST", server.url + "/echo", body=KINDS[kind](data), headers=OWN)

        assert http.request("POST", server.url + "/echo", body=b"abc", headers=OWN).data == b"abc"
        assert server.stats()["accepted"] == 1
