"""The same requests on threads and three loops, plain and over TLS, HTTP/1.1 and HTTP/2, with the same results.

HTTP/2 is agreed on by TLS, or known before where there is none. Where it does another thing than HTTP/1.1, the case
says which: a response that nobody reads costs its stream, not its connection; what needs several connections over
HTTP/1.1 needs them over HTTP/2 only if the server allows few streams. What has no like in HTTP/1.1 is in
test_parity_http2.py. A plain request to a proxy has none in HTTP/2: it is forwarded, and that is HTTP/1.1.
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import urllib3
from faces import BODY, Door, counts, states, until
from http2_peer import head
from kinds import H2_PLAIN, H2_TLS, KINDS, PLAIN, TLS, Kind, Speaker
from support.http_server import DIGITS, PACK
from support.listeners import listen
from support.ns import in_namespace
from support.sampler import KernelSampler, client_rows
from support.servers import H2Server, HttpProxy, HttpServer
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    URLSchemeUnknown,
)
from urllib3.util import Retry, Timeout
from ways import WAYS, Http, Reply, Way, told, trusting, ways_and_kinds

import fewports

CANCEL = 8  # of RST_STREAM: who asked wants no more


def over(*kinds: Kind) -> Callable[[Any], Any]:
    """Run a case against these kinds of servers, where it is not to be all."""

    def mark(case: Any) -> Any:
        case.kinds = kinds
        return case

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case on each loop, and against each kind of server where it has one."""
    if "kind" in metafunc.fixturenames:
        pairs = ways_and_kinds(metafunc.function.__name__, getattr(metafunc.function, "kinds", KINDS))
        metafunc.parametrize(("way", "kind"), pairs, ids=[f"{name}-{kind}" for name, kind in pairs], indirect=["way"])
    elif "way" in metafunc.fixturenames:
        metafunc.parametrize("way", WAYS, indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


@pytest.fixture
def server(kind: Kind) -> Iterator[Door]:
    with kind.server() as running:
        yield running


# Responses.


BODIES = {
    "json": ("GET", "/", 200, None),
    "empty": ("GET", "/bytes?n=0", 200, 0),
    "one": ("GET", "/bytes?n=1", 200, 1),
    "long": ("GET", "/bytes?n=3000000", 200, 3_000_000),
    "chunked": ("GET", "/chunked?n=200000", 200, 200_000),
    "chunked and empty": ("GET", "/chunked?n=0", 200, 0),
    "head": ("HEAD", "/bytes?n=100", 200, 0),
    "no content": ("GET", "/status?code=204", 204, 0),
    "not modified": ("GET", "/status?code=304", 304, 0),
    "not found": ("GET", "/nowhere", 404, None),
    "teapot": ("GET", "/status?code=418", 418, None),
    "post": ("POST", "/echo", 200, 0),
}


@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "streamed"])
def test_bodies_of_all_kinds(way: Way, kind: Kind, server: Door, preload: bool) -> None:
    """Each kind of body comes whole, read at once or in pieces, and all of them over one connection."""

    async def case() -> None:
        async with way.manager(**trusting(kind)) as http:
            for method, path, status, length in BODIES.values():
                response = await http.request(method, server.url + path, preload_content=preload)
                if preload:
                    body = response.data
                else:
                    body = b"".join(await response.stream(10_000))
                    await response.release()

                assert response.status == status
                assert length is None or len(body) == length

        assert server.stats()["accepted"] == 1

    way.run(case)


@over(PLAIN, TLS)
def test_a_body_that_ends_with_the_connection(way: Way, kind: Kind) -> None:
    """Without Content-Length a body lasts until the server closes; over HTTP/2 until its stream ends, and no less."""

    def serve(peer: Speaker) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nX-a: 2\r\n\r\n" + b"x" * 300_000)

    async def case() -> None:
        with kind.scripted(serve, serve) as place:
            async with way.manager(**trusting(kind)) as http:
                whole = await http.get(place.url)
                pieces = await (await http.get(place.url, preload_content=False)).stream(65536)

                assert whole.data == b"".join(pieces) == b"x" * 300_000
                assert (whole.status, whole.reason, whole.version) == (200, "Fine", 11)
                assert whole.headers["x-a"] == "1, 2"
                assert whole.headers.getlist("X-A") == ["1", "2"]

    way.run(case)


