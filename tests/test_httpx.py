"""fewports.httpx beside the own transports of httpx and httpx2, against real servers and proxies."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import h11
import httpx
import httpx2
import pytest
from faces import Aside, Door, counts, fresh_server, states, until, waiting
from support.listeners import free_port
from support.ns import in_namespace
from support.scripted import Peer, Scripted
from support.servers import HttpProxy, SocksProxy
from test_fork import forked

import fewports
from fewports.errors import InvalidOption
from fewports.events import CloseReason, ConnectionClosed
from fewports.httpx import BudgetExhausted, NoUsableSource, Transport
from fewports.testing import Captured
from fewports.urllib3 import HTTPConnection

REFUSED = "http://127.0.0.1:9/"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def lib(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture(scope="module")
def server() -> Iterator[Door]:
    with fresh_server() as running:
        yield running


@pytest.fixture(scope="module")
def secure() -> Iterator[Door]:
    with fresh_server(tls=True) as running:
        yield running


def trusting(door: Door) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=door.ca_path)


def transports(lib: ModuleType, **options: Any) -> list[Any]:
    """Return the library's own transport and ours."""
    return [lib.HTTPTransport(**options), Transport(**options)]


def both(lib: ModuleType, work: Callable[[Any], object], **options: Any) -> list[object]:
    """Return what *work* does with a client of the library's own transport, and with one of ours."""
    found = []
    for transport in transports(lib, **options):
        with lib.Client(transport=transport, timeout=5) as client:
            found.append(work(client))
    return found


# What goes out.


def recorded(peer: Peer, requests: list[bytes] | None = None) -> None:
    """Read a request with its body, chunked or not; put it down in *requests*, and then answer it."""
    data = peer.sock.recv(65536)
    head = data.partition(b"\r\n\r\n")[0].lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
    chunked = b"transfer-encoding: chunked" in head
    while not data.endswith(b"0\r\n\r\n") if chunked else len(data) < len(head) + 4 + length:
        data += peer.sock.recv(65536)
    if requests is not None:
        requests.append(data)
    peer.answer()


def pieces() -> Iterator[bytes]:
    yield from (b"one", b"", b"two" * 20000, b"three")


REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "get": ("GET", "/", {}),
    "query": ("GET", "/a%20b/%C3%A4;x=(y)?q='1'&r=[2]|%zz#fragment", {}),
    "params": ("GET", "/?a=1", {"params": {"a": ["1", "2"], "b": "ü"}}),
    "headers": ("GET", "/", {"headers": [("X-a", "1"), ("x-A", "2"), ("Accept", "text/x"), ("X-Empty", "")]}),
    "host": ("GET", "/", {"headers": {"Host": "other.example"}}),
    "latin": ("GET", "/", {"headers": {"X-Text": "\xe9\u20ac".encode()}}),
    "cookies": ("GET", "/", {"headers": {"Cookie": "a=b"}}),
    "auth": ("GET", "/", {"auth": ("user", "pass")}),
    "close": ("GET", "/", {"headers": {"Connection": "close"}}),
    "head": ("HEAD", "/", {}),
    "options": ("OPTIONS", "/", {"extensions": {"target": b"*"}}),
    "target": ("GET", "/", {"extensions": {"target": b'/..//%2e/"<>'}}),
    "other": ("PURGE", "/", {}),
    "empty": ("POST", "/", {}),
    "json": ("POST", "/", {"json": {"a": 1}}),
    "form": ("PUT", "/", {"data": {"a": "1"}}),
    "large": ("PATCH", "/", {"content": b"x" * 300_000}),
    "files": (
        "POST",
        "/",
        {"files": {"f": ("n", b"x" * 100)}, "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
    ),
    "chunked": ("POST", "/", {"content": pieces}),
    "chunked bytes": ("POST", "/", {"content": b"ab", "headers": {"Transfer-Encoding": "chunked"}}),
    "counted": ("POST", "/", {"content": pieces, "headers": {"Content-Length": "60008"}}),
    "body with get": ("GET", "/", {"content": b"x"}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_goes_out_is_what_the_library_would_send(lib: ModuleType, name: str) -> None:
    """Requests are the same bytes: fields in their order and case, and nothing besides."""
    method, path, given = REQUESTS[name]
    options = {key: value() if callable(value) else value for key, value in given.items()}
    extensions = options.pop("extensions", None)
    requests: list[bytes] = []

    def send(client: Any) -> None:
        request = client.build_request(method, server.url + path, **{k: v for k, v in options.items() if k != "auth"})
        request.extensions = {**request.extensions, **(extensions or {})}
        if callable(given.get("content")):
            request.stream = client.build_request(method, server.url, content=given["content"]()).stream
        client.send(request, **{key: value for key, value in options.items() if key == "auth"})

    with Scripted(*[lambda peer: recorded(peer, requests)] * 2) as server:
        both(lib, send)

    stock, ours = requests
    assert ours == (without_content_length(stock) if name == "chunked bytes" else stock)


def without_content_length(data: bytes) -> bytes:
    """Leave out what RFC 9112, section 6.2, forbids beside Transfer-Encoding; the libraries send it."""
    return b"\r\n".join(line for line in data.split(b"\r\n") if not line.lower().startswith(b"content-length"))


def test_a_request_goes_out_in_one_piece(lib: ModuleType) -> None:
    """Head and small body are one packet; the library's own transport sends two."""
    sizes: list[int] = []

    def count(peer: Peer) -> None:
        sizes.append(len(peer.sock.recv(65536)))
        peer.answer()

    with Scripted(count) as server, lib.Client(transport=Transport()) as client:
        client.post(server.url, content=b"x" * 1000)

    assert sizes[0] > 1000


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ([("Host", "a"), ("Content-Length", "1")], b"two"),
        ([("Host", "a"), ("Content-Length", "5")], b"two"),
        ([("Host", "a"), ("Content-Length", "1")], [b"two"]),
        ([("Host", "a"), ("Content-Length", "5")], [b"two"]),
        ([("Host", "a"), ("Content-Length", "x")], b""),
        ([("Host", "a"), ("Content-Length", "9" * 5000)], b""),
        ([("Host", "a"), ("Host", "b")], b""),
        ([("Host", "a"), ("Transfer-Encoding", "gzip")], b""),
        ([("Host", "a"), ("X-A", "b\r\nX-C: d")], b""),
        ([("Host", "a"), ("X A", "b")], b""),
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
        "length",
        "long",
        "hosts",
        "coding",
        "value",
        "name",
        "none",
        "before",
        "after",
        "blank",
        "VT",
        "space before name",
    ],
)
def test_a_request_that_must_not_be_sent(lib: ModuleType, headers: list[tuple[str, str]], content: Any) -> None:
    """What would not be one request with one meaning is a LocalProtocolError, of the library or of h11 in its own."""

    def send(client: Any) -> type[Exception]:
        request = lib.Request("POST", server.url, content=content)
        request.headers = lib.Headers(headers)
        with pytest.raises(Exception, match=r".") as raised:
            client.send(request)
        return raised.type

    with Scripted(*[ended] * 2) as server:
        stock, ours = both(lib, send)

    assert ours is lib.LocalProtocolError
    assert stock in (lib.LocalProtocolError, h11.LocalProtocolError)


