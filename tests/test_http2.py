"""HTTP/2 as bytes: what each frame does to which stream, what may be sent, and what ends the connection."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable

import pytest
from h2.events import DataReceived, RequestReceived, StreamEnded, TrailersReceived
from h2.events import StreamReset as ResetReceived
from h2.settings import SettingCodes
from hpack import Encoder
from http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    OK,
    PADDED,
    PING,
    POST,
    PRIORITY,
    PUSH,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    block,
    data,
    frame,
    frames,
    goaway,
    greeted,
    head,
    kinds,
    opened,
    requests,
    rst,
    settings,
    window,
)

from fewports import http2
from fewports.errors import FewportsError, InvalidOption
from fewports.http2 import (
    Code,
    Connection,
    ConnectionFailed,
    LocalProtocolError,
    Malformed,
    ProtocolError,
    RemoteProtocolError,
    Seat,
    Stream,
    StreamReset,
    Unprocessed,
)
from fewports.http2 import connection as engine


@pytest.fixture(autouse=True)
def _ledgers_tell_the_truth() -> None:
    """Leave out what is done after other tests: no ledger is touched here, and the look at them takes 40 ms."""


def body(stream: Stream) -> bytes:
    return b"".join(iter(stream.take, b""))


def failure(connection: Connection, *pieces: bytes) -> tuple[Code | None, str]:
    """Return with which code the connection ends, and why; check that it did, and told the peer."""
    with pytest.raises(ConnectionFailed) as caught:
        connection.receive(b"".join(pieces))
    last = frames(connection.pending())[-1]
    with pytest.raises(ConnectionFailed) as again:
        connection.receive(b"")
    assert again.value is caught.value is connection.error
    assert (last[0], int.from_bytes(last[3][4:8], "big")) == (GOAWAY, caught.value.code)
    assert connection.reserve() is None
    assert connection.active == 0
    return caught.value.code, caught.value.what


# The beginning.


def test_preface() -> None:
    """The first bytes are the preface, SETTINGS without push, and a window of 16 MiB."""
    sent = Connection().pending()
    first, second = frames(sent)

    assert sent.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert first[:3] == (SETTINGS, 0, 0)
    assert b"\0\x02\0\0\0\0" in first[3]
    assert b"\0\x04" + http2.STREAM_WINDOW.to_bytes(4, "big") in first[3]
    assert second == (WINDOW_UPDATE, 0, 0, (http2.WINDOW - 65535).to_bytes(4, "big"))


def test_first_frame_must_be_settings() -> None:
    """A peer that does not begin with SETTINGS speaks something else."""
    assert failure(Connection(), frame(PING, 0, 0, b"12345678"))[0] == Code.PROTOCOL_ERROR
    assert failure(Connection(), frame(SETTINGS, 1))[0] == Code.PROTOCOL_ERROR
    assert failure(Connection(), b"HTTP/1.1 400 Bad Request\r\n\r\n")[0] == Code.FRAME_SIZE_ERROR


def test_requests_before_settings() -> None:
    """Requests need not wait for the peer's SETTINGS."""
    connection = Connection()
    stream = opened(connection)

    assert kinds(connection.pending()) == [SETTINGS, WINDOW_UPDATE, HEADERS]
    assert stream.sent


# An exchange.


@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_exchange(step: int) -> None:
    """Head, body and trailer of a response come out as they went in, in whatever pieces; the seat is free then."""
    connection = greeted()
    stream = opened(connection)
    sent = (
        head(1, (":status", "200"), ("content-type", "text/plain"), ("x", "\xe9\ta"), ("x", ""))
        + data(1, b"one")
        + data(1, b"two")
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("check", "sum"), ("content-length", "1")]))
    )
    for at in range(0, len(sent), step):
        connection.receive(sent[at : at + step])

    assert stream.head is not None
    assert stream.head.status == 200
    assert stream.head.fields == (("content-type", "text/plain"), ("x", "Ã©\ta"), ("x", ""))
    assert body(stream) == b"onetwo"
    assert stream.trailer == (("check", "sum"),)
    assert (stream.got, stream.buffered, stream.ended, stream.closed, stream.error) == (6, 0, True, True, None)
    assert connection.active == 0


def test_many_at_once() -> None:
    """Streams that answer in turns do not mix."""
    connection = greeted()
    streams = [opened(connection) for _ in range(3)]
    for part in (b"a", b"b"):
        for stream in reversed(streams):
            if part == b"a":
                connection.receive(head(stream.id))
            connection.receive(data(stream.id, part + b"%d" % stream.id, end=part == b"b"))

    assert [body(stream) for stream in streams] == [b"a1b1", b"a3b3", b"a5b5"]
    assert [stream.id for stream in streams] == [1, 3, 5]


def test_woken() -> None:
    """Whoever waits learns of its stream once, whatever happened to it; the others are left alone."""
    connection = greeted()
    streams = [opened(connection) for _ in range(3)]
    connection.receive(head(3) + data(3, b"x") + data(3, b"y") + head(5, end=True))

    assert connection.woken() == streams[1:]
    assert connection.woken() == []


def test_take_in_parts() -> None:
    """The body can be taken in parts of any size."""
    connection = greeted()
    stream = opened(connection)
    connection.receive(head(1) + data(1, b"x" * 3000) + data(1, b"abc") + data(1, b"def", end=True))

    assert [len(stream.take(1000)) for _ in range(3)] == [1000] * 3
    assert [stream.take(2), stream.take(0), stream.take(2), stream.take()] == [b"ab", b"", b"cd", b"ef"]
    assert (stream.take(), stream.buffered) == (b"", 0)


def test_small_pieces_share_memory() -> None:
    """A body that comes byte by byte does not cost an object for each."""
    connection = greeted()
    stream = opened(connection)
    connection.receive(head(1) + data(1, b"x") * 20_000)

    assert stream.buffered == 20_000
    assert len(stream._body) == 1
    assert body(stream) == b"x" * 20_000