def test_so_many_bytes_at_a_time(way: Way, kind: Kind, server: Door) -> None:
    """read(amt) gives amt bytes until the end; the connection is back in its pool after the last."""

    async def case() -> None:
        book = fewports.Ledger()
        async with way.manager(ledger=book, **trusting(kind)) as http:
            for path in ("/bytes?n=100000", "/chunked?n=100000"):
                response = await http.get(server.url + path, preload_content=False)
                sizes = [len(await response.read(30_000)) for _ in range(5)]

                assert sizes == [30_000, 30_000, 30_000, 10_000, 0]
                assert counts(book)[:2] == (0, 1)

    way.run(case)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_content_is_decoded(way: Way, kind: Kind, server: Door, coding: str) -> None:
    """What comes with a Content-Encoding is decoded as urllib3 does, whole and in pieces, unless it is not wanted."""
    url = f"{server.url}/packed?coding={coding}"

    async def case() -> None:
        async with way.manager(**trusting(kind)) as http:
            assert (await http.get(url)).data == DIGITS
            assert PACK[coding](DIGITS) == (await http.get(url, decode_content=False)).data
            streamed = await http.get(url, preload_content=False)
            assert b"".join(await streamed.stream(1000)) == DIGITS
            at_once = await http.get(url, preload_content=False)
            assert await at_once.read() == DIGITS
            some = await http.get(url, preload_content=False)
            assert await some.read(7) == DIGITS[:7]
            assert await some.read(100_000) == DIGITS[7:100_007]
            await some.release()

    way.run(case)


# Requests.


def test_uploads_of_all_kinds(way: Way, kind: Kind, server: Door) -> None:
    """A body may be bytes, text, a file, a list or a generator, and comes back the same."""
    long = bytes(range(256)) * 4000

    async def case() -> None:
        bodies: list[tuple[Any, bytes]] = [
            (b"some bytes", b"some bytes"),
            (b"", b""),
            ("täxt", "täxt".encode()),
            (long, long),
            (bytearray(b"buffer"), b"buffer"),
            (io.BytesIO(long), long),
            (io.StringIO("täxt"), "täxt".encode()),
            ([b"a", b"", b"bc"], b"abc"),
            ((piece for piece in (b"x" * 70_000, b"y")), b"x" * 70_000 + b"y"),
        ]
        if way.name != "threads":

            async def pieces() -> AsyncIterator[bytes]:
                for piece in (b"x" * 100_000, b"", b"y" * 100_000):
                    await way.sleep(0)
                    yield piece

            bodies.append((pieces(), b"x" * 100_000 + b"y" * 100_000))
        async with way.manager(**trusting(kind)) as http:
            for body, expected in bodies:
                response = await http.request("POST", server.url + "/echo", body=body)

                assert response.data == expected

        assert server.stats()["accepted"] == 1

    way.run(case)


def test_what_a_request_looks_like(way: Way, kind: Kind, server: Door) -> None:
    """Fields, JSON, headers of the manager and of the request, and what is left out, reach the server alike."""

    async def case() -> None:
        async with way.manager(headers={"X-Manager": "1"}, **trusting(kind)) as http:
            plain = (await http.get(server.url + "/headers?a=1&b=ä#part")).json()
            own = (await http.get(server.url + "/headers", headers={"User-Agent": "me", "Accept": "x"})).json()
            query = (await http.get(server.url + "/headers", fields={"a": "1 2"})).json()
            sent = (await http.request("POST", server.url + "/echo", json={"a": [1, "ä"]})).json()
            form = await http.request("POST", server.url + "/echo", fields={"a": "1 2"}, encode_multipart=False)
            parts = await http.request("POST", server.url + "/echo", fields={"a": ("name", b"content")})
            skipped = await http.get(server.url + "/headers", headers={"User-Agent": urllib3.util.SKIP_HEADER})

        names = [[name.lower() for name, _ in told["headers"]] for told in (plain, own, skipped.json())]
        assert plain["query"] == {"a": "1", "b": "ä"}
        host = [] if server.http2 else ["host"]  # which the server shows nobody
        assert sorted(names[0]) == ["accept-encoding", *host, "user-agent", "x-manager"]
        assert sorted(names[1]) == ["accept", "accept-encoding", *host, "user-agent"]
        assert sorted(names[2]) == ["accept-encoding", *host]
        assert query["query"] == {"a": "1 2"}
        assert sent == {"a": [1, "ä"]}
        assert form.data == b"a=1+2"
        assert form.headers["content-type"] == "application/x-www-form-urlencoded"
        assert b'filename="name"' in parts.data

    way.run(case)


