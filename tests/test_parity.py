"""The same requests on threads, asyncio, uvloop and trio, plain and over TLS, with the same results."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import urllib3
from faces import BODY, Door, counts, fresh_h2, fresh_server, states, until
from support.listeners import listen
from support.ns import in_namespace
from support.sampler import KernelSampler, client_rows
from support.scripted import Peer, Scripted
from support.servers import HttpProxy, HttpServer, authority
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
from ways import Http, Reply, Way

import fewports

WAYS = ("threads", "asyncio", "uvloop", "trio")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case on each loop, plain and over TLS; uvloop, which is asyncio's to us, over TLS alone."""
    if "way" in metafunc.fixturenames and "server" in metafunc.fixturenames:
        pairs = [(name, tls) for name in WAYS for tls in (False, True) if tls or name != "uvloop"]
        ids = [f"{name}-{'tls' if tls else 'plain'}" for name, tls in pairs]
        metafunc.parametrize(("way", "server"), pairs, ids=ids, indirect=True)
    elif "way" in metafunc.fixturenames:
        metafunc.parametrize("way", WAYS, indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Door]:
    with fresh_server(tls=request.param) as running:
        yield running


@pytest.fixture(params=["plain", "tls", "h2 plain", "h2 tls"])
def served(request: pytest.FixtureRequest) -> Iterator[Door]:
    """A server of HTTP/1.1 or of HTTP/2, for what is the same with both."""
    protocol, _, security = request.param.rpartition(" ")
    with (fresh_h2 if protocol else fresh_server)(tls=security == "tls") as running:
        yield running


def trusting(server: Any, **options: Any) -> dict[str, Any]:
    if server.http2 and server.scheme == "http":
        options["http2"] = True  # there is no TLS to agree on it
    return {"ca_certs": server.ca_path, "retries": False, **options}


def told(error: BaseException) -> list[str]:
    """Name an exception and what it wraps."""
    names = []
    found: Any = error
    while found is not None:
        names.append(type(found).__name__)
        found = getattr(found, "reason", None) or getattr(found, "original_error", None)
        if not isinstance(found, BaseException):
            break
    return names


@contextlib.contextmanager
def scripted(*handlers: Callable[[Peer], None], tls: bool = False) -> Iterator[Scripted]:
    """Serve by functions, over TLS if asked."""
    keys = authority("127.0.0.1")

    def secured(handler: Callable[[Peer], None]) -> Callable[[Peer], None]:
        def serve(peer: Peer) -> None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(keys.chain, keys.key)
            peer.secure(context)
            handler(peer)

        return serve

    with Scripted(*(secured(handler) if tls else handler for handler in handlers)) as server:
        yield server


def raw(data: bytes, *, close: bool = True) -> Callable[[Peer], None]:
    """Answer one request with *data*."""

    def handler(peer: Peer) -> None:
        peer.request()
        peer.send(data)
        if not close:
            peer.end()

    return handler


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
def test_bodies_of_all_kinds(way: Way, served: Door, preload: bool) -> None:
    """Each kind of body comes whole, read at once or in pieces, and all of them over one connection."""

    async def case() -> None:
        async with way.manager(**trusting(served)) as http:
            for method, path, status, length in BODIES.values():
                response = await http.request(method, served.url + path, preload_content=preload)
                if preload:
                    body = response.data
                else:
                    body = b"".join(await response.stream(10_000))
                    await response.release()

                assert response.status == status
                assert length is None or len(body) == length

        assert served.stats()["accepted"] == 1

    way.run(case)


def test_a_body_that_ends_with_the_connection(way: Way, server: Door) -> None:
    """Without Content-Length a body lasts until the server closes."""

    async def case() -> None:
        data = b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nX-a: 2\r\n\r\n" + b"x" * 300_000
        with scripted(raw(data), raw(data), tls=server.scheme == "https") as peer:
            url = f"{server.scheme}://127.0.0.1:{peer.port}/"
            async with way.manager(**trusting(server)) as http:
                whole = await http.get(url)
                pieces = await (await http.get(url, preload_content=False)).stream(65536)

                assert whole.data == b"".join(pieces) == b"x" * 300_000
                assert (whole.status, whole.reason, whole.version) == (200, "Fine", 11)
                assert whole.headers["x-a"] == "1, 2"
                assert whole.headers.getlist("X-A") == ["1", "2"]

    way.run(case)


