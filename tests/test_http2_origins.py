"""Which origins are asked over HTTP/2: ALPN, what is remembered, proxies, prior knowledge, and after fork."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3
from faces import BODY, Aside, counts, fresh_server, until
from http2_faces import PATIENT, client, each_way, open_rows, serving, talking
from support.http_server import HELLO
from support.listeners import listen
from support.ns import in_namespace
from support.programs import Nginx
from support.servers import H2Server, HttpProxy, HttpServer
from test_fork import forked, sockets
from urllib3.exceptions import HTTPError

import fewports
import fewports.requests
from fewports.urllib3 import PoolManager, proxy_from_url

__all__ = ["each_way"]
on_each_way = pytest.mark.usefixtures("each_way")


@pytest.fixture(scope="module")
def both() -> Iterator[Nginx]:
    """A server that offers h2 and http/1.1."""
    with Nginx(tls=True, http2=True) as running:
        yield running


@pytest.fixture(scope="module")
def http2_only() -> Iterator[H2Server]:
    with H2Server(tls=True) as running:
        yield running


@on_each_way
@pytest.mark.parametrize(("http2", "version"), [("auto", 20), (True, 20), (False, 11)])
def test_a_server_that_offers_both(both: Nginx, http2: Any, version: int) -> None:
    """HTTP/2 is taken where it is offered, unless http2=False."""
    with client(both, http2=http2) as made:
        assert [made.get().version for _ in range(3)] == [version] * 3
        assert made.opened == 1


def test_http2_is_the_default(both: Nginx) -> None:
    """Nothing need be said: PoolManager and Session take HTTP/2 over TLS where it is offered."""
    book = fewports.Ledger()
    with fewports.PoolManager(ca_certs=both.ca_path, ledger=book) as http:
        assert http.request("GET", both.url).version == 20
    with fewports.requests.Session(ledger=book) as session:
        session.verify = both.ca_path
        assert session.get(both.url).raw.version == 20
    adapter = fewports.requests.Adapter(ledger=book, http2=False)
    with requests.Session() as session:
        session.mount("https://", adapter)
        session.verify = both.ca_path
        assert session.get(both.url).raw.version == 11


@on_each_way
@pytest.mark.parametrize("http2", ["auto", False])
def test_plain_text_is_http_1_1(http2: Any) -> None:
    """Without TLS nothing but http2=True speaks HTTP/2."""
    with fresh_server() as server, client(server, http2=http2) as made:
        assert (made.get("/").version, made.get("/").json()) == (11, BODY)


@pytest.mark.parametrize("http2", ["yes", 2, None, "h2"])
def test_other_values_are_refused(http2: Any) -> None:
    """http2= is "auto", True or False."""
    with pytest.raises(ValueError, match="http2"):
        fewports.PoolManager(http2=http2)


@on_each_way
def test_a_server_without_http2_is_remembered() -> None:
    """Against a server of HTTP/1.1 "auto" is what it was before: a connection for each thread, reused, none to try."""
    with fresh_server(tls=True) as server, client(server, maxsize=8) as made:
        assert made.get("/").version == 11
        for _ in range(3):
            start = threading.Barrier(8)

            def work(start: threading.Barrier = start) -> int:
                start.wait(PATIENT)
                return int(made.get("/meet?n=8").status)

            asides = [Aside(work) for _ in range(8)]
            assert [aside.result() for aside in asides] == [200] * 8

        assert server.stats()["accepted"] == 8
        assert made.counts == (0, 8, 0)


@on_each_way
def test_a_cold_server_without_http2() -> None:
    """Eight threads at once where nobody has been before are soon on eight connections of HTTP/1.1."""
    with fresh_server(tls=True) as server, client(server, maxsize=8) as made:
        asides = [Aside(lambda: made.get("/meet?n=8").status) for _ in range(8)]

        assert [aside.result() for aside in asides] == [200] * 8
        assert server.stats()["accepted"] <= 9


@on_each_way
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_http2_that_is_demanded_and_not_there(tls: bool) -> None:
    """http2=True never falls back: an error that says so, and no port in use."""
    with fresh_server(tls=tls) as server, client(server, http2=True) as made:
        with pytest.raises(HTTPError, match=r"HTTP/2|h2"):
            made.get("/")

        assert made.counts[:2] == (0, 0)


@on_each_way
def test_a_server_that_offers_only_http2(http2_only: H2Server) -> None:
    """Where the server takes nothing but h2, "auto" and True work."""
    for http2 in ("auto", True):
        with client(http2_only, http2=http2) as made:
            assert made.get().version == 20


@on_each_way
@pytest.mark.parametrize("alpn", [None, "http/1.1"])
def test_what_the_server_says_by_alpn_counts(alpn: str | None) -> None:
    """A server that picks http/1.1, or nothing, is not spoken to in HTTP/2."""

    def script(peer: Any) -> None:
        request = peer.peer.request()
        assert request.startswith(b"GET / HTTP/1.1\r\n")
        peer.peer.answer(b"old")

    with talking(script, tls=True, alpn=alpn) as made:
        response = made.get("/")

        assert (response.version, response.data) == (11, b"old")


@on_each_way
def test_an_own_context_offers_http2(both: Nginx) -> None:
    """A context of the caller's is good for HTTP/2; what it says about verification counts."""
    context = ssl.create_default_context(cafile=both.ca_path)
    with client(both, ssl_context=context, ca_certs=None) as made:
        assert made.get().version == 20
    strict = ssl.create_default_context()
    with client(both, ssl_context=strict, ca_certs=None) as made, pytest.raises(HTTPError, match="VERIFY_FAILED"):
        made.get()