def test_an_answer_before_the_end_of_the_upload(way: Way, kind: Kind) -> None:
    """A server that answers in the middle of an upload, and wants no more of it, is heard; nothing is sent again."""

    def refuse(peer: Speaker) -> None:
        peer.arrival()
        peer.answer(b"no", 413)
        peer.refuse()

    async def case() -> None:
        with kind.scripted(refuse) as place:
            async with way.manager(**trusting(kind)) as http:
                response = await http.request("PUT", place.url, body=(b"x" * 10_000 for _ in range(50)))

                assert (response.status, response.data) == (413, b"no")
            assert place.accepted == 1

    way.run(case)


# What follows from a response.


def test_redirects(way: Way, kind: Kind, server: Door) -> None:
    """Redirects are followed as urllib3 does: so many, with the method and the headers that may go on."""

    async def case() -> None:
        with kind.server() as other:
            async with way.manager(**kind.options) as http:
                followed = await http.get(server.url + "/redirect?n=3&to=/headers")
                away = await http.get(
                    server.url + f"/redirect?to={other.url}/headers", headers={"Authorization": "x", "X-A": "1"}
                )
                posted = await http.request("POST", server.url + "/redirect?code=303&to=/headers", body=b"x")
                kept = await http.request("POST", server.url + "/redirect?code=307&to=/echo", body=b"xyz")
                left = await http.get(server.url + "/redirect", redirect=False)
                last = await http.get(server.url + "/redirect?n=3", retries=Retry(2, raise_on_redirect=False))
                with pytest.raises(MaxRetryError) as raised:
                    await http.get(server.url + "/redirect?n=5", retries=Retry(2))
            assert other.stats()["accepted"] == 1

        assert followed.status == 200
        assert [step.status for step in followed.retries.history] == [302] * 3
        assert {name.lower() for name, _ in away.json()["headers"]} & {"authorization", "x-a"} == {"x-a"}
        assert posted.json()["method"] == "GET"
        assert kept.data == b"xyz"
        assert (left.status, last.status) == (302, 302)
        assert told(raised.value) == ["MaxRetryError", "ResponseError"]
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_a_redirect_that_nobody_can_follow(way: Way, kind: Kind, server: Door) -> None:
    """Where redirects are not to be followed, one to an app or to FTP is a response like any other."""

    async def case() -> None:
        async with way.manager(**kind.options) as http:
            url = server.url + "/redirect?to=app://signed-in"
            unasked = await http.get(url, retries=False)
            last = await http.get(url, retries=Retry(redirect=0, raise_on_redirect=False))
            with pytest.raises(MaxRetryError):
                await http.get(url, retries=Retry(redirect=0))
            with pytest.raises(URLSchemeUnknown):
                await http.get(url)

        assert [(found.status, found.headers["location"]) for found in (unasked, last)] == [
            (302, "app://signed-in")
        ] * 2

    way.run(case)