def test_interim() -> None:
    """Heads with 1xx are counted and passed over; 100 is told."""
    connection = greeted()
    stream = opened(connection)
    connection.receive(head(1, (":status", "103"), ("link", "x")))
    assert (stream.interim, stream.continued, stream.head) == (1, False, None)
    connection.receive(head(1, (":status", "100")) + head(1, (":status", "204"), end=True))

    assert (stream.interim, stream.continued, stream.ended) == (2, True, True)


def test_endless_interim() -> None:
    """So many heads with 1xx end the stream, and only that."""
    connection = greeted()
    stream = opened(connection)
    other = opened(connection)
    connection.receive(head(1, (":status", "103")) * 21)

    assert isinstance(stream.error, Malformed)
    assert kinds(connection.pending())[-1] == RST_STREAM
    assert other.error is None
    assert connection.active == 1


def test_head_request() -> None:
    """A response to HEAD has a length and no body."""
    connection = greeted()
    stream = opened(connection, ((":method", "HEAD"), *GET[1:]))
    connection.receive(head(1, (":status", "200"), ("content-length", "5"), end=True))

    assert stream.head is not None
    assert (stream.ended, stream.head.length, stream.got) == (True, 5, 0)


def test_connect() -> None:
    """CONNECT has two pseudo-header fields, and its 2xx has no length."""
    connection = greeted()
    stream = opened(connection, ((":method", "CONNECT"), (":authority", "example.org:443")), end=False)
    connection.receive(head(1, (":status", "200"), ("content-length", "1")) + data(1, b"tunnel"))

    assert stream.send(b"hello") == 5
    assert stream.take() == b"tunnel"


# Requests.


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([], "method"),
        (GET[1:], "method"),
        ([(":method", "GE T"), *GET[1:]], "token"),
        ([GET[0], *GET[2:]], "scheme"),
        ([GET[0], (":scheme", "ht tp"), *GET[2:]], "scheme"),
        ([*GET[:2], GET[3]], "authority"),
        ([*GET[:2], (":authority", "u@h"), GET[3]], "authority"),
        ([*GET[:2], (":authority", ""), GET[3]], "authority"),
        (GET[:3], "path"),
        ([*GET[:3], (":path", "")], "path"),
        ([*GET[:3], (":path", "a")], "path"),
        ([*GET[:3], (":path", "*")], "path"),
        ([*GET[:3], (":path", "/a b")], "path"),
        ([*GET[:3], (":path", "/\xe9")], "path"),
        ([*GET, (":path", "/")], "twice"),
        ([*GET, (":protocol", "websocket")], "unknown"),
        ([*GET[:3], ("a", "b"), GET[3]], "after other"),
        ([(":method", "CONNECT"), *GET[1:]], "CONNECT"),
        ([*GET, ("", "x")], "no token"),
        ([*GET, ("a b", "x")], "no token"),
        ([*GET, ("a:", "x")], "no token"),
        ([*GET, ("\xe4", "x")], "not latin-1"),
        ([*GET, ("a", "\u20ac")], "not latin-1"),
        ([*GET, ("a", "x\r\nb: c")], "control"),
        ([*GET, ("a", "x\0")], "control"),
        ([*GET, ("Connection", "close")], "one connection"),
        ([*GET, ("keep-alive", "x")], "one connection"),
        ([*GET, ("proxy-connection", "x")], "one connection"),
        ([*GET, ("transfer-encoding", "chunked")], "one connection"),
        ([*GET, ("upgrade", "x")], "one connection"),
        ([*GET, ("te", "gzip")], "one connection"),
        ([*GET, ("host", "other.example")], "differ"),
        ([*GET, ("content-length", "1"), ("Content-Length", "1")], "one"),
        ([*GET, ("content-length", "x")], "number"),
        ([*GET, ("content-length", "-1")], "number"),
    ],
)
def test_bad_request(fields: list[tuple[str, str]], says: str) -> None:
    """What the RFC forbids in a request is not sent, and the seat stays for another try."""
    connection = greeted()
    seat = connection.reserve()
    assert seat is not None
    with pytest.raises(LocalProtocolError, match=says):
        seat.open(fields, end=False)

    assert (connection.pending(), connection.active) == (b"", 1)
    assert seat.open(GET, end=True).id == 1


def test_what_is_sent() -> None:
    """Names are sent in lower case, values without white space around them, secrets never indexed."""
    connection = Connection()
    fields = [*GET, ("Accept", " a\t"), (b"TE", b"trailers"), ("Authorization", "secret"), ("host", "example.org")]
    opened(connection, fields)
    opened(connection, [("content-length", 0) if name == "x" else (name, value) for name, value in fields])
    sent = connection.pending()
    first, second = requests([sent])

    assert first == second
    assert first[4:] == [
        (b"accept", b"a"),
        (b"te", b"trailers"),
        (b"authorization", b"secret"),
        (b"host", b"example.org"),
    ]
    assert b"\x1f\x08" in frames(sent)[-1][3]  # authorization: a literal that is never indexed


def test_blocks_are_a_function_of_fields() -> None:
    """The table is told to be empty once; then equal requests have equal bytes, whatever the peer allows."""
    connection = Connection()
    opened(connection)
    connection.receive(settings(table=65536))
    opened(connection, [*GET, ("a", "b")])
    connection.receive(settings(table=0))
    opened(connection)
    sent = [piece[3] for piece in frames(connection.pending()) if piece[0] == HEADERS]

    assert sent[0] == b"\x20" + sent[2]
    assert requests([frame(HEADERS, 0, 1, piece) for piece in sent])[1][-1] == (b"a", b"b")


def test_large_request_head() -> None:
    """A head larger than a frame goes on in CONTINUATION; one larger than the peer takes is not sent."""
    connection = greeted(fields=60_000)
    opened(connection, [*GET, ("a", "\xff" * 12_000)])
    sent = frames(connection.pending())
    with pytest.raises(LocalProtocolError, match="the peer takes 60000"):
        opened(connection, [*GET, ("a", "x" * 60_000)])

    assert [piece[0] for piece in sent] == [HEADERS, *[CONTINUATION] * (len(sent) - 1)]
    assert len(sent) > 1
    assert [piece[1] & END_HEADERS for piece in sent] == [0] * (len(sent) - 1) + [END_HEADERS]