def test_so_many_bytes_at_a_time(way: Way, served: Door) -> None:
    """read(amt) gives amt bytes until the end; the connection is back in its pool after the last."""

    async def case() -> None:
        book = fewports.Ledger()
        async with way.manager(ledger=book, **trusting(served)) as http:
            for path in ("/bytes?n=100000", "/chunked?n=100000"):
                response = await http.get(served.url + path, preload_content=False)
                sizes = [len(await response.read(30_000)) for _ in range(5)]

                assert sizes == [30_000, 30_000, 30_000, 10_000, 0]
                assert counts(book)[:2] == (0, 1)

    way.run(case)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_content_is_decoded(way: Way, coding: str) -> None:
    """What comes with a Content-Encoding is decoded as urllib3 does, whole and in pieces, unless it is not wanted."""
    content = b"0123456789" * 20_000
    packed = gzip.compress(content) if coding == "gzip" else zlib.compress(content)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(packed)}\r\n\r\n".encode()

    def serve(peer: Peer) -> None:
        while peer.request():
            peer.send(head + packed)

    async def case() -> None:
        with Scripted(serve) as peer:
            async with way.manager(retries=False) as http:
                assert (await http.get(peer.url)).data == content
                assert (await http.get(peer.url, decode_content=False)).data == packed
                streamed = await http.get(peer.url, preload_content=False)
                assert b"".join(await streamed.stream(1000)) == content
                at_once = await http.get(peer.url, preload_content=False)
                assert await at_once.read() == content
                some = await http.get(peer.url, preload_content=False)
                assert await some.read(7) == content[:7]
                assert await some.read(100_000) == content[7:100_007]
                await some.release()

    way.run(case)


# Requests.


def test_uploads_of_all_kinds(way: Way, served: Door) -> None:
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
        async with way.manager(**trusting(served)) as http:
            for body, expected in bodies:
                response = await http.request("POST", served.url + "/echo", body=body)

                assert response.data == expected

        assert served.stats()["accepted"] == 1

    way.run(case)


def test_what_a_request_looks_like(way: Way, served: Door) -> None:
    """Fields, JSON, headers of the manager and of the request, and what is left out, reach the server alike."""

    async def case() -> None:
        async with way.manager(headers={"X-Manager": "1"}, **trusting(served)) as http:
            plain = (await http.get(served.url + "/headers?a=1&b=ä#part")).json()
            own = (await http.get(served.url + "/headers", headers={"User-Agent": "me", "Accept": "x"})).json()
            query = (await http.get(served.url + "/headers", fields={"a": "1 2"})).json()
            sent = (await http.request("POST", served.url + "/echo", json={"a": [1, "ä"]})).json()
            form = await http.request("POST", served.url + "/echo", fields={"a": "1 2"}, encode_multipart=False)
            parts = await http.request("POST", served.url + "/echo", fields={"a": ("name", b"content")})
            skipped = await http.get(served.url + "/headers", headers={"User-Agent": urllib3.util.SKIP_HEADER})

        names = [[name.lower() for name, _ in told["headers"]] for told in (plain, own, skipped.json())]
        assert plain["query"] == {"a": "1", "b": "ä"}
        host = [] if served.http2 else ["host"]  # which the server shows nobody
        assert sorted(names[0]) == ["accept-encoding", *host, "user-agent", "x-manager"]
        assert sorted(names[1]) == ["accept", "accept-encoding", *host, "user-agent"]
        assert sorted(names[2]) == ["accept-encoding", *host]
        assert query["query"] == {"a": "1 2"}
        assert sent == {"a": [1, "ä"]}
        assert form.data == b"a=1+2"
        assert form.headers["content-type"] == "application/x-www-form-urlencoded"
        assert b'filename="name"' in parts.data

    way.run(case)


