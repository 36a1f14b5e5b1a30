"""The reader of HTTP/1.1 against a second one that is slow and plain, over any split and any damage.

The second one looks at a whole stream from its start, byte by byte, without regular expressions. What it takes for a
response, the reader must take for the same, and what it refuses must be refused or never end.
FEWPORTS_EXAMPLES=200000 runs so many cases in all, others each time.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fewports.http1 import (
    LocalProtocolError,
    Preset,
    ProtocolError,
    Reader,
    RemoteProtocolError,
    Truncated,
    request_head,
)

EXAMPLES = int(os.environ.get("FEWPORTS_EXAMPLES", "0"))
TOKEN = frozenset((string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode())
TEXT = frozenset([9, *range(32, 127), *range(128, 256)])
DIGITS = frozenset(string.digits.encode())
HEX = frozenset(string.hexdigits.encode())


def cases(share: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run that percentage of FEWPORTS_EXAMPLES; without it, of 1200, which are the same each time."""
    profile = settings(
        max_examples=(EXAMPLES or 1200) * share // 100,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def run(test: Callable[..., None]) -> Callable[..., None]:
        return pytest.mark.timeout(7200 if EXAMPLES else 60)(profile(test))

    return run


@pytest.fixture(autouse=True, scope="module")
def _ledgers_tell_the_truth() -> None:
    """Leave out what is done after other tests: no ledger is touched here, and the look at them takes 40 ms."""


class Seen(NamedTuple):
    """A response, as somebody understood it."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]]
    interim: int
    reusable: bool
    end: int


# The slow reader.


class Wrong(Exception):
    """No response begins like this."""


class More(Exception):
    """A response may begin like this."""


def line_at(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the line at *at* and where the next one begins."""
    for place in range(at, len(data)):
        if data[place] == 10:
            if place == at or data[place - 1] != 13 or 13 in data[at : place - 1]:
                raise Wrong
            return data[at : place - 1], place + 1
    raise More


def fields_at(data: bytes, at: int) -> tuple[list[tuple[str, str]], int]:
    fields = []
    while True:
        line, at = line_at(data, at)
        if not line:
            return fields, at
        if b":" not in line:
            raise Wrong
        name, value = line.split(b":", 1)
        if not name or any(byte not in TOKEN for byte in name) or any(byte not in TEXT for byte in value):
            raise Wrong
        fields.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))


def chunks_at(data: bytes, at: int) -> tuple[bytes, list[tuple[str, str]], int]:
    body = b""
    while True:
        line, at = line_at(data, at)
        size = line
        if b";" in line:
            size, extension = line.split(b";", 1)
            size = size.rstrip(b" \t")
            if any(byte not in TEXT for byte in extension):
                raise Wrong
        if not 1 <= len(size) <= 16 or any(byte not in HEX for byte in size) or int(size, 16) >= 2**63:
            raise Wrong
        number = int(size, 16)
        if number == 0:
            break
        if len(data) < at + number:
            raise More
        body += data[at : at + number]
        at += number
        for byte in b"\r\n":
            if at == len(data):
                raise More
            if data[at] != byte:
                raise Wrong
            at += 1
    if at == len(data):
        return body, [], -1  # complete if the peer closes here
    trailers, at = fields_at(data, at)
    no_meaning = {"content-length", "transfer-encoding", "trailer"}
    return body, [pair for pair in trailers if pair[0].lower() not in no_meaning], at


def look(data: bytes, at: int, method: str) -> Seen:
    """Say what response begins at *at*, when the peer closes after *data*."""
    interim = 0
    while True:
        if not b"HTTP/1.".startswith(data[at : at + 7]):
            raise Wrong
        line, at = line_at(data, at)
        code, rest = line[9:12], line[12:]
        if line[:9] not in (b"HTTP/1.0 ", b"HTTP/1.1 ") or len(code) < 3 or any(byte not in DIGITS for byte in code):
            raise Wrong
        if code[0] == ord("0") or rest[:1] not in (b"", b" ") or any(byte not in TEXT for byte in rest):
            raise Wrong
        status = int(code)
        fields, at = fields_at(data, at)
        if status == 101:
            raise Wrong
        if status >= 200:
            break
        interim += 1
    modern = line[7] == ord("1")
    lengths = [value for name, value in fields if name.lower() == "content-length"]
    codings = [value.lower() for name, value in fields if name.lower() == "transfer-encoding"]
    tokens = [
        token.strip(" \t").lower()
        for name, value in fields
        if name.lower() == "connection"
        for token in value.split(",")
    ]
    reusable = "close" not in tokens and (modern or "keep-alive" in tokens)
    if (lengths and codings) or len(lengths) > 1 or codings not in ([], ["chunked"]):
        raise Wrong
    if lengths and (
        not lengths[0] or set(lengths[0].encode("latin-1")) - DIGITS or len(lengths[0]) > 19 or int(lengths[0]) >= 2**63
    ):
        raise Wrong
    body, trailers = b"", []
    if method == "CONNECT" and status < 300:
        reusable = False
    elif status == 204:
        reusable = reusable and not codings and not (lengths and int(lengths[0]))
    elif method == "HEAD" or status == 304:
        pass
    elif codings:
        body, trailers, at = chunks_at(data, at)
        reusable = reusable and modern and at >= 0
        at = at if at >= 0 else len(data)
    elif lengths:
        if len(data) < at + int(lengths[0]):
            raise More
        body, at = data[at : at + int(lengths[0])], at + int(lengths[0])
    else:
        body, at, reusable = data[at:], len(data), False
    return Seen(status, fields, body, trailers, interim, reusable, at)