# Seats.


def test_seats() -> None:
    """A seat is held from reserve() until the stream is closed on both sides, or the seat is given back."""
    connection = greeted(streams=2)
    first, second = connection.reserve(), connection.reserve()
    assert first is not None
    assert second is not None
    assert (connection.room, connection.reserve()) == (0, None)
    first.release()
    stream = second.open(POST, end=False)
    assert connection.room == 1
    connection.receive(head(1, end=True))
    assert (stream.ended, stream.closed, connection.room) == (True, False, 1)
    stream.send(b"", end=True)

    assert (stream.closed, connection.room, connection.active) == (True, 2, 0)


def test_seat_is_used_once() -> None:
    """A seat that was used or released before raises, and counts nothing twice."""
    connection = greeted()
    seat = connection.reserve()
    assert seat is not None
    seat.open(GET, end=True)
    for call in (seat.release, lambda: seat.open(GET, end=True)):
        with pytest.raises(LocalProtocolError, match="used or given back"):
            call()

    assert connection.active == 1


def test_peers_limit() -> None:
    """The peer's limit counts from the SETTINGS that bring it: raised, lowered below what is open, none at all."""
    connection = Connection()
    assert connection.room == http2.ASSUMED_STREAMS
    connection.receive(settings(streams=3))
    streams = [opened(connection) for _ in range(2)]
    seat = connection.reserve()
    assert seat is not None
    connection.receive(settings(streams=1))
    assert connection.reserve() is None
    with pytest.raises(Unprocessed, match="1 streams at once"):
        seat.open(GET, end=True)
    assert connection.active == 2
    for stream in streams:
        connection.receive(head(stream.id, end=True))
    assert connection.room == 1
    connection.receive(settings(streams=0))
    assert connection.room == 0
    connection.receive(settings(streams=2**32 - 1))

    assert connection.room == http2.MAX_STREAMS
    assert not connection.closing


def test_ids_run_out() -> None:
    """The last id of a connection is used, and no other after it."""
    connection = greeted()
    connection._next_id = 2**31 - 3
    assert connection.room == 2
    opened(connection)
    stream = opened(connection)
    assert (connection.room, connection.closing, connection.finished) == (0, True, False)
    connection.receive(head(2**31 - 3, end=True) + head(2**31 - 1, end=True))

    assert (stream.id, stream.ended, connection.finished) == (2**31 - 1, True, True)


# Flow control.


def test_send_within_windows() -> None:
    """No more is accepted than the windows of stream and connection allow, in frames that the peer takes."""
    connection = greeted(window=100_000)
    stream = opened(connection, POST, end=False)
    other = opened(connection, POST, end=False)
    assert stream.send(b"x" * 70_000) == 65_535
    assert other.send(b"y") == 0
    sent = frames(connection.pending())
    assert [len(payload) for kind, _, _, payload in sent if kind == DATA] == [16384] * 3 + [16383]
    connection.woken()
    connection.receive(window(0, 50_000))
    assert connection.woken() == [stream, other]
    assert stream.send(b"x" * 70_000, end=True) == 34_465  # its own window ends here

    assert other.send(b"y", end=True) == 1
    assert (stream.sent, other.sent) == (False, True)


def test_window_settings_in_flight() -> None:
    """A smaller INITIAL_WINDOW_SIZE makes the windows of open streams negative; what they get counts from there."""
    connection = greeted(window=1000)
    stream = opened(connection, POST, end=False)
    assert stream.send(b"x" * 1000) == 1000
    connection.receive(settings(window=10))
    assert stream.send(b"x") == 0
    connection.receive(window(1, 990))
    assert stream.send(b"x") == 0
    connection.woken()
    connection.receive(settings(window=15))

    assert connection.woken() == [stream]
    assert stream.send(b"x" * 10) == 5


def test_max_frame_size() -> None:
    """The peer's MAX_FRAME_SIZE counts for streams that are open, too."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    connection.receive(settings(size=20_000))
    stream.send(b"x" * 30_000)

    assert [len(piece[3]) for piece in frames(connection.pending()) if piece[0] == DATA] == [20_000, 10_000]


def test_unsent_data_is_bounded() -> None:
    """However wide the windows, no more is queued than a bound; taking it out wakes who waits."""
    connection = greeted(window=2**31 - 1)
    connection.receive(window(0, 2**30))
    stream = opened(connection, POST, end=False)
    assert stream.send(b"x" * 10**6) == engine.MAX_QUEUED
    assert connection.woken() == []
    assert len(connection.pending()) < engine.MAX_QUEUED + 1000

    assert connection.woken() == [stream]
    assert stream.send(b"x") == 1


def test_unread_stream_stalls_nobody() -> None:
    """The window of the connection opens on receipt, that of a stream when its body is taken."""
    connection = Connection(window=200_000, stream_window=100_000)
    connection.receive(settings())
    lazy, busy = opened(connection), opened(connection)
    connection.pending()
    connection.receive(head(1) + head(3) + data(1, b"x" * 10_000) * 10)
    assert [piece[2] for piece in frames(connection.pending())] == [0]
    for _ in range(100):
        connection.receive(data(3, b"y" * 10_000))
        busy.take()
    updates = frames(connection.pending())
    assert {piece[2] for piece in updates} == {0, 3}
    assert len(updates) == 30
    assert lazy.buffered == 100_000
    body(lazy)

    assert frames(connection.pending()) == [(WINDOW_UPDATE, 0, 1, (50_000).to_bytes(4, "big"))] * 2


def test_window_overflow() -> None:
    """A peer that sends more than a window allows is stopped: memory is bounded by it."""
    connection = Connection(stream_window=10_000)
    connection.receive(settings())
    opened(connection)

    assert failure(connection, head(1), data(1, b"x" * 10_000), data(1, b"x"))[0] == Code.FLOW_CONTROL_ERROR


def test_padding_is_given_back() -> None:
    """Padding takes room in the window too, and is given back at once."""
    connection = Connection(stream_window=1000)
    connection.receive(settings())
    stream = opened(connection)
    connection.pending()
    connection.receive(head(1) + frame(DATA, PADDED, 1, b"\xff" + bytes(255)) * 3)

    assert (stream.got, stream.buffered) == (0, 0)
    assert (WINDOW_UPDATE, 0, 1, (512).to_bytes(4, "big")) in frames(connection.pending())


def test_windows_beyond_the_largest() -> None:
    """A window beyond 2**31 - 1 ends the stream whose it is, or the connection."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    connection.receive(window(1, 2**31 - 1))
    assert isinstance(stream.error, Malformed)
    assert frames(connection.pending())[-1][3] == (3).to_bytes(4, "big")
    connection.receive(data(1, b"late"))

    assert failure(connection, window(0, 2**31 - 1))[0] == Code.FLOW_CONTROL_ERROR