def test_tls_identities_share_nothing(both: Nginx) -> None:
    """A request that must verify another name does not go over a connection that is there already."""
    with client(both) as made:
        assert made.get().status == 200
        other = made.http.connection_from_host(
            both.host, both.port, "https", pool_kwargs={"assert_hostname": "other.test"}
        )
        with pytest.raises(HTTPError, match=r"other\.test"):
            other.urlopen("GET", "/", retries=False)

        assert made.get().status == 200
        assert made.opened == 2
        assert made.counts[:2] == (0, 1)  # the one that was refused may be in TIME_WAIT


def test_two_managers_share_nothing(both: Nginx) -> None:
    """Each manager has connections of its own."""
    before = both.accepted()
    books = [fewports.Ledger(), fewports.Ledger()]
    managers = [fewports.PoolManager(ledger=book, ca_certs=both.ca_path) for book in books]
    for http in managers * 2:
        assert http.request("GET", both.url).version == 20

    assert both.accepted() == before + 2
    assert [counts(book) for book in books] == [(0, 1, 0)] * 2
    for http in managers:
        http.clear()


@on_each_way
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_redirects_between_protocols(both: Nginx, tls: bool) -> None:
    """A redirect leads from HTTP/1.1 to HTTP/2 and is followed; both connections are kept."""
    with fresh_server(tls=tls) as old, client(both) as made:
        response = made.http.request("GET", f"{old.url}/redirect?to={both.url}/hello")

        assert (response.version, response.data) == (20, HELLO)
        assert made.counts == (0, 2, 0)
        assert until(lambda: open_rows(old.port) == ["ESTABLISHED"])


@pytest.mark.parametrize("tls", [False, True], ids=["http proxy", "https proxy"])
def test_http2_through_a_connect_proxy(both: Nginx, tls: bool) -> None:
    """Sixteen threads through a proxy share one tunnel, which is one port towards the proxy; in TLS within TLS too."""
    book = fewports.Ledger()
    with HttpProxy(tls=tls) as proxy:
        with proxy_from_url(proxy.url, ca_certs=both.ca_path, ledger=book) as http:
            asides = [Aside(lambda: http.request("GET", both.url + "/hello", retries=False)) for _ in range(16)]
            responses: list[Any] = [aside.result() for aside in asides]

            assert {(response.version, response.data) for response in responses} == {(20, HELLO)}
            assert counts(book) == (0, 1, 0)
            assert proxy.stats()["tunnels"] == [f"{both.host}:{both.port}"]
            assert open_rows(proxy.port) == ["ESTABLISHED"]
        assert until(lambda: book.usage() == [])


def test_bodies_through_tls_within_tls() -> None:
    """What is too much for the kernel's buffers, both ways and from four threads at once, arrives as it was sent."""
    bodies = [bytes([number]) * 8_000_000 for number in range(4)]
    with (
        HttpProxy(tls=True) as proxy,
        H2Server(tls=True, window=2**24) as server,
        proxy_from_url(proxy.url, ca_certs=server.ca_path, ledger=fewports.Ledger()) as http,
    ):
        asides = [Aside(lambda body=body: http.request("POST", server.url + "/echo", body=body)) for body in bodies]
        began = time.monotonic()
        responses: list[Any] = [aside.result(30) for aside in asides]

        assert time.monotonic() - began < 6  # Nagle's algorithm, which urllib3 leaves on towards proxies, made it 20
        assert [(response.version, response.data) for response in responses] == [(20, body) for body in bodies]
        assert proxy.stats()["accepted"] == 1


def test_tls_within_tls_that_ends() -> None:
    """Who waits when the proxy is gone gets an error of urllib3's, and no port is held."""
    book = fewports.Ledger()
    with H2Server(tls=True) as server:
        with HttpProxy(tls=True) as proxy:
            http = proxy_from_url(proxy.url, ca_certs=server.ca_path, ledger=book)
            asides = [Aside(lambda: http.request("GET", server.url + "/slow?s=9", retries=False)) for _ in range(4)]
            assert until(lambda: server.stats()["running"] == 4)
        for aside in asides:
            with pytest.raises(HTTPError):
                aside.result()

        assert until(lambda: book.usage() == [])


def test_requests_through_a_connect_proxy(both: Nginx) -> None:
    """proxies= of requests goes the same way."""
    with HttpProxy() as proxy, fewports.requests.Session(ledger=fewports.Ledger()) as session:
        session.verify = both.ca_path
        session.proxies = {"https": proxy.url}
        assert [session.get(both.url + "/hello").raw.version for _ in range(3)] == [20] * 3

        assert proxy.stats()["tunnels"] == [f"{both.host}:{both.port}"]


