"""ProxyManager through real proxies: forwarding and CONNECT, plain and TLS to the proxy, plain and TLS behind it."""

from __future__ import annotations

import contextlib
import ssl
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from faces import BODY, Aside, Door, counts, fresh_server, states, until
from support.sampler import client_rows
from support.servers import HttpProxy
from urllib3.exceptions import HTTPError, InsecureRequestWarning

import fewports
from fewports.events import CloseReason, ConnectionClosed, ConnectionOpened
from fewports.testing import Captured
from fewports.urllib3 import ProxyManager, proxy_from_url


@pytest.fixture(scope="module", params=[False, True], ids=["to http", "to https"])
def server(request: pytest.FixtureRequest) -> Iterator[Door]:
    with fresh_server(tls=request.param) as running:
        yield running


@pytest.fixture(scope="module", params=[False, True], ids=["http proxy", "https proxy"])
def proxy(request: pytest.FixtureRequest) -> Iterator[HttpProxy]:
    with HttpProxy(tls=request.param) as running:
        yield running


def through(proxy: HttpProxy, server: Door, **options: Any) -> ProxyManager:
    ca_certs = server.ca_path or proxy.ca_path
    options.setdefault("ledger", fewports.Ledger())
    return ProxyManager(proxy.url, ca_certs=ca_certs, **options)


def told(error: BaseException | None) -> list[str]:
    names = []
    while error is not None:
        names.append(type(error).__name__)
        error = getattr(error, "reason", None) or getattr(error, "original_error", None)
    return names


def ending(http: urllib3.PoolManager, url: str, **options: Any) -> object:
    try:
        return http.request("GET", url, **options).status
    except HTTPError as error:
        return told(error)


def test_requests_go_through_one_connection_to_the_proxy(proxy: HttpProxy, server: Door) -> None:
    """Requests of a row share the one leased port, which is that to the proxy; https is tunnelled, http forwarded."""
    events = Captured()
    book = fewports.Ledger()
    book.subscribe(events)
    before = proxy.stats()
    with through(proxy, server, ledger=book) as http:
        for _ in range(3):
            assert http.request("GET", server.url + "/", retries=False).json() == BODY
        assert http.request("POST", server.url + "/echo", body=b"x" * 100_000, retries=False).data == b"x" * 100_000

        assert counts(book) == (0, 1, 0)
        (opened,) = events.of(ConnectionOpened)
        assert tuple(opened.flow.destination) == (proxy.host, proxy.port)
        assert [row.source_port for row in client_rows(proxy.port) if row.state == "ESTABLISHED"] == [opened.flow.port]
        expected = [f"{server.host}:{server.port}"] if server.scheme == "https" else []
        assert proxy.stats()["tunnels"][len(before["tunnels"]) :] == expected
        assert proxy.stats()["accepted"] == before["accepted"] + 1
    assert until(lambda: book.usage() == [])
    assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.POOL_CLOSED]
    assert until(lambda: "ESTABLISHED" not in states(proxy.port))


def test_a_stream_through_a_proxy_keeps_its_port(proxy: HttpProxy, server: Door) -> None:
    """A response in pieces, through TLS in TLS too, holds the port until it is read, closed or collected."""
    book = fewports.Ledger()
    with through(proxy, server, ledger=book) as http:
        response = http.request("GET", server.url + "/bytes?n=1000000", preload_content=False)
        read = len(response.read(5000))
        assert counts(book) == (1, 0, 0)
        read += sum(map(len, response.stream(50_000)))
        assert read == 1_000_000
        assert counts(book) == (0, 1, 0)
        for end in ("close", "drop"):
            response = http.request("GET", server.url + "/bytes?n=1000000", preload_content=False)
            response.read(10)
            if end == "close":
                response.close()
            del response

            assert until(lambda: book.usage() == [])