# The reader.


class Way(NamedTuple):
    """How bytes come: cut where, as what, taken how, and read past the reader where that may be."""

    cuts: tuple[int, ...] = ()
    view: bool = False
    limit: int = 2**63
    past: bool = False


PLAIN = Way()


def parts(data: bytes, way: Way) -> Iterator[bytes]:
    places = sorted({place % (len(data) + 1) for place in way.cuts} | {0, len(data)})
    for start, stop in pairwise(places):
        yield data[start:stop]


def give(reader: Reader, part: bytes, way: Way) -> bytes:
    """Hand over one part as a wire would, and return the body that came of it."""
    body = b""
    if way.past and reader.expects:
        body = part[: reader.expects]
        reader.took(len(body))
        part = part[len(body) :]
    if part:
        reader.receive(memoryview(part) if way.view else part)
        while piece := reader.take(way.limit):
            body += piece
    return body


def read(reader: Reader, stream: Iterator[bytes], way: Way, method: str) -> Seen | None:
    """Read one response, to its end or that of *stream*; None if it has no end."""
    reader.begin(method)
    body, passed = b"", 0
    for part in stream:
        passed += len(part)
        body += give(reader, part, way)
        if reader.done:
            break
    else:
        reader.receive(b"")
    if not reader.done or reader.head is None:
        return None
    assert reader.got == len(body)
    trailers, end = reader.trailers(), passed - reader.excess
    head = reader.head
    return Seen(head.status, head.fields(), body, trailers, reader.interim, reader.reusable, end)


# Responses.

tokens = st.sampled_from(["A", "b", "X-Long-Name", "Set-Cookie", "Trailer", "!#$%&'*+-.^_`|~0"]) | st.text(
    st.sampled_from(sorted(map(chr, TOKEN))), min_size=1, max_size=4
)
texts = st.sampled_from(["", "a", 'b; c="d, e"', " \t x", "chunked", "9", ":"]) | st.text(
    st.sampled_from(sorted(map(chr, TEXT))), max_size=5
)
FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive"))
other_fields = st.tuples(tokens, texts).filter(lambda field: field[0].lower() not in FRAMING)
spaces = st.sampled_from(["", " ", "\t", " \t "])
cased = st.sampled_from([str, str.lower, str.upper, str.title])


class Response(NamedTuple):
    """Bytes, and what they mean."""

    method: str
    raw: bytes
    seen: Seen


