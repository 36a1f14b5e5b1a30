"""fewports.requests beside stock requests, against real servers and proxies."""

from __future__ import annotations

import contextlib
import pickle
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
from faces import BODY, Aside, Door, counts, fresh_server, states, until
from requests.adapters import HTTPAdapter
from support.listeners import free_port
from support.servers import HttpProxy, SocksProxy

import fewports
from fewports.events import CloseReason, ConnectionClosed
from fewports.ledger.shared import shared_ledger
from fewports.requests import Adapter, Session, mount
from fewports.testing import Captured


@pytest.fixture(scope="module")
def server() -> Iterator[Door]:
    with fresh_server() as running:
        yield running


@pytest.fixture(scope="module")
def secure() -> Iterator[Door]:
    with fresh_server(tls=True) as running:
        yield running


@pytest.fixture
def configured() -> Iterator[None]:
    yield
    fewports.configure(budget="80%", sources="system")


def outcome(session: requests.Session, method: str, url: str, **options: Any) -> object:
    try:
        with session.request(method, url, **options) as response:
            return response.status_code, response.content, [step.status_code for step in response.history]
    except Exception as error:
        return type(error)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "get": ("GET", "/", {}),
    "parameters": ("GET", "/bytes", {"params": {"n": 5000}}),
    "head": ("HEAD", "/", {}),
    "json": ("POST", "/echo", {"json": {"a": [1, 2]}}),
    "form": ("POST", "/echo", {"data": {"a": "b"}}),
    "chunked": ("GET", "/chunked?n=30000", {}),
    "redirects": ("GET", "/redirect?n=4", {}),
    "redirect of a POST": ("POST", "/redirect?to=/echo", {"data": "x", "allow_redirects": True}),
    "too many redirects": ("GET", "/redirect?n=40", {}),
    "cookies": ("GET", "/cookies?a=1", {"cookies": {"b": "2"}}),
    "not found": ("GET", "/nothing", {}),
    "streamed": ("GET", "/bytes?n=300000", {"stream": True}),
    "closed": ("GET", "/close", {}),
    "killed": ("GET", "/drop", {}),
    "half a body": ("GET", "/half", {}),
    "too late": ("GET", "/slow?s=0.3", {"timeout": 0.05}),
    "time-outs apart": ("GET", "/slow?s=0.3", {"timeout": (1, 0.05)}),
}


@pytest.mark.parametrize("case", CASES)
def test_outcomes_are_those_of_stock(server: Door, case: str) -> None:
    """A Session gives the response or the exception of stock requests, and holds no port in use after it."""
    method, path, options = CASES[case]
    book = fewports.Ledger()
    with requests.Session() as stock, Session(ledger=book) as session:
        expected = outcome(stock, method, server.url + path, **options)

        assert outcome(session, method, server.url + path, **options) == expected
        assert counts(book)[0] == 0


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9", "http://no.such.host.invalid", "http://", "ftp://x", "http://*x", "https://127.0.0.1:9"],
)
def test_failures_to_connect_are_those_of_stock(url: str) -> None:
    """Nobody listening, unknown and bad names, unknown schemes: the exception of stock requests."""
    book = fewports.Ledger()
    with requests.Session() as stock, Session(ledger=book) as session:
        assert outcome(session, "GET", url) == outcome(stock, "GET", url)
        assert book.usage() == []


def test_retries_of_the_adapter(server: Door) -> None:
    """max_retries= is urllib3's Retry, as in HTTPAdapter."""
    retry = urllib3.Retry(3, status_forcelist=[503], backoff_factor=0)
    with Session(max_retries=retry, ledger=fewports.Ledger()) as session:
        before = server.stats()["requests"]
        with pytest.raises(requests.exceptions.RetryError):
            session.get(server.url + "/status?code=503")

        assert server.stats()["requests"] == before + 4


