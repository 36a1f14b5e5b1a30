"""HTTP/1.1 as bytes: what a request may be, where a response ends, and what is refused."""

from __future__ import annotations

import pickle

import pytest

from fewports import http1
from fewports.errors import FewportsError
from fewports.http1 import (
    LAST_CHUNK,
    UNBOUNDED,
    LocalProtocolError,
    Preset,
    ProtocolError,
    Reader,
    RemoteProtocolError,
    Truncated,
    chunk_head,
    request_head,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def _ledgers_tell_the_truth() -> None:
    """Leave out what is done after other tests: no ledger is touched here, and the look at them takes 40 ms."""


def begun(method: str = "GET") -> Reader:
    reader = Reader()
    reader.begin(method)
    return reader


def feed(reader: Reader, data: bytes, step: int = 0) -> bytes:
    """Give *data* to the reader, *step* bytes at a time, and return the body that came of it."""
    body = b""
    for at in range(0, len(data), step or max(1, len(data))):
        reader.receive(data[at : at + step] if step else data)
        while piece := reader.take():
            body += piece
    return body


def refusal(data: bytes, step: int = 0, method: str = "GET") -> RemoteProtocolError:
    reader = begun(method)
    with pytest.raises(RemoteProtocolError) as caught:
        assert feed(reader, data, step) == reader.take()
    assert_unusable(reader, caught.value)
    return caught.value


def assert_unusable(reader: Reader, error: ProtocolError) -> None:
    """After an error each call raises it again, and no request may be sent."""
    for call in (lambda: reader.receive(b"x"), reader.take, lambda: reader.took(0), reader.eof):
        with pytest.raises(type(error)) as again:
            call()
        assert again.value is error
    with pytest.raises(LocalProtocolError):
        reader.begin("GET")

    assert (reader.reusable, reader.done, reader.expects) == (False, False, 0)


# Requests.


def test_request_head() -> None:
    """A head is the request line, what was prepared, the fields in their order, and an empty line."""
    preset = Preset([("Host", "example.org:81"), ("Accept-Encoding", "identity"), ("User-Agent", "x")])
    fields = [("X-Text", "a\tb \xe9"), (b"X-Bytes", b"\xff"), ("Content-Length", 3), ("x-text", "")]

    assert request_head("GET", "/", (), preset) == (
        b"GET / HTTP/1.1\r\nHost: example.org:81\r\nAccept-Encoding: identity\r\nUser-Agent: x\r\n\r\n"
    )
    assert request_head("POST", "/a?b=%20#", fields, preset) == (
        b"POST /a?b=%20# HTTP/1.1\r\nHost: example.org:81\r\nAccept-Encoding: identity\r\nUser-Agent: x\r\n"
        b"X-Text: a\tb \xe9\r\nX-Bytes: \xff\r\nContent-Length: 3\r\nx-text: \r\n\r\n"
    )
    assert request_head("OPTIONS", "*") == b"OPTIONS * HTTP/1.1\r\n\r\n"


def test_request_replaces_preset() -> None:
    """A field of the request takes the place of the prepared one with its name, whatever its case."""
    preset = Preset([("Host", "a"), (b"User-Agent", b"x"), ("Accept", "1"), ("Accept", "2")])

    assert request_head("GET", "/", [("user-agent", "y")], preset) == (
        b"GET / HTTP/1.1\r\nHost: a\r\nAccept: 1\r\nAccept: 2\r\nuser-agent: y\r\n\r\n"
    )
    assert request_head("GET", "/", [("ACCEPT", "3"), ("HOST", "b")], preset) == (
        b"GET / HTTP/1.1\r\nUser-Agent: x\r\nACCEPT: 3\r\nHOST: b\r\n\r\n"
    )
    assert preset.without(["host", "accept", "other"]).lines == b"User-Agent: x\r\n"
    assert preset.without(["host"]) is preset.without(["host", "other"])
    assert preset.without(["other"]) is preset


@pytest.mark.parametrize("method", ["", "GE T", "GET\r\n", "GET\x00", "G\xcbT", "GET:", "GET/"])
def test_bad_method(method: str) -> None:
    """A method is a token."""
    with pytest.raises(LocalProtocolError, match="no token"):
        request_head(method, "/")


@pytest.mark.parametrize(
    "target", ["", "/a b", "/a\r\nX: y", "/a\n", "/\x00", "/\x7f", "/\t", "/\xe9", "/\u2028", " /"]
)
def test_bad_target(target: str) -> None:
    """A target has visible ASCII characters only, one at least."""
    with pytest.raises(LocalProtocolError, match="request target"):
        request_head("GET", target)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("", "x", "no token"),
        ("A B", "x", "no token"),
        ("A:", "x", "no token"),
        ("A\r\nB", "x", "no token"),
        ("Transfer-Encoding: chunked\r\nA", "x", "no token"),
        ("\xc4", "x", "no token"),
        ("\u212a", "x", "no token"),
        (b"A\xff", "x", "no token"),
        ("A", "x\r\nB: y", "CR, LF or NUL"),
        ("A", "x\r\n y", "CR, LF or NUL"),
        ("A", "x\n", "CR, LF or NUL"),
        ("A", "\rx", "CR, LF or NUL"),
        ("A", b"x\r\n\r\nGET", "CR, LF or NUL"),
        ("A", "x\x00", "CR, LF or NUL"),
        ("A", "\u20ac", "not latin-1"),
        ("Content-Length", "1\r\nTransfer-Encoding: chunked", "CR, LF or NUL"),
    ],
)
def test_bad_field(name: str | bytes, value: str | bytes, says: str) -> None:
    """A name is a token, a value has no CR, LF or NUL: no field can become two, and no request two."""
    good = ("Good", "value")
    with pytest.raises(LocalProtocolError, match=says):
        request_head("GET", "/", [good, (name, value), good])
    with pytest.raises(LocalProtocolError, match=says):
        Preset([(name, value)])