def test_retries(way: Way, kind: Kind, server: Door) -> None:
    """Retry's values mean what they mean in urllib3, and every answer is drained."""

    async def case() -> None:
        async with way.manager(**kind.options) as http:
            often = Retry(2, status_forcelist=[500])
            with pytest.raises(MaxRetryError) as raised:
                await http.get(server.url + "/status?code=500", retries=often)
            taken = await http.get(server.url + "/status?code=500", retries=often.new(raise_on_status=False))
            plain = await http.get(server.url + "/status?code=500")

        assert told(raised.value) == ["MaxRetryError", "ResponseError"]
        assert (taken.status, plain.status) == (500, 500)
        assert server.stats()["requests"] == 3 + 3 + 1
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_a_server_that_says_when_to_come_again(way: Way) -> None:
    """Retry-After is heeded, over HTTP/2 as over HTTP/1.1."""

    async def case() -> None:
        async def again(kind: Kind) -> None:
            with kind.server() as server:
                async with way.manager(**kind.options) as http:
                    began = time.monotonic()
                    late = await http.get(server.url + "/status?code=503&retry-after=1", retries=Retry(1))
                    took = time.monotonic() - began

                assert (late.status, took >= 1, took < 2) == (503, True, True)
                assert server.stats()["requests"] == 2
                assert server.stats()["accepted"] == 1

        assert await way.all([lambda: again(PLAIN), lambda: again(H2_TLS)]) == [None, None]

    way.run(case)


def fine(peer: Speaker) -> None:
    while peer.request():
        peer.answer()


def no_bytes(peer: Speaker) -> None:
    peer.request()


def no_http(peer: Speaker) -> None:
    if not peer.http2:
        peer.request()
    peer.say(b"220 mail.example\r\n")
    peer.request()


def two_lengths(peer: Speaker) -> None:
    peer.request()
    if peer.http2:
        peer.say(head(1, (":status", "200"), ("content-length", "1"), ("content-length", "2")))
        fine(peer)
    else:
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")


def too_short(peer: Speaker) -> None:
    peer.request()
    peer.begin(100)
    peer.piece(b"abc")


def cut_off(peer: Speaker) -> None:
    too_short(peer)
    peer.cut()
    if peer.http2:
        fine(peer)


WRONG = {
    "no bytes": (no_bytes, ["ProtocolError"]),
    "no HTTP": (no_http, ["ProtocolError"]),
    "two lengths": (two_lengths, ["BadLength"]),
    "too short": (too_short, ["ProtocolError"]),
    "cut": (cut_off, ["ProtocolError"]),
}


def test_errors_are_those_of_urllib3(way: Way, kind: Kind) -> None:
    """What goes wrong has the same names everywhere: with retries wrapped, without them bare."""
    with listen(["127.0.0.1"])[0] as nobody:
        closed = f"{kind.scheme}://127.0.0.1:{nobody.getsockname()[1]}/"
    expected = {
        closed: ["NewConnectionError"],
        f"{kind.scheme}://nowhere.invalid/": ["NameResolutionError"],
        "ftp://127.0.0.1/": ["URLSchemeUnknown"],
        f"{kind.scheme}://": ["LocationValueError"],
    }

    async def case() -> None:
        async with way.manager(**kind.options) as http:
            for url, names in expected.items():
                with pytest.raises(HTTPError) as raised:
                    await http.get(url, retries=False)

                assert told(raised.value) == names, url
            with pytest.raises(MaxRetryError) as wrapped:
                await http.get(closed, retries=1)

            assert told(wrapped.value) == ["MaxRetryError", "NewConnectionError"]

    way.run(case)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_response(way: Way, kind: Kind, wrong: str) -> None:
    """A server that says nothing, or nothing that makes sense, is told as urllib3 does; the next request is served."""
    script, names = WRONG[wrong]

    async def case() -> None:
        with kind.scripted(script, fine) as place:
            async with way.manager(**trusting(kind)) as http:
                with pytest.raises(HTTPError) as raised:
                    await http.get(place.url)

                assert told(raised.value) == names
                assert (await http.get(place.url)).data == b"ok"

    way.run(case)