def test_a_stream_holds_its_port_until_it_is_read(server: Door) -> None:
    """iter_content() to the end, close() and the end of a with give back what a streamed response held."""
    book = fewports.Ledger()
    with Session(ledger=book) as session:
        response = session.get(server.url + "/bytes?n=500000", stream=True)
        pieces = response.iter_content(1000)
        read = len(next(pieces))
        assert counts(book) == (1, 0, 0)
        assert read + sum(map(len, pieces)) == 500_000
        assert counts(book) == (0, 1, 0)
        with session.get(server.url + "/bytes?n=3000000", stream=True) as response:
            next(response.iter_content(1000))
        assert counts(book)[:2] == (0, 0)
        response = session.get(server.url + "/chunked?n=3000", stream=True)
        assert sum(len(line) for line in response.iter_lines()) == 3000


def test_mount_serves_a_session_of_stock(server: Door, secure: Door) -> None:
    """mount() has a requests.Session send all through one Adapter, which it returns; http and https."""
    session = requests.Session()
    book = fewports.Ledger()
    adapter = mount(session, ledger=book, pool_maxsize=3)
    assert session.get(server.url + "/").json() == BODY
    assert session.get(secure.url + "/", verify=secure.ca_path).json() == BODY

    assert session.get_adapter("https://x") is session.get_adapter("http://x") is adapter
    assert counts(book) == (0, 2, 0)
    session.close()
    assert until(lambda: book.usage() == [])


def test_adapter_arguments_are_those_of_httpadapter() -> None:
    """pool_connections, pool_maxsize, max_retries and pool_block come by position, and do what they do there."""
    stock, ours = HTTPAdapter(3, 4, 5, True), Adapter(3, 4, 5, True)
    for adapter in (stock, ours):
        assert adapter.max_retries.total == 5
        assert adapter.poolmanager.connection_pool_kw["maxsize"] == 4
        assert adapter.poolmanager.connection_pool_kw["block"] is True
        assert adapter.poolmanager.pools._maxsize == 3
    with pytest.raises(fewports.InvalidOption):
        Adapter(budget=0)
    with pytest.raises(TypeError):
        Adapter(3, 4, 5, True, 500)  # type: ignore[call-arg]


def test_sessions_and_adapters_are_pickled(server: Door) -> None:
    """A pickled Session works elsewhere, with the same budget and sources; one with its own ledger is refused."""
    budget = fewports.Budget(1, when_full="refuse")
    session = Session(budget=budget, sources=["127.0.0.9"], idle_limit=7, max_retries=2)
    session.headers["X-Mine"] = "yes"
    for copy in (
        pickle.loads(pickle.dumps(session)),
        mounted(pickle.loads(pickle.dumps(session.get_adapter("http://")))),
    ):
        with copy:
            told = copy.get(server.url + "/headers").json()
            assert told["client"][0] == "127.0.0.9"
            adapter = copy.get_adapter("http://")
            assert (adapter.gate.idle_limit, adapter.max_retries.total) == (7, 2)
            with copy.get(server.url + "/", stream=True), pytest.raises(fewports.BudgetExhausted):
                copy.get(server.url + "/")
    assert pickle.loads(pickle.dumps(session)).headers["X-Mine"] == "yes"
    session.close()
    with pytest.raises(fewports.InvalidOption, match="a ledger is one process's"):
        pickle.dumps(Session(ledger=fewports.Ledger()))


def mounted(adapter: Adapter) -> requests.Session:
    session = requests.Session()
    session.mount("http://", adapter)
    return session


def test_verify(secure: Door) -> None:
    """verify= takes a CA or False, on the request or the session, with the exceptions and warnings of requests."""
    book = fewports.Ledger()
    with Session(ledger=book) as session:
        for verify in (secure.ca_path, False):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert session.get(secure.url + "/", verify=verify).json() == BODY
            assert [warning.category.__name__ for warning in caught] == ([] if verify else ["InsecureRequestWarning"])
        with pytest.raises(requests.exceptions.SSLError):
            session.get(secure.url + "/")
        with pytest.raises(OSError, match="Could not find the TLS certificate file"):
            session.get(secure.url + "/", cert="/no/such.pem")
        session.trust_env, session.verify = False, secure.ca_path
        assert session.get(secure.url + "/").json() == BODY

        assert counts(book)[0] == 0