def test_a_plain_request_through_a_proxy_stays_http_1_1() -> None:
    """What is forwarded, not tunnelled, is HTTP/1.1, whatever http2= says."""
    book = fewports.Ledger()
    with HttpProxy() as proxy, fresh_server() as server, proxy_from_url(proxy.url, ledger=book) as http:
        assert http.request("GET", server.url + "/").version == 11


def test_a_proxy_that_refuses(both: Nginx) -> None:
    """A tunnel that is refused is an error for all who wait for it, and no port is held."""
    book = fewports.Ledger()
    with HttpProxy(credentials=("u", "p")) as proxy:
        http = proxy_from_url(proxy.url, ca_certs=both.ca_path, ledger=book)
        asides = [Aside(lambda: http.request("GET", both.url, retries=False, timeout=5)) for _ in range(8)]
        for aside in asides:
            with pytest.raises(HTTPError):
                aside.result()

        assert until(lambda: counts(book)[0] == 0)
        http.clear()


def test_nobody_listens() -> None:
    """Sixteen threads towards a port where nobody listens each get their error, and soon."""
    book = fewports.Ledger()
    with fewports.PoolManager(ledger=book, http2=True) as http:
        asides = [Aside(lambda: http.request("GET", "http://127.0.0.1:9/", retries=False)) for _ in range(16)]
        raised = []
        for aside in asides:
            with pytest.raises(urllib3.exceptions.NewConnectionError) as caught:
                aside.result(5)
            raised.append(caught.value)

        assert len({id(error) for error in raised}) == 16
        assert book.usage() == []


def test_the_one_who_dials_fails_alone() -> None:
    """A caller that dials and gives up by its time-out leaves the others, who have more time, to dial again."""
    listener = listen(["127.0.0.1"])[0]
    port = listener.getsockname()[1]
    book = fewports.Ledger()
    accepted: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted.append(listener.accept()[0])

    accepting = Aside(accept)
    with fewports.PoolManager(ledger=book, ca_certs=None, cert_reqs="CERT_NONE") as http:
        url = f"https://127.0.0.1:{port}/"
        first = Aside(lambda: http.request("GET", url, retries=False, timeout=0.2))
        second = Aside(lambda: http.request("GET", url, retries=False, timeout=0.6))
        for aside in (first, second):
            with pytest.raises(HTTPError):
                aside.result(3)

        assert until(lambda: counts(book)[:2] == (0, 0))
    listener.shutdown(socket.SHUT_RDWR)
    accepting.result()
    listener.close()
    for sock in accepted:
        sock.close()


@on_each_way
def test_prior_knowledge() -> None:
    """http2=True speaks HTTP/2 over plain TCP from the first byte, many threads on one port."""
    with talking(serving) as made:
        asides = [Aside(lambda: made.get("/").version) for _ in range(16)]

        assert [aside.result() for aside in asides] == [20] * 16
        assert made.opened == 1


# After fork.


@in_namespace()
def test_a_fork_with_an_open_shared_connection() -> None:
    """The child has no lease and no descriptor of it, and dials its own; the parent's streams go on."""
    book = fewports.Ledger()
    with H2Server(tls=True) as server:
        http = PoolManager(ledger=book, ca_certs=server.ca_path)
        assert http.request("GET", server.url + "/hello").version == 20
        response = http.request("GET", server.url + "/bytes?n=20000000", preload_content=False)
        waiting = Aside(lambda: http.request("GET", server.url + "/slow?s=0.5").status)
        assert until(lambda: server.stats()["running"] == 2)
        assert len(sockets()) == 1

        def child() -> object:
            before = sockets(), book.usage(), threading.active_count()
            return before, http.request("GET", server.url + "/hello", retries=False).data, counts(book)

        with forked(child) as answer:
            assert answer == (([], [], 1), HELLO, (0, 1, 0))
        assert len(response.read()) == 20_000_000
        assert waiting.result() == 200
        assert http.request("GET", server.url + "/hello", retries=False).data == HELLO

        stats = server.stats()
        assert stats["accepted"] == 2
        assert stats["flaws"] == stats["goodbyes"][1:] == []
        http.clear()


@in_namespace()
def test_a_response_that_the_child_inherits() -> None:
    """Reading the parent's response in the child is an error or an end, and takes nothing from the parent."""
    with HttpServer() as _, H2Server(tls=True) as server:
        http = PoolManager(ledger=fewports.Ledger(), ca_certs=server.ca_path)
        response = http.request("GET", server.url + "/bytes?n=2000000", preload_content=False)
        response.read(10)

        def child() -> object:
            try:
                return len(response.read())
            except (HTTPError, OSError, fewports.FewportsError):
                return "an error"

        with forked(child) as answer:
            assert answer == "an error" or answer < 2_000_000
        assert len(response.read()) == 2_000_000 - 10
        http.clear()