@st.composite
def responses(draw: st.DrawFn) -> Response:
    """Write a response that is right; know what it says without reading it."""
    method = draw(st.sampled_from(["GET", "GET", "GET", "POST", "HEAD", "CONNECT"]))
    status = draw(st.sampled_from([200, 200, 200, 404, 500, 204, 304, 999]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0"]))
    framing = draw(st.sampled_from(["length", "length", "chunked", "chunked", "close"]))
    body = draw(st.binary(max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]))
    fields = draw(st.lists(other_fields, max_size=4))
    options = draw(st.sampled_from([None, None, "keep-alive", "close", "x, Keep-Alive", "Close ,x", "upgrade"]))
    extra = [("Connection", options)] if options is not None else []
    if framing == "length":
        extra.append(("Content-Length", str(len(body))))
    elif framing == "chunked":
        extra.append(("Transfer-Encoding", draw(cased)("chunked")))
    for name, value in extra:
        fields.insert(draw(st.integers(0, len(fields))), (draw(cased)(name), value))
    interim = draw(
        st.lists(st.sampled_from([b"100 Continue", b"103\r\nLink: <x>", b"102 \r\nContent-Length: 9"]), max_size=2)
    )
    reason = draw(st.just("") | texts.map(lambda text: " " + text))

    raw = b"".join(b"HTTP/1.1 " + head + b"\r\n\r\n" for head in interim)
    lines = [f"{name}:{draw(spaces)}{value}{draw(spaces)}\r\n" for name, value in fields]
    raw += f"HTTP/{version} {status}{reason}\r\n{''.join(lines)}\r\n".encode("latin-1")
    lower = (options or "").lower()
    reusable = "close" not in lower and (version == "1.1" or "keep-alive" in lower)
    trailers: list[tuple[str, str]] = []
    tunnel = method == "CONNECT" and status < 300
    if tunnel or method == "HEAD" or status in (204, 304):
        empty = framing == "close" or (framing == "length" and not body)
        reusable = reusable and not tunnel and (status != 204 or empty)
        body = b""
    elif framing == "chunked":
        coded, trailers = draw(chunked(body))
        raw += coded
        reusable = reusable and version == "1.1"
    else:
        raw += body
        reusable = reusable and framing == "length"
    fields = [(name, value.strip(" \t")) for name, value in fields]
    return Response(method, raw, Seen(status, fields, body, trailers, len(interim), reusable, len(raw)))


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """Write *body* in chunks, and a trailer."""
    extensions = st.sampled_from([b"", b"", b"", b";a", b' ; a="b;c"', b";"])
    forms = st.sampled_from([b"%x", b"%X", b"%03x"])
    coded = b""
    while body:
        size = draw(st.integers(1, len(body)))
        coded += draw(forms) % size + draw(extensions) + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    trailers = draw(st.lists(other_fields, max_size=2))
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers).encode("latin-1")
    known = [(name, value.strip(" \t")) for name, value in trailers if name.lower() != "trailer"]
    return coded + draw(st.sampled_from([b"0", b"000"])) + draw(extensions) + b"\r\n" + lines + b"\r\n", known


ways = st.builds(
    Way,
    cuts=st.one_of(
        st.just(()),
        st.lists(st.integers(0, 2**16), max_size=6).map(tuple),
        st.just(tuple(range(2000))),  # one byte at a time
    ),
    view=st.booleans(),
    limit=st.sampled_from([1, 3, 2**63]),
    past=st.booleans(),
)

odd = st.text(st.sampled_from("aA:/ \t\r\n\0\x1f\x7f\xe9\u2028\u20ac"), max_size=4) | st.text(max_size=4)
names = st.sampled_from(["A", "a", "B", "Host", "host", "Content-Length", "content-length", "Transfer-Encoding"])

# Damage.

SPECIAL = (
    b"\r|\n|\r\n|\0| |\t|:|;|,|0|f|-|\x7f|\xff|\r\n |\n\n|\r\n\r\n|0\r\n\r\n|1\r\n|\r\n5\r\n|101|chunked|close".split(
        b"|"
    )
)
SPECIAL += b"\r\nContent-Length: 3|Content-Length|\r\nTransfer-Encoding: chunked|\r\nConnection: close".split(b"|")
SPECIAL += b"8000000000000000|7fffffffffffffff|0x|HTTP/1.1 200 OK\r\n|HTTP/1.1 100\r\n\r\n|HTTP/1.0 ".split(b"|")


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Flip, insert, delete, repeat, move or cut off bytes, once or a few times."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):  # where one thing ends and another begins
            places = [place for place, byte in enumerate(data) if byte in b":\r\n; ,0"] or [0]
            at = places[at % len(places)] + draw(st.integers(0, 1))
        width = draw(st.integers(1, 9))
        what = draw(st.integers(0, 7))
        if what == 0:
            data = data[:at] + bytes(byte ^ draw(st.integers(1, 255)) for byte in data[at : at + 1]) + data[at + 1 :]
        elif what <= 3:
            put = draw(st.sampled_from(SPECIAL[:9]) | st.sampled_from(SPECIAL) | st.binary(min_size=1, max_size=3))
            data = data[:at] + put + data[at + (what == 1) :]
        elif what == 4:
            data = data[:at] + data[at + width :]
        elif what == 5:
            data = data[: at + width] + data[at:]
        elif what == 6:
            data = data[:at]
        else:
            lines = data.splitlines(keepends=True)
            number = at % (len(lines) + 1)
            data = b"".join(lines[:number] + lines[max(0, number - 2) :])
    return data


# Tests.