def test_an_answer_before_the_end_of_the_upload(way: Way, server: Door) -> None:
    """A server that answers and closes in the middle of an upload is heard; the request is not made again."""

    def refuse(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        peer.sock.settimeout(1.0)
        with contextlib.suppress(OSError):
            while peer.sock.recv(65536):
                pass

    async def case() -> None:
        with scripted(refuse, tls=server.scheme == "https") as peer:
            url = f"{server.scheme}://127.0.0.1:{peer.port}/"
            async with way.manager(**trusting(server)) as http:
                response = await http.request("PUT", url, body=(b"x" * 10_000 for _ in range(50)))

                assert (response.status, response.data) == (413, b"no")
            assert peer.accepted == 1

    way.run(case)


# What follows from a response.


def test_redirects(way: Way, server: Door) -> None:
    """Redirects are followed as urllib3 does: so many, with the method and the headers that may go on."""

    async def case() -> None:
        with fresh_server() as other:
            async with way.manager(ca_certs=server.ca_path) as http:
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

        assert followed.status == 200
        assert [step.status for step in followed.retries.history] == [302] * 3
        assert [name for name, _ in away.json()["headers"] if name.lower() in ("authorization", "x-a")] == ["X-A"]
        assert posted.json()["method"] == "GET"
        assert kept.data == b"xyz"
        assert (left.status, last.status) == (302, 302)
        assert told(raised.value) == ["MaxRetryError", "ResponseError"]
        assert server.stats()["accepted"] == 1

    way.run(case)


def test_a_redirect_that_nobody_can_follow(way: Way, server: Door) -> None:
    """Where redirects are not to be followed, one to an app or to FTP is a response like any other."""

    async def case() -> None:
        async with way.manager(ca_certs=server.ca_path) as http:
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


def test_retries(way: Way) -> None:
    """Retry's values mean what they mean in urllib3, Retry-After among them, and every answer is drained."""

    async def case(server: Door) -> None:
        async with way.manager() as http:
            often = Retry(2, status_forcelist=[500])
            with pytest.raises(MaxRetryError) as raised:
                await http.get(server.url + "/status?code=500", retries=often)
            taken = await http.get(server.url + "/status?code=500", retries=often.new(raise_on_status=False))
            began = time.monotonic()
            told_when = await http.get(server.url + "/status?code=503&retry-after=1", retries=Retry(1))
            took = time.monotonic() - began
            plain = await http.get(server.url + "/status?code=500")

        assert told(raised.value) == ["MaxRetryError", "ResponseError"]
        assert (taken.status, told_when.status, plain.status) == (500, 503, 500)
        assert 1 <= took < 2
        assert server.stats()["requests"] == 3 + 3 + 2 + 1
        assert server.stats()["accepted"] == 1

    with fresh_server() as server:
        way.run(case, server)


def test_errors_are_those_of_urllib3(way: Way) -> None:
    """What goes wrong has the same names everywhere: with retries wrapped, without them bare."""
    two_lengths = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    with listen(["127.0.0.1"])[0] as nobody:
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
    expected = {
        closed: ["NewConnectionError"],
        "http://nowhere.invalid/": ["NameResolutionError"],
        "ftp://127.0.0.1/": ["URLSchemeUnknown"],
        "http://": ["LocationValueError"],
        "no bytes": ["ProtocolError"],
        "no HTTP": ["ProtocolError"],
        "two lengths": ["BadLength"],
        "cut": ["ProtocolError"],
    }

    async def case() -> None:
        handlers = raw(b""), raw(b"220 mail.example\r\n"), raw(two_lengths), raw(cut)
        with Scripted(*handlers) as peer:
            async with way.manager() as http:
                for url, names in expected.items():
                    with pytest.raises(HTTPError) as raised:
                        await http.get(url if ":" in url else peer.url, retries=False)

                    assert told(raised.value) == names, url
                with pytest.raises(MaxRetryError) as wrapped:
                    await http.get(closed, retries=1)

                assert told(wrapped.value) == ["MaxRetryError", "NewConnectionError"]

    way.run(case)


def test_who_is_not_who_it_should_be(way: Way) -> None:
    """A certificate that is not trusted, or is for another name, is an SSLError; a fingerprint is enough of its own."""

    async def case() -> None:
        with fresh_server(tls=True) as server:
            another = {"ca_certs": server.ca_path, "assert_hostname": "other.test"}
            for options in ({}, another, {"cert_reqs": "CERT_NONE", "assert_fingerprint": "0" * 64}):
                async with way.manager(retries=False, **options) as http:
                    with pytest.raises(HTTPError) as raised:
                        await http.get(server.url)

                    assert told(raised.value) == ["SSLError"], options
            async with way.manager(retries=False, ca_certs=server.ca_path, assert_hostname="service.test") as http:
                assert (await http.get(server.url)).status == 200
            async with way.manager(retries=False, cert_reqs="CERT_NONE") as http:
                with pytest.warns(urllib3.exceptions.InsecureRequestWarning):
                    assert (await http.get(server.url)).status == 200

    way.run(case)


# Time.


def test_each_time_out(way: Way, server: Door) -> None:
    """The read time-out, the whole of it, and that for a place in the pool end what takes longer."""

    async def case() -> None:
        slow = server.url + "/slow?s=9"
        async with way.manager(**trusting(server, maxsize=1, block=True)) as http:
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

    way.run(case)


def test_the_connect_time_out(way: Way) -> None:
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
            async with way.manager(retries=False) as http:
                began = time.monotonic()
                with pytest.raises(ConnectTimeoutError) as raised:
                    await http.get(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=Timeout(connect=0.1))

                assert not isinstance(raised.value, NewConnectionError)
                assert 0.09 <= time.monotonic() - began < 3

    way.run(case)


def test_a_total_time_bounds_a_body_that_trickles(way: Way) -> None:
    """A byte now and then cannot hold up a request with a total."""

    def trickle(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            time.sleep(0.05)
            peer.send(b"x")

    async def case() -> None:
        with Scripted(trickle, trickle) as peer:
            async with way.manager(retries=False) as http:
                began = time.monotonic()
                with pytest.raises(HTTPError):
                    await http.get(peer.url, timeout=Timeout(total=0.2))
                assert time.monotonic() - began < 3
                response = await http.get(peer.url, timeout=Timeout(read=0.6), preload_content=False)
                assert len(await response.read(15)) == 15  # longer in all than the read time-out
                await response.release()

    way.run(case)


# Connections.


def test_requests_of_a_row_take_one_port(way: Way, served: Door) -> None:
    """Twenty requests one after the other take one port, which the kernel shows."""

    async def case() -> None:
        async with way.manager(**trusting(served)) as http:
            for _ in range(20):
                assert (await http.get(served.url)).json() == BODY

            assert states(served.port) == {"ESTABLISHED": 1}
        assert served.stats()["accepted"] == 1
        if not served.http2:  # else a GOAWAY was the last word, which is ours
            assert await way.until(lambda: states(served.port) == {})

    way.run(case)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_server_that_has_closed(way: Way, method: str) -> None:
    """A connection that the server closed while it was idle is not used, whatever the method; its port is free."""

    async def case() -> None:
        book = fewports.Ledger()
        with HttpServer(keepalive_timeout=0.05) as server:
            async with way.manager(ledger=book, retries=False) as http:
                for _ in range(3):
                    assert (await http.request(method, server.url + "/", body=b"x")).status == 200
                    assert until(lambda: server.stats()["open"] == 0)  # the loop does not turn meanwhile
                assert server.stats()["accepted"] == 3
                if method == "GET":  # a timer of one second may see to it
                    assert await way.until(lambda: states(server.port) == {})
                    assert await way.until(lambda: counts(book) == (0, 0, 0))

    way.run(case)


def test_a_request_that_meets_the_end(way: Way) -> None:
    """What may be repeated is sent again on another connection, once and without a retry; what may not is not."""

    def once(peer: Peer) -> None:
        assert peer.request()
        peer.answer()
        peer.request()  # and close: not a byte for the second

    def on(peer: Peer) -> None:
        while peer.request():
            peer.answer(b"again")

    async def case() -> None:
        with Scripted(once, on, once) as peer:
            async with way.manager(retries=False) as http:
                assert (await http.get(peer.url)).data == b"ok"
                assert (await http.request("PUT", peer.url, body=b"x")).data == b"again"
                assert peer.accepted == 2
        with Scripted(once, on) as peer:
            async with way.manager(retries=False) as http:
                assert (await http.get(peer.url)).data == b"ok"
                with pytest.raises(ProtocolError, match="Connection aborted"):
                    await http.request("POST", peer.url, body=b"x")
                assert peer.accepted == 1

    way.run(case)


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "not announced"])
def test_a_server_that_closes_after_each_response(way: Way, announced: bool) -> None:
    """Nothing fails where each response is the last of its connection, and the server has the TIME_WAIT."""

    async def case() -> None:
        with HttpServer(close_after_response=True, announce_close=announced) as server:
            async with way.manager(retries=False, timeout=5) as http:
                for number in range(10):
                    method = "GET" if number % 2 or not announced else "POST"
                    assert (await http.request(method, server.url + "/")).json() == BODY
            assert server.stats()["accepted"] == 10
            if announced:
                assert states(server.port).get("TIME_WAIT", 0) <= 5  # a FIN that comes late, on a busy machine

    way.run(case)