def test_a_client_certificate(tmp_path: Path) -> None:
    """cert= is shown to a server that wants one; without it the request fails as with stock requests."""
    authority, place, pem = trustme.CA(), tmp_path / "ca.pem", tmp_path / "client.pem"
    authority.cert_pem.write_to_path(str(place))
    authority.issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 the refusal comes after the handshake

    def serve() -> list[str]:
        seen: list[str] = []
        with socket.create_server(("127.0.0.1", port)) as listener:
            ready.set()
            while len(seen) < 2:
                with listener.accept()[0] as raw, contextlib.suppress(ssl.SSLError):
                    sock = context.wrap_socket(raw, server_side=True)
                    seen.append(dict(sock.getpeercert()["subjectAltName"])["DNS"])  # type: ignore[index, arg-type]
                    sock.recv(5000)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    sock.close()
        return seen

    port, ready = free_port(["127.0.0.1"]), threading.Event()
    serving = Aside(serve)
    assert ready.wait(5)
    url = f"https://localhost:{port}"
    for session in (requests.Session(), Session(ledger=fewports.Ledger())):
        with session:
            assert outcome(session, "GET", url, verify=str(place)) is requests.exceptions.SSLError
            assert session.get(url, verify=str(place), cert=str(pem)).status_code == 200
    assert serving.result() == ["client.test"] * 2


@pytest.mark.filterwarnings("ignore:Unverified")  # requests does not verify an https proxy of http URLs
@pytest.mark.parametrize("kind", ["http", "https", "socks5", "socks5h", "with credentials"])
def test_proxies(server: Door, secure: Door, kind: str) -> None:
    """proxies= sends http and https through HTTP and SOCKS proxies; the port held is the one to the proxy."""
    if kind.startswith("http"):
        proxy: HttpProxy | SocksProxy = HttpProxy(tls=kind == "https")
    else:
        proxy = SocksProxy(credentials=("me", "s:ret") if kind == "with credentials" else None)
    book = fewports.Ledger()
    with proxy, Session(ledger=book) as session:
        url = proxy.url.replace("socks5:", "socks5h:") if kind == "socks5h" else proxy.url
        url = url.replace("//", "//me:s%3Aret@") if kind == "with credentials" else url
        session.proxies = {"http": url, "https": url}
        session.verify = secure.ca_path
        session.trust_env = False  # $REQUESTS_CA_BUNDLE would count for more
        for _ in range(2):
            assert session.get(server.url.replace("127.0.0.1", "localhost") + "/").json() == BODY
            assert session.get(secure.url.replace("127.0.0.1", "localhost") + "/").json() == BODY

        assert counts(book) == (0, 2, 0)
        assert {use.account for use in book.usage()} == {f"127.0.0.1 -> {proxy.host}:{proxy.port}"}
        assert proxy.stats()["accepted"] == 2
        if kind == "socks5h":  # the name goes to the proxy
            assert proxy.stats()["tunnels"] == [f"localhost:{server.port}", f"localhost:{secure.port}"]
    assert until(lambda: book.usage() == [])


def test_no_proxy_and_proxy_errors(server: Door) -> None:
    """A proxy where nobody listens, and one that refuses credentials, raise ProxyError or ConnectionError as stock."""
    with SocksProxy(credentials=("a", "b")) as guarded:
        for url in ("http://127.0.0.1:9", "socks5://127.0.0.1:9", f"socks5://x:y@127.0.0.1:{guarded.port}"):
            with requests.Session() as stock, Session(ledger=fewports.Ledger()) as session:
                options = {"proxies": {"http": url}}
                expected = outcome(stock, "GET", server.url, **options)

                assert outcome(session, "GET", server.url, **options) == expected
                assert issubclass(expected, requests.ConnectionError)  # type: ignore[arg-type]
                assert counts(session.get_adapter("http://").gate.ledger)[0] == 0