@cases(20)
@given(st.data(), responses(), ways)
def test_any_split(data: st.DataObject, response: Response, way: Way) -> None:
    """However the bytes of a response are cut and taken, it says the same; the slow reader agrees."""
    reader = Reader()
    seen = read(reader, parts(response.raw, way), way, response.method)

    assert seen == response.seen
    assert seen == look(response.raw, 0, response.method)
    if reader.reusable:  # and nothing of it is left
        again = data.draw(st.just(response) | responses())  # a head is known again

        assert read(reader, parts(again.raw, way), way, again.method) == again.seen


def check(first: bytes, second: Response, method: str, way: Way) -> None:
    """Read *first*, and *second* after it if that may be: both as the slow reader sees the whole stream."""
    reader = Reader()
    stream = first + second.raw
    left = iter([*parts(first, way), *parts(second.raw, way)])
    at = 0
    for verb in (method, second.method):
        expected: Seen | type[Exception]
        try:
            expected = look(stream, at, verb)
        except (Wrong, More) as error:
            expected = type(error)
        try:
            seen = read(reader, left, way, verb)
        except RemoteProtocolError as error:
            seen = error
        if isinstance(seen, RemoteProtocolError):
            assert expected is Wrong or (expected is More and isinstance(seen, Truncated))

            return assert_unusable(reader)
        assert isinstance(expected, Seen)
        assert seen == expected._replace(end=expected.end - at, reusable=expected.reusable and not reader.excess)
        at = expected.end
        if not reader.reusable:
            return assert_unusable(reader)
    return None


def assert_unusable(reader: Reader) -> None:
    """Whatever else is tried, a reader that is through stays so."""
    for data in (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"x", b""):
        try:
            reader.receive(data)
            reader.take()
        except ProtocolError:
            pass
        with pytest.raises(LocalProtocolError):
            reader.begin("GET")


@cases(40)
@given(st.data(), responses(), responses(), ways)
def test_damage(data: st.DataObject, response: Response, second: Response, way: Way) -> None:
    """A damaged response is refused, or read as its bytes say, and the next one from its first byte, or never."""
    check(data.draw(damaged(response.raw)), second, response.method, way)


@cases(10)
@given(responses(), responses(), responses(), ways)
def test_two_at_once(response: Response, more: Response, second: Response, way: Way) -> None:
    """Of two responses to one request the first counts, and no other request is sent."""
    check(response.raw + more.raw, second, response.method, way)


@cases(10)
@given(st.binary(max_size=60), responses(), st.sampled_from(["GET", "HEAD", "CONNECT"]), ways)
@example(b"\r\n", Response("GET", b"", Seen(200, [], b"", [], 0, False, 0)), "GET", PLAIN)
def test_anything(data: bytes, second: Response, method: str, way: Way) -> None:
    """No bytes whatsoever make the reader hang or raise anything but its own errors."""
    check(data, second, method, way)


@cases(10)
@given(responses(), ways)
def test_truncation(response: Response, way: Way) -> None:
    """A response that is cut off is never taken for a whole one, unless it lasts until the peer closes."""
    stop = (way.cuts or (7,))[0] % (len(response.raw) or 1)
    reader = Reader()
    try:
        seen = read(reader, parts(response.raw[:stop], way), way, response.method)
    except RemoteProtocolError:
        assert_unusable(reader)
    else:
        assert seen == look(response.raw[:stop], 0, response.method)
        assert not reader.reusable


@cases(10)
@given(
    st.sampled_from(["GET", "GET", "POST"]) | odd,
    st.sampled_from(["/x", "/x", "*"]) | odd,
    st.lists(st.tuples(names | names | odd, texts | texts | odd), max_size=4),
    st.integers(0, 4),
)
def test_requests(method: str, target: str, fields: list[tuple[str, str]], prepared: int) -> None:
    """A request head reads back as it was given: no argument, however odd, becomes two, or another."""
    try:
        head = request_head(method, target, fields[prepared:], Preset(fields[:prepared]))
    except LocalProtocolError:
        return
    lower = [name.lower() for name, _ in fields[prepared:]]
    framing = {*lower, *(name.lower() for name, _ in fields[:prepared])} & {"content-length", "transfer-encoding"}
    first, *lines = head.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
    expected = [pair for pair in fields[:prepared] if pair[0].lower() not in lower] + fields[prepared:]

    assert (first, lines) == (f"{method} {target} HTTP/1.1", [f"{name}: {value}" for name, value in expected])
    assert len(framing) < 2
    assert all(lower.count(name) < 2 for name in ("host", "content-length", "transfer-encoding"))
    assert first.count(" ") == 2
    assert first.isprintable()
    assert first.isascii()
    assert not set("\r\n\0") & set("".join([first, *lines]))
    assert {name.encode("ascii") for name, _ in fields if set(name.encode("ascii")) - TOKEN} == set()