def test_tunnels_are_handed_to_who_waits(proxy: HttpProxy, server: Door) -> None:
    """With a budget of one port eight threads share one connection to the proxy, tunnel and TLS included."""
    before = proxy.stats()["accepted"]
    with through(proxy, server, ledger=fewports.Ledger(fewports.Budget(1, wait=10))) as http:
        asides = [Aside(lambda: http.request("GET", server.url + "/", retries=False).status) for _ in range(8)]
        assert [aside.result() for aside in asides] == [200] * 8

        assert proxy.stats()["accepted"] == before + 1


@pytest.mark.parametrize(
    "case", ["refused", "no proxy there", "no name", "credentials", "not verified", "no TLS there"]
)
def test_failures_are_those_of_stock(proxy: HttpProxy, server: Door, case: str) -> None:
    """What goes wrong at the proxy or behind it raises what stock urllib3 raises, and holds no port in use."""
    stack = contextlib.ExitStack()
    url, where = server.url + "/", proxy.url
    options: dict[str, Any] = {"ca_certs": server.ca_path or proxy.ca_path}
    if case == "refused":
        url = f"{server.scheme}://127.0.0.1:9/"
    elif case == "no proxy there":
        where = f"{proxy.scheme}://127.0.0.1:9"
    elif case == "no name":
        where = f"{proxy.scheme}://no.such.host.invalid:9"
    elif case == "not verified":
        options = {}
    elif case == "no TLS there":
        where = where.replace("http://", "https://") if proxy.scheme == "http" else where.replace("https", "http")
    elif case == "credentials":
        guarded = stack.enter_context(HttpProxy(tls=proxy.scheme == "https", credentials=("u", "p")))
        where = guarded.url
    book = fewports.Ledger()
    with stack:
        stock = urllib3.ProxyManager(where, **options)
        ours = ProxyManager(where, ledger=book, **options)
        for retries in (False,) if case == "no TLS there" else (False, 1):
            given: dict[str, Any] = {"retries": retries, "timeout": 0.15}
            expected, outcome = (ending(manager, url, **given) for manager in (stock, ours))

            assert outcome == expected
            assert counts(book)[0] == 0
        stock.clear()
        ours.clear()


def test_proxy_credentials(server: Door) -> None:
    """proxy_headers= authenticate at a proxy, for forwarding and for CONNECT."""
    with HttpProxy(credentials=("user", "secret")) as guarded:
        headers = urllib3.make_headers(proxy_basic_auth="user:secret")
        with through(guarded, server, proxy_headers=headers) as http:
            assert http.request("GET", server.url + "/").json() == BODY

        assert guarded.stats()["refused"] == 0


def test_a_proxy_with_its_own_tls(server: Door) -> None:
    """proxy_ssl_context= verifies the proxy, ssl_context= what is behind it."""
    with HttpProxy(tls=True) as proxy:
        context = ssl.create_default_context(cafile=proxy.ca_path)
        unverified: dict[str, Any] = {"cert_reqs": "CERT_NONE"} if server.scheme == "https" else {}
        with (
            warnings.catch_warnings(),
            ProxyManager(proxy.url, proxy_ssl_context=context, ledger=fewports.Ledger(), **unverified) as http,
        ):
            warnings.simplefilter("ignore", InsecureRequestWarning)
            assert http.request("GET", server.url + "/").json() == BODY


def test_a_proxy_with_a_budget() -> None:
    """A budget counts towards the proxy, whatever is behind it: idle connections to one host make room for another."""
    with HttpProxy() as proxy, fresh_server(ports=3, tls=True) as three:
        budget = fewports.Budget(2, when_full="wait", wait=5)
        with proxy_from_url(proxy.url, budget=budget, ledger=fewports.Ledger(), ca_certs=three.ca_path) as http:
            for url in three.urls * 2:
                assert http.request("GET", url + "/", retries=False).json() == BODY

            assert len(proxy.stats()["tunnels"]) >= 4
            assert 1 <= states(proxy.port)["ESTABLISHED"] <= 2
            assert "TIME_WAIT" not in states(proxy.port)