def ended(peer: Peer) -> None:
    peer.end()


def test_an_error_of_the_body_itself_reaches_the_caller(lib: ModuleType) -> None:
    """What iterating a request body raises is raised as it is, and the connection is closed."""

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise FileNotFoundError("gone")

    book = fewports.Ledger()
    with Scripted(ended) as server:
        with lib.Client(transport=Transport(ledger=book)) as client, pytest.raises(FileNotFoundError, match="gone"):
            client.post(server.url, content=broken())

        assert counts(book)[:2] == (0, 0)


# What comes in.

RESPONSES: dict[str, bytes | list[bytes]] = {
    "length": OK,
    "torn": [OK[:9], OK[9:30], OK[30:-1], OK[-1:]],
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "fields": b"HTTP/1.1 200 OK\r\nX-A:  1 \r\nx-a:2\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"
    b"X-L: \xe9\r\nX-E:\r\nContent-Length: 0\r\n\r\n",
    "reason": b"HTTP/1.1 404 Nicht \xe4hnlich\r\nContent-Length: 1\r\n\r\nx",
    "no reason": b"HTTP/1.1 299 \r\nContent-Length: 1\r\n\r\nx",
    "chunked": CHUNKED + b"3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nX-T: 1\r\n\r\n",
    "torn chunks": [CHUNKED + b"3\r\na", b"bc\r\n5\r\ndef", b"gh\r\n0\r\n", b"\r\n"],
    "until close": [b"HTTP/1.1 200 OK\r\n\r\nab", b"cd"],
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nX-A: 1\r\n\r\n" + OK,
    "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 22\r\n\r\n"
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\xcf\x06\x00\x47\xdd\xdc\x79\x02\x00\x00\x00",
    "large": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
}  # fmt: skip


def said(data: bytes | list[bytes]) -> Callable[[Peer], None]:
    """Say *data* after a request, a piece each 10 ms, and close."""

    def handler(peer: Peer) -> None:
        peer.request()
        for number, piece in enumerate(data if isinstance(data, list) else [data]):
            time.sleep(0.01 if number else 0)
            peer.send(piece)
        with contextlib.suppress(OSError):  # who refuses what came has closed already
            peer.sock.shutdown(socket.SHUT_WR)
        peer.end()

    return handler


@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize("name", RESPONSES)
def test_what_comes_in_is_what_the_library_would_see(lib: ModuleType, name: str, streamed: bool) -> None:
    """Responses are equal: status, fields in their order and case, body, version and reason."""

    def get(client: Any) -> tuple[object, ...]:
        with client.stream("GET", server.url) as response:
            raw = list(response.iter_raw()) if streamed else [response.read()]
        return (
            *(response.status_code, response.headers.raw, b"".join(raw), response.is_closed),
            *(response.extensions["http_version"], response.extensions["reason_phrase"], response.num_bytes_downloaded),
        )

    with Scripted(*[said(RESPONSES[name])] * 2) as server:
        stock, ours = both(lib, get)

    assert ours == stock