# Bodies of requests.


def test_upload() -> None:
    """A body arrives whole at a server that gives windows as it reads, and so does a trailer."""
    connection = Connection()
    peer = Peer(connection)
    peer.turn()
    stream = opened(connection, POST, end=False)
    got, unsent = b"", bytes(range(256)) * 4000
    for _ in range(1000):
        unsent = unsent[stream.send(unsent) :]
        for event in peer.turn():
            if isinstance(event, DataReceived):
                got += event.data
                peer.h2.acknowledge_received_data(event.flow_controlled_length, 1)
        if not unsent:
            break
    stream.send_trailer([("Check", "sum")])
    events = peer.turn()

    assert got == bytes(range(256)) * 4000
    assert [event.headers for event in events if isinstance(event, TrailersReceived)] == [[("check", "sum")]]
    assert any(isinstance(event, StreamEnded) for event in events)


@pytest.mark.parametrize(
    "fields", [[], [(":path", "/")], [("content-length", "1")], [("te", "trailers")], [("a", "\n")], [("upgrade", "x")]]
)
def test_bad_trailer(fields: list[tuple[str, str]]) -> None:
    """A trailer has fields, and none that frames or routes."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    connection.pending()
    with pytest.raises(LocalProtocolError):
        stream.send_trailer(fields)

    assert connection.pending() == b""


def test_content_length_of_a_request() -> None:
    """No more and no less is sent than Content-Length says."""
    connection = greeted()
    fields = [*POST, ("content-length", "3")]
    with pytest.raises(LocalProtocolError, match="Content-Length says 3"):
        opened(connection, fields, end=True)
    stream = opened(connection, fields, end=False)
    stream.send(b"a")
    for call in (
        lambda: stream.send(b"bcd"),
        lambda: stream.send(b"b", end=True),
        lambda: stream.send(b"", end=True),
        lambda: stream.send_trailer([("a", "b")]),
    ):
        with pytest.raises(LocalProtocolError, match="Content-Length leaves 2"):
            call()

    assert stream.send(b"bc", end=True) == 2
    assert stream.sent


def test_sending_after_the_end() -> None:
    """A request ends once."""
    stream = opened(greeted())
    for call in (lambda: stream.send(b""), lambda: stream.send_trailer([("a", "b")])):
        with pytest.raises(LocalProtocolError, match="ended before"):
            call()

    assert stream.sent


def test_response_before_the_request_is_sent() -> None:
    """A whole response with RST_STREAM(NO_ERROR) is kept; the rest of the request is of no use."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    connection.receive(head(1, (":status", "413")) + data(1, b"no", end=True) + rst(1, 0))

    assert stream.take() == b"no"
    assert (stream.ended, stream.closed, stream.error) == (True, True, None)
    assert stream.send(b"x" * 10**6, end=True) == 10**6
    assert connection.active == 0


# Streams that end early.


