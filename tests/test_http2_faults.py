"""What servers do wrong over HTTP/2, each against a real socket: a clear error in time, and nothing held after it."""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3
from faces import Aside, counts, fresh_server, until
from http2_faces import PATIENT, SHORT, Client, Script, each_way, manager, serving, talking
from http2_peer import (
    CONTINUATION,
    END_HEADERS,
    HEADERS,
    OK,
    PING,
    PRIORITY,
    PUSH,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    data,
    frame,
    goaway,
    head,
    rst,
    settings,
    window,
)
from support.scripted_h2 import H2Peer, ScriptedH2
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError, TimeoutError

import fewports
import fewports.requests
from fewports.aio import http2 as aio_http2
from fewports.sync import shared

__all__ = ["each_way"]
pytestmark = pytest.mark.usefixtures("each_way")

PROTOCOL, INTERNAL, FLOW, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION, CALM = 1, 2, 3, 5, 6, 7, 8, 9, 11
FLOOD = 30_000  # frames; the client gives up long before
TOTAL = urllib3.Timeout(total=SHORT)
LATE = 3.0  # seconds that a busy machine may take; who waits for the peer waits for longer

Fault = Callable[[H2Peer, int], None]  # what the server does to the request on that stream


def once(fault: Fault, noted: list[int | None], **values: int) -> Script:
    """Greet with *values*, do *fault* to the first request, and note the code with which the client leaves."""

    def script(peer: H2Peer) -> None:
        peer.greet(**values)
        stream = peer.request().stream
        with contextlib.suppress(ConnectionError):  # the client has had enough; what it said is still to be read
            fault(peer, stream)
        if peer.peer.sock.fileno() >= 0:
            noted.append(peer.end())

    return script