def test_a_full_budget_is_a_connection_error(server: Door) -> None:
    """BudgetExhausted is ours and a requests.ConnectionError, has the request and the numbers, and can be pickled."""
    book = fewports.Ledger(fewports.Budget(1, when_full="refuse"))
    with Session(ledger=book, max_retries=3) as session:
        with session.get(server.url + "/", stream=True), pytest.raises(requests.ConnectionError) as raised:
            session.get(server.url + "/x")
        error = raised.value
        copy = pickle.loads(pickle.dumps(error))

        assert isinstance(error, fewports.BudgetExhausted)
        assert error.request is not None
        assert error.request.url == server.url + "/x"
        assert (error.usage.active, error.usage.budget) == (1, 1)
        assert (type(copy), copy.usage, str(copy)) == (type(error), error.usage, str(error))


def test_no_usable_source_is_a_connection_error(server: Door) -> None:
    """NoUsableSource is a requests.ConnectionError, too, names the reasons, and can be pickled."""
    with Session(sources=["10.1.2.3"], ledger=fewports.Ledger()) as session:
        with pytest.raises(requests.ConnectionError) as raised:
            session.get(server.url + "/")
        copy = pickle.loads(pickle.dumps(raised.value))

        assert isinstance(raised.value, fewports.NoUsableSource)
        assert copy.reasons == {"10.1.2.3": "it is no address of this host"}


@pytest.mark.usefixtures("configured")
def test_all_sessions_share_the_budget_of_the_process() -> None:
    """Fifty sessions, and a manager beside them, hold no more than what configure() set, all together."""
    book = fewports.configure(budget=fewports.Budget(5, wait=20))
    with fresh_server() as server:
        sessions = [Session() for _ in range(50)]
        http = fewports.PoolManager()
        asides = [Aside(lambda s=session: s.get(server.url + "/slow?s=0.01").status_code) for session in sessions]
        asides.append(Aside(lambda: http.request("GET", server.url + "/slow?s=0.01").status))
        most = 0
        while any(aside.is_alive() for aside in asides):
            most = max(most, sum(states(server.port).values()))
            time.sleep(0.005)
        assert [aside.result() for aside in asides] == [200] * 51

        assert most <= 5
        assert shared_ledger() is book
        assert 1 <= counts(book)[1] <= 5
        for session in sessions:
            session.close()
        http.clear()


@pytest.mark.usefixtures("configured")
def test_a_sessions_own_budget_is_within_that_of_the_process() -> None:
    """A session's budget= bounds it further, never wider; configure() sets the sources, too."""
    fewports.configure(budget=fewports.Budget(3, wait=0.5), sources=["127.0.0.21", "127.0.0.22"])
    with fresh_server() as server, Session(budget=2) as small, Session(budget=100) as big:
        kept = [small.get(server.url + "/", stream=True) for _ in range(2)]
        began = time.monotonic()
        own = fewports.Budget(2, wait=0.1)
        with Session(budget=own) as other:
            assert other.get(server.url + "/").json() == BODY
        kept.append(big.get(server.url + "/", stream=True))
        with pytest.raises(fewports.BudgetExhausted) as raised:
            big.get(server.url + "/")

        assert raised.value.usage.scope == "ledger"
        assert raised.value.usage.budget == 3
        assert time.monotonic() - began < 2
        assert set(server.stats()["sources"]) == {"127.0.0.21", "127.0.0.22"}
        for response in kept:
            response.close()


def test_a_session_that_is_closed_leaves_nothing() -> None:
    """close() closes the idle connections of its adapter and of its proxies, once each, without TIME_WAIT."""
    book = fewports.Ledger()
    events = Captured()
    book.subscribe(events)
    with fresh_server() as server, HttpProxy() as proxy:
        with Session(ledger=book) as session:
            session.get(server.url + "/")
            session.get(server.url + "/", proxies={"http": proxy.url})
            assert counts(book) == (0, 2, 0)

        assert until(lambda: book.usage() == [])
        assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.POOL_CLOSED] * 2
        assert states(server.port) == {}
        assert session.get(server.url + "/").json() == BODY
        session.close()


def test_requests_look_like_those_of_stock(server: Door) -> None:
    """The server gets the same request line and headers, in the same order."""
    with requests.Session() as stock, Session(ledger=fewports.Ledger()) as session:
        first, second = (one.put(server.url + "/headers?b=1", json=[1], headers={"X": "y"}) for one in (stock, session))

    assert {**first.json(), "client": ""} == {**second.json(), "client": ""}