def test_reset_by_us() -> None:
    """Who leaves early resets the stream; what comes late is acknowledged and disturbs nobody."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    connection.receive(head(1) + data(1, b"some"))
    connection.pending()
    stream.reset()
    assert frames(connection.pending()) == [(RST_STREAM, 0, 1, Code.CANCEL.to_bytes(4, "big"))]
    assert (stream.closed, stream.take(), connection.active) == (True, b"", 0)
    stream.reset()
    connection.receive(data(1, b"late" * 100) + window(1, 5) + rst(1, 0))
    connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("a", "b")])))
    connection.receive(frame(HEADERS, END_HEADERS, 1, block([(":status", "103")])))

    assert (WINDOW_UPDATE, 0, 0, (400).to_bytes(4, "big")) in frames(connection.pending())
    assert connection.error is None
    with pytest.raises(LocalProtocolError, match="reset before"):
        stream.send(b"x")


def test_late_blocks_are_decoded() -> None:
    """A header block of a stream that was left still counts for the table that all blocks share."""
    connection = greeted()
    encoder = Encoder()
    left, stream = opened(connection), opened(connection)
    left.reset()
    fields = [(":status", "200"), ("server", "x"), ("etag", "y")]
    connection.receive(frame(HEADERS, END_HEADERS, 1, encoder.encode(fields)))
    connection.receive(frame(HEADERS, END_HEADERS, 3, encoder.encode(fields)))

    assert stream.head is not None
    assert stream.head.fields == (("server", "x"), ("etag", "y"))


def test_late_data_is_bounded() -> None:
    """A peer that goes on and on with a stream that was left is stopped when its window is used up."""
    connection = Connection(stream_window=20_000)
    connection.receive(settings())
    opened(connection).reset()
    connection.pending()

    assert failure(connection, *[data(1, b"x" * 10_000)] * 3)[0] == Code.FLOW_CONTROL_ERROR


def test_memory_of_what_is_over_is_bounded() -> None:
    """Streams that were left, requests and header blocks are remembered, so many of each."""
    connection = greeted()
    for number in range(engine.MAX_LEFT + 10):
        opened(connection, [*GET, ("n", str(number))]).reset()
    for number in range(200):
        stream = opened(connection)
        connection.receive(head(stream.id, (":status", "200"), ("n", str(number)), end=True))

    assert (len(connection._left), len(connection._h2.streams)) == (engine.MAX_LEFT, 0)
    assert len(connection._requests) <= 128
    assert len(connection._reading._known) <= 128
    assert len(connection._coder._known) <= 128
    assert failure(connection, data(1, b"x"))[0] == Code.STREAM_CLOSED


def test_reset_by_peer() -> None:
    """RST_STREAM ends one stream, after what came before it; only REFUSED_STREAM makes it safe to repeat."""
    connection = greeted()
    refused, broken, other = (opened(connection) for _ in range(3))
    connection.receive(rst(1, Code.REFUSED_STREAM) + head(3) + data(3, b"some") + rst(3, Code.INTERNAL_ERROR))
    assert broken.take() == b"some"
    for stream, code in ((refused, Code.REFUSED_STREAM), (broken, Code.INTERNAL_ERROR)):
        with pytest.raises(StreamReset) as caught:
            stream.take()
        assert caught.value.code == code
        assert (stream.closed, stream.ended) == (True, False)

    assert (refused.repeatable, broken.repeatable, other.error) == (True, False, None)
    assert connection.active == 1


def test_unknown_error_code() -> None:
    """An error code that nobody knows means nothing special."""
    connection = greeted()
    stream = opened(connection)
    connection.receive(rst(1, 0xFFFF))

    assert "code 65535" in str(stream.error)


def test_goaway() -> None:
    """GOAWAY: streams above the last are safe to repeat, those below finish, none is opened any more."""
    connection = greeted()
    below, above = opened(connection), opened(connection, POST, end=False)
    seat = connection.reserve()
    assert seat is not None
    connection.receive(goaway(1) + head(1) + data(1, b"some"))
    assert isinstance(above.error, Unprocessed)
    assert (above.repeatable, above.closed, below.error) == (True, True, None)
    with pytest.raises(Unprocessed):
        above.send(b"x")
    with pytest.raises(Unprocessed):
        seat.open(GET, end=True)
    assert (connection.closing, connection.room, connection.finished) == (True, 0, False)
    connection.receive(data(1, b"more", end=True))

    assert body(below) == b"somemore"
    assert (below.ended, connection.finished, connection.error) == (True, True, None)


def test_goaway_keeps_what_is_to_be_sent() -> None:
    """A request below the last stream goes on after GOAWAY, and its queued body is not lost."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    stream.send(b"one")
    connection.receive(goaway(2**31 - 1))
    stream.send(b"two", end=True)

    assert [piece[3] for piece in frames(connection.pending()) if piece[0] == DATA] == [b"one", b"two"]


def test_second_goaway() -> None:
    """A graceful end: first all streams, then the last one that was looked at."""
    connection = greeted()
    streams = [opened(connection) for _ in range(2)]
    connection.receive(goaway(2**31 - 1))
    assert [stream.error for stream in streams] == [None, None]
    connection.receive(goaway(1))

    assert [stream.repeatable for stream in streams] == [False, True]


def test_eof() -> None:
    """When the peer closes, open streams end with an error, after what came; whole ones do not."""
    connection = greeted()
    whole, part = opened(connection), opened(connection)
    connection.receive(head(1) + data(1, b"all", end=True) + head(3) + data(3, b"some"))
    connection.woken()
    connection.eof()
    assert connection.woken() == [part]
    assert (body(whole), part.take()) == (b"all", b"some")
    with pytest.raises(ConnectionFailed, match="closed"):
        part.take()

    assert (part.repeatable, connection.active, connection.room, connection.pending()) == (False, 0, 0, b"")


def test_close() -> None:
    """close() tells the peer, once; open streams finish."""
    connection = greeted()
    stream = opened(connection)
    connection.pending()
    connection.close()
    connection.close()
    assert kinds(connection.pending()) == [GOAWAY]
    assert connection.reserve() is None
    connection.receive(head(1, end=True))

    assert (stream.ended, connection.finished) == (True, True)


def test_ping() -> None:
    """Our PINGs are outstanding until answered; the peer's are answered."""
    connection = greeted()
    connection.ping()
    connection.ping()
    sent = frames(connection.pending())
    connection.receive(frame(PING, 1, 0, b"unasked!"))
    assert connection.unanswered == 2
    connection.receive(frame(PING, 1, 0, sent[0][3]))
    assert connection.unanswered == 1
    connection.receive(frame(PING, 1, 0, sent[1][3]) + frame(PING, 0, 0, b"12345678"))

    assert connection.unanswered == 0
    assert frames(connection.pending()) == [(PING, 1, 0, b"12345678")]