def flood(*pieces: bytes) -> Fault:
    """Send *pieces* again and again, until the client closes or there were very many."""

    def fault(peer: H2Peer, stream: int) -> None:
        many = b"".join(pieces) * 100
        for _ in range(FLOOD // 100):
            peer.send(many)

    return fault


def reset_flood(peer: H2Peer, stream: int) -> None:
    peer.send(head(stream), rst(stream, CANCEL))
    flood(rst(stream, CANCEL))(peer, stream)


def empty_data_flood(peer: H2Peer, stream: int) -> None:
    peer.send(head(stream))
    flood(data(stream))(peer, stream)


def continuation_flood(peer: H2Peer, stream: int) -> None:
    peer.send(frame(HEADERS, 0, stream, block()))
    flood(frame(CONTINUATION, 0, stream, block([("x", "y")])))(peer, stream)


def push(peer: H2Peer, stream: int) -> None:
    promised = (2).to_bytes(4, "big") + block([(":method", "GET"), (":scheme", "http"), (":path", "/")])
    peer.send(frame(PUSH, END_HEADERS, stream, promised))


def end_in_mid_head(peer: H2Peer, stream: int) -> None:
    peer.send(head(stream)[:5])
    peer.peer.sock.shutdown(socket.SHUT_WR)


def end_in_mid_body(peer: H2Peer, stream: int) -> None:
    peer.send(head(stream), data(stream, b"x"))
    peer.peer.sock.shutdown(socket.SHUT_WR)


def tcp_reset(peer: H2Peer, stream: int) -> None:
    peer.peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.peer.sock.close()


# What ends the whole connection, and the codes of the GOAWAY that may say so; None where there need not be one.
FATAL: dict[str, tuple[Fault, tuple[int | None, ...]]] = {
    "push": (push, (PROTOCOL,)),
    "a frame too large": (lambda peer, stream: peer.send(frame(0, 0, stream, bytes(16385))), (SIZE,)),
    "SETTINGS on a stream": (lambda peer, stream: peer.send(frame(SETTINGS, 0, stream)), (PROTOCOL,)),
    "SETTINGS of 5 bytes": (lambda peer, stream: peer.send(frame(SETTINGS, 0, 0, bytes(5))), (SIZE,)),
    "a window beyond the largest": (lambda peer, stream: peer.send(settings(window=1 << 31)), (FLOW, PROTOCOL)),
    "connection window overflow": (
        lambda peer, stream: peer.send(window(0, 0x7FFFFFFF), window(0, 0x7FFFFFFF)),
        (FLOW, PROTOCOL),
    ),
    "window update of 0": (lambda peer, stream: peer.send(window(0, 0)), (PROTOCOL,)),
    "DATA on stream 0": (lambda peer, stream: peer.send(data(0, b"x")), (PROTOCOL,)),
    "HEADERS on a stream never opened": (lambda peer, stream: peer.send(head(stream + 100)), (PROTOCOL, CLOSED)),
    "HEADERS on an even stream": (lambda peer, stream: peer.send(head(2)), (PROTOCOL, CLOSED)),
    "CONTINUATION of nothing": (lambda peer, stream: peer.send(frame(CONTINUATION, 4, stream, block())), (PROTOCOL,)),
    "a header block cut by another frame": (
        lambda peer, stream: peer.send(frame(HEADERS, 0, stream, block()), frame(PING, 0, 0, bytes(8))),
        (PROTOCOL,),
    ),
    "HPACK garbage": (
        lambda peer, stream: peer.send(frame(HEADERS, END_HEADERS, stream, b"\xff" * 20)),
        (COMPRESSION,),
    ),
    "bytes of no protocol": (
        lambda peer, stream: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        (None, SIZE, PROTOCOL),
    ),
    "PING flood": (flood(frame(PING, 0, 0, bytes(8))), (CALM,)),
    "PING answers flood": (flood(frame(PING, 1, 0, bytes(8))), (CALM, PROTOCOL)),
    "SETTINGS flood": (flood(frame(SETTINGS)), (CALM,)),
    "SETTINGS flood that changes windows": (flood(settings(window=10), settings(window=100_000)), (CALM,)),
    "PRIORITY flood": (flood(frame(PRIORITY, 0, 1, bytes(5))), (CALM,)),
    "unknown frames flood": (flood(frame(99, 0, 0, b"x")), (CALM,)),
    "WINDOW_UPDATE flood": (flood(window(0, 1)), (CALM,)),
    "RST_STREAM flood": (reset_flood, (CALM, CLOSED, PROTOCOL)),
    "empty DATA flood": (empty_data_flood, (CALM,)),
    "CONTINUATION flood": (continuation_flood, (CALM, PROTOCOL)),
    "the end": (lambda peer, stream: peer.peer.sock.close(), (None,)),
    "the end in mid-head": (end_in_mid_head, (None, PROTOCOL)),
    "the end in mid-body": (end_in_mid_body, (None, 0, PROTOCOL)),
    "a TCP reset": (tcp_reset, (None,)),
}


def next_request(made: Client) -> object:
    """Make the request after a fault, which must not know of it."""
    return made.get("/after").data


@pytest.mark.parametrize("case", FATAL)
def test_a_fault_of_the_connection(case: str) -> None:
    """The request ends with an error of urllib3, the peer is told why, and the next request dials anew."""
    fault, codes = FATAL[case]
    noted: list[int | None] = []
    # A POST: nobody may send it a second time.
    with talking(once(fault, noted), serving) as made:
        began = time.monotonic()
        with pytest.raises(HTTPError) as caught:
            assert made.request("POST", "/fault", body=b"x").data == b"never"

        assert time.monotonic() - began < 5
        assert not isinstance(caught.value, TimeoutError)
        assert str(caught.value)
        assert until(lambda: made.counts[:2] == (0, 0))
        assert next_request(made) == b"/after"
        assert made.opened == 2
        assert until(lambda: bool(noted) or case in ("the end", "a TCP reset"))
        if case not in ("the end", "a TCP reset"):
            assert noted[0] in codes


OVER_TLS = ["push", "a frame too large", "HPACK garbage", "bytes of no protocol", "PING flood", "SETTINGS flood"]
OVER_TLS += ["empty DATA flood", "CONTINUATION flood", "RST_STREAM flood", "the end", "a TCP reset"]


@pytest.mark.parametrize("case", OVER_TLS)
def test_a_fault_of_the_connection_over_tls(case: str) -> None:
    """The same over TLS, where a connection can be in the middle of a record."""
    fault, codes = FATAL[case]
    noted: list[int | None] = []
    with talking(once(fault, noted), serving, tls=True) as made:
        began = time.monotonic()
        with pytest.raises(HTTPError) as caught:
            assert made.request("POST", "/fault", body=b"x").data == b"never"

        assert time.monotonic() - began < 5
        assert not isinstance(caught.value, TimeoutError)
        assert until(lambda: made.counts[:2] == (0, 0))
        assert next_request(made) == b"/after"
        assert made.opened == 2
        assert until(lambda: bool(noted) or case in ("the end", "a TCP reset"))
        if case not in ("the end", "a TCP reset"):
            assert noted[0] in codes


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_who_reads_late_is_told_what_was_wrong(tls: bool) -> None:
    """A server that reads only after its flood finds the code, though there was no room for the answers before it."""
    failed = threading.Event()
    noted: list[int | None] = []

    def script(peer: H2Peer) -> None:
        peer.greet()
        peer.request()
        peer.send(*[frame(PING, 0, 0, bytes(8))] * 12_000)
        assert failed.wait(10)
        noted.append(peer.end())

    with talking(script, serving, tls=tls) as made:
        with pytest.raises(ProtocolError):
            made.request("POST", "/fault", body=b"x")
        failed.set()

        assert next_request(made) == b"/after"
        assert until(lambda: bool(noted))
        assert noted == [CALM]


def test_who_stays_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that broke a rule, and neither reads nor closes, is left in a moment, for which nobody waits."""
    linger = 0.6
    monkeypatch.setattr(shared, "LINGER", linger)
    monkeypatch.setattr(aio_http2, "LINGER", linger)
    done = threading.Event()

    def script(peer: H2Peer) -> None:
        peer.greet()
        push(peer, peer.request().stream)
        done.wait(10)

    with talking(script, serving) as made:
        began = time.monotonic()
        with pytest.raises(ProtocolError):
            made.request("POST", "/fault", body=b"x")
        assert next_request(made) == b"/after"

        assert time.monotonic() - began < linger
        assert until(lambda: made.counts[:2] == (0, 1))
        assert time.monotonic() - began >= linger
        done.set()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("push", requests.ConnectionError),
        ("PING flood", requests.ConnectionError),
        ("the end", requests.ConnectionError),
        ("the end in mid-body", requests.exceptions.ChunkedEncodingError),
    ],
)
def test_faults_as_requests_tells_them(case: str, expected: type[Exception]) -> None:
    """Through a Session of requests the errors are those of requests, and nothing is held after them."""
    fault, _ = FATAL[case]
    book = fewports.Ledger()
    with (
        ScriptedH2(once(fault, []), serving) as server,
        fewports.requests.Session(ledger=book, http2=True) as session,
    ):
        with pytest.raises(expected):
            session.post(server.url, data=b"x", timeout=PATIENT)

        assert until(lambda: counts(book)[:2] == (0, 0))
        assert session.get(server.url + "/after", timeout=PATIENT).content == b"/after"


def read_in_tens(response: Any) -> None:
    while response.read(10):
        pass


def read_into_tens(response: Any) -> None:
    while response.readinto(bytearray(10)):
        pass


WAYS: dict[str, Callable[[Any], object]] = {
    "data": lambda response: response.data,
    "read": lambda response: response.read(),
    "read(n)": read_in_tens,
    "readinto": read_into_tens,
    "stream": lambda response: list(response.stream(10)),
    "stream, as it comes": lambda response: list(response.stream(None)),
    "iteration": list,
}


@pytest.mark.parametrize("fault", ["the end", "RST_STREAM"])
@pytest.mark.parametrize("length", [False, True], ids=["no length", "length"])
@pytest.mark.parametrize("way", WAYS)
def test_a_body_cut_short_is_never_taken_for_whole(fault: str, length: bool, way: str) -> None:
    """Only END_STREAM ends a body: however it is read, one that ends otherwise raises, with a length or without."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        fields = [(":status", "200"), *([("content-length", "100")] if length else [])]
        peer.send(head(stream, *fields), data(stream, b"x" * 25))
        if fault == "the end":
            peer.peer.sock.shutdown(socket.SHUT_WR)
        else:
            peer.send(rst(stream, INTERNAL))
        peer.end()

    with talking(script) as made:
        response = made.get("/", preload_content=False)
        with pytest.raises(ProtocolError):
            WAYS[way](response)

        assert until(lambda: made.counts[0] == 0)


def test_a_time_out_as_requests_tells_it() -> None:
    """A response that does not come is a ReadTimeout; the connection goes on for others."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        peer.request()
        peer.serve()

    book = fewports.Ledger()
    with ScriptedH2(script) as server, fewports.requests.Session(ledger=book, http2=True) as session:
        with pytest.raises(requests.ReadTimeout):
            session.get(server.url, timeout=SHORT)

        assert session.get(server.url + "/after", timeout=PATIENT).content == b"/after"
        assert server.accepted == 1


@pytest.mark.parametrize("case", ["the end in mid-body", "PING flood", "push", "HPACK garbage"])
def test_a_fault_ends_all_on_the_connection_and_no_other(case: str) -> None:
    """All ten callers of the connection get an error, each its own; a response from elsewhere is read on."""
    fault, _ = FATAL[case]

    def script(peer: H2Peer) -> None:
        peer.greet()
        asked = peer.requests(10)
        with contextlib.suppress(ConnectionError):
            fault(peer, asked[0].stream)
        peer.end()

    with fresh_server() as elsewhere, talking(script) as made:
        other = fewports_manager(made)
        with other.request("GET", elsewhere.url + "/bytes?n=2000000", preload_content=False) as response:
            response.read(10)
            asides = [Aside(lambda: made.request("POST", "/", body=b"x")) for _ in range(10)]
            raised = []
            for aside in asides:
                with pytest.raises(HTTPError) as caught:
                    aside.result()
                raised.append(caught.value)

            assert len({id(error) for error in raised}) == 10
            assert len(response.read()) == 2_000_000 - 10
        other.clear()


def fewports_manager(made: Client) -> Any:
    """Return a manager for HTTP/1.1 that shares the ledger of *made*."""
    return manager(ledger=made.book, http2=False)


def header_bomb(peer: H2Peer, stream: int) -> None:
    """Send 16 KiB that stand for more than 16 MB: one field in the table, referred to again and again."""
    value = b"x" * 4000
    field = b"\x40\x01a\x7f" + bytes([(len(value) - 127) & 0x7F | 0x80, (len(value) - 127) >> 7]) + value
    peer.send(frame(HEADERS, END_HEADERS, stream, block(OK) + field + b"\xbe" * 4000))


def large_fields(peer: H2Peer, stream: int) -> None:
    """Send a header list of 200,000 bytes, in as many frames as it takes."""
    whole = block([*OK, *((f"x-{number}", "y" * 1000) for number in range(200))])
    pieces = [whole[at : at + 16000] for at in range(0, len(whole), 16000)]
    peer.send(frame(HEADERS, 0, stream, pieces[0]))
    for number, piece in enumerate(pieces[1:], 2):
        peer.send(frame(CONTINUATION, END_HEADERS if number == len(pieces) else 0, stream, piece))


def short(peer: H2Peer, stream: int) -> None:
    peer.send(head(stream, (":status", "200"), ("content-length", "10")), data(stream, b"x", end=True))


def long(peer: H2Peer, stream: int) -> None:
    peer.send(head(stream, (":status", "200"), ("content-length", "1")), data(stream, b"xyz", end=True))


def endless_interim(peer: H2Peer, stream: int) -> None:
    peer.send(*(head(stream, (":status", "103"), ("link", "</x>")) for _ in range(2000)))


def stream_window(peer: H2Peer, stream: int) -> None:
    peer.send(window(stream, 0x7FFFFFFF), window(stream, 0x7FFFFFFF))


def with_fields(*fields: tuple[str, str]) -> Fault:
    return lambda peer, stream: peer.send(head(stream, *fields), data(stream, b"x", end=True))


# What ends one stream and leaves its connection to the others.
OF_STREAM: dict[str, Fault] = {
    "RST_STREAM in place of a head": lambda peer, stream: peer.send(rst(stream, INTERNAL)),
    "RST_STREAM, cancelled": lambda peer, stream: peer.send(rst(stream, CANCEL)),
    "RST_STREAM, to be calm": lambda peer, stream: peer.send(rst(stream, CALM)),
    "RST_STREAM, HTTP/1.1 required": lambda peer, stream: peer.send(rst(stream, 13)),
    "RST_STREAM with an unknown code": lambda peer, stream: peer.send(rst(stream, 0xBEEF)),
    "RST_STREAM in mid-body": lambda peer, stream: peer.send(head(stream), data(stream, b"x"), rst(stream, INTERNAL)),
    "less than announced": short,
    "more than announced": long,
    "endless 1xx": endless_interim,
    "a header bomb": header_bomb,
    "a large header list": large_fields,
    "DATA before the head": lambda peer, stream: peer.send(data(stream, b"x", end=True)),
    "stream window overflow": stream_window,
    "stream window update of 0": lambda peer, stream: peer.send(window(stream, 0)),
    "no status": with_fields(("x", "y")),
    "two statuses": with_fields((":status", "200"), (":status", "204")),
    "a status of letters": with_fields((":status", "two")),
    "a pseudo-header field of requests": with_fields((":status", "200"), (":path", "/")),
    "a pseudo-header field after others": with_fields(("x", "y"), (":status", "200")),
    "an upper-case name": with_fields((":status", "200"), ("X-Some", "y")),
    "a field of the connection": with_fields((":status", "200"), ("connection", "close")),
    "transfer-encoding": with_fields((":status", "200"), ("transfer-encoding", "chunked")),
    "a line break in a value": with_fields((":status", "200"), ("x", "y\r\nz: w")),
    "two lengths": with_fields((":status", "200"), ("content-length", "1"), ("content-length", "2")),
    "status 101": with_fields((":status", "101")),
    "a second head": lambda peer, stream: peer.send(head(stream), head(stream), data(stream, b"x", end=True)),
    "a trailer that does not end": lambda peer, stream: peer.send(
        head(stream), data(stream, b"x"), head(stream, ("x", "y"))
    ),
}
# Which of them the RFC lets a client take for an error of the connection.
EITHER = {
    "a header bomb",
    "a large header list",
    "endless 1xx",
}


@pytest.mark.parametrize("case", OF_STREAM)
def test_a_fault_of_one_stream(case: str) -> None:
    """The request ends with an error; a sibling on the connection is served, and so is the next request."""

    def script(peer: H2Peer) -> None:
        peer.greet(streams=2)
        first, second = sorted(peer.requests(2), key=lambda asked: asked.path)
        OF_STREAM[case](peer, first.stream)
        with contextlib.suppress(ConnectionError):
            peer.send(head(second.stream), data(second.stream, b"sibling", end=True))
        peer.serve()

    with talking(script, serving) as made:
        sibling = Aside(lambda: made.request("POST", "/sibling", body=b"x").data)
        with pytest.raises(HTTPError) as caught:
            assert made.request("POST", "/fault", body=b"x").data == b"never"

        assert not isinstance(caught.value, TimeoutError)
        if case in EITHER:
            with contextlib.suppress(HTTPError):
                sibling.result()
        else:
            assert sibling.result() == b"sibling"
        assert [next_request(made) for _ in range(3)] == [b"/after"] * 3
        # Two at once: the place of the stream that failed is free again.
        again = [Aside(lambda: next_request(made)) for _ in range(2)]
        assert [aside.result() for aside in again] == [b"/after"] * 2
        assert made.opened == 1 or case in EITHER


# What looks like a fault and is none.
HARMLESS: dict[str, Callable[[int], bytes]] = {
    "an unknown frame": lambda stream: frame(99, 0xFF, stream, b"whatever"),
    "an unknown setting": lambda stream: frame(SETTINGS, 0, 0, b"\0\x99\0\0\0\1"),
    "PRIORITY": lambda stream: frame(PRIORITY, 0, stream, bytes(5)),
    "103, 102 and 100": lambda stream: b"".join(head(stream, (":status", code)) for code in ("103", "102", "100")),
    "a PING": lambda stream: frame(PING, 0, 0, b"12345678"),
    "padding": lambda stream: frame(HEADERS, END_HEADERS | 8, stream, b"\3" + block([(":status", "103")]) + bytes(3)),
    "reserved bits": lambda stream: frame(99, 0, stream | 0x80000000),
    "a window update on a stream that is gone": lambda stream: window(stream, 1),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_allowed_disturbs_nobody(case: str) -> None:
    """The response that follows is the caller's, on a connection that goes on."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        for _ in range(3):
            asked = peer.request()
            peer.send(HARMLESS[case](asked.stream))
            peer.answer(asked.stream)
        peer.end()

    with talking(script) as made:
        assert [made.get("/").data for _ in range(3)] == [b"ok"] * 3


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("middle", [False, True], ids=["between requests", "in mid-body"])
def test_a_connection_that_ends_without_a_word(tls: bool, middle: bool) -> None:
    """Without GOAWAY or close_notify: an error for a body cut short, and nothing at all for an idle connection."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        asked = peer.request()
        if middle:
            peer.send(head(asked.stream), data(asked.stream, b"x"))
        else:
            peer.answer(asked.stream)
            peer.quiet(0.05)
        peer.peer.sock.close()

    with talking(script, serving, tls=tls) as made:
        if middle:
            with pytest.raises(ProtocolError):
                made.get("/")
        else:
            assert made.get("/").data == b"ok"
            assert until(lambda: made.counts[1] == 0, 3)
        assert made.request("POST", "/after", body=b"x").data == b"/after"
        assert made.opened == 2


# Deadlines.


def forever(pieces: Callable[[int, int], bytes], pause: float = 0.02) -> Script:
    """Answer the first request with the pieces number 0, 1, ... for as long as the client stays."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        number = 0
        while not (peer.closed or peer.resets or peer.goodbye is not None):
            peer.send(pieces(stream, number))
            peer.quiet(pause)
            number += 1

    return script


DRIPS: dict[str, Callable[[int, int], bytes]] = {
    "nothing": lambda stream, number: b"",
    "a PING": lambda stream, number: frame(PING, 0, 0, bytes(8)),
    "SETTINGS": lambda stream, number: frame(SETTINGS),
    "a window": lambda stream, number: window(0, 1),
    "an unknown frame": lambda stream, number: frame(99),
    "1xx": lambda stream, number: head(stream, (":status", "103")),
    "a head, byte by byte": lambda stream, number: head(stream, *((f"x-{n}", "y") for n in range(99)))[number:][:1],
}


@pytest.mark.parametrize("case", DRIPS)
def test_a_deadline_holds_against_a_server_that_drips(case: str) -> None:
    """Timeout(total=...) ends the request in time, whatever comes meanwhile that is not its response."""
    with talking(forever(DRIPS[case])) as made:
        began = time.monotonic()
        with pytest.raises((ReadTimeoutError, ProtocolError)):
            made.get("/", timeout=TOTAL)

        assert SHORT * 0.9 < time.monotonic() - began < SHORT + LATE
        assert made.counts[0] == 0


@pytest.mark.parametrize("case", [name for name in DRIPS if name not in ("1xx", "a head, byte by byte")])
def test_a_read_time_out_is_not_put_off(case: str) -> None:
    """A read time-out counts from the last byte of the own stream: frames of the connection do not put it off."""
    with talking(forever(DRIPS[case])) as made:
        began = time.monotonic()
        with pytest.raises(ReadTimeoutError):
            made.get("/", timeout=urllib3.Timeout(connect=5, read=SHORT))

        assert SHORT * 0.9 < time.monotonic() - began < SHORT + LATE


@pytest.mark.parametrize("empty", [False, True], ids=["bytes", "empty DATA"])
def test_a_deadline_holds_for_the_body(empty: bool) -> None:
    """A body that drips is cut off at the deadline of its request, too."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        peer.send(head(stream))
        while not (peer.closed or peer.resets or peer.goodbye is not None):
            peer.send(data(stream, b"" if empty else b"x"))
            peer.quiet(0.02)

    with talking(script) as made:
        began = time.monotonic()
        with pytest.raises(HTTPError):
            made.get("/", timeout=TOTAL)

        assert time.monotonic() - began < SHORT + LATE
        assert made.counts[0] == 0


def test_deadlines_of_callers_are_apart() -> None:
    """Six callers with six deadlines on one connection each leave at their own, while a seventh is served."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        asked = peer.requests(7)
        served = next(one for one in asked if one.path == "/served")
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            peer.send(frame(PING, 0, 0, bytes(8)))
            peer.quiet(0.01)
        peer.answer(served.stream, b"served")
        peer.serve()

    def ask(made: Client, limit: float) -> float:
        began = time.monotonic()
        with pytest.raises(ReadTimeoutError):
            made.get("/", timeout=urllib3.Timeout(total=limit))
        return time.monotonic() - began - limit

    with talking(script) as made:
        served = Aside(lambda: made.get("/served").data)
        asides = [Aside(lambda limit=limit: ask(made, limit)) for limit in (0.2, 0.3, 0.4, 0.5, 0.6, 1.7)]
        late = [aside.result() for aside in asides]

        assert all(isinstance(one, float) and -0.05 < one < 1.0 for one in late), late
        assert served.result() == b"served"
        assert made.get("/after").data == b"/after"
        assert made.opened == 1


def test_a_server_that_never_greets() -> None:
    """A server that accepts and says nothing costs the time-out, and its port is given back."""

    def script(peer: H2Peer) -> None:
        peer.peer.end()

    with talking(script) as made:
        began = time.monotonic()
        with pytest.raises(HTTPError):
            made.get("/", timeout=SHORT)

        assert time.monotonic() - began < SHORT + LATE


def test_a_server_that_reads_no_more() -> None:
    """An upload that the server does not read ends by its time-out; a sibling is answered meanwhile."""

    def script(peer: H2Peer) -> None:
        peer.greet(window=(1 << 31) - 1)
        peer.send(window(0, 1 << 30))
        _, quick = sorted(peer.requests(2), key=lambda asked: asked.whole)
        # Nothing is read from here on: 50 MB fill the buffers of both ends.
        time.sleep(SHORT)
        peer.answer(quick.stream, b"quick")
        time.sleep(2.0)

    with talking(script) as made:
        upload = Aside(
            lambda: made.request("POST", "/", body=bytes(50_000_000), timeout=urllib3.Timeout(connect=5, total=2.0))
        )
        time.sleep(0.05)  # the upload is first
        began = time.monotonic()

        assert made.get("/quick").data == b"quick"
        assert time.monotonic() - began < SHORT + 1.3  # and not after the upload
        with pytest.raises(HTTPError):
            upload.result()


def test_a_connection_that_is_dead_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that answers nothing any more, no PING either, costs some time-outs at most: then a new one is dialled.

    Those who wait have each less patience than the connection has with its peer.
    """
    for module in (shared, aio_http2):
        monkeypatch.setattr(module, "QUIET", 0.5)
        monkeypatch.setattr(module, "ANSWER", 0.5)

    def silent(peer: H2Peer) -> None:
        peer.greet()
        asked = peer.request()
        peer.answer(asked.stream)
        peer.polite = False
        peer.end()

    with talking(silent, serving) as made:
        assert made.get("/").data == b"ok"
        told: list[object] = []
        deadline = time.monotonic() + PATIENT
        while not told and time.monotonic() < deadline:
            try:
                told.append(made.get("/again", timeout=SHORT).data)
            except ReadTimeoutError:
                continue

        assert told == [b"/again"]


# Settings that change in flight.


def test_a_limit_of_no_streams_holds_requests_back() -> None:
    """With MAX_CONCURRENT_STREAMS lowered to 0 nothing is sent; raised again, those who wait are served."""

    lowered = threading.Event()

    def script(peer: H2Peer) -> None:
        peer.greet(streams=10)
        held = peer.request()
        peer.change(streams=0)
        lowered.set()
        assert not [one for one in peer.quiet(SHORT) if one.kind == HEADERS]
        peer.answer(held.stream)
        assert not [one for one in peer.quiet(SHORT) if one.kind == HEADERS]
        peer.send(settings(streams=2))
        peer.serve()

    with talking(script, budget=1) as made:
        held = Aside(lambda: made.get("/").data)
        assert lowered.wait(PATIENT)
        asides = [Aside(lambda: made.get("/waited").data) for _ in range(5)]

        assert held.result() == b"ok"
        assert [aside.result() for aside in asides] == [b"/waited"] * 5
        assert made.opened == 1


def test_a_limit_that_is_lowered_in_flight() -> None:
    """From 10 streams to 2 while 10 run: those end as they were begun, then never more than 2 run at once."""
    most = [0]

    def script(peer: H2Peer) -> None:
        peer.greet(streams=10)
        asked = peer.requests(10)
        peer.change(streams=2)
        for one in asked:
            peer.answer(one.stream)
        for _ in range(5):
            two = peer.requests(2)
            extra = [found for found in peer.quiet(0.05) if found.kind == HEADERS]
            most[0] = max(most[0], 2 + len(extra))
            for one in two:
                peer.answer(one.stream)
        peer.end()

    with talking(script, budget=1) as made:
        asides = [Aside(lambda: made.get("/").data) for _ in range(20)]

        assert [aside.result() for aside in asides] == [b"ok"] * 20
        assert most == [2]
        assert made.opened == 1


def test_windows_that_become_negative() -> None:
    """An upload waits while INITIAL_WINDOW_SIZE is lowered below what was sent, and goes on when there is room."""
    whole = bytes(range(256)) * 400  # 102,400 bytes
    got: list[bytes] = []

    def script(peer: H2Peer) -> None:
        peer.generous = False
        peer.greet(window=65535)
        stream = peer.request().stream
        while len(peer.bodies.get(stream, b"")) < 65535:
            assert peer.frame()
        peer.send(window(0, 1_000_000))
        peer.change(window=0)
        peer.send(window(stream, 65535))  # from -65,535 to 0
        assert not [one for one in peer.quiet(0.1) if one.kind == 0 and one.payload]
        peer.send(window(stream, 20_000), settings(window=50_000))
        got.append(peer.body(stream))
        peer.answer(stream)
        peer.end()

    with talking(script) as made:
        assert made.request("POST", "/", body=whole).data == b"ok"

    assert got == [whole]


def test_an_answer_before_the_end_of_an_upload() -> None:
    """A server that has answered and wants no more of the body (RST_STREAM, NO_ERROR) is heard."""

    def script(peer: H2Peer) -> None:
        peer.generous = False
        peer.greet()
        stream = peer.request().stream
        peer.send(head(stream, (":status", "413")), data(stream, b"too much", end=True), rst(stream, 0))
        peer.serve()

    with talking(script) as made:
        response = made.request("POST", "/", body=bytes(1_000_000))

        assert (response.status, response.data) == (413, b"too much")
        assert made.get("/after").data == b"/after"
        assert made.opened == 1


# What the client sends.


def stream_window_of(peer: H2Peer) -> int:
    """Return what the client lets a stream send at first."""
    pairs = [
        one.payload[at : at + 6] for one in peer.seen if one.kind == SETTINGS for at in range(0, len(one.payload), 6)
    ]
    return next((int.from_bytes(pair[2:], "big") for pair in pairs if pair[:2] == b"\0\4"), 65535)


def credit(peer: H2Peer, stream: int) -> int:
    """Return by how many bytes the client has opened a window, so far."""
    return sum(int.from_bytes(one.payload, "big") for one in peer.seen if one[:3:2] == (WINDOW_UPDATE, stream))


def test_a_caller_who_leaves_tells_the_server() -> None:
    """Close in mid-body sends RST_STREAM with CANCEL; what still comes is read over, and its window given back."""
    codes: list[int] = []

    def script(peer: H2Peer) -> None:
        peer.greet()
        sent = 0
        for _ in range(8):  # together more than the connection's window
            stream = peer.request().stream
            peer.send(head(stream), data(stream, bytes(1000)))
            peer.until(RST_STREAM, stream)
            codes.append(peer.resets[stream])
            late = stream_window_of(peer) - 1000
            sent += 1000 + late
            while late:
                peer.send(data(stream, bytes(size := min(16384, late))))
                late -= size
            peer.answer(peer.request().stream)
            assert sent < 65535 + credit(peer, 0)
        peer.end()

    with talking(script) as made:
        for _ in range(8):
            response = made.get("/", preload_content=False)
            assert response.read(10) == bytes(10)
            response.close()
            assert made.get("/after").data == b"ok"
        assert made.opened == 1

    assert codes == [CANCEL] * 8


def test_more_than_the_window_lets_through() -> None:
    """A server that sends more than it may, to a caller who does not read, is told so, and the caller gets an error."""
    told: list[tuple[int | None, set[int]]] = []

    def script(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        peer.send(head(stream))
        with contextlib.suppress(ConnectionError):
            for _ in range(stream_window_of(peer) // 16384 + 1):
                peer.send(data(stream, bytes(16384)))
            peer.serve()
        peer.end()
        told.append((peer.goodbye, set(peer.resets.values())))

    with talking(script, serving) as made:
        response = made.get("/", preload_content=False)
        with contextlib.suppress(HTTPError):
            made.get("/reads meanwhile", timeout=2)
        with pytest.raises(HTTPError):
            response.read()
        assert made.get("/after").data == b"/after"

    ((goodbye, resets),) = told
    assert goodbye == FLOW or FLOW in resets


def test_an_unread_response_takes_bounded_memory() -> None:
    """A caller that does not read lets some megabytes come, no more; a sibling is not held up by that."""
    taken: list[int] = []

    def script(peer: H2Peer) -> None:
        peer.greet()
        stream = peer.request().stream
        peer.send(head(stream))
        peer.quiet(0.05)
        initial = stream_window_of(peer)
        sent, allowed = 0, initial
        while sent < allowed:
            size = min(16384, allowed - sent)
            peer.send(data(stream, bytes(size)))
            sent += size
            if sent % (1 << 20) == 0 or sent == allowed:
                peer.quiet(0.02)
                allowed = initial + credit(peer, stream)
        taken.append(sent)
        peer.serve()

    with talking(script) as made:
        response = made.get("/", preload_content=False)
        assert made.get("/sibling").data == b"/sibling"
        assert made.opened == 1
        response.close()

    assert 65535 <= taken[0] <= 16 << 20


def test_what_a_request_looks_like() -> None:
    """Pseudo-header fields first, names in lower case, the port in :authority where it is no default, no Host."""
    noted: list[list[tuple[str, str]]] = []

    def script(peer: H2Peer) -> None:
        peer.greet()
        for _ in range(2):
            asked = peer.request()
            noted.append(list(asked.fields.items()))
            peer.answer(asked.stream)
        peer.end()

    with talking(script) as made:
        made.get("/a b?c=d#fragment", headers={"X-Some": " thing ", "Host": "other.test", "Connection": "x-gone"})
        made.get("/", headers={"Accept": "*/*"})
        where = made.url.partition("//")[2]

    first, second = noted
    assert [name for name, _ in first[:4]] == [name for name, _ in second[:4]]
    assert {name for name, _ in first[:4]} == {":method", ":scheme", ":authority", ":path"}
    assert dict(first)[":path"] == "/a%20b?c=d"
    assert dict(first)[":authority"] == "other.test"
    assert dict(first)["x-some"] == "thing"
    assert dict(second)[":authority"] == where
    assert dict(second)["accept"] == "*/*"
    names = {name for name, _ in first + second}
    assert names.isdisjoint({"host", "connection", "X-Some"})


@pytest.mark.parametrize(
    "fields", [{"x": "a\r\nb: c"}, {"x\ny": "a"}, {":path": "/other"}, {"x": "a\0b"}, {"bad name": "x"}]
)
def test_what_must_not_be_sent(fields: dict[str, str]) -> None:
    """Fields that would break the request are refused before anything is sent, and the connection goes on."""
    with talking(serving) as made:
        assert made.get("/first").data == b"/first"
        with pytest.raises((HTTPError, ValueError)):
            made.get("/", headers=fields)

        assert made.get("/after").data == b"/after"
        assert made.opened == 1


def test_encoded_bodies_are_decoded() -> None:
    """Content-Encoding is urllib3's affair, as over HTTP/1.1."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        peer.answer(peer.request().stream, gzip.compress(b"plain" * 100), ("content-encoding", "gzip"))
        peer.end()

    with talking(script) as made:
        assert made.get("/").data == b"plain" * 100


def test_set_cookie_fields_stay_apart() -> None:
    """Two Set-Cookie fields are two in the headers."""

    def script(peer: H2Peer) -> None:
        peer.greet()
        peer.answer(peer.request().stream, b"", ("set-cookie", "a=1"), ("set-cookie", "b=2"))
        peer.end()

    with talking(script) as made:
        assert made.get("/").headers.getlist("Set-Cookie") == ["a=1", "b=2"]


def test_a_server_that_announces_its_end() -> None:
    """GOAWAY between requests: the next request goes to a new connection, and nobody notices."""

    def leaving(peer: H2Peer) -> None:
        peer.greet()
        asked = peer.request()
        peer.answer(asked.stream)
        peer.send(goaway(asked.stream))
        peer.end()

    with talking(leaving, serving) as made:
        assert made.get("/").data == b"ok"
        assert made.request("POST", "/after", body=b"x").data == b"/after"
        assert made.opened == 2