@over(TLS, H2_TLS)
def test_who_is_not_who_it_should_be(way: Way, kind: Kind, server: Door) -> None:
    """A certificate that is not trusted, or is for another name, is an SSLError; a fingerprint is enough of its own."""

    async def case() -> None:
        another = {**kind.options, "assert_hostname": "other.test"}
        for options in ({}, another, {"cert_reqs": "CERT_NONE", "assert_fingerprint": "0" * 64}):
            async with way.manager(retries=False, **options) as http:
                with pytest.raises(HTTPError) as raised:
                    await http.get(server.url)

                assert told(raised.value) == ["SSLError"], options
        async with way.manager(**trusting(kind), assert_hostname="service.test") as http:
            assert (await http.get(server.url)).status == 200
        async with way.manager(retries=False, cert_reqs="CERT_NONE") as http:
            with pytest.warns(urllib3.exceptions.InsecureRequestWarning):
                assert (await http.get(server.url)).status == 200

    way.run(case)


# Time.


def test_each_time_out(way: Way, kind: Kind, server: Door) -> None:
    """The read time-out, the whole of it, and that for a place in the pool end what takes longer."""

    async def case() -> None:
        slow = server.url + "/slow?s=9"
        async with way.manager(**trusting(kind, maxsize=1, block=True)) as http:
            await http.get(server.url)
            for timeout in (0.1, Timeout(read=0.1), Timeout(total=0.1), Timeout(total=0.1, read=5)):
                began = time.monotonic()
                with pytest.raises(ReadTimeoutError):
                    await http.get(slow, timeout=timeout)

                assert 0.09 <= time.monotonic() - began < 3
            kept = await http.get(server.url + "/bytes?n=3000000", preload_content=False)
            began = time.monotonic()
            with pytest.raises(urllib3.exceptions.EmptyPoolError):
                await http.get(server.url, pool_timeout=0.1)
            assert 0.09 <= time.monotonic() - began < 3
            await kept.read()
            await kept.release()
            assert (await http.get(server.url, pool_timeout=0.1)).json() == BODY

        assert server.stats()["accepted"] == (1 if kind.http2 else 5)  # over HTTP/2 a time-out ends its stream alone

    way.run(case)


def test_the_connect_time_out(way: Way, kind: Kind) -> None:
    """A host that does not answer ends in ConnectTimeoutError after the time given."""

    async def case() -> None:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(listen(["127.0.0.1"], backlog=0)[0])
            while True:  # its queue of one: who comes later gets no answer
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and len(stack._exit_callbacks) > 3:  # type: ignore[attr-defined]
                    break
            async with way.manager(**trusting(kind)) as http:
                began = time.monotonic()
                url = f"{kind.scheme}://127.0.0.1:{listener.getsockname()[1]}/"
                with pytest.raises(ConnectTimeoutError) as raised:
                    await http.get(url, timeout=Timeout(connect=0.1))

                assert not isinstance(raised.value, NewConnectionError)
                assert 0.09 <= time.monotonic() - began < 3

    way.run(case)


def test_a_total_time_bounds_a_body_that_trickles(way: Way, kind: Kind) -> None:
    """A byte now and then cannot hold up a request with a total."""

    def trickle(peer: Speaker) -> None:
        while peer.request():
            peer.begin(1000)
            while peer.pause(0.05):
                peer.piece(b"x")

    async def case() -> None:
        with kind.scripted(trickle, trickle) as place:
            async with way.manager(**trusting(kind)) as http:
                began = time.monotonic()
                with pytest.raises(HTTPError):
                    await http.get(place.url, timeout=Timeout(total=0.2))
                assert time.monotonic() - began < 3
                response = await http.get(place.url, timeout=Timeout(read=0.5), preload_content=False)
                assert len(await response.read(11)) == 11  # which takes longer, but each byte less
                await response.release()

    way.run(case)