@pytest.mark.parametrize("how", ["released", "dropped"])
def test_what_is_not_read_closes_its_connection(way: Way, server: Door, how: str) -> None:
    """A response that is released or dropped before its end takes its connection with it; nothing is left."""

    async def case() -> None:
        book = fewports.Ledger()
        async with way.manager(ledger=book, **trusting(server)) as http:
            response: Reply | None = await http.get(server.url + "/bytes?n=3000000", preload_content=False)
            assert response is not None
            if how == "released":
                await response.release()
            response = None
            assert await way.until(lambda: counts(book)[:2] == (0, 0))
            assert (await http.get(server.url)).json() == BODY
        assert server.stats()["accepted"] == 2

    way.run(case)


def test_a_bounded_pool(way: Way, server: Door) -> None:
    """With maxsize=8 and block, 100 requests at once take 8 connections."""

    async def case() -> None:
        async with way.manager(**trusting(server, maxsize=8, block=True)) as http:
            results = await way.all([lambda: http.get(server.url + "/slow?s=0.005")] * 100)

            assert {getattr(result, "status", result) for result in results} == {200}
            assert len(client_rows(server.port)) == 8
        assert server.stats()["accepted"] == 8

    way.run(case)


@pytest.mark.parametrize("name", WAYS)
@in_namespace()
def test_three_hundred_on_a_budget_of_twenty(name: str) -> None:
    """Whatever 300 do at once, kept alive or not, the kernel never counts more than 20 ports, and all are served."""
    way = Way(name)

    async def case(headers: dict[str, str]) -> None:
        with HttpServer() as server:
            async with way.manager(budget=20, retries=False) as http:
                url = server.url + "/slow?s=0.01"
                with KernelSampler(server.port) as kernel:
                    results = await way.all([lambda: http.get(url, headers=headers)] * 300)

            assert {getattr(result, "status", result) for result in results} == {200}
            assert 0 < kernel.peak <= 20

    way.run(case, {})
    way.run(case, {"Connection": "close"})