def test_a_response_to_head_has_no_body(lib: ModuleType) -> None:
    """The length that a HEAD is told is no body, and the connection serves the next request."""
    with Scripted(lambda peer: [peer.request() and peer.send(OK[:-2]) for _ in range(2)]) as server:  # type: ignore[func-returns-value]
        with lib.Client(transport=Transport()) as client:
            found = [client.head(server.url) for _ in range(2)]

        assert [(response.content, response.headers["content-length"]) for response in found] == [(b"", "2")] * 2
        assert server.accepted == 1


ENDS: dict[str, bytes | list[bytes]] = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "garbage": b"SSH-2.0-OpenSSH\r\n\r\n",
    "bad field": b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    "lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "half a body": OK[:-1],
    "half a chunk": CHUNKED + b"5\r\nab",
    "bad chunk": [CHUNKED + b"2\r\nok\r\n", b"xyz\r\n"],
}


@pytest.mark.parametrize("name", ENDS)
def test_a_broken_response_is_the_librarys_error(lib: ModuleType, name: str) -> None:
    """What the peer breaks is a RemoteProtocolError of the library, with its request, and no port stays in use."""
    book = fewports.Ledger()

    def get(client: Any) -> type[Exception]:
        with pytest.raises(lib.HTTPError) as raised:
            client.get(server.url)
        assert raised.value.request.url == server.url
        return raised.type

    with Scripted(*[said(ENDS[name])] * 2) as server:
        with lib.Client(transport=lib.HTTPTransport()) as stock, lib.Client(transport=Transport(ledger=book)) as ours:
            assert [get(stock), get(ours)] == [lib.RemoteProtocolError] * 2
        assert counts(book)[:2] == (0, 0)


def resets(after: bytes) -> Callable[[Peer], None]:
    def handler(peer: Peer) -> None:
        peer.request()
        if after:
            peer.send(after)
            time.sleep(0.05)  # else the RST overtakes it
        peer.reset()

    return handler


def hangs(after: bytes) -> Callable[[Peer], None]:
    def handler(peer: Peer) -> None:
        peer.request()
        peer.send(after)
        peer.end()

    return handler


def deaf(peer: Peer) -> None:
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    over.wait(5)


over = threading.Event()


@pytest.mark.parametrize(
    ("handler", "options", "error"),
    [
        (resets(b""), {}, "ReadError"),
        (resets(OK[:-1]), {}, "ReadError"),
        (hangs(b""), {"timeout": (1, 0.05, 1, 1)}, "ReadTimeout"),
        (hangs(OK[:-1]), {"timeout": (1, 0.05, 1, 1)}, "ReadTimeout"),
        (deaf, {"timeout": (1, 1, 0.05, 1), "content": b"x" * 20_000_000}, "WriteTimeout"),
        (deaf, {"timeout": (1, 1, 0.05, 1), "content": [b"x" * 20_000_000]}, "WriteTimeout"),
    ],
    ids=["reset", "reset in body", "read", "read in body", "write", "write pieces"],
)
def test_what_the_network_does_is_the_librarys_error(
    lib: ModuleType, handler: Callable[[Peer], None], options: dict[str, Any], error: str
) -> None:
    """Resets and time-outs are those of the library, and the time given for each is kept."""
    over.clear()
    book = fewports.Ledger()
    timeout = lib.Timeout(options.get("timeout", 5))
    with Scripted(handler, handler) as server:
        for transport in (lib.HTTPTransport(), Transport(ledger=book)):
            with lib.Client(transport=transport, timeout=timeout) as client, pytest.raises(getattr(lib, error)):
                client.request("POST", server.url, content=options.get("content"))
        over.set()

        assert counts(book)[:2] == (0, 0)