def test_a_server_that_never_speaks(way: Way, kind: Kind) -> None:
    """A server that takes a connection and says nothing costs a time-out, which is urllib3's own in the handshake.

    With HTTP/2 it has first to say how many requests it takes, which belongs to the attempt to connect.
    """
    expected = "ConnectTimeoutError" if kind == H2_PLAIN else "ReadTimeoutError"

    async def case() -> None:
        with kind.silent() as url:
            async with way.manager(**trusting(kind)) as http:
                for timeout in (Timeout(connect=0.1, read=0.1), Timeout(total=0.1)):
                    began = time.monotonic()
                    with pytest.raises(HTTPError) as raised:
                        await http.get(url, timeout=timeout)

                    assert told(raised.value) == [expected]
                    assert 0.09 <= time.monotonic() - began < 1.5

    way.run(case)


# Connections.


def test_requests_of_a_row_take_one_port(way: Way, kind: Kind, server: Door) -> None:
    """Twenty requests one after the other take one port, which the kernel shows."""

    async def case() -> None:
        async with way.manager(**trusting(kind)) as http:
            for _ in range(20):
                assert (await http.get(server.url)).json() == BODY

            assert states(server.port) == {"ESTABLISHED": 1}
        assert server.stats()["accepted"] == 1
        assert await way.until(lambda: states(server.port) == {})

    way.run(case)


@over(PLAIN, H2_TLS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_server_that_has_closed(way: Way, kind: Kind, method: str) -> None:
    """A connection that the server closed while it was idle is not used, whatever the method; its port is free."""

    async def case() -> None:
        book = fewports.Ledger()
        with kind.server(keepalive_timeout=0.05) as server:
            async with way.manager(ledger=book, **trusting(kind)) as http:
                for _ in range(3):
                    assert (await http.request(method, server.url + "/echo", body=b"x")).status == 200
                    assert until(lambda: "ESTABLISHED" not in states(server.port))  # the loop does not turn meanwhile
                assert server.stats()["accepted"] == 3
                if method == "GET":  # a timer of one second may see to it
                    assert await way.until(lambda: states(server.port) == {})
                    assert await way.until(lambda: counts(book) == (0, 0, 0))

    way.run(case)


def test_a_request_that_meets_the_end(way: Way, kind: Kind) -> None:
    """What may be repeated is sent again on another connection, once and without a retry; what may not is not."""

    def once(peer: Speaker) -> None:
        assert peer.request()
        peer.answer()
        peer.request()  # and close: not a byte for the second

    def on(peer: Speaker) -> None:
        while peer.request():
            peer.answer(b"again")

    async def case() -> None:
        with kind.scripted(once, on, once) as place:
            async with way.manager(**trusting(kind)) as http:
                assert (await http.get(place.url)).data == b"ok"
                assert (await http.request("PUT", place.url, body=b"x")).data == b"again"
                assert place.accepted == 2
        with kind.scripted(once, on) as place:
            async with way.manager(**trusting(kind)) as http:
                assert (await http.get(place.url)).data == b"ok"
                with pytest.raises(ProtocolError, match="Connection aborted"):
                    await http.request("POST", place.url, body=b"x")
                assert place.accepted == 1

    way.run(case)


@over(PLAIN, H2_TLS)
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "not announced"])
def test_a_server_that_closes_after_each_response(way: Way, kind: Kind, announced: bool) -> None:
    """Nothing fails where each response is the last of its connection, and the server has the TIME_WAIT.

    Announced it is by Connection: close, or by GOAWAY.
    """

    async def case() -> None:
        with kind.server(close_after_response=True, announce_close=announced) as server:
            async with way.manager(timeout=5, **trusting(kind)) as http:
                for number in range(10):
                    method = "GET" if number % 2 or not announced else "POST"
                    assert (await http.request(method, server.url + "/")).json() == BODY
            assert server.stats()["accepted"] == 10
            if announced:
                assert states(server.port).get("TIME_WAIT", 0) <= 5  # a FIN that comes late, on a busy machine

    way.run(case)


