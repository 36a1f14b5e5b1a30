"""fewports.socks through a real SOCKS5 proxy: the leased port is the one to the proxy."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3.contrib.socks as stock
from faces import BODY, Aside, Door, counts, fresh_server, states, until
from support.listeners import listen
from support.sampler import client_rows
from support.servers import SocksProxy
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError, SSLError

import fewports
from fewports.events import ConnectionClosed, ConnectionOpened
from fewports.socks import SOCKSProxyManager
from fewports.testing import Captured


@pytest.fixture(scope="module", params=[False, True], ids=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[Door]:
    with fresh_server(tls=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def proxy() -> Iterator[SocksProxy]:
    with SocksProxy() as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[SocksProxy]:
    with SocksProxy(credentials=("user", "p@ss")) as running:
        yield running


def through(url: str, server: Door, book: fewports.Ledger | None = None, **options: Any) -> SOCKSProxyManager:
    return SOCKSProxyManager(url, ledger=book or fewports.Ledger(), ca_certs=server.ca_path, **options)


def test_requests_share_one_port_to_the_proxy(proxy: SocksProxy, server: Door) -> None:
    """One leased connection to the proxy carries all requests to a host, TLS to the host included."""
    book = fewports.Ledger()
    events = Captured()
    book.subscribe(events)
    before = proxy.stats()
    with through(proxy.url, server, book) as http:
        for _ in range(3):
            assert http.request("GET", server.url + "/", retries=False).json() == BODY
        response = http.request("GET", server.url + "/bytes?n=400000", preload_content=False)
        assert counts(book) == (1, 0, 0)
        assert sum(map(len, response.stream(10_000))) == 400_000

        (opened,) = events.of(ConnectionOpened)
        assert tuple(opened.flow.destination) == (proxy.host, proxy.port)
        rows = [row for row in client_rows(proxy.port) if row.state == "ESTABLISHED"]
        assert [(row.source, row.source_port) for row in rows] == [(opened.flow.source, opened.flow.port)]
        assert counts(book) == (0, 1, 0)
        assert proxy.stats()["accepted"] == before["accepted"] + 1
    assert until(lambda: book.usage() == [])
    assert [event.time_wait for event in events.of(ConnectionClosed)] == [False]
    assert "ESTABLISHED" not in states(proxy.port)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_who_resolves_the_name(proxy: SocksProxy, server: Door, scheme: str) -> None:
    """With socks5h the proxy gets the name, with socks5 the address that we found."""
    with through(proxy.url.replace("socks5", scheme), server) as http:
        assert http.request("GET", f"{server.scheme}://localhost:{server.port}/").json() == BODY

    host = proxy.stats()["tunnels"][-1].rpartition(":")[0]
    assert (host == "localhost") == (scheme == "socks5h")


def test_credentials(guarded: SocksProxy, server: Door) -> None:
    """User and password come in the URL, or apart from it."""
    apart: dict[str, Any] = {"username": "user", "password": "p@ss"}
    for url, options in ((guarded.url.replace("//", "//user:p%40ss@"), {}), (guarded.url, apart)):
        with through(url, server, **options) as http:
            assert http.request("GET", server.url + "/", retries=False).json() == BODY


def test_refused_credentials_leave_nothing(guarded: SocksProxy, server: Door) -> None:
    """Wrong or missing credentials give NewConnectionError, as with the stock classes, and hold nothing."""
    book = fewports.Ledger()
    for url in (guarded.url.replace("//", "//user:wrong@"), guarded.url):
        with through(url, server, book, maxsize=1, block=True) as http, stock.SOCKSProxyManager(url) as other:
            for manager in (http, other):
                with pytest.raises(NewConnectionError):
                    manager.request("GET", server.url + "/", retries=False)
                with pytest.raises(MaxRetryError) as raised:
                    manager.request("GET", server.url + "/", retries=1)
                assert isinstance(raised.value.reason, NewConnectionError)
            assert http.connection_from_url(server.url).pool.qsize() == 1

        assert counts(book)[0] == 0
        assert until(lambda: "ESTABLISHED" not in states(guarded.port))


def test_what_is_not_there_raises_as_in_stock(proxy: SocksProxy, server: Door) -> None:
    """No proxy, no server behind it, no such name: the exceptions of the stock classes."""
    book = fewports.Ledger()
    cases = (
        ("socks5://127.0.0.1:9", server.url),
        (proxy.url, "http://127.0.0.1:9"),
        ("socks5://no.such.host.invalid:9", server.url),
        (proxy.url, "http://no.such.host.invalid"),
    )
    for url, target in cases:
        with through(url, server, book) as http, stock.SOCKSProxyManager(url) as other:
            raised = []
            for manager in (other, http):
                with pytest.raises(HTTPError) as error:
                    manager.request("GET", target, retries=False)
                raised.append(error.value)

            assert issubclass(type(raised[1]), type(raised[0])), (url, raised)
        assert counts(book)[0] == 0


def test_tls_through_the_proxy_is_verified(proxy: SocksProxy, server: Door) -> None:
    """A certificate of an unknown CA is refused through a proxy, too, and its connection given back."""
    if server.scheme == "http":
        return
    book = fewports.Ledger()
    with SOCKSProxyManager(proxy.url, ledger=book) as http:
        with pytest.raises(SSLError):
            http.request("GET", server.url + "/", retries=False)

        assert counts(book)[0] == 0


def test_a_proxy_that_does_not_answer_times_out(server: Door) -> None:
    """The connect time-out bounds the handshake with the proxy, and the socket is closed after it."""
    book = fewports.Ledger()
    with listen(["127.0.0.1"])[0] as silent:
        port = silent.getsockname()[1]
        with through(f"socks5://127.0.0.1:{port}", server, book) as http:
            began = time.monotonic()
            with pytest.raises(ConnectTimeoutError):
                http.request("GET", server.url + "/", timeout=0.1, retries=False)

            assert 0.1 <= time.monotonic() - began < 3
            assert counts(book)[0] == 0
            assert "ESTABLISHED" not in states(port)


def test_a_waiter_takes_over_a_tunnel(proxy: SocksProxy, server: Door) -> None:
    """With one port to the proxy, requests in line share its connection; other hosts get the port when it is idle."""
    book = fewports.Ledger(fewports.Budget(1, wait=5))
    with fresh_server(tls=server.scheme == "https") as second, through(proxy.url, server, book) as http:
        before = proxy.stats()["accepted"]
        asides = [Aside(lambda: http.request("GET", server.url + "/", retries=False).json()) for _ in range(6)]
        assert [aside.result() for aside in asides] == [BODY] * 6
        assert proxy.stats()["accepted"] == before + 1
        assert http.request("GET", second.url + "/", retries=False).json() == BODY
        assert proxy.stats()["accepted"] == before + 2


def test_options_of_the_socket_hold(proxy: SocksProxy, server: Door) -> None:
    """source_address=, sources= and socket_options= are those of the connection to the proxy."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for given in ({"source_address": ("127.0.0.31", 0)}, {"sources": ["127.0.0.31"]}):
        with through(proxy.url, server, socket_options=options, **given) as http:
            http.request("GET", server.url + "/")
            (connection,) = http.connection_from_url(server.url).home.quiet()

            assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.sock.getsockname()[0] == "127.0.0.31"


def test_a_dropped_response_gives_the_port_back(proxy: SocksProxy, server: Door) -> None:
    """The garbage collector returns the port to the proxy of a response that nobody read."""
    book = fewports.Ledger()
    with through(proxy.url, server, book) as http:
        response = http.request("GET", server.url + "/bytes?n=3000000", preload_content=False)
        assert counts(book) == (1, 0, 0)
        del response

        assert until(lambda: counts(book)[0] == 0)
        assert until(lambda: "ESTABLISHED" not in states(proxy.port))