def test_a_full_budget_is_told(way: Way, server: Door) -> None:
    """Who waits in vain, or may not wait, gets BudgetExhausted with the numbers; urllib3's except clauses know it."""

    async def case() -> None:
        for budget in (fewports.Budget(1, when_full="refuse"), fewports.Budget(1, wait=0.05)):
            async with way.manager(budget=budget, **trusting(server, retries=3)) as http:
                kept = await http.get(server.url + "/bytes?n=3000000", preload_content=False)
                with pytest.raises(urllib3.exceptions.PoolError) as raised:
                    await http.get(server.url)
                assert isinstance(raised.value, fewports.BudgetExhausted)
                assert raised.value.usage.active == 1
                await kept.read()
                await kept.release()
                assert (await http.get(server.url)).json() == BODY

    way.run(case)


def test_sources(way: Way, server: Door) -> None:
    """Connections leave from the addresses that are given, as many from each."""

    async def case() -> None:
        sources = ["127.0.0.5", "127.0.0.6"]
        async with way.manager(sources=sources, **trusting(server)) as http:
            await way.all([lambda: http.get(server.url + "/meet?n=6")] * 6)
            assert sorted(row.source for row in client_rows(server.port)) == sorted(sources * 3)
        async with way.manager(sources=["192.0.2.77"], **trusting(server)) as http:
            with pytest.raises(HTTPError) as raised:
                await http.get(server.url)
            assert isinstance(raised.value, fewports.NoUsableSource)

    way.run(case)


# Proxies.


@pytest.mark.parametrize("secure", [False, True], ids=["http proxy", "https proxy"])
def test_through_a_proxy(way: Way, server: Door, secure: bool) -> None:
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
        with HttpServer(tls=True) as server, HttpProxy() as plain, HttpProxy(tls=True) as secure:
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


def test_a_proxy_that_refuses(way: Way, server: Door) -> None:
    """A proxy that wants credentials, or is not there, is told as urllib3 does."""

    async def case() -> list[Any]:
        found: list[Any] = []
        with HttpProxy(credentials=("me", "secret")) as proxy:
            async with way.manager(proxy.url, **trusting(server)) as http:
                found.append(await ending(http, server.url))
            gone = proxy.url
        async with way.manager(gone, **trusting(server)) as http:
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
