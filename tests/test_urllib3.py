"""The classes of fewports.urllib3 beside the stock ones, against real servers: the same results and exceptions."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from faces import BODY, Aside, Door, counts, fresh_server, states, until, waiting
from support.ns import in_namespace
from support.programs import Nginx
from support.sampler import client_rows, held
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ReadTimeoutError

import fewports
from fewports import urllib3 as ours
from fewports.urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager

REFUSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def plain() -> Iterator[Door]:
    with fresh_server() as server:
        yield server


@pytest.fixture(scope="module", params=[fresh_server, Nginx])
def secure(request: pytest.FixtureRequest) -> Iterator[Door | Nginx]:
    with request.param(tls=True) as server:
        yield server


Request = Callable[[Any], Any]


def told(error: BaseException | None) -> list[str]:
    """Name an exception and what it wraps, as urllib3 nests them."""
    names = []
    while error is not None:
        names.append(type(error).__name__)
        inner = getattr(error, "reason", None) or next((arg for arg in error.args if isinstance(arg, Exception)), None)
        error = inner if isinstance(inner, Exception) else None
    return names


def outcome(work: Callable[[], urllib3.BaseHTTPResponse]) -> object:
    try:
        response = work()
    except Exception as error:
        return told(error)
    headers = {name.lower(): value for name, value in response.headers.items()}
    steps = len(response.retries.history) if response.retries else 0
    return response.status, response.data.replace(b'"client"', b""), sorted(headers), response.geturl(), steps


def pieces() -> Iterator[bytes]:
    yield from (b"one", b"two", b"three")


FORCE = urllib3.Retry(2, status_forcelist=[503], backoff_factor=0)
CASES: dict[str, tuple[str, str, Callable[[], dict[str, Any]]]] = {
    "get": ("GET", "/", dict),
    "fields in the URL": ("GET", "/echo", lambda: {"fields": {"a": "1"}}),
    "head": ("HEAD", "/bytes?n=2000", dict),
    "no content": ("GET", "/status?code=204", dict),
    "chunked response": ("GET", "/chunked?n=12345", dict),
    "long response": ("GET", "/bytes?n=2000000", dict),
    "closed after it": ("GET", "/close", dict),
    "upload of bytes": ("POST", "/echo", lambda: {"body": b"x" * 300_000}),
    "upload of a file": ("PUT", "/echo", lambda: {"body": io.BytesIO(b"y" * 100_000)}),
    "upload of pieces": ("POST", "/echo", lambda: {"body": pieces()}),
    "chunked upload": ("POST", "/echo", lambda: {"body": b"abc", "chunked": True}),
    "json": ("POST", "/echo", lambda: {"json": {"a": [1]}}),
    "expect: 100-continue": ("POST", "/echo", lambda: {"body": b"abc", "headers": {"Expect": "100-continue"}}),
    "redirects": ("GET", "/redirect?n=3", dict),
    "redirect after POST": ("POST", "/redirect?code=303&to=/echo", lambda: {"body": b"abc"}),
    "redirect that keeps the method": ("POST", "/redirect?code=307&to=/echo", lambda: {"body": io.BytesIO(b"abc")}),
    "redirect not followed": ("GET", "/redirect", lambda: {"redirect": False}),
    "too many redirects": ("GET", "/redirect?n=5", lambda: {"retries": urllib3.Retry(redirect=2)}),
    "a status to retry": ("GET", "/status?code=503", lambda: {"retries": FORCE}),
    "retry-after": ("GET", "/status?code=503&retry-after=0", lambda: {"retries": urllib3.Retry(1)}),
    "a killed connection": ("GET", "/drop", lambda: {"retries": 2}),
    "a killed connection, no retries": ("GET", "/drop", lambda: {"retries": False}),
    "half a body": ("GET", "/half", lambda: {"retries": 1}),
    "a read timeout": ("GET", "/slow?s=0.5", lambda: {"timeout": 0.05, "retries": 1}),
    "a read timeout, no retries": ("GET", "/slow?s=0.5", lambda: {"timeout": 0.05, "retries": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_outcomes_are_those_of_stock(plain: Door, case: str) -> None:
    """A PoolManager and a pool give the stock classes' response or exception, and hold no port in use after it."""
    method, path, options = CASES[case]
    book = fewports.Ledger()
    with urllib3.PoolManager() as stock, PoolManager(ledger=book) as http:
        expected = outcome(lambda: stock.request(method, plain.url + path, **options()))

        assert outcome(lambda: http.request(method, plain.url + path, **options())) == expected
        assert counts(book)[0] == 0
    with (
        urllib3.HTTPConnectionPool(plain.host, plain.port) as stock_pool,
        HTTPConnectionPool(plain.host, plain.port, ledger=book) as pool,
    ):
        expected = outcome(lambda: stock_pool.request(method, path, **options()))

        assert outcome(lambda: pool.request(method, path, **options())) == expected
        assert pool.pool.qsize() == 1
        assert counts(book)[0] == 0