@pytest.mark.parametrize("how", ["released", "dropped"])
def test_what_is_not_read_closes_its_connection(way: Way, kind: Kind, server: Door, how: str) -> None:
    """A response that is released or dropped before its end takes its connection with it; nothing is left.

    Over HTTP/2 it takes its stream alone, and the server is told so.
    """
    left = (0, 1) if kind.http2 else (0, 0)

    async def case() -> None:
        book = fewports.Ledger()
        async with way.manager(ledger=book, **trusting(kind)) as http:
            response: Reply | None = await http.get(server.url + "/bytes?n=9000000", preload_content=False)
            assert response is not None
            if how == "released":
                await response.release()
            response = None
            assert await way.until(lambda: counts(book)[:2] == left)
            assert (await http.get(server.url)).json() == BODY
            assert server.stats()["accepted"] == (1 if kind.http2 else 2)
            if kind.http2:
                assert await way.until(lambda: server.stats()["resets"] == [CANCEL])

    way.run(case)


def test_a_bounded_pool(way: Way, kind: Kind, server: Door) -> None:
    """With maxsize=8 and block, 8 of 104 requests are made at once, on as many connections, or on one of HTTP/2."""

    async def case() -> None:
        async with way.manager(timeout=10, **trusting(kind, maxsize=8, block=True)) as http:
            results = await way.all([lambda: http.get(server.url + "/meet?n=8")] * 104)  # none is alone

            assert {getattr(result, "status", result) for result in results} == {200}
            assert len(client_rows(server.port)) == (1 if kind.http2 else 8)
        assert server.stats()["accepted"] == (1 if kind.http2 else 8)
        if kind.http2:
            assert server.stats()["most_at_once"] == 8

    way.run(case)


@pytest.mark.parametrize("name", WAYS)
@in_namespace()
def test_three_hundred_on_a_budget_of_twenty(name: str) -> None:
    """Whatever 300 do at once, kept alive or not, the kernel never counts more than 20 ports, and all are served."""
    way = Way(name)

    async def case(headers: dict[str, str]) -> None:
        with HttpServer() as server:
            assert 1 <= await three_hundred(way, server, "/slow?s=0.01", headers=headers) <= 20

    way.run(case, {})
    way.run(case, {"Connection": "close"})


@pytest.mark.parametrize("name", WAYS)
@in_namespace()
def test_three_hundred_streams_on_a_budget_of_twenty(name: str) -> None:
    """With ten streams on a connection, which ends with the last of them, 150 at once take 15 ports, and 300 20."""
    way = Way(name)

    async def case() -> None:
        with H2Server(tls=True, streams=10, requests=10) as server:
            peak = await three_hundred(way, server, "/meet?n=150")  # none is answered before so many are there

            assert 15 <= peak <= 20
            assert server.stats()["accepted"] >= 30

    way.run(case)


async def three_hundred(way: Way, server: HttpServer | H2Server, path: str, **options: Any) -> int:
    """Make so many requests at once, which are all answered; return how many ports the kernel counted at the most."""
    async with way.manager(budget=20, retries=False, ca_certs=server.ca_path, timeout=40) as http:
        with KernelSampler(server.port) as kernel:
            results = await way.all([lambda: http.get(server.url + path, **options)] * 300)

    assert {getattr(result, "status", result) for result in results} == {200}
    return kernel.peak


def test_a_full_budget_is_told(way: Way, kind: Kind) -> None:
    """Who waits in vain, or may not wait, gets BudgetExhausted with the numbers; urllib3's except clauses know it."""

    async def case(server: Door) -> None:
        for budget in (fewports.Budget(1, when_full="refuse"), fewports.Budget(1, wait=0.05)):
            async with way.manager(budget=budget, **trusting(kind, retries=3)) as http:
                kept = await http.get(server.url + "/bytes?n=3000000", preload_content=False)
                with pytest.raises(urllib3.exceptions.PoolError) as raised:
                    await http.get(server.url)
                assert isinstance(raised.value, fewports.BudgetExhausted)
                assert raised.value.usage.active == 1
                await kept.read()
                await kept.release()
                assert (await http.get(server.url)).json() == BODY

    with kind.server(**one_at_a_time(kind)) as server:
        way.run(case, server)


def one_at_a_time(kind: Kind) -> dict[str, Any]:
    """Have a server of HTTP/2 need a connection for each request, too."""
    return {"streams": 1} if kind.http2 else {}