# Responses that break rules. Each ends its own stream only.


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([("a", "b")], "no :status"),
        ([(":status", "200"), (":status", "200")], "pseudo-header"),
        ([("a", "b"), (":status", "200")], "pseudo-header"),
        ([(":status", "200"), (":path", "/")], "pseudo-header"),
        ([(":status", "200"), (":other", "/")], "pseudo-header"),
        ([(":status", "20")], ":status"),
        ([(":status", "2000")], ":status"),
        ([(":status", "+20")], ":status"),
        ([(":status", "099")], ":status"),
        ([(":status", "101")], ":status"),
        ([(":status", "200"), ("A", "b")], "lower case"),
        ([(":status", "200"), ("", "b")], "lower case"),
        ([(":status", "200"), ("a b", "b")], "lower case"),
        ([(":status", "200"), (b"a\xff", "b")], "lower case"),
        ([(":status", "200"), ("a:b", "b")], "lower case"),
        ([(":status", "200"), ("a", "b\r\nc: d")], "control"),
        ([(":status", "200"), ("a", "b\0")], "control"),
        ([(":status", "200"), ("a", " b")], "white space"),
        ([(":status", "200"), ("a", "b\t")], "white space"),
        ([(":status", "200"), ("connection", "close")], "one connection"),
        ([(":status", "200"), ("keep-alive", "timeout=5")], "one connection"),
        ([(":status", "200"), ("proxy-connection", "x")], "one connection"),
        ([(":status", "200"), ("transfer-encoding", "chunked")], "one connection"),
        ([(":status", "200"), ("upgrade", "x")], "one connection"),
        ([(":status", "200"), ("content-length", "1"), ("content-length", "1")], "Content-Length"),
        ([(":status", "200"), ("content-length", "1, 1")], "Content-Length"),
        ([(":status", "200"), ("content-length", "+1")], "Content-Length"),
        ([(":status", "200"), ("content-length", "")], "Content-Length"),
        ([(":status", "200"), ("content-length", "9" * 30)], "Content-Length"),
    ],
)
@pytest.mark.parametrize("end", [False, True])
def test_malformed_head(fields: list[tuple[str, str]], says: str, end: bool) -> None:
    """A head that breaks a rule is an error of its stream, which is reset; the next stream is not harmed."""
    connection = greeted()
    stream, other = opened(connection), opened(connection)
    connection.pending()
    for times in range(1 if end else 2):
        connection.receive(head(1, *fields, end=end))
        with pytest.raises(Malformed, match=re.escape(says)):
            stream.take()
        assert kinds(connection.pending()) == ([] if times or end else [RST_STREAM])
    connection.receive(head(3, end=True))

    assert (stream.closed, stream.head, stream.repeatable) == (True, None, False)
    assert (other.ended, other.error, connection.active) == (True, None, 0)


@pytest.mark.parametrize(
    "sent",
    [
        data(1, b"x", end=True),
        head(1) + head(1, ("a", "b")),
        head(1) + head(1, (":status", "103")),
        head(1, (":status", "103"), end=True),
    ],
)
def test_out_of_order(sent: bytes) -> None:
    """A body before the head, a second head, and a 1xx at the end are errors of their stream (section 8.1)."""
    connection = greeted()
    stream, other = opened(connection), opened(connection)
    connection.receive(sent + head(3, end=True))

    assert isinstance(stream.error, Malformed)
    assert (other.ended, other.error, connection.active) == (True, None, 0)


@pytest.mark.parametrize(
    ("length", "parts", "says"),
    [
        ("3", [b"ab"], "the end after 2 of 3"),
        ("3", [], "the end after 0 of 3"),
        ("3", [b"ab", b"cd"], "more than the 3"),
        ("0", [b"a"], "more than the 0"),
    ],
)
def test_content_length_of_a_response(length: str, parts: list[bytes], says: str) -> None:
    """A body that is not as long as announced is an error, after the bytes that came in order."""
    connection = greeted()
    stream, other = opened(connection), opened(connection)
    connection.receive(head(1, (":status", "200"), ("content-length", length)))
    for part in parts:
        connection.receive(data(1, part))
    if "end" in says:
        connection.receive(data(1, end=True))
    connection.receive(head(3, end=True))

    with pytest.raises(Malformed, match=says):
        body(stream)
    assert (stream.ended, other.ended, connection.active) == (False, True, 0)


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "204"), ("GET", "304")])
def test_body_where_there_is_none(method: str, status: str) -> None:
    """HEAD, 204 and 304 have no body."""
    connection = greeted()
    stream = opened(connection, ((":method", method), *GET[1:]))
    connection.receive(head(1, (":status", status)) + data(1, b"x"))

    assert isinstance(stream.error, Malformed)


@pytest.mark.parametrize("fields", [[(":status", "200")], [(":path", "/")], [("A", "b")], [("a", "\n")]])
def test_malformed_trailer(fields: list[tuple[str, str]]) -> None:
    """The rules for fields count for trailers too, and there are no pseudo-header fields in them."""
    connection = greeted()
    stream, other = opened(connection), opened(connection)
    connection.receive(head(1) + frame(HEADERS, END_HEADERS | END_STREAM, 1, block(fields)) + head(3, end=True))

    assert isinstance(stream.error, Malformed)
    assert (stream.ended, other.ended) == (False, True)


# Header blocks.


def nginx(stream: int, fields: list[tuple[str, str]]) -> bytes:
    """Make a head as nginx does: literals that are to be indexed, in each response again."""
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.header_table.resized = False
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, encoder.encode(fields))


def test_remembered_blocks_fill_the_table() -> None:
    """A block that is known is not decoded again, but its insertions count: a later block may refer to them."""
    connection = greeted()
    streams = [opened(connection) for _ in range(60)]
    fields = [(":status", "200"), ("server", "x" * 20), ("etag", "y" * 20)]
    other = [(":status", "200"), ("server", "z" * 30)]
    for stream in streams[:40]:
        connection.receive(nginx(stream.id, other if stream.id == 41 else fields))
    assert len(connection._reading._known) == 2
    for stream, number in zip(streams[40:], (62, 63, 64, 65, 62, 63), strict=False):
        connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, stream.id, b"\x88" + bytes([0x80 | number])))
    etag, server = ("etag", "y" * 20), ("server", "x" * 20)

    assert [stream.head.fields[0] for stream in streams[40:46] if stream.head] == [
        etag,
        server,
        etag,
        server,
        etag,
        server,
    ]
    assert {stream.head.fields for stream in streams[:40] if stream.head} == {tuple(fields[1:]), tuple(other[1:])}


def test_same_bytes_mean_something_else() -> None:
    """Bytes that refer to the table mean what the table says now, not what they meant last time."""
    connection = greeted()
    streams = [opened(connection) for _ in range(5)]
    refer = b"\x88\xbe"
    connection.receive(nginx(1, [(":status", "200"), ("server", "a")]))
    connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 3, refer))
    connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 5, refer))
    connection.receive(nginx(7, [(":status", "200"), ("server", "b")]))
    connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 9, refer))

    assert [stream.head.fields[0][1] for stream in streams if stream.head] == ["a", "a", "a", "b", "b"]