def test_value_of_no_known_type() -> None:
    """None is not sent as the word None."""
    with pytest.raises(TypeError):
        request_head("GET", "/", [("A", None)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("prepared", "fields", "says"),
    [
        ([], [("Content-Length", "1"), ("Transfer-Encoding", "chunked")], "not both"),
        ([("transfer-encoding", "chunked")], [("CONTENT-LENGTH", "1")], "not both"),
        ([], [("Content-Length", "1"), ("content-length", "1")], "one each"),
        ([], [("Transfer-Encoding", "chunked"), ("transfer-encoding", "chunked")], "one each"),
        ([], [("Host", "a"), (b"host", "b")], "one each"),
    ],
)
def test_ambiguous_request(prepared: list[tuple[str, str]], fields: list[tuple[str, str]], says: str) -> None:
    """Content-Length and Transfer-Encoding are never sent together, nor one of them or Host twice."""
    with pytest.raises(LocalProtocolError, match=says):
        request_head("POST", "/", fields, Preset(prepared))
    with pytest.raises(LocalProtocolError, match=says):
        Preset([*prepared, *fields])


def test_chunks_of_a_request() -> None:
    """A chunk has its size in front; one of no size would end the body and is refused."""
    assert chunk_head(26) + b"x" * 26 + b"\r\n" + LAST_CHUNK == b"1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"
    for size in (0, -1):
        with pytest.raises(LocalProtocolError):
            chunk_head(size)


# Heads.


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(
    ("line", "version", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 11, 200, "OK"),
        (b"HTTP/1.0 404 Not Found", 10, 404, "Not Found"),
        (b"HTTP/1.1 200 ", 11, 200, ""),
        (b"HTTP/1.1 200", 11, 200, ""),
        (b"HTTP/1.1 999 \xe9 \t x", 11, 999, "\xe9 \t x"),
    ],
)
def test_status_line(line: bytes, version: int, status: int, reason: str, step: int) -> None:
    """A status line has one of two versions, three digits, and a reason that may be missing."""
    reader = begun()
    feed(reader, line + b"\r\nContent-Length: 0\r\n\r\n", step)

    assert reader.head
    assert reader.head[:3] == (version, status, reason)
    assert reader.done


@pytest.mark.parametrize("step", [0, 1, 2, 7])
def test_fields(step: int) -> None:
    """Fields come in their order, with their case, as latin-1, without white space around their values."""
    lines = b"B: 1\r\na:2\r\nB: \t 3 4 \t\r\nEmpty:\r\nBlank:  \r\nC:d: e\xe9\r\n!#$%&'*+-.^_`|~9: \r\n"
    raw = OK + lines + b"Content-Length: 0\r\n\r\n"
    reader = begun()
    feed(reader, raw, step)

    assert reader.head
    assert reader.head.raw == raw
    assert reader.head.fields() == [
        ("B", "1"),
        ("a", "2"),
        ("B", "3 4"),
        ("Empty", ""),
        ("Blank", ""),
        ("C", "d: e\xe9"),
        ("!#$%&'*+-.^_`|~9", ""),
        ("Content-Length", "0"),
    ]


def test_head_without_fields() -> None:
    """A head may have no field at all."""
    reader = begun("HEAD")
    feed(reader, OK + b"\r\n")

    assert reader.head
    assert reader.head.fields() == []
    assert reader.reusable


STATUS_LINES = [
    (b"HTTP/0.9 200 OK", "a version other than"),
    (b"HTTP/1.2 200 OK", "a version other than"),
    (b"HTTP/2 200", "a version other than"),
    (b"HTTP/11 200 OK", "a version other than"),
    (b"HTTP/1.10 200 OK", "a version other than"),
    (b"HTTP/1.1\t200 OK", "a version other than"),
    (b"http/1.1 200 OK", "no HTTP response"),
    (b"ICY 200 OK", "no HTTP response"),
    (b"SSH-2.0-OpenSSH_9.2", "no HTTP response"),
    (b"", "no HTTP response"),
    (b" HTTP/1.1 200 OK", "no HTTP response"),
    (b"HTTP/1.1  200 OK", "a bad status line"),
    (b"HTTP/1.1 20 OK", "a bad status line"),
    (b"HTTP/1.1 2000 OK", "a bad status line"),
    (b"HTTP/1.1 099 OK", "a bad status line"),
    (b"HTTP/1.1 +20 OK", "a bad status line"),
    (b"HTTP/1.1 2x0 OK", "a bad status line"),
    (b"HTTP/1.1 \xb2\xb2\xb2 OK", "a bad status line"),
    (b"HTTP/1.1 200\tOK", "a bad status line"),
    (b"HTTP/1.1 ", "a bad status line"),
    (b"HTTP/1.1 200 O\x00K", "NUL"),
    (b"HTTP/1.1 200 O\rK", "CR without LF"),
    (b"HTTP/1.1 200 O\nK", "LF without CR"),
    (b"HTTP/1.1 200 O\x7fK", "a control character"),
]