@pytest.mark.parametrize("retries", [False, 0, 1])
@pytest.mark.parametrize(
    "url", [REFUSED, "http://[::1]:9", "http://no.such.host.invalid", "http://a..b", "http://-x:9"]
)
def test_failures_to_connect_are_those_of_stock(url: str, retries: int | bool) -> None:
    """A refused connection, an unknown name and a bad name raise what urllib3 raises, and hold nothing."""
    book = fewports.Ledger()
    with urllib3.PoolManager() as stock, PoolManager(ledger=book) as http:
        expected = outcome(lambda: stock.request("GET", url, retries=retries))

        assert outcome(lambda: http.request("GET", url, retries=retries)) == expected
        assert book.usage() == []


@in_namespace(drop_all=True)
def test_a_connect_timeout_is_that_of_stock() -> None:
    """A host that does not answer gives ConnectTimeoutError, in MaxRetryError with retries, after the time given."""
    urllib3.util.connection.HAS_IPV6 = True  # it was imported before this namespace had an IPv6 address
    book = fewports.Ledger()
    with PoolManager(ledger=book) as http:
        for url in ("http://10.200.77.1/", "https://[fd00:200:1::1]/"):
            with pytest.raises(ConnectTimeoutError, match=r"timed out\. \(connect timeout=0\.1\)"):
                http.request("GET", url, retries=False, timeout=urllib3.Timeout(connect=0.1))
            with pytest.raises(MaxRetryError) as raised:
                http.request("GET", url, retries=1, timeout=0.1)
            assert isinstance(raised.value.reason, ConnectTimeoutError)
            with pytest.raises(ConnectTimeoutError):
                http.request("GET", url, retries=False, timeout=urllib3.Timeout(total=0.1))

        assert book.usage() == []


def test_after_a_read_timeout_the_pool_goes_on(plain: Door) -> None:
    """A response that comes too late is not taken for the answer to the next request, and its place is not lost."""
    with HTTPConnectionPool(plain.host, plain.port, ledger=fewports.Ledger(), maxsize=1, block=True) as pool:
        for _ in range(3):
            with pytest.raises(ReadTimeoutError):
                pool.request("GET", "/slow?s=0.2", timeout=0.03, retries=False)

            assert pool.request("GET", "/echo", body=b"mine", pool_timeout=1).data == b"mine"


@pytest.mark.parametrize("how", ["ca_certs", "ssl_context"])
def test_tls_is_verified(secure: Door | Nginx, how: str) -> None:
    """With the right CA, given either way, manager and pool answer; without it both raise SSLError and hold nothing."""
    assert secure.ca_path
    context = ssl.create_default_context(cafile=secure.ca_path)
    options: dict[str, Any] = {"ca_certs": secure.ca_path} if how == "ca_certs" else {"ssl_context": context}
    book = fewports.Ledger()
    with (
        PoolManager(ledger=book, **options) as http,
        HTTPSConnectionPool(secure.host, secure.port, ledger=book, **options) as pool,
    ):
        for _ in range(3):
            assert http.request("GET", secure.url + "/").json()["message"]
            assert http.request("GET", f"https://localhost:{secure.port}/").json()["message"]
            assert pool.request("GET", "/").json()["message"]

        assert counts(book) == (0, 3, 0)
        assert held(secure.port) == {("127.0.0.1", "127.0.0.1", secure.port): 3}
    with PoolManager(ledger=fewports.Ledger()) as strange:
        with pytest.raises(urllib3.exceptions.SSLError, match="certificate verify failed"):
            strange.request("GET", secure.url + "/", retries=False)
        with pytest.raises(MaxRetryError):
            strange.request("GET", secure.url + "/", retries=1)

        assert counts(strange.gate.ledger)[0] == 0


def test_a_plain_server_behind_https_is_the_error_of_stock(plain: Door) -> None:
    """TLS to a port that speaks plain HTTP raises SSLError as with the stock classes."""
    url = f"https://127.0.0.1:{plain.port}/"
    book = fewports.Ledger()
    with urllib3.PoolManager() as stock, PoolManager(ledger=book) as http:
        expected = outcome(lambda: stock.request("GET", url, retries=False, timeout=0.1))

        assert outcome(lambda: http.request("GET", url, retries=False, timeout=0.1)) == expected
        assert counts(book)[0] == 0