def test_an_early_answer_counts_although_the_request_could_not_be_sent(lib: ModuleType) -> None:
    """A server that refuses a large body and closes has answered: no WriteError is raised."""

    def refuse(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        peer.sock.shutdown(socket.SHUT_RDWR)

    def broken(peer: Peer) -> None:
        refuse(peer)

    with Scripted(broken, broken) as server:
        found = both(lib, lambda client: client.post(server.url, content=[b"x" * 100_000] * 100).status_code)

    assert found == [413, 413]


def test_errors_in_connecting(lib: ModuleType) -> None:
    """Where no connection can be made, the error is the library's own."""

    def errors(client: Any) -> list[type[Exception]]:
        found = []
        for url in (REFUSED, "http://nobody.invalid/", "ftp://127.0.0.1/", "//127.0.0.1/", "http://[::1]:9/"):
            with pytest.raises(Exception, match=r".") as raised:
                client.get(url)
            found.append(raised.type)
        return found

    stock, ours = both(lib, errors)

    assert ours == stock == [lib.ConnectError] * 2 + [lib.UnsupportedProtocol] * 2 + [lib.ConnectError]


@in_namespace(drop_all=True)
def test_a_connect_timeout_is_that_of_the_library() -> None:
    """A host that does not answer gives the library's ConnectTimeout, after the time given."""
    book = fewports.Ledger()
    for lib in (httpx, httpx2):
        with lib.Client(transport=Transport(ledger=book)) as client:
            begun = time.monotonic()
            with pytest.raises(lib.ConnectTimeout):
                client.get("http://10.200.77.1/", timeout=lib.Timeout(5, connect=0.1))
            assert time.monotonic() - begun < 2

    assert counts(book) == (0, 0, 0)


# TLS.


def test_tls(lib: ModuleType, secure: Door) -> None:
    """verify= takes what the library takes, and a certificate that nobody vouches for is a ConnectError."""
    for verify in (trusting(secure), False):
        with lib.Client(transport=Transport(verify=verify)) as client:
            assert client.get(secure.url).json()["message"] == "hello"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the library's: verify=<str>
        transport = Transport(verify=str(secure.ca_path))
    with lib.Client(transport=transport) as client:
        assert client.get(secure.url).status_code == 200
    with (
        lib.Client(transport=Transport()) as client,
        pytest.raises(lib.ConnectError, match="certificate verify failed"),
    ):
        client.get(secure.url)


@pytest.mark.parametrize("trusted", [True, False])
def test_the_environments_certificates(
    lib: ModuleType, secure: Door, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With trust_env the authorities of SSL_CERT_FILE are known, without it they are not; as to the own transport."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.ca_path))
    for transport in transports(lib, trust_env=trusted):
        with lib.Client(transport=transport) as client, contextlib.ExitStack() as stack:
            if not trusted:
                stack.enter_context(pytest.raises(lib.ConnectError, match="certificate verify failed"))
            assert client.get(secure.url).status_code == 200


def test_sni_hostname(lib: ModuleType, secure: Door) -> None:
    """The extension sni_hostname names the server that is asked for, and the one whose certificate is checked."""
    with lib.Client(transport=Transport(verify=trusting(secure))) as client:
        url = secure.url.replace("127.0.0.1", "localhost")

        assert client.get(url, extensions={"sni_hostname": "service.test"}).status_code == 200
        with pytest.raises(lib.ConnectError, match="certificate"):
            client.get(url, extensions={"sni_hostname": "wrong.example"})


# Connections.


def test_a_connection_is_kept_and_used_again(lib: ModuleType, server: Door, secure: Door) -> None:
    """Requests one after the other share a connection, with TLS and without."""
    for door in (server, secure):
        before = door.stats()["accepted"]
        with lib.Client(transport=Transport(verify=False)) as client:
            for path in ("/", "/chunked?n=5000", "/bytes?n=200000", "/status?code=404"):
                client.get(door.url + path)

        assert door.stats()["accepted"] - before == 1


def test_a_response_that_is_closed_early_gives_all_back(lib: ModuleType, server: Door) -> None:
    """Whoever leaves a response in the middle leaves no connection in use: it is closed, and the next one works."""
    book = fewports.Ledger()
    closed = Captured()
    book.subscribe(closed)
    with lib.Client(transport=Transport(ledger=book, limits=lib.Limits(max_connections=1))) as client:
        with client.stream("GET", server.url + "/bytes?n=5000000"):
            pass
        with client.stream("GET", server.url + "/bytes?n=5000000") as response:
            next(response.iter_raw())
        assert client.get(server.url).status_code == 200
        assert counts(book)[:2] == (0, 1)

    assert len([event for event in closed if isinstance(event, ConnectionClosed)]) == 3


def test_a_body_is_not_to_be_had_twice(lib: ModuleType, server: Door) -> None:
    """The stream of a response that is over gives nothing: its connection is somebody else's by now."""
    with lib.Client(transport=Transport()) as client:
        request = client.build_request("GET", server.url + "/bytes?n=500000")
        response = client._transport.handle_request(request)

        assert len(b"".join(response.stream)) == 500000
        with pytest.raises(lib.StreamClosed):
            list(response.stream)


def test_a_small_body_gives_its_connection_back_before_it_is_read(lib: ModuleType, server: Door) -> None:
    """A response that came whole holds no connection, also while nobody reads it."""
    book = fewports.Ledger()
    with lib.Client(transport=Transport(ledger=book)) as client, client.stream("GET", server.url) as response:
        assert counts(book) == (0, 1, 0)
        assert response.read()


class Stop(BaseException):
    """What nobody expects in the middle of a request."""


@pytest.mark.parametrize("step", ["connection.connect_tcp.complete", "http11.send_request_body.started"])
def test_who_breaks_in_leaves_nothing_in_use(lib: ModuleType, server: Door, step: str) -> None:
    """An exception such as KeyboardInterrupt in the middle of a request leaves no connection behind."""

    def trace(name: str, info: object) -> None:
        if name == step:
            raise Stop

    book = fewports.Ledger()
    with lib.Client(transport=Transport(ledger=book)) as client:
        with pytest.raises(Stop):
            client.get(server.url, extensions={"trace": trace})

        assert counts(book)[:2] == (0, 0)
        assert client.get(server.url).status_code == 200


def test_a_connection_that_the_server_closed_is_not_the_callers_problem(lib: ModuleType) -> None:
    """A request that meets the end of a kept connection is sent again, if that is safe."""

    def once(peer: Peer) -> None:
        peer.request()
        peer.answer()

    def twice(peer: Peer) -> None:
        once(peer)
        peer.request()

    with Scripted(twice, once, twice) as server, lib.Client(transport=Transport()) as client:
        assert [client.get(server.url).status_code for _ in range(2)] == [200, 200]
        assert server.accepted == 2
        assert until(lambda: not states(server.port).get("ESTABLISHED"))
        assert client.get(server.url).status_code == 200
        with pytest.raises(lib.RemoteProtocolError, match="disconnected without sending"):
            client.post(server.url)


def test_a_body_in_pieces_is_kept_for_another_connection(lib: ModuleType) -> None:
    """A request that could not be sent at all is sent again with a body that can be iterated once: nobody began to."""

    def leave(peer: Peer) -> None:
        peer.request()
        peer.answer()
        left.wait(5)
        peer.reset()
        reset.set()

    def upload(content: Iterator[bytes]) -> bytes:
        response = client.post(server.url, content=content)
        return bytes(response.content)

    left, reset = threading.Event(), threading.Event()
    bodies: list[bytes] = []
    with (
        Scripted(leave, lambda peer: recorded(peer, bodies)) as server,
        lib.Client(transport=Transport()) as client,
    ):
        client.get(server.url)
        pool = next(iter(client._transport._routes.values())).pool
        alive = HTTPConnection.alive

        def just_before(conn: HTTPConnection) -> bool:
            """Have the peer close after it was looked at."""
            found = alive(conn)
            left.set()
            reset.wait(5)
            return found

        conn = pool.home.quiet()[0]
        conn.alive = just_before.__get__(conn)
        assert upload(pieces()) == b"ok"

    assert bodies[0].endswith(b"0\r\n\r\n")


def answers_once(peer: Peer) -> None:
    """Answer one request, and close in the middle of the body of the next."""
    peer.request()
    peer.answer()
    peer.sock.recv(10)


def test_a_body_that_was_begun_is_not_sent_again(lib: ModuleType) -> None:
    """What can be iterated once, and was begun, is not sent again, however safe the method."""
    with Scripted(answers_once, recorded) as server, lib.Client(transport=Transport()) as client:
        client.get(server.url)
        with pytest.raises(lib.TransportError):
            client.put(server.url, content=itertools.repeat(b"x" * 100_000, 200))
        assert server.accepted == 1
        client.get(server.url)


def test_a_connection_is_closed_as_the_request_says(lib: ModuleType, server: Door) -> None:
    """After "Connection: close" the connection is not used again, whatever the server says."""
    with Scripted(*[lambda peer: [peer.answer() for _ in range(2) if peer.request()]] * 2) as scripted:  # type: ignore[func-returns-value]
        with lib.Client(transport=Transport()) as client:
            for _ in range(2):
                client.get(scripted.url, headers={"Connection": "close"})

        assert scripted.accepted == 2


@pytest.mark.parametrize("limits", [{"max_keepalive_connections": 0}, {"keepalive_expiry": 0}])
def test_limits_may_keep_nothing(lib: ModuleType, server: Door, limits: dict[str, Any]) -> None:
    """With max_keepalive_connections=0 or keepalive_expiry=0 a connection ends with its response."""
    book = fewports.Ledger()
    with lib.Client(transport=Transport(ledger=book, limits=lib.Limits(**limits))) as client:
        client.get(server.url)

        assert counts(book)[1] == 0


def test_how_long_a_connection_is_kept(lib: ModuleType) -> None:
    """keepalive_expiry= is the time for which an idle connection is kept; without limits ours is longer."""
    given = [
        ({"limits": lib.Limits()}, 5.0),
        ({"limits": lib.Limits(keepalive_expiry=None)}, 1800.0),
        ({"limits": lib.Limits(keepalive_expiry=7), "idle_limit": 9.0}, 9.0),
        ({}, 55.0),
    ]

    assert [Transport(**options)._options.gate.idle_limit for options, _ in given] == [limit for _, limit in given]


def test_max_connections_bounds_all_hosts_together(lib: ModuleType) -> None:
    """No more than max_connections are open at once, over all hosts; idle ones give way, and others wait in line."""
    book = fewports.Ledger()
    with (
        fresh_server(ports=3) as door,
        lib.Client(transport=Transport(ledger=book, limits=lib.Limits(max_connections=2))) as client,
    ):
        for url in door.urls:
            assert client.get(url).status_code == 200
        assert sum(states(port)["ESTABLISHED"] for _, port in door.addresses if states(port)) == 2

        with client.stream("GET", door.urls[0] + "/bytes?n=5000000"):
            with client.stream("GET", door.urls[1] + "/bytes?n=5000000"):
                begun = time.monotonic()
                with pytest.raises(lib.PoolTimeout) as raised:
                    client.get(door.urls[2], timeout=lib.Timeout(5, pool=0.05))
                assert time.monotonic() - begun < 2
                late = Aside(lambda: client.get(door.urls[2]).status_code)
                assert until(lambda: waiting(book))
            assert late.result() == 200

    assert isinstance(raised.value, fewports.BudgetExhausted)
    assert str(raised.value).startswith("all destinations holds 2 of 2 connections (2 active) after 0.1 s in line: ")
    assert raised.value.request.url == door.urls[2]


def test_threads_share_the_connections(lib: ModuleType, server: Door) -> None:
    """Sixteen threads on four connections are all served."""
    before = server.stats()["accepted"]
    with lib.Client(transport=Transport(limits=lib.Limits(max_connections=4))) as client:
        work = [Aside(lambda: [client.get(server.url).status_code for _ in range(20)]) for _ in range(16)]

        assert [thread.result() for thread in work] == [[200] * 20] * 16
    assert server.stats()["accepted"] - before <= 4


def test_a_forked_child_starts_anew(lib: ModuleType, server: Door) -> None:
    """A child makes connections of its own; the parent reads on where it was."""
    with lib.Client(transport=Transport()) as client:
        client.get(server.url)
        with client.stream("GET", server.url + "/bytes?n=2000000") as response:
            client.get(server.url)
            with forked(lambda: client.get(server.url).status_code) as answer:
                assert answer == 200
            assert len(response.read()) == 2_000_000
        assert client.get(server.url).status_code == 200


def test_close_ends_what_is_idle_now_and_the_rest_later(lib: ModuleType, server: Door) -> None:
    """close() closes idle connections at once and those in use when they come back; the transport may be used again."""
    book = fewports.Ledger()
    closed = Captured()
    book.subscribe(closed)
    transport = Transport(ledger=book)
    with lib.Client(transport=transport) as client:
        client.get(server.url)
        with client.stream("GET", server.url + "/bytes?n=500000") as response:
            client.get(server.url)
            transport.close()
            assert counts(book)[:2] == (1, 0)
            assert len(response.read()) == 500000
        assert counts(book)[:2] == (0, 0)
        assert client.get(server.url).status_code == 200

    reasons = {event.reason for event in closed if isinstance(event, ConnectionClosed)}
    assert reasons == {CloseReason.POOL_CLOSED}


def test_one_transport_serves_both_libraries(server: Door, secure: Door) -> None:
    """One transport is at home in both libraries, each of which gets what is its own."""
    transport = Transport(verify=trusting(secure))
    for lib in (httpx, httpx2, httpx):
        assert isinstance(transport, lib.BaseTransport)
        client = lib.Client(transport=transport)
        for door in (server, secure):
            assert type(client.get(door.url)) is lib.Response
        with pytest.raises(lib.ConnectError):
            client.get(REFUSED)
    with pytest.raises(InvalidOption, match="a request of httpx2 or httpx"):
        transport.handle_request("GET")
    transport.close()


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uds": "/tmp/socket"}, "uds= takes no port"),
        ({"http1": False}, "http1=False leaves nothing to speak"),
        ({"budget": 0}, "a budget of 0 ports"),
        ({"idle_limit": 0}, "idle_limit=0 is not a time"),
        ({"limits": httpx.Limits(max_connections=0)}, "connections=0 would let nobody connect"),
    ],
)
def test_what_cannot_be_had_is_refused(options: dict[str, Any], message: str) -> None:
    """What cannot be had behind the gate is refused when the transport is made."""
    with pytest.raises(InvalidOption, match=message):
        Transport(**options)