def test_sources(way: Way, kind: Kind) -> None:
    """Connections leave from the addresses that are given, as many from each."""

    async def case(server: Door) -> None:
        sources = ["127.0.0.5", "127.0.0.6"]
        async with way.manager(sources=sources, timeout=10, **trusting(kind)) as http:
            await way.all([lambda: http.get(server.url + "/meet?n=6")] * 6)
            assert sorted(row.source for row in client_rows(server.port)) == sorted(sources * 3)
        async with way.manager(sources=["192.0.2.77"], **trusting(kind)) as http:
            with pytest.raises(HTTPError) as raised:
                await http.get(server.url)
            assert isinstance(raised.value, fewports.NoUsableSource)

    with kind.server(**one_at_a_time(kind)) as server:
        way.run(case, server)


# Proxies.


@over(PLAIN, TLS, H2_TLS)
@pytest.mark.parametrize("secure", [False, True], ids=["http proxy", "https proxy"])
def test_through_a_proxy(way: Way, kind: Kind, server: Door, secure: bool) -> None:
    """What is plain is forwarded, what is TLS goes through a tunnel, several requests over one connection."""

    async def case() -> None:
        with HttpProxy(tls=secure, credentials=("me", "secret")) as proxy:
            known = urllib3.make_headers(proxy_basic_auth="me:secret")
            options = {"ca_certs": server.ca_path or proxy.ca_path, "retries": False}
            async with way.manager(proxy.url, proxy_headers=known, **options) as http:
                for _ in range(3):
                    assert (await http.get(server.url)).json() == BODY
            tunnels, forwarded = proxy.stats()["tunnels"], proxy.stats()["forwarded"]
            assert (len(tunnels), forwarded) == ((1, 0) if server.scheme == "https" else (0, 3))
            assert proxy.stats()["accepted"] == 1

    way.run(case)


def test_files_for_tls_that_are_not_there(way: Way) -> None:
    """Certificates that cannot be read are an SSLError, of which Retry is asked; those for a proxy a ProxyError."""

    async def case() -> None:
        with TLS.server() as server, HttpProxy() as plain, HttpProxy(tls=True) as secure:
            for proxy in (None, plain.url, secure.url):
                expected = ["ProxyError", "SSLError"] if proxy == secure.url else ["SSLError"]
                for retries in (False, 1):
                    async with way.manager(proxy, ca_certs="/no/such/file", retries=retries) as http:
                        with pytest.raises(HTTPError) as raised:
                            await http.get(server.url)

                        assert told(raised.value) == ["MaxRetryError"] * retries + expected
                        if retries:
                            assert str(raised.value).startswith(f"HTTPSConnectionPool(host='{server.host}', port=")

    way.run(case)


@over(PLAIN, TLS, H2_TLS)
def test_a_proxy_that_refuses(way: Way, kind: Kind, server: Door) -> None:
    """A proxy that wants credentials, or is not there, is told as urllib3 does."""

    async def case() -> list[Any]:
        found: list[Any] = []
        with HttpProxy(credentials=("me", "secret")) as proxy:
            async with way.manager(proxy.url, **trusting(kind)) as http:
                found.append(await ending(http, server.url))
            gone = proxy.url
        async with way.manager(gone, **trusting(kind)) as http:
            found.append(await ending(http, server.url))
        return found

    assert way.run(case) == [
        ["ProxyError", "OSError"] if server.scheme == "https" else 407,
        ["ProxyError", "NewConnectionError"],
    ]


async def ending(http: Http, url: str) -> object:
    try:
        return (await http.get(url)).status
    except HTTPError as error:
        return told(error)


def test_a_url_that_leads_nowhere(way: Way) -> None:
    """A label that is too long, or none, is a LocationValueError before anything is dialled."""

    async def case() -> None:
        async with way.manager(retries=False) as http:
            for host in ("a" * 64 + ".test", ".test"):
                with pytest.raises(LocationValueError):
                    await http.get(f"http://{host}/")

    way.run(case)