@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize(("line", "says"), STATUS_LINES)
def test_bad_status_line(line: bytes, says: str, step: int) -> None:
    """What is no status line of HTTP/1.0 or 1.1 is refused, and the connection with it."""
    error = refusal(line + b"\r\nContent-Length: 0\r\n\r\n", step)

    assert says in error.what
    assert "the head" in error.where


FIELD_LINES = [
    (b" folded: x", "a folded line"),
    (b"\tfolded", "a folded line"),
    (b"A : x", "white space before the colon"),
    (b"A\t: x", "white space before the colon"),
    (b": x", "a field without name"),
    (b":", "a field without name"),
    (b"no colon", "a line without colon"),
    (b"A B: x", "a field name that is no token"),
    (b"A(: x", "a field name that is no token"),
    (b"\xc4: x", "a field name that is no token"),
    (b"A\x00: x", "NUL"),
    (b"A: x\x00y", "NUL"),
    (b"A: x\ry", "CR without LF"),
    (b"A: x\r", "CR without LF"),
    (b"A: x\rB: y", "CR without LF"),
    (b"A: x\nB: y", "LF without CR"),
    (b"A: x\n", "LF without CR"),
    (b"A: \x01", "a control character"),
    (b"A: \x0b", "a control character"),
    (b"A: \x1b[2J", "a control character"),
    (b"A: \x7f", "a control character"),
    (b"Content-Length : 1", "white space before the colon"),
    (b"Transfer-Encoding\x0b: chunked", "a control character"),
]


@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize(("line", "says"), FIELD_LINES)
def test_bad_field_line(line: bytes, says: str, step: int) -> None:
    """A line that two readers could understand differently is refused, with the words for it, place and bytes."""
    front = OK + b"Good: line\r\n"
    error = refusal(front + line + b"\r\nContent-Length: 0\r\n\r\n", step)

    assert (error.what, error.where) == (says, f"the head, byte {len(front)}")
    assert line.startswith(error.data.rstrip(b"\r\n"))
    assert str(error).startswith(f"{says} in the head, byte {len(front)}: b'")


@pytest.mark.parametrize(("line", "says"), FIELD_LINES)
def test_bad_trailer_line(line: bytes, says: str) -> None:
    """The rules for fields hold for those of a trailer."""
    error = refusal(CHUNKED + b"0\r\nGood: line\r\n" + line + b"\r\n\r\n")

    assert (error.what, error.where) == (says, "the trailer, byte 12")


@pytest.mark.parametrize("code", [code for code in range(32) if code not in b"\t\r\n\0"] + [127])
def test_control_characters(code: int) -> None:
    """No control character but HTAB is in a reason, a value, a trailer or a chunk extension."""
    text = b"x" + bytes([code]) + b"y"

    assert refusal(b"HTTP/1.1 200 " + text + b"\r\n\r\n").what == "a control character"
    assert refusal(OK + b"A: " + text + b"\r\n\r\n").what == "a control character"
    assert refusal(CHUNKED + b"0\r\nA: " + text + b"\r\n\r\n").what == "a control character"
    assert refusal(CHUNKED + b"1;" + text + b"\r\nz\r\n").what == "a bad chunk size line"


@pytest.mark.parametrize("data", [b"S", b"HTTX", b"\r", b"HTTP/2", OK + b"A: x\n", OK + b" x\r\n", OK + b"x\r\n"])
def test_told_at_once(data: bytes) -> None:
    """A wrong line is told when it is there; nobody waits for the end of the head, or a time-out."""
    assert refusal(data).what


def test_errors_are_ours_and_pickle() -> None:
    """Errors have our root, say what they say after pickling, and those of the caller are ValueErrors."""
    for error in (refusal(b"SSH-2.0\r\n"), Truncated("the body", 3, 7), Truncated("the head", 0, None)):
        again = pickle.loads(pickle.dumps(error))

        assert (str(again), vars(again)) == (str(error), vars(error))
        assert isinstance(error, FewportsError)
    assert issubclass(LocalProtocolError, ValueError)
    assert str(Truncated("the body", 3, 7)) == "the peer closed after 3 bytes of body, 7 more expected in the body"


def test_errors_quote_little() -> None:
    """However long a wrong line is, the error has a few bytes of it."""
    assert len(refusal(OK + b"x" * 60000 + b"\r\n").data) == http1.response.SHOWN


# 1xx.


@pytest.mark.parametrize("step", [0, 1, 4])
def test_interim(step: int) -> None:
    """Heads with 1xx are passed over, whatever fields they have; the final one counts."""
    early = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\nConnection: close\r\n\r\n"
    reader = begun()
    body = feed(reader, b"HTTP/1.1 100 Continue\r\n\r\n" + early + OK + b"Content-Length: 2\r\n\r\nhi", step)

    assert (body, reader.interim, reader.reusable) == (b"hi", 2, True)
    assert reader.head
    assert reader.head.status == 200