@pytest.mark.parametrize(
    ("budget", "limits", "connections"),
    [
        (None, None, 100),
        (7, None, 100),
        (fewports.Budget(7, connections=3), httpx.Limits(max_connections=5), 3),
        (fewports.Budget(7, connections=9), httpx.Limits(max_connections=5), 5),
        (fewports.Budget(7, connections=9), httpx2.Limits(), 9),
    ],
)
def test_which_bound_on_connections_counts(budget: Any, limits: Any, connections: int) -> None:
    """Of max_connections and the connections= of a budget the smaller counts; the caller's budget stays as it was."""
    before = budget.connections if isinstance(budget, fewports.Budget) else None
    gate = Transport(budget=budget, limits=limits)._options.gate

    assert gate.budget is not None
    assert (gate.budget.connections, gate.budget.limit) == (
        connections,
        Transport(budget=budget)._options.gate.budget.limit,
    )  # type: ignore[union-attr]
    assert before == (budget.connections if isinstance(budget, fewports.Budget) else None)


def test_options_of_a_socket(lib: ModuleType, server: Door) -> None:
    """local_address= and socket_options= are the library's; the source is bound so that the port space grows."""
    before = dict(server.stats()["sources"])
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    with lib.Client(transport=Transport(local_address="127.0.0.2", socket_options=options)) as client:
        response = client.get(server.url)
        sock = response.extensions["network_stream"].get_extra_info("socket")

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    sources = server.stats()["sources"]
    assert {name for name in sources if sources[name] > before.get(name, 0)} == {"127.0.0.2"}