def test_a_response_is_read_in_pieces(plain: Door) -> None:
    """A streamed response keeps its port active until its last byte is read; then the connection is idle."""
    book = fewports.Ledger()
    with PoolManager(ledger=book) as http:
        for path in ("/bytes?n=300000", "/chunked?n=300000"):
            response = http.request("GET", plain.url + path, preload_content=False)
            parts = response.stream(4096)
            read = len(next(parts))
            assert counts(book) == (1, 0, 0)
            read += sum(map(len, parts))

            assert read == 300_000
            assert counts(book) == (0, 1, 0)
        response = http.request("GET", plain.url + "/bytes?n=70000", preload_content=False)
        assert len(io.BufferedReader(response).read()) == 70_000
        response = http.request("GET", plain.url + "/bytes?n=70000", preload_content=False)
        response.drain_conn()
        assert counts(book) == (0, 1, 0)
    assert counts(book)[:2] == (0, 0)


def test_a_connection_released_unread_is_not_used_again(plain: Door) -> None:
    """What is left of a response that was released unread is never taken for the next one; nor is its rest lost."""
    book = fewports.Ledger()
    with PoolManager(ledger=book) as http:
        response = http.request("GET", plain.url + "/bytes?n=3000000", preload_content=False)
        response.read(10)
        response.release_conn()

        assert http.request("GET", plain.url + "/", retries=False).json() == BODY
        assert len(response.read()) == 3_000_000 - 10
        slow = http.request("GET", plain.url + "/slow?s=0.1", preload_content=False, release_conn=True)
        assert http.request("GET", plain.url + "/", retries=False).json() == BODY
        assert slow.json() == BODY
        assert until(lambda: counts(book)[0] == 0)


def test_a_waiter_gets_no_unread_response(plain: Door) -> None:
    """Who waits for the one port there is gets no connection on which another's response is still under way."""
    with PoolManager(ledger=fewports.Ledger(1)) as http:
        for size in (100, 3_000_000):
            response = http.request("GET", f"{plain.url}/bytes?n={size}", preload_content=False)
            other = Aside(lambda: http.request("GET", plain.url + "/", retries=False).json())
            assert until(lambda: waiting(http.gate.ledger))
            response.release_conn()
            response.close()

            assert other.result() == BODY


def test_a_connection_that_died_on_the_way_to_a_waiter(plain: Door) -> None:
    """A connection that the server closes unannounced is not handed to who waits: the request needs no retry."""
    quick = fresh_server(close_after_response=True, announce_close=False)
    with quick as server, PoolManager(ledger=fewports.Ledger(1)) as http:
        response = http.request("GET", server.url + "/", preload_content=False)
        other = Aside(lambda: http.request("GET", server.url + "/", retries=False).json())
        assert until(lambda: waiting(http.gate.ledger))
        assert until(lambda: "ESTABLISHED" not in states(server.port))

        assert response.json() == BODY
        assert other.result() == BODY


def test_a_direct_connection(plain: Door, secure: Door | Nginx) -> None:
    """HTTPConnection and HTTPSConnection alone work as in urllib3, each on a leased port until it is closed."""
    plainly = ours.HTTPConnection(plain.host, plain.port)
    safely = ours.HTTPSConnection(secure.host, secure.port, ca_certs=secure.ca_path)
    for connection, server in ((plainly, plain), (safely, secure)):
        connection.request("GET", "/")
        assert connection.getresponse().json()["message"]
        assert connection.lease
        port = connection.sock.getsockname()[1]
        assert [row.source_port for row in client_rows(server.port) if row.state == "ESTABLISHED"] == [port]
        book = connection.lease.ledger
        connection.close()

        assert counts(book)[0] == 0


def test_module_functions(plain: Door) -> None:
    """connection_from_url() gives a pool for the URL, of the class that its scheme wants."""
    with ours.connection_from_url(plain.url + "/x", maxsize=3) as pool:
        assert pool.request("GET", "/").json() == BODY
    assert type(ours.connection_from_url("https://x.test")) is HTTPSConnectionPool
    assert ours.connection_from_url("https://x.test").port == 443
    assert ours.proxy_from_url("http://x.test:3128").proxy.port == 3128


def test_new_connections_fail_as_in_stock() -> None:
    """The message of a refused connection names the host and the reason, word for word."""
    with PoolManager(ledger=fewports.Ledger()) as http, urllib3.PoolManager() as stock:
        messages = []
        for manager in (http, stock):
            with pytest.raises(NewConnectionError) as raised:
                manager.request("GET", REFUSED, retries=False)
            messages.append(str(raised.value))

    assert messages[0] == messages[1]
    assert "Connection refused" in messages[0]