def test_interim_bound() -> None:
    """An endless row of 1xx ends in an error."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    reader = begun()
    feed(reader, interim * http1.MAX_INTERIM + OK + b"Content-Length: 0\r\n\r\n")

    assert reader.done
    assert "responses with 1xx" in refusal(interim * (http1.MAX_INTERIM + 1)).what


def test_upgrade() -> None:
    """101 is refused where nobody asked for it: what follows would not be HTTP."""
    assert "another protocol" in refusal(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").what


@pytest.mark.parametrize("step", [0, 1])
def test_upgrade_that_was_asked_for(step: int) -> None:
    """101 ends HTTP on the connection if that was asked for, and what came behind it belongs to the other protocol."""
    reader = Reader()
    reader.begin("GET", upgrade=True)
    body = feed(reader, b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nfirst", step)

    assert reader.head is not None
    assert (reader.head.status, body, reader.beyond) == (101, b"", b"first")
    assert (reader.done, reader.reusable) == (True, False)


def test_what_comes_behind_a_tunnel_is_kept() -> None:
    """After CONNECT the bytes behind the head are those of the tunnel; after other methods they are in excess."""
    reader = begun("CONNECT")
    feed(reader, OK + b"\r\n\x16\x03")
    other = begun("HEAD")
    feed(other, OK + b"\r\n\x16\x03")

    assert (reader.beyond, other.beyond, other.excess) == (b"\x16\x03", b"", 2)


def test_raw_fields() -> None:
    """The fields can be had as bytes, in the case and order of the peer."""
    reader = begun()
    feed(reader, OK + b"X-A:  1 \r\nx-b:\r\nX-a: \xff 2\r\n\r\n")

    assert reader.head is not None
    assert reader.head.raw_fields() == [(b"X-A", b"1"), (b"x-b", b""), (b"X-a", b"\xff 2")]


# Bounds.


@pytest.mark.parametrize("step", [0, 1000])
def test_number_of_fields(step: int) -> None:
    """A head or a trailer has 100 fields at most."""
    reader = begun()
    feed(reader, OK + b"A: b\r\n" * 99 + b"Content-Length: 0\r\n\r\n", step)
    other = begun()
    feed(other, CHUNKED + b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n", step)

    assert reader.done
    assert len(other.trailers()) == 100
    assert "more than 100 fields" in refusal(OK + b"A: b\r\n" * 101 + b"\r\n", step).what
    assert "more than 100 fields" in refusal(CHUNKED + b"0\r\n" + b"A: b\r\n" * 101 + b"\r\n", step).what


@pytest.mark.parametrize("step", [0, 1000])
@pytest.mark.parametrize("front", [b"HTTP/1.1 200 ", OK + b"A: ", CHUNKED + b"0\r\nA: "])
def test_length_of_a_line(front: bytes, step: int) -> None:
    """A line has 64 KiB at most; one that never ends is refused then."""
    start = front.rfind(b"\n") + 1
    fill = http1.MAX_LINE - (len(front) - start) - 2
    chunked = front.startswith(CHUNKED)
    reader = begun("GET" if chunked else "HEAD")
    if not chunked:  # a trailer is no longer than a line
        feed(reader, front + b"x" * fill + b"\r\n\r\n", step)
    error = refusal(front + b"x" * (fill + 1) + b"\r\n\r\n", step)

    assert reader.done is not chunked
    assert error.what == f"a line of more than {http1.MAX_LINE} bytes"
    assert refusal(front + b"x" * (http1.MAX_LINE * 5), step).what == error.what


@pytest.mark.parametrize("step", [0, 1000])
def test_size_of_a_section(step: int) -> None:
    """A head has 256 KiB at most, a trailer 64 KiB."""
    line = b"A: " + b"x" * 9995 + b"\r\n"
    head = OK + line * 26
    rest = http1.MAX_HEAD - len(head) - len(b"B: \r\n\r\n")
    reader = begun("HEAD")
    feed(reader, head + b"B: " + b"y" * rest + b"\r\n\r\n", step)

    assert reader.done
    assert refusal(head + b"B: " + b"y" * (rest + 1) + b"\r\n\r\n", step).what == f"more than {http1.MAX_HEAD} bytes"
    assert refusal(CHUNKED + b"0\r\n" + line * 7, step).what == f"more than {http1.MAX_TRAILER} bytes"


@pytest.mark.parametrize("step", [0, 7])
def test_chunk_extensions(step: int) -> None:
    """Extensions mean nothing; a line of them is bounded, and all together by the data that comes with them."""
    reader = begun()
    body = feed(reader, CHUNKED + b"2;a=b; c\r\nhi\r\n2 \t;\r\nho\r\n0;\xe9\r\n\r\n", step)
    long = b";" + b"x" * (http1.MAX_CHUNK_LINE - 6)
    costly = (b"1;" + b"x" * 2000 + b"\r\ny\r\n") * 9
    cheap = (b"3e8;" + b"x" * 2000 + b"\r\n" + b"y" * 1000 + b"\r\n") * 50

    assert (body, reader.reusable) == (b"hiho", True)
    assert feed(begun(), CHUNKED + b"2" + long + b"\r\nhi", step) == b"hi"
    assert "exceeded maximum allowed length" in refusal(CHUNKED + b"2" + long + b"yyy\r\n", step).what
    assert "exceeded maximum allowed length" in refusal(CHUNKED + b"f" * 70000, step).what
    assert refusal(CHUNKED + costly, step).what == "more chunk extensions than data"
    assert len(feed(begun(), CHUNKED + cheap, step)) == 50_000


# Where the body ends, and whether the connection goes on.


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(
    ("method", "head", "rest", "body"),
    [
        ("GET", b"200 OK\r\nContent-Length: 5", b"hello", b"hello"),
        ("GET", b"200 OK\r\ncontent-length:5 \t", b"hello", b"hello"),
        ("GET", b"200 OK\r\nContent-Length: 0005", b"hello", b"hello"),
        ("GET", b"200 OK\r\nContent-Length: 0", b"", b""),
        ("GET", b"200 OK\r\nTransfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        ("GET", b"200 OK\r\nTRANSFER-ENCODING:\tChunked ", b"0005\r\nhello\r\n000\r\nA: b\r\n\r\n", b"hello"),
        ("GET", b"200 OK\r\nTransfer-Encoding: chunked", b"1\r\nh\r\nA\r\nello world\r\n0\r\n\r\n", b"hello world"),
        ("HEAD", b"200 OK\r\nContent-Length: 5", b"", b""),
        ("HEAD", b"200 OK\r\nTransfer-Encoding: chunked", b"", b""),
        ("HEAD", b"200 OK", b"", b""),
        ("GET", b"204 No Content", b"", b""),
        ("GET", b"204 No Content\r\nContent-Length: 0", b"", b""),
        ("GET", b"304 Not Modified\r\nContent-Length: 5", b"", b""),
        ("GET", b"304 Not Modified\r\nTransfer-Encoding: chunked", b"", b""),
        ("CONNECT", b"407 Go Away\r\nContent-Length: 5", b"hello", b"hello"),
        ("head", b"200 OK\r\nContent-Length: 5", b"hello", b"hello"),
    ],
)
def test_framing(method: str, head: bytes, rest: bytes, body: bytes, step: int) -> None:
    """Method, status, Content-Length and Transfer-Encoding tell where a body ends; then the connection goes on."""
    reader = begun(method)
    got = feed(reader, b"HTTP/1.1 " + head + b"\r\n\r\n" + rest, step)

    assert (got, reader.got, reader.done, reader.reusable, reader.excess) == (body, len(body), True, True, 0)


def test_what_is_known_of_the_body() -> None:
    """With the head comes the length, or that there is none to be known."""
    known = {}
    for name, head in (
        ("length", OK + b"Content-Length: 5\r\n\r\n"),
        ("chunked", CHUNKED),
        ("close", OK + b"\r\n"),
        ("none", b"HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n"),
    ):
        reader = begun()
        reader.receive(head)
        known[name] = (reader.length, reader.chunked, reader.expects, reader.done)

    assert known == {
        "length": (5, False, 5, False),
        "chunked": (None, True, 0, False),
        "close": (None, False, UNBOUNDED, False),
        "none": (0, False, 0, True),
    }


@pytest.mark.parametrize("step", [0, 1, 3])
def test_until_close(step: int) -> None:
    """Without length and chunks a body lasts until the peer closes, and so does the connection."""
    reader = begun()
    body = feed(reader, OK + b"Connection: keep-alive\r\n\r\nhello", step)
    before = reader.done
    reader.eof()

    assert (body, before, reader.done, reader.reusable) == (b"hello", False, True, False)


@pytest.mark.parametrize(
    ("method", "head", "says"),
    [
        ("GET", b"Content-Length: 5\r\nContent-Length: 5", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 5\r\nA: b\r\ncontent-length: 6", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 5, 5", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: ", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: +5", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: -5", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 5 5", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 0x5", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 5.0", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 1_000", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: \xb2", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 9223372036854775808", "a Content-Length that is not one number"),
        ("GET", b"Content-Length: " + b"1" * 5000, "a Content-Length that is not one number"),
        ("GET", b"Content-Length: 5\r\nTransfer-Encoding: chunked", "both Content-Length and Transfer-Encoding"),
        ("GET", b"Transfer-Encoding: chunked\r\nContent-Length: 5", "both Content-Length and Transfer-Encoding"),
        ("HEAD", b"Transfer-Encoding: chunked\r\nContent-Length: 5", "both Content-Length and Transfer-Encoding"),
        ("GET", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "a Transfer-Encoding other than chunked"),
        ("GET", b"Transfer-Encoding: gzip, chunked", "a Transfer-Encoding other than chunked"),
        ("GET", b"Transfer-Encoding: chunked, gzip", "a Transfer-Encoding other than chunked"),
        ("GET", b"Transfer-Encoding: identity", "a Transfer-Encoding other than chunked"),
        ("GET", b"Transfer-Encoding: xchunked", "a Transfer-Encoding other than chunked"),
        ("GET", b"Transfer-Encoding:", "a Transfer-Encoding other than chunked"),
    ],
)
def test_bad_framing(method: str, head: bytes, says: str) -> None:
    """A body whose end could be seen in two places is refused (RFC 9112, section 6.3)."""
    assert refusal(OK + head + b"\r\n\r\nhello", method=method).what == says


def test_largest_length() -> None:
    """A length of 2**63 - 1 is a number like others."""
    reader = begun()
    reader.receive(OK + b"Content-Length: 9223372036854775807\r\n\r\n")

    assert reader.length == reader.expects == 2**63 - 1


@pytest.mark.parametrize(
    ("head", "keep"),
    [
        (b"HTTP/1.1 200 OK", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close", False),
        (b"HTTP/1.1 200 OK\r\nCONNECTION: CLOSE ", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\t,y", False),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close", False),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive, close", False),
        (b"HTTP/1.1 200 OK\r\nConnection: closed, not-close", True),
        (b"HTTP/1.1 200 OK\r\nConnection:", True),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close", False),
        (b"HTTP/1.0 200 OK\r\nKeep-Alive: timeout=5", False),
        (b"HTTP/1.0 200 OK\r\nConnection: upgrade", False),
    ],
)
def test_keep_alive(head: bytes, keep: bool) -> None:
    """HTTP/1.1 goes on unless told to close, HTTP/1.0 only if told to keep (RFC 9112, section 9.3)."""
    reader = begun()
    feed(reader, head + b"\r\nContent-Length: 2\r\n\r\nhi")

    assert (reader.done, reader.reusable) == (True, keep)


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("CONNECT", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("CONNECT", b"HTTP/1.1 299 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_good_for_once(method: str, data: bytes) -> None:
    """Chunks from HTTP/1.0, a body announced with 204, a tunnel: the response is good, the connection is not."""
    reader = begun(method)
    feed(reader, data)

    assert (reader.done, reader.reusable, reader.got) == (True, False, 0)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        (b"Keep-Alive: timeout=5, max=100", 5),
        (b"keep-alive: max=100,TIMEOUT = 75", 75),
        (b'Keep-Alive: timeout="60"', 60),
        (b"Keep-Alive: timeout=0", 0),
        (b"Keep-Alive: max=3\r\nKeep-Alive: timeout=9", 9),
        (b"Keep-Alive: timeout=5.5", None),
        (b"Keep-Alive: timeout=-5", None),
        (b"Keep-Alive: timeout=12345678901", None),
        (b"Keep-Alive: xtimeout=5", None),
        (b"Keep-Alive: 300", None),
        (b"Keep-Alive:", None),
        (b"A: timeout=5", None),
    ],
)
def test_idle_limit(fields: bytes, seconds: int | None) -> None:
    """``Keep-Alive: timeout=N`` is a number of seconds; what is no such number says nothing."""
    reader = begun()
    feed(reader, OK + fields + b"\r\nContent-Length: 0\r\n\r\n")

    assert (reader.idle_limit, reader.reusable) == (seconds, True)


# Chunks.


SIZES = [b"", b"+5", b"-5", b"0x5", b" 5", b"5 ", b"5\t", b"5g", b"g", b"5 5", b"1_0", b'"5"', b"\xb2", b";a"]
SIZES += [b"8" + b"0" * 15, b"f" * 17, b"0" * 17, b"5\x00", b"5;\x00", b"5;\x7f", b"5\r", b"5\n", b"5;\r", b"5;a\nb"]


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("line", SIZES)
def test_bad_chunk_size(line: bytes, step: int) -> None:
    """A chunk size is 1 to 16 hexadecimal digits below 2**63, with nothing before and only an extension behind."""
    for front in (b"", b"2\r\nhi\r\n"):
        error = refusal(CHUNKED + front + line + b"\r\nhello\r\n0\r\n\r\n", step)

        assert error.what == "a bad chunk size line"
        assert error.where == ("the end of a chunk" if front else "the first chunk size line")


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("end", [b"\n", b"\r\r", b"x\r\n", b"\rx", b"0\r\n\r\n", b" \r\n"])
def test_bad_chunk_end(end: bytes, step: int) -> None:
    """CRLF and nothing else comes after the data of a chunk; the data itself was good."""
    reader = begun()
    with pytest.raises(RemoteProtocolError, match="no CRLF in the end of a chunk"):
        feed(reader, CHUNKED + b"2\r\nhi" + end + b"0\r\n\r\n", step)

    assert reader.got == 2


def test_error_behind_good_bytes() -> None:
    """Body bytes in front of an error are handed out; the call after them raises it."""
    reader = begun()
    reader.receive(CHUNKED + b"2\r\nhi\r\nwrong\r\n")

    assert reader.take() == b"hi"
    with pytest.raises(RemoteProtocolError):
        reader.take()


def test_largest_chunk() -> None:
    """A chunk may have 2**63 - 1 bytes."""
    reader = begun()
    reader.receive(CHUNKED + b"7fffffffffffffff\r\n")

    assert reader.expects == 2**63 - 1


@pytest.mark.parametrize("step", [0, 1, 2])
def test_trailers(step: int) -> None:
    """Trailer fields are kept apart from the head; those that frame a message mean nothing there."""
    trailer = b"Digest: x \r\nContent-Length: 9\r\nTRANSFER-ENCODING: gzip\r\nTrailer: a\r\nConnection: close\r\n"
    reader = begun()
    body = feed(reader, CHUNKED + b"2\r\nhi\r\n0\r\n" + trailer + b"\r\n", step)

    assert (body, reader.reusable) == (b"hi", True)
    assert reader.trailers() == [("Digest", "x"), ("Connection", "close")]
    assert reader.head
    assert reader.head.fields() == [("Transfer-Encoding", "chunked")]
    reader.begin("GET")

    assert reader.trailers() == []


def test_take_respects_chunks() -> None:
    """take() gives bytes of one chunk at a time, as the peer cut them, or less when less is wanted."""
    reader = begun()
    reader.receive(CHUNKED + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")

    assert [reader.take(2), reader.take(2), reader.take(9), reader.take(0), reader.take()] == [
        b"ab",
        b"c",
        b"defg",
        b"",
        b"",
    ]
    assert reader.reusable


@pytest.mark.parametrize("step", [0, 3])
def test_bytes_after_a_trailer(step: int) -> None:
    """What comes after the trailer is no part of it."""
    reader = begun()
    feed(reader, CHUNKED + b"0\r\nA: b\r\n\r\nC: d\r\n\r\n", step)

    assert (reader.trailers(), reader.excess, reader.reusable) == ([("A", "b")], 8, False)


# Straight into the caller's buffer.


def test_took() -> None:
    """What is expected may be read past the reader, which is told how much it was."""
    reader = begun()
    reader.receive(OK + b"Content-Length: 10\r\n\r\nabc")

    assert (reader.expects, bytes(reader.take()), reader.expects) == (10, b"abc", 7)
    reader.took(3)
    reader.took(0)

    assert (reader.expects, reader.done) == (4, False)
    reader.took(4)

    assert (reader.expects, reader.got, reader.reusable) == (0, 10, True)


def test_took_from_chunks() -> None:
    """In a chunked body ``expects`` ends with the chunk; framing goes through the reader."""
    reader = begun()
    reader.receive(CHUNKED + b"a\r\nabc")
    reader.take()
    reader.took(7)

    assert (reader.expects, reader.done) == (0, False)
    reader.receive(b"\r\n5\r\n")
    reader.took(5)
    reader.receive(b"\r\n0\r\n\r\n")

    assert (reader.got, reader.reusable) == (15, True)


def test_views() -> None:
    """A memoryview goes in and views on it come out: no body byte is copied."""
    buffer = bytearray(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
    reader = begun()
    reader.receive(memoryview(buffer))
    piece = reader.take()

    assert isinstance(piece, memoryview)
    assert (piece.obj is buffer, bytes(piece), reader.reusable) == (True, b"hello", True)


@pytest.mark.parametrize(
    ("method", "data", "whole", "reusable"),
    [
        ("GET", OK + b"Content-Length: 2\r\n\r\nhi", b"hi", True),
        ("GET", OK + b"Content-Length: 0\r\n\r\n", b"", True),
        ("HEAD", OK + b"Content-Length: 2\r\n\r\n", b"", True),
        ("GET", OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", b"hi", False),
        ("GET", OK + b"Content-Length: 2\r\n\r\nhi and more", b"hi", False),
        ("GET", OK + b"Content-Length: 3\r\n\r\nhi", None, False),
        ("GET", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", None, False),
        ("GET", OK + b"\r\nhi", None, False),
    ],
)
def test_a_body_that_is_all_here_comes_in_one_piece(
    method: str, data: bytes, whole: bytes | None, reusable: bool
) -> None:
    """whole() gives a body between its first and its last byte, and nothing of one that is not all there."""
    reader = begun(method)
    reader.receive(data)

    assert reader.whole() == whole
    assert (reader.done, reader.reusable, reader.got) == (whole is not None, reusable, len(whole or b""))
    if whole is None:
        assert reader.take() in (b"hi", b"")
        assert reader.whole() is None


# Ends.


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("data", "where", "got", "expected"),
    [
        (b"", "front of any response", 0, None),
        (b"H", "the head", 0, None),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "the head", 0, None),
        (OK + b"Content-Length: 5\r\n", "the head", 0, None),
        (OK + b"Content-Length: 5\r\n\r\n", "the body", 0, 5),
        (OK + b"Content-Length: 5\r\n\r\nhel", "the body", 3, 2),
        (CHUNKED, "the first chunk size line", 0, None),
        (CHUNKED + b"5", "the first chunk size line", 0, None),
        (CHUNKED + b"5\r\nhel", "the data of a chunk", 3, 2),
        (CHUNKED + b"5\r\nhello", "the end of a chunk", 5, None),
        (CHUNKED + b"5\r\nhello\r\n", "the end of a chunk", 5, None),
        (CHUNKED + b"5\r\nhello\r\n0\r", "the end of a chunk", 5, None),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r", "the trailer", 5, None),
        (CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\n", "the trailer", 5, None),
    ],
)
def test_truncated(data: bytes, where: str, got: int, expected: int | None, step: int) -> None:
    """A peer that closes too early leaves an error that says what is missing; receiving nothing is closing."""
    reader = begun()
    feed(reader, data, step)
    started = reader.started
    with pytest.raises(Truncated) as caught:
        reader.receive(b"")

    error = caught.value
    assert (error.where, error.got, error.expected) == (where, got, expected)
    assert started is reader.started is bool(data)
    assert_unusable(reader, error)


def test_no_empty_line_after_the_last_chunk() -> None:
    """A body is complete with its last chunk (RFC 9112, section 8), but nothing follows on that connection."""
    reader = begun()
    feed(reader, CHUNKED + b"2\r\nhi\r\n0\r\n")
    reader.eof()

    assert (reader.done, reader.reusable) == (True, False)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("GET", OK + b"Content-Length: 2\r\n\r\nhi"),
        ("GET", OK + b"Content-Length: 0\r\n\r\n"),
        ("GET", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"),
        ("HEAD", OK + b"Content-Length: 2\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 x\r\n\r\n"),
        ("CONNECT", OK + b"\r\n"),
    ],
)
@pytest.mark.parametrize("more", [b"\r\n", b"x", OK + b"Content-Length: 0\r\n\r\n"])
def test_bytes_after_the_end(method: str, data: bytes, more: bytes, apart: bool) -> None:
    """Bytes after the end, in the same read or later, leave the response as it is and end the connection."""
    reader = begun(method)
    for part in (data, more) if apart else (data + more,):
        feed(reader, part)

    assert (reader.done, reader.excess, reader.reusable) == (True, len(more), False)
    with pytest.raises(LocalProtocolError, match=f"{len(more)} bytes in excess"):
        reader.begin("GET")


def test_bytes_before_the_request() -> None:
    """A response that nobody asked for ends the connection."""
    reader = Reader()
    reader.receive(OK + b"Content-Length: 0\r\n\r\n")

    assert (reader.head, reader.reusable) == (None, False)
    reader.receive(b"x")

    assert reader.excess == 40 - 1


def test_closed_while_idle() -> None:
    """A peer that closes between two requests did nothing wrong."""
    reader = begun()
    feed(reader, OK + b"Content-Length: 0\r\n\r\n")
    reader.eof()

    assert (reader.done, reader.reusable) == (True, False)


def test_response_before_the_end_of_the_request() -> None:
    """A response that is complete before the request is makes the connection free only after the rest was sent."""
    reader = Reader()
    reader.begin("POST", sending=True)
    feed(reader, b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    assert (reader.done, reader.reusable) == (True, False)
    with pytest.raises(LocalProtocolError):
        reader.begin("GET")
    reader.sent()

    assert reader.reusable


def test_reused() -> None:
    """Nothing of one response is left for the next."""
    reader = begun("HEAD")
    feed(reader, OK + b"Keep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\n")
    reader.begin("GET")
    fresh = (reader.head, reader.started, reader.idle_limit, reader.length, reader.got, reader.done)
    body = feed(reader, CHUNKED + b"2\r\nhi\r\n0\r\nA: b\r\n\r\n", 1)
    reader.begin("GET")
    feed(reader, OK + b"Content-Length: 3\r\n\r\nabc")

    assert fresh == (None, False, None, None, 0, False)
    assert body == b"hi"
    assert (reader.length, reader.chunked, reader.trailers(), reader.reusable) == (3, False, [], True)


def test_idle_reader_keeps_no_buffer() -> None:
    """The memory of what was received is free when the body was taken."""
    reader = begun()
    feed(reader, OK + b"Content-Length: 50000\r\n\r\n" + b"x" * 50000)

    assert reader._data == b""


# Out of turn.


@pytest.mark.parametrize("rest", [b"", b"hel"])
@pytest.mark.parametrize("what", ["begin", "receive", "took", "eof"])
def test_out_of_turn(what: str, rest: bytes) -> None:
    """A caller that leaves out a step is told so, and nothing is lost."""
    reader = begun()
    reader.receive(OK + b"Content-Length: 5\r\n\r\n" + rest)
    if what == "begin":
        with pytest.raises(LocalProtocolError, match="no request may be sent now"):
            reader.begin("GET")
    elif rest:
        calls = {"receive": lambda: reader.receive(b"lo"), "took": lambda: reader.took(1), "eof": reader.eof}
        with pytest.raises(LocalProtocolError, match="take"):
            calls[what]()

    assert reader.take() == rest
    assert feed(reader, b"hello"[len(rest) :]) == b"hello"[len(rest) :]
    assert reader.done


@pytest.mark.parametrize("count", [-1, 6])
def test_took_too_much(count: int) -> None:
    """No more can be read past the reader than is expected."""
    reader = begun()
    reader.receive(OK + b"Content-Length: 5\r\n\r\n")
    with pytest.raises(LocalProtocolError, match="5 expected"):
        reader.took(count)


def test_repr() -> None:
    """A reader tells where it is."""
    reader = begun()
    before = repr(reader)
    feed(reader, OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhel")

    assert before == "<Reader the head, 0 bytes of body>"
    assert repr(reader) == "<Reader the body, 3 bytes of body, not to be used again>"


def test_the_same_head_again() -> None:
    """A head of the same bytes says the same, whatever came before; the method says again whether a body follows."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\nKeep-Alive: timeout=7\r\n\r\n"
    reader = Reader()
    for method, body in (("GET", b"abc"), ("HEAD", b""), ("GET", b"xyz"), ("GET", b"...")):
        reader.begin(method)
        reader.receive(head + body)

        assert bytes(reader.take()) == body
        assert reader.done
        assert reader.reusable
        assert (reader.head and reader.head.raw, reader.length, reader.encoded, reader.idle_limit) == (
            head,
            len(body),
            True,
            7,
        )
    reader.begin("GET")
    reader.receive(head[:-4] + b"0\r\n\r\n" + b"abc")
    assert reader.idle_limit == 70