def test_budget_and_sources(lib: ModuleType, server: Door) -> None:
    """Our own arguments: a budget that refuses, source addresses, and errors that are the library's as well."""
    budget = fewports.Budget(1, when_full="refuse")
    before = server.stats()["sources"].get("127.0.0.3", 0)
    with lib.Client(transport=Transport(budget=budget, sources=["127.0.0.3"])) as client:
        with client.stream("GET", server.url + "/bytes?n=5000000"), pytest.raises(BudgetExhausted) as raised:
            client.get(server.url)
        assert server.stats()["sources"]["127.0.0.3"] == before + 1
    with lib.Client(transport=Transport(sources=["203.0.113.77"])) as client, pytest.raises(NoUsableSource) as unusable:
        client.get(server.url)

    for error, kinds in (
        (raised.value, (fewports.BudgetExhausted, lib.PoolTimeout)),
        (unusable.value, (fewports.NoUsableSource, lib.ConnectError)),
    ):
        assert all(isinstance(error, kind) for kind in kinds)
        copied = pickle.loads(pickle.dumps(error))
        assert (type(copied), str(copied)) == (type(error), str(error))
        assert str(error.request.url).startswith(server.url)
    assert raised.value.usage.scope == "client"


def test_retries_are_for_connections_alone(lib: ModuleType) -> None:
    """retries= tries a connection again that could not be made, after a pause, and nothing else."""
    port = free_port(["127.0.0.1"])
    listener = socket.socket()
    names: list[str] = []

    def trace(name: str, info: object) -> None:
        names.append(name)
        if name == "connection.retry.started" and names.count(name) == 2:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            Aside(serve)

    def serve() -> None:
        sock, _ = listener.accept()
        sock.recv(65536)
        sock.sendall(OK)
        sock.close()

    with listener, lib.Client(transport=Transport(retries=2)) as client:
        assert client.get(f"http://127.0.0.1:{port}", extensions={"trace": trace}).status_code == 200
    assert names.count("connection.connect_tcp.failed") == 2