def test_a_block_that_resizes_the_table() -> None:
    """A table size update is done each time that it comes."""
    connection = greeted()
    streams = [opened(connection) for _ in range(4)]
    connection.receive(nginx(1, [(":status", "200"), ("server", "a")]))
    connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 3, b"\x20\x3f\xe1\x1f\x88"))
    connection.receive(nginx(5, [(":status", "200"), ("server", "a")]))
    connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 7, b"\x20\x3f\xe1\x1f\x88"))

    assert [stream.ended for stream in streams] == [True] * 4
    assert not connection._reading.header_table.dynamic_entries
    assert failure(greeted_with_stream(), frame(HEADERS, END_HEADERS, 1, b"\x20" * 3 + b"\x88"))[0] == (
        Code.COMPRESSION_ERROR
    )


def greeted_with_stream(**options: int) -> Connection:
    connection = greeted(**options)
    opened(connection, POST, end=False)
    return connection


# What ends the connection.


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(DATA, 0, 1, b"x" * 16385), Code.FRAME_SIZE_ERROR),
        (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", Code.FRAME_SIZE_ERROR),
        (data(0, b"x"), Code.PROTOCOL_ERROR),
        (data(2, b"x"), Code.PROTOCOL_ERROR),
        (data(3, b"x"), Code.PROTOCOL_ERROR),
        (head(0), Code.PROTOCOL_ERROR),
        (head(2), Code.PROTOCOL_ERROR),
        (head(3), Code.PROTOCOL_ERROR),
        (head(1) + frame(DATA, PADDED, 1, b"\x05abc"), Code.PROTOCOL_ERROR),
        (frame(PUSH, END_HEADERS, 1, b"\0\0\0\x02" + block(GET)), Code.PROTOCOL_ERROR),
        (frame(PING, 0, 0, b"123"), Code.FRAME_SIZE_ERROR),
        (frame(PING, 0, 1, b"12345678"), Code.PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, b"123"), Code.FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), Code.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, b"12345"), Code.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
        (settings(push=1), Code.PROTOCOL_ERROR),
        (settings(window=2**31), Code.FLOW_CONTROL_ERROR),
        (settings(size=100), Code.PROTOCOL_ERROR),
        (window(0, 0), Code.PROTOCOL_ERROR),
        (window(3, 1), Code.PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, b"1"), Code.FRAME_SIZE_ERROR),
        (rst(0, 0), Code.PROTOCOL_ERROR),
        (rst(3, 0), Code.PROTOCOL_ERROR),
        (frame(RST_STREAM, 0, 1, b"1"), Code.FRAME_SIZE_ERROR),
        (rst(1, 0) + frame(RST_STREAM, 0, 1, b"1"), Code.FRAME_SIZE_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1, b"\x88"), Code.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, b"\x88") + frame(PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, 0, 3, b"\x88"), Code.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff"), Code.COMPRESSION_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xfe"), Code.COMPRESSION_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\x00\x85abc"), Code.COMPRESSION_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f\x88"), Code.COMPRESSION_ERROR),
        (rst(1, 0) + data(1, b"x"), Code.STREAM_CLOSED),
        (rst(1, 0) + head(1), Code.STREAM_CLOSED),
    ],
)
def test_broken_rules(sent: bytes, code: Code) -> None:
    """What breaks a rule of the connection ends it with the code for it; streams learn of it."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    assert failure(connection, sent)[0] == code

    assert isinstance(stream.error, (ConnectionFailed, StreamReset))
    assert stream.closed


def test_what_means_nothing() -> None:
    """Frames and settings that nobody knows are passed over, and are not kept."""
    connection = greeted_with_stream()
    unknown = b"".join(number.to_bytes(2, "big") + bytes(4) for number in range(0x100, 0xB00))
    connection.receive(frame(0xA, 0, 1, b"altsvc") + frame(0xC) + frame(0xFF, 255, 7, b"x"))
    connection.receive(frame(SETTINGS, 0, 0, unknown) + frame(PRIORITY, 0, 9, bytes(5)))

    assert len(connection._h2.remote_settings) < 10
    assert connection.error is None


def test_frames_after_the_end() -> None:
    """A response ends once: more of it ends the connection, as nobody can tell whose it is."""
    for more in (data(1, b"x"), head(1)):
        connection = greeted()
        stream = opened(connection)
        connection.receive(head(1, end=True))
        assert failure(connection, more)[0] == Code.STREAM_CLOSED
        assert (stream.ended, stream.error) == (True, None)


def test_more_after_the_end_while_we_send() -> None:
    """More of a response that has ended resets the stream while the request goes on; the response is kept."""
    connection = greeted()
    stream = opened(connection, POST, end=False)
    connection.receive(head(1) + data(1, b"all", end=True) + data(1, b"more"))

    assert (body(stream), stream.ended, stream.closed, stream.error) == (b"all", True, True, None)
    assert connection.active == 0


def endless(sent: bytes, *, drain: bool) -> Code | None:
    """Send the same again and again, until the connection ends; fail if it never does."""
    connection = greeted_with_stream()
    connection.receive(head(1))
    for _ in range(20_000):
        try:
            connection.receive(sent)
        except ConnectionFailed as error:
            return error.code
        if drain:
            connection.pending()
    pytest.fail("no end")


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        frame(PING, 0, 0, bytes(8)),
        frame(PING, 1, 0, bytes(8)),
        settings(),
        settings(window=70_000),
        frame(SETTINGS, 1),
        data(1),
        frame(DATA, PADDED, 1, b"\0"),
        window(0, 1),
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(0xFF),
        goaway(1),
    ],
)
def test_floods(sent: bytes, drain: bool) -> None:
    """A peer that only makes work is told to calm down, whether we get to answer it or not."""
    assert endless(sent, drain=drain) == Code.ENHANCE_YOUR_CALM


def test_unsent_answers_are_bounded() -> None:
    """Answers that cannot be sent do not pile up."""
    connection = greeted()
    with pytest.raises(ConnectionFailed, match="answers"):
        connection.receive(frame(PING, 0, 0, bytes(8)) * (engine.MAX_OWED + 1))

    assert len(connection.pending()) < 100


def test_a_working_peer_is_no_flood() -> None:
    """Frames between those that move something are no flood, however many there are in all."""
    connection = greeted_with_stream()
    connection.receive(head(1))
    for _ in range(3):
        connection.receive(window(0, 1) * (engine.MAX_IDLE_FRAMES - 1) + data(1, b"x"))

    assert connection.error is None


@pytest.mark.parametrize(
    "sent",
    [
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 65,
        frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, 0, 1, b"\x00\x01a\x7f" + b"\xff" * 16000) * 5,
        frame(HEADERS, END_HEADERS, 1, b"\x88\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 20),
    ],
    ids=["many", "large", "bomb"],
)
def test_large_header_blocks(sent: bytes) -> None:
    """A header block of too many parts or bytes, packed or unpacked, is refused."""
    assert failure(greeted_with_stream(), sent)[0] == Code.ENHANCE_YOUR_CALM


def test_oversize_frame_is_refused_at_once() -> None:
    """A frame that is too large is refused when its head has come, not after all of it."""
    connection = greeted()
    with pytest.raises(ConnectionFailed):
        connection.receive(b"\x10\0\0\0\0\0\0\0\x01")

    assert connection._frames._kept == b""


# Errors, and what people see.


def test_errors() -> None:
    """All errors are ours, say where and why, and survive pickling."""
    connection = greeted()
    streams = [opened(connection) for _ in range(3)]
    connection.receive(goaway(3) + rst(1, Code.INTERNAL_ERROR) + head(3, ("a", "b")))
    connection.eof()
    errors = [stream.error for stream in streams] + [connection.error]

    assert [str(error) for error in errors] == [
        "the peer reset the stream (INTERNAL_ERROR) in stream 1",
        "no :status in the response on stream 3",
        "the peer goes away (NO_ERROR) and did not look at it",
        "the peer closed it in the connection",
    ]
    for error in errors:
        assert isinstance(error, (FewportsError, ProtocolError))
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)
    assert isinstance(errors[1], RemoteProtocolError)


def test_repr() -> None:
    """What an operator sees of a connection, a stream and a seat."""
    connection = greeted(streams=5)
    seat = connection.reserve()
    stream = opened(connection)
    connection.receive(head(1) + data(1, b"abc"))

    assert repr(connection) == "<Connection open, 1 streams, 1 reserved, 3 free>"
    assert repr(stream) == "<Stream 1 GET 200, sent, 3 bytes, 3 waiting>"
    assert (repr(seat), isinstance(seat, Seat)) == ("<Seat held>", True)


@pytest.mark.parametrize(
    "options",
    [{"window": 65534}, {"window": 2**31}, {"stream_window": 0}, {"stream_window": 2**31}, {"max_streams": 0}],
)
def test_options(options: dict[str, int]) -> None:
    """Windows that the protocol does not know, and no streams at all, are refused at once."""
    with pytest.raises(InvalidOption):
        Connection(**options)

    smallest = Connection(window=65535, stream_window=2**31 - 1, max_streams=1)
    assert smallest.room == 1
    assert kinds(smallest.pending()) == [SETTINGS]  # the peer has this window without being told


def test_the_smallest_windows() -> None:
    """A stream whose window is one byte goes on byte by byte."""
    connection = Connection(window=65535, stream_window=1, max_streams=1)
    connection.receive(settings())
    stream = opened(connection)
    connection.pending()
    connection.receive(head(1))
    for _ in range(3):
        connection.receive(data(1, b"x"))
        assert (stream.take(), stream.take()) == (b"x", b"")
        assert frames(connection.pending()) == [(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01")]

    assert stream.got == 3


def test_after_the_end() -> None:
    """On a connection that has failed nothing can be started, and what is given back does no harm."""
    connection = greeted()
    seat, stream = connection.reserve(), opened(connection, POST, end=False)
    assert seat is not None
    connection.eof()
    connection.eof()
    connection.ping()
    connection.close()
    stream.reset()
    seat.release()
    with pytest.raises(ConnectionFailed):
        stream.send(b"x")
    with pytest.raises(ConnectionFailed):
        connection.receive(settings())

    assert (connection.pending(), connection.finished, connection.unanswered) == (b"", True, 0)


# With h2 at the other end.


def test_with_a_server() -> None:
    """A server that keeps to the rules understands us, and we it: exchange, limits, reset."""
    connection = Connection()
    peer = Peer(connection)
    peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 7})
    peer.turn()
    assert connection.room == 7
    stream, left = opened(connection, [*GET, ("Accept", "x")]), opened(connection)
    events = peer.turn()
    assert [event.headers[4:] for event in events if isinstance(event, RequestReceived)] == [[("accept", "x")], []]
    peer.h2.send_headers(1, [(":status", "200"), ("server", "s")])
    peer.h2.send_data(1, b"body", end_stream=True)
    left.reset()
    events = peer.turn()

    assert [event.error_code for event in events if isinstance(event, ResetReceived)] == [Code.CANCEL]
    assert stream.head is not None
    assert (stream.head.fields, body(stream), stream.closed) == ((("server", "s"),), b"body", True)


def test_exports() -> None:
    """What is public is there, and nothing of h2 is."""
    assert all(hasattr(http2, name) for name in http2.__all__)
    kinds_of: Callable[[str], str] = lambda name: getattr(getattr(http2, name), "__module__", "fewports")  # noqa: E731
    assert {kinds_of(name).split(".")[0] for name in http2.__all__} == {"fewports"}
    assert OK == ((":status", "200"),)