# Extensions.


def events(client: Any, url: str, **options: Any) -> list[str]:
    names: list[str] = []
    client.get(url, extensions={"trace": lambda name, info: names.append(name)}, **options)
    return names


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_trace_tells_the_same_steps(lib: ModuleType, server: Door, secure: Door, tls: bool) -> None:
    """The trace extension is told of the steps of the library's own transport, in their order."""
    url = (secure if tls else server).url
    stock, ours = both(lib, lambda client: [*events(client, url), "-", *events(client, url)], verify=False)

    assert ours == stock


def test_what_a_trace_is_told(lib: ModuleType, secure: Door) -> None:
    """The values of an event are those that readers of httpcore's expect."""
    told: dict[str, dict[str, Any]] = {}
    versions: list[str] = []

    def trace(name: str, info: dict[str, Any]) -> None:
        told[name] = info
        if name == "connection.start_tls.complete":
            versions.append(info["return_value"].get_extra_info("ssl_object").version())

    with lib.Client(transport=Transport(verify=False)) as client:
        client.post(secure.url + "/echo", content=b"x", extensions={"trace": trace})

    connect = told["connection.connect_tcp.complete"]["return_value"]
    request = told["http11.send_request_headers.started"]["request"]
    version, status, reason, headers = told["http11.receive_response_headers.complete"]["return_value"]
    assert told["connection.connect_tcp.started"]["host"] == secure.host
    assert connect.get_extra_info("ssl_object") is None
    assert versions == ["TLSv1.3"]
    assert (request.method, request.url.target, dict(request.headers)[b"Content-Length"]) == (b"POST", b"/echo", b"1")
    assert (version, status, reason, (b"Content-Length", b"1") in headers) == (b"HTTP/1.1", 200, b"OK", True)


def test_a_trace_is_told_of_what_failed(lib: ModuleType) -> None:
    """Where a step fails, the trace hears of it."""
    names: list[str] = []
    extensions = {"trace": lambda name, info: names.append(name)}
    with Scripted(Peer.request) as server, lib.Client(transport=Transport()) as client:
        for url in (REFUSED, server.url):
            with pytest.raises(lib.TransportError):
                client.get(url, extensions=extensions)

    assert {"connection.connect_tcp.failed", "http11.receive_response_headers.failed"} <= set(names)


def test_network_stream(lib: ModuleType, secure: Door) -> None:
    """The extension network_stream tells of the connection what the library's own would."""

    def about(client: Any) -> list[object]:
        with client.stream("GET", secure.url + "/bytes?n=1000000") as response:
            stream = response.extensions["network_stream"]
            return [
                stream.get_extra_info("ssl_object").version(),
                stream.get_extra_info("client_addr")[0],
                stream.get_extra_info("server_addr"),
                stream.get_extra_info("socket").family,
                stream.get_extra_info("is_readable"),
                stream.get_extra_info("invalid"),
            ]

    stock, ours = both(lib, about, verify=False)

    assert ours == stock


def test_another_protocol_on_the_connection(lib: ModuleType) -> None:
    """After 101 the connection is the caller's, with what the server has said already, until the response is closed."""

    def switch(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhel")
        peer.send(b"lo")
        while data := peer.sock.recv(100):
            peer.send(data.upper())

    def converse(client: Any) -> tuple[object, ...]:
        headers = {"Connection": "upgrade", "Upgrade": "echo"}
        with client.stream("GET", server.url, headers=headers) as response:
            stream = response.extensions["network_stream"]
            heard = b""
            while len(heard) < 5:
                heard += stream.read(2, timeout=5)
            stream.write(b"abc", timeout=5)
            said = stream.read(100, timeout=5)
            with pytest.raises(Exception, match=r".") as raised:
                stream.read(1, timeout=0.01)
            return response.status_code, heard, said, raised.type, type(raised.value).__module__

    book = fewports.Ledger()
    with (
        Scripted(switch, switch) as server,
        lib.Client() as stock,
        lib.Client(transport=Transport(ledger=book)) as ours,
    ):
        assert converse(ours) == converse(stock)
        assert counts(book)[:2] == (0, 0)


# Proxies.


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_http_proxies(lib: ModuleType, server: Door, secure: Door, tls: bool) -> None:
    """A proxy forwards http and tunnels https; it is told who asks, and no more."""
    with HttpProxy(tls=tls, credentials=("user", "pa:ss")) as proxy:
        context = ssl.create_default_context(cafile=proxy.ca_path) if tls else None
        url = proxy.url.replace("://", "://user:pa%3Ass@")
        given = lib.Proxy(url, ssl_context=context)
        with lib.Client(transport=Transport(proxy=given, verify=trusting(secure))) as client:
            for door in (server, secure):
                for _ in range(2):
                    assert client.get(door.url).json()["message"] == "hello"
        stats = proxy.stats()
        assert (stats["accepted"], stats["forwarded"], stats["tunnels"]) == (2, 2, [f"127.0.0.1:{secure.port}"])

        wrong = Transport(proxy=lib.Proxy(proxy.url, ssl_context=context), verify=False)
        with lib.Client(transport=wrong) as client:
            assert client.get(server.url).status_code == 407
            with pytest.raises(lib.ProxyError, match=r"^407 "):
                client.get(secure.url)


def test_what_a_forwarding_proxy_is_sent(lib: ModuleType) -> None:
    """The bytes to a proxy are the library's: the whole URL, and the fields for the proxy in front."""
    requests: list[bytes] = []
    with Scripted(*[lambda peer: recorded(peer, requests)] * 2) as proxy:
        for transport in transports(
            lib, proxy=lib.Proxy(proxy.url, auth=("a", "b"), headers={"X-P": "1", "Accept": "no"})
        ):
            with lib.Client(transport=transport) as client:
                client.post("http://example.com:81/x?y", content=b"z", headers={"x-p": "2"})

    assert requests[0] == requests[1]
    assert requests[0].startswith(b"POST http://example.com:81/x?y HTTP/1.1\r\nHost: example.com:81\r\nProxy-Auth")


def test_what_a_tunnelling_proxy_is_sent(lib: ModuleType) -> None:
    """CONNECT has the fields of the library, in their order."""
    requests: list[bytes] = []

    def refuse(peer: Peer) -> None:
        requests.append(peer.request())
        peer.answer(status="403 No Way")

    with Scripted(refuse, refuse) as proxy:
        for transport in transports(lib, proxy=lib.Proxy(proxy.url, auth=("a", "b"), headers={"X-P": "1"})):
            with lib.Client(transport=transport) as client, pytest.raises(lib.ProxyError, match=r"^403 No Way$"):
                client.get("https://example.com/")

    stock, ours = (request.replace(b"HTTP/1.0", b"HTTP/1.1") for request in requests)  # http.client up to Python 3.11
    assert ours == stock


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_proxies(lib: ModuleType, server: Door, secure: Door, scheme: str) -> None:
    """Through a SOCKS proxy, which looks names up; a refusal of it is a ProxyError."""
    with SocksProxy(credentials=("user", "pass")) as proxy:
        url = f"{scheme}://user:pass@127.0.0.1:{proxy.port}"
        with lib.Client(transport=Transport(proxy=url, verify=trusting(secure))) as client:
            for door in (server, secure):
                assert client.get(door.url.replace("127.0.0.1", "localhost")).status_code == 200
            with pytest.raises(lib.ProxyError):
                client.get(REFUSED)
        assert proxy.stats()["tunnels"] == [f"localhost:{server.port}", f"localhost:{secure.port}"]
        nameless = Transport(proxy=f"{scheme}://127.0.0.1:{proxy.port}")
        with lib.Client(transport=nameless) as client, pytest.raises(lib.ProxyError):
            client.get(server.url)
    with lib.Client(transport=Transport(proxy="socks5://127.0.0.1:9")) as client, pytest.raises(lib.ConnectError):
        client.get(server.url)


# What the client does with it.


def test_redirects_cookies_and_uploads(lib: ModuleType, server: Door) -> None:
    """What the client does above its transport goes on as before."""
    with lib.Client(transport=Transport(), follow_redirects=True) as client:
        assert client.get(server.url + "/redirect?n=3").json()["message"] == "hello"
        client.get(server.url + "/cookies?a=b")
        assert client.cookies["a"] == "b"
        assert client.post(server.url + "/echo", files={"f": b"x" * 100_000}).content.count(b"x") >= 100_000
        assert client.post(server.url + "/echo", content=itertools.repeat(b"y", 5)).content == b"yyyyy"
        with client.stream("GET", server.url + "/chunked?n=5000") as response:
            assert len(list(response.iter_lines())) > 0
        assert client.get(server.url).elapsed.total_seconds() > 0
