"""fewports.requests beside stock requests, against real servers and proxies."""

from __future__ import annotations

import contextlib
import email
import io
import netrc
import os
import pickle
import pkgutil
import socket
import ssl
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import trustme
import urllib3
from faces import BODY, Aside, Door, counts, fresh_server, states, until
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import default_headers
from support.listeners import free_port
from support.sampler import Kernel
from support.scripted import Peer, Scripted
from support.servers import HttpProxy, SocksProxy, authority

import fewports
from fewports import _prepared
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


def test_a_streamed_response_that_is_dropped_gives_its_place_back(server: Door) -> None:
    """With pool_block=True nobody waits for the place of a response that was neither read nor closed."""
    with requests.Session() as session:
        mount(session, pool_maxsize=1, pool_block=True, ledger=fewports.Ledger())
        for _ in range(3):
            response = session.get(server.url + "/bytes?n=3000000", stream=True)
            aside = Aside(lambda: session.get(server.url + "/").json())
            del response

            assert aside.result(2) == BODY


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
        with contextlib.closing(Kernel()) as kernel:
            while any(aside.is_alive() for aside in asides):
                most = max(most, len(kernel.held((server.port,))))
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


# Below: what is left out comes to the same as with stock requests.


class Case(NamedTuple):
    """A request, and what is set on the session before it."""

    request: dict[str, Any]
    session: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["X-Signed"] = request.method or ""
    return request


def jar(**cookies: str) -> requests.cookies.RequestsCookieJar:
    made = requests.cookies.RequestsCookieJar()
    for name, value in cookies.items():
        made.set(name, value, domain="h.test", path="/")
    return made


def prepared(session: requests.Session, case: Case) -> object:
    """Return all that can be seen of a prepared request, or the exception."""
    for name, value in case.session.items():
        setattr(session, name, value)
    options = {"method": "GET", "url": "http://h.test/a", **case.request}
    try:
        made = session.prepare_request(requests.Request(**options))
    except Exception as error:
        return type(error), str(error)
    seen = {name: value for name, value in vars(made).items() if name not in ("headers", "_cookies", "body")}
    body = made.body if isinstance(made.body, (str, bytes, type(None))) else type(made.body)
    store = made.headers._store  # type: ignore[attr-defined]
    return type(made), seen, list(store.items()), type(store), type(made._cookies), list(map(repr, made._cookies)), body  # type: ignore[attr-defined]


URLS = [
    *("http://h.test", "http://h.test/", "http://h.test/a/b.json", "http://h.test/a/../b", "http://h.test/a/./b"),
    *(
        "http://h.test/.hidden",
        "http://h.test//a//b",
        "http://h.test/a?",
        "http://h.test/a?b=1&c=d",
        "http://h.test/a#f",
    ),
    *("HTTP://H.test/A", "http://h.test/%41%2f%zz", "http://h.test/ä?ö=ü", "http://bücher.test/", "http://h.test/a b"),
    *("http://h.test:80/", "http://h.test:0080/", "http://h.test:65535/", "http://h.test:65536/", "http://h.test:0/"),
    *("http://h.test:99999/a", "http://h.test:x/", "http://h.test:/a", "http://me:pw@h.test/a", "http://me@h.test/a"),
    *("http://[::1]:80/a", "http://[::1/a", "http://127.0.0.1:8080/a", "http://256.1.1.1/a", "http://1.2.3/a"),
    *("http://*h/a", "http://.h/a", "http://h./a", "http:///a", "//h.test/a", "h.test/a", "", "mailto:a@b", "foo://["),
    *(
        "http+unix://%2Fs/a",
        " http://h.test/a",
        "http://h.test/a ",
        "http://h.test/a;b",
        "http://h.test/a\\b",
        b"http://h/a",
    ),
    *(
        "http://h.test/a?b=[1]",
        "http://h.test/a?b='1'",
        "http://h.test/a??",
        "http://h_t.test/a",
        "http://h.test/~me/@x:1,2",
    ),
    *("http://h.test/a\n", "http://h.test?a=b", "https://h.test/a?x=//y:1", 5, None),
]
PREPARATIONS = [
    *(Case({"url": url}) for url in URLS),
    *(Case({"url": url, "params": {"p": ["1", "ä b"], "q": None}}) for url in URLS),
    *(
        Case({"params": params}, {"params": own})
        for params in (
            None,
            {},
            {"a": "~%41"},
            {"a": None},
            [("a", 1), ("a", 2)],
            "a=%41",
            b"a=b",
            {b"k": b"v"},
            {"a": 1.5},
        )
        for own in ({}, {"a": "s", "t": 1}, None, [("s", 1)])
    ),
    *(
        Case({"headers": headers}, {"headers": own})
        for headers in (
            *(None, {}, {"X": "1"}, {"accept": "a"}, {"ACCEPT": None}, {"X": b"1"}, {b"X": "1"}, {"X": 1}, {"X": " 1"}),
            *(
                {" X": "1"},
                {"X": "a\nb"},
                {"X": ""},
                {"a": "1", "A": "2"},
                {"N": "1"},
                {"Content-Length": "3"},
                [("X", "1")],
                "X",
            ),
            *(CaseInsensitiveDict({"x": "1"}), {"Cookie": "own=1"}, {"Authorization": "own"}, {"a": "\n", "A": "fine"}),
        )
        for own in (
            *(
                default_headers(),
                CaseInsensitiveDict(),
                {"x": "s", "Y": "t"},
                None,
                CaseInsensitiveDict({"N": None, "Z": "1"}),
            ),
            *(CaseInsensitiveDict({"x": "bad\n"}), CaseInsensitiveDict({b"x": "1"}), CaseInsensitiveDict({"X": 5})),
        )
    ),
    *(
        Case({"cookies": cookies}, {"cookies": own})
        for cookies in (None, {}, {"a": "1"}, jar(a="2"), CookieJar())
        for own in (jar(), jar(b="3", a="4"), CookieJar(), requests.cookies.cookiejar_from_dict({"c": "5"}))
    ),
    *(
        Case({"method": method, **body})
        for method in ("get", "POST", "Delete", "head", b"GET", 5, "gét")
        for body in (
            *({}, {"data": {"a": "ä"}}, {"data": "x"}, {"data": b""}, {"data": []}, {"data": iter(())}, {"data": ()}),
            *(
                {"json": {}},
                {"json": float("nan")},
                {"json": [1], "data": "x"},
                {"files": []},
                {"data": io.BytesIO(b"abc")},
            ),
        )
    ),
    *(
        Case({"auth": auth, "url": url}, {"auth": own})
        for auth in (None, ("a", "b"), signed, "", ())
        for own in (None, ("s", "t"), signed)
        for url in ("http://h.test/a", "http://me:pw@h.test/a", "http://h.test/@a")
    ),
    *(
        Case({"hooks": hooks}, {"hooks": own})
        for hooks in (None, {"response": print}, {"response": [print, len]}, {"nothing": print})
        for own in ({"response": []}, {"response": [repr]}, {}, None)
    ),
]


def test_prepared_requests_are_those_of_stock() -> None:
    """What prepare_request() makes of URLs, headers, cookies, bodies, auth and hooks, or raises, is the same."""
    different = []
    for case in PREPARATIONS:
        with requests.Session() as stock, Session() as session:
            expected = prepared(stock, copied(case))
            found = [prepared(session, copied(case)) for _ in range(2)]
        if found != [expected, expected]:
            different.append((case, expected, found))

    assert different == []
    assert len(PREPARATIONS) > 300


def copied(case: Case) -> Case:
    """Give each session its own things, where they can be copied."""
    try:
        return deepcopy(case)
    except TypeError:
        return case


@settings(max_examples=600, deadline=None)
@given(st.text("aZ09._~%/?#&=:@+, ;[]!'$é\\\t", max_size=12), st.text("az09.-_:A", max_size=6))
def test_any_url_is_prepared_as_by_stock(rest: str, host: str) -> None:
    """URLs that seem to need no change are those which stock requests does not change."""
    case = Case({"url": f"http://{host}/{rest}"})

    assert prepared(_ours, case) == prepared(_stock, case)


_stock, _ours = requests.Session(), Session()


def test_headers_that_change_on_the_session_count() -> None:
    """Headers set, replaced or removed between requests are sent as they are; those of one request stay with it."""
    with requests.Session() as stock, Session() as session:
        for change in (
            lambda one: one.headers.update({"X": "1"}),
            lambda one: prepared(one, Case({"headers": {"X": "2", "Y": "3"}})),
            lambda one: one.headers.update({"x": "1"}),
            lambda one: one.headers.pop("Accept"),
            lambda one: one.headers.update({"X": None}),
            lambda one: one.headers.update({"X": "no\nheader"}),
            lambda one: setattr(one, "headers", {"Z": "1"}),
        ):
            for one in (stock, session):
                change(one)

            assert prepared(session, Case({})) == prepared(stock, Case({}))
        one_request = session.prepare_request(requests.Request("GET", "http://h.test/"))
        one_request.headers["Z"] = "2"

        assert session.prepare_request(requests.Request("GET", "http://h.test/")).headers["Z"] == "1"


VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable that requests looks at."""
    for name in [*VARIABLES, *map(str.upper, VARIABLES), "NETRC"]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_environment_counts_as_it_is_now(bare: pytest.MonkeyPatch) -> None:
    """Proxies, exceptions from them and bundles that are set, changed or removed count from the next request on."""
    steps: list[tuple[str, str | None]] = [
        *(("HTTP_PROXY", "http://p:1"), ("http_proxy", "http://p:2"), ("no_proxy", "h.test,10.0.0.0/8,x.test:81")),
        *(("NO_PROXY", "*"), ("no_proxy", None), ("NO_PROXY", None), ("ftp_proxy", "f"), ("HTTP_PROXY", None)),
        *(("http_proxy", None), ("all_proxy", "socks5://s"), ("ftp_proxy", None), ("REQUESTS_CA_BUNDLE", "/a")),
        *(
            ("CURL_CA_BUNDLE", "/b"),
            ("REQUESTS_CA_BUNDLE", ""),
            ("all_proxy", None),
            ("Odd_Proxy", "o"),
            ("Odd_Proxy", None),
        ),
    ]
    urls = [
        "http://h.test/a",
        "https://h.test/",
        "http://10.1.2.3/",
        "http://x.test:81/b",
        "mailto:a",
        "http://[::1]/a",
    ]
    asked = [
        *({}, {"proxies": {"http": "http://own"}}, {"proxies": {"no_proxy": "h.test"}}, {"proxies": None}),
        *({"verify": False}, {"verify": True, "stream": True}, {"verify": "/c", "cert": "/d"}),
    ]
    with requests.Session() as stock, Session() as session:
        for name, value in [("NOTHING", "1"), *steps]:
            if value is None:
                bare.delenv(name)
            else:
                bare.setenv(name, value)
            for url in urls:
                for options in asked:
                    told = []
                    for one in (stock, session):
                        given = deepcopy({"proxies": {}, "stream": None, "verify": None, "cert": None} | options)
                        for own in ({}, {"https": "http://session"}):
                            one.proxies = own
                            try:
                                made = one.merge_environment_settings(url, **given)
                                told.append((made, type(made["proxies"]), given))
                            except AttributeError as error:  # requests before 2.33 and no proxies at all
                                told.append((type(error), str(error), given))

                    assert told[2:] == told[:2]
        bare.setattr("os.environ", {"HTTP_PROXY": "http://plain:1"})
        found = [one.merge_environment_settings("http://h.test/a", {}, None, None, None) for one in (stock, session)]
        assert found[0] == found[1]
        session.trust_env = False
        assert session.merge_environment_settings("http://h.test/a", {}, None, None, None)["proxies"] == {
            "https": "http://session"
        }


@pytest.mark.parametrize("settled", [_prepared.SETTLED, -(10**15)], ids=["just now", "long ago"])
def test_netrc_counts_as_it_is_now(bare: pytest.MonkeyPatch, tmp_path: Path, settled: int) -> None:
    """A .netrc that is made, changed, broken, removed or elsewhere counts from the next request on."""
    bare.setattr(_prepared, "SETTLED", settled)
    bare.setenv("HOME", str(tmp_path))
    home, other = tmp_path / ".netrc", tmp_path / "other"

    def write(path: Path, text: str) -> Callable[[], object]:
        return lambda: path.write_text(text)

    urls = ["http://h.test/a", "http://x.test:81/a", "http://h.test", "http://me:pw@h.test/a", "http://H.test/ä"]
    with requests.Session() as stock, Session() as session:
        for change in (
            lambda: None,
            write(tmp_path / "_netrc", "machine h.test login under password score"),
            write(home, "machine h.test login me password one"),
            write(home, "machine h.test login me password second"),
            write(home, "machine h.test account"),
            write(home, "default login any password one"),
            lambda: home.unlink(),
            write(other, "machine x.test login x password y"),
            lambda: bare.setenv("NETRC", str(other)),
            lambda: other.chmod(0),
            lambda: other.chmod(0o600),
            lambda: bare.setenv("NETRC", "~/other"),
            lambda: bare.setenv("NETRC", ""),
            lambda: bare.delenv("NETRC"),
            lambda: bare.setenv("HOME", "/"),
            lambda: bare.delenv("HOME"),
        ):
            change()
            for url in urls:
                expected = prepared(stock, Case({"url": url}))

                assert [prepared(session, Case({"url": url})) for _ in range(2)] == [expected] * 2
        session.trust_env = False
        bare.setenv("NETRC", str(other))
        assert "Authorization" not in session.prepare_request(requests.Request("GET", "http://x.test/")).headers


def test_netrc_is_read_once(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A .netrc that has not changed is not read again for the same host."""
    bare.setattr(_prepared, "SETTLED", -(10**15))
    (tmp_path / "netrc").write_text("machine h.test login me password one\nmachine i.test login me password two")
    bare.setenv("NETRC", str(tmp_path / "netrc"))
    reads: list[object] = []
    bare.setattr(netrc.netrc, "__init__", counted(netrc.netrc.__init__, reads))
    with Session() as session:
        for host in ("h.test", "i.test", "h.test:81", "h.test", "i.test"):
            made = session.prepare_request(requests.Request("GET", f"http://{host}/"))
            assert "Authorization" in made.headers

    assert len(reads) == 2


def counted(function: Callable[..., Any], calls: list[object]) -> Callable[..., Any]:
    def calling(*arguments: Any, **options: Any) -> Any:
        calls.append((function.__name__, sorted(options)))
        return function(*arguments, **options)

    return calling


def seen(response: requests.Response) -> object:
    """Return what can be seen of a response and of those before it."""
    store = response.headers._store  # type: ignore[attr-defined]
    headers = [(key, pair) for key, pair in store.items() if key != "date"]
    told = response.json() if response.content.startswith(b"{") else response.content
    return (
        *(type(response), response.status_code, response.reason, response.url, response.encoding, response.ok),
        *(type(response.headers), type(store), headers, list(map(repr, response.cookies)), type(response.cookies)),
        *({**told, "client": None} if isinstance(told, dict) else told, [seen(step) for step in response.history]),
        *(list(response.request.headers.items()), response.next and (response.next.url, response.next.method)),
        *(type(response.elapsed), response.elapsed.total_seconds() > 0, response.raw.closed, sorted(vars(response))),
    )


def test_responses_are_those_of_stock(server: Door) -> None:
    """Headers, cookies, encoding, history, next and the rest of responses are the same, on the way of redirects too."""
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/", {}),
        ("GET", "/nothing", {}),
        ("GET", "/headers", {"auth": ("a", "b"), "headers": {"X": "1"}, "params": {"p": 1}}),
        ("GET", "/cookies?a=1&b=2", {}),
        ("GET", "/headers", {}),
        ("GET", "/bytes?n=10", {"stream": True}),
        ("GET", "/redirect?to=/cookies%3Fc%3D3#frag", {}),
        ("GET", "/redirect?n=3&to=/headers", {"allow_redirects": False, "auth": ("a", "b")}),
        ("GET", f"/redirect?to={elsewhere}/headers", {"auth": ("a", "b"), "cookies": {"own": "1"}}),
        ("GET", "/redirect?to=/headers", {"headers": {"Authorization": "kept"}}),
        ("POST", "/redirect?code=307&to=/headers", {"data": io.BytesIO(b"again")}),
        ("POST", "/redirect?code=303&to=/headers", {"json": [1]}),
        ("HEAD", "/redirect?to=/headers", {}),
        ("GET", "/redirect?to=//nowhere.invalid:1/", {"allow_redirects": False}),
        ("GET", "/", {"timeout": 5}),
        ("GET", "/", {"timeout": (5, None)}),
        ("OPTIONS", "/headers", {"data": "x"}),
    ]
    with requests.Session() as stock, Session(ledger=fewports.Ledger()) as session:
        for one in (stock, session):
            one.max_redirects = 5
        for method, path, options in calls:
            first, second = (
                one.request(method, server.url + path, **copied(Case(options)).request) for one in (stock, session)
            )

            assert seen(second) == seen(first)
            assert pickle.loads(pickle.dumps(second)).headers == second.headers
            assert list(map(repr, session.cookies)) == list(map(repr, stock.cookies))


def test_a_body_is_held_once(server: Door) -> None:
    """The content of a response takes its own size of memory at most: it is read in one piece, not in joined ones."""
    peaks = []
    for kind in (requests.Session, Session):
        with kind() as session:
            session.get(server.url + "/bytes?n=10")
            tracemalloc.start()
            try:
                assert len(session.get(server.url + "/bytes?n=8000000").content) == 8000000
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()

    assert peaks[1] < 9e6
    assert peaks[0] > 15e6, "requests itself holds it once now"


def broken_bodies() -> dict[str, bytes]:
    """Bodies that end too early, or are not what they say."""
    head = b"HTTP/1.1 200 OK\r\n"
    return {
        "short": head + b"Content-Length: 100000\r\n\r\n" + bytes(50000),
        "none": head + b"Content-Length: 10\r\n\r\n",
        "short chunk": head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        "no chunk": head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab",
        "not gzip": head + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        "close": head + b"\r\nabc",
        "silence": head + b"Content-Length: 10\r\n\r\nabc",
    }


@pytest.mark.parametrize("how", broken_bodies())
@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_bodies_fail_as_with_stock(how: str, reset: bool) -> None:
    """A body that ends too early or is not what it says fails as with stock requests, and leaves the same."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(broken_bodies()[how])
        if how == "silence":
            peer.end()
        elif reset:
            peer.reset()

    def attempt(session: requests.Session, url: str) -> object:
        made: list[requests.Response] = []
        adapter: Any = session.get_adapter(url)
        build = adapter.build_response
        adapter.build_response = lambda *given: made.append(build(*given)) or made[-1]
        try:
            found: object = session.get(url, timeout=0.5 if how == "silence" else 5).content
        except requests.RequestException as error:
            found = type(error), type(error.args[0])
        return found, made[0]._content_consumed, made[0]._content, made[0].raw.read()

    with Scripted(serve, serve) as door, requests.Session() as stock, Session() as ours:
        assert attempt(ours, door.url) == attempt(stock, door.url)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("framing", ["Content-Length: 100000\r\n", "Transfer-Encoding: chunked\r\n", ""])
def test_a_broken_record_is_an_ssl_error(framing: str, stream: bool) -> None:
    """What TLS cannot read in the middle of a body is the error that it is with stock requests."""
    keys = authority("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.chain, keys.key)

    def serve(peer: Peer) -> None:
        peer.secure(context)
        peer.sock.recv(65536)
        body = bytes(20000)
        if framing.startswith("T"):
            body = b"ffff\r\n" + body
        peer.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n".encode() + body)
        os.write(peer.sock.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
        peer.sock.recv(1)

    told: list[object] = []
    with Scripted(serve, serve) as door:
        for kind in (requests.Session, Session):
            with kind() as session:
                session.verify = keys.ca_path
                with pytest.raises(requests.RequestException) as caught:
                    _ = session.get(door.url.replace("http:", "https:"), timeout=5, stream=stream).content
                told.append((type(caught.value), type(caught.value.args[0])))

    assert told[0] == told[1]


def test_hooks_see_what_they_see_with_stock(server: Door) -> None:
    """Hooks of the session and of the request get the same responses and options, and may replace the response."""
    told: list[list[object]] = [[], []]
    for one, calls in zip((requests.Session(), Session(ledger=fewports.Ledger())), told, strict=True):

        def note(response: requests.Response, calls: list[object] = calls, **options: Any) -> None:
            calls.append((response.status_code, response.url, sorted(options.items(), key=str)))

        def another(response: requests.Response, calls: list[object] = calls, **options: Any) -> requests.Response:
            made = requests.Response()
            made.status_code, made._content, made.raw = 299, b"made", response.raw
            return made

        with one:
            one.hooks["response"].append(note)
            one.get(server.url + "/redirect?n=2", timeout=5)
            calls.append(one.get(server.url + "/", hooks={"response": [note, another]}).status_code)

    assert told[0] == told[1]
    assert 299 in told[1]


ADAPTER_METHODS = (
    *("send", "get_connection_with_tls_context", "cert_verify", "request_url", "add_headers", "build_response"),
    *("init_poolmanager", *(["build_connection_pool_key_attributes"] if requests.__version__ != "2.32.2" else [])),
)
SESSION_METHODS = (
    *("request", "prepare_request", "merge_environment_settings", "send", "get_adapter", "resolve_redirects"),
    *("get_redirect_target", "rebuild_auth", "rebuild_proxies", "rebuild_method", "should_strip_auth"),
)


@pytest.mark.parametrize("name", ADAPTER_METHODS)
@pytest.mark.parametrize("way", ["subclass", "instance", "base", "mixin"])
def test_an_adapters_method_that_is_replaced_is_called(
    server: Door, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a subclass, a class beside ours, on one adapter or in requests itself: called with what stock gives it."""
    told: list[list[object]] = []
    for kind in (HTTPAdapter, Adapter):
        calls: list[object] = []
        with monkeypatch.context() as patch, requests.Session() as session:
            if way == "base":
                patch.setattr(HTTPAdapter, name, counted(getattr(HTTPAdapter, name), calls))
                adapter = kind()
            elif way == "mixin":
                Beside = type("Beside", (HTTPAdapter,), {name: counted(getattr(HTTPAdapter, name), calls)})
                adapter = type("Mine", (kind, Beside) if kind is Adapter else (Beside,), {})()
            elif way == "subclass":
                adapter = type("Mine", (kind,), {name: counted(getattr(kind, name), calls)})()
            else:
                adapter = kind()
                patch.setattr(adapter, name, counted(getattr(adapter, name), calls))
            session.mount("http://", adapter)
            for _ in range(2):
                assert session.get(server.url + "/", timeout=5).json() == BODY
        told.append(calls)

    if name == "init_poolmanager":  # ours does not use that of requests
        assert bool(told[0]) == (way != "instance")
        assert len(told[1]) == (way == "subclass")
    else:
        assert told[0] == told[1]
        assert len(told[1]) == 2


@pytest.mark.parametrize("name", SESSION_METHODS)
@pytest.mark.parametrize("way", ["subclass", "instance", "base", "mixin"])
def test_a_sessions_method_that_is_replaced_is_called(
    server: Door, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a subclass, a class beside ours, on one session or in requests itself: called as by stock."""
    told: list[set[str]] = []
    for kind in (requests.Session, Session):
        calls: list[object] = []
        home = requests.sessions.SessionRedirectMixin if name in vars(requests.sessions.SessionRedirectMixin) else None
        with monkeypatch.context() as patch:
            if way == "base":
                patch.setattr(home or requests.Session, name, counted(getattr(requests.Session, name), calls))
                if name == "send":
                    patch.setattr(requests.Session, name, counted(requests.Session.send, calls))
                session = kind()
            elif way == "mixin":
                Beside = type("Beside", (requests.Session,), {name: counted(getattr(requests.Session, name), calls)})
                session = type("Mine", (kind, Beside) if kind is Session else (Beside,), {})()
            elif way == "subclass":
                session = type("Mine", (kind,), {name: counted(getattr(kind, name), calls)})()
            else:
                session = kind()
                patch.setattr(session, name, counted(getattr(session, name), calls))
            with session:
                assert session.get(server.url + "/").json() == BODY
                assert session.get(server.url + "/redirect", auth=("a", "b")).json() == BODY
        told.append({str(call) for call in calls})

    assert told[0] == told[1]
    assert told[1]


@pytest.mark.parametrize(
    "where",
    [
        *("requests.models.PreparedRequest.prepare_url", "requests.models.PreparedRequest.prepare_headers"),
        *("requests.models.PreparedRequest.prepare_cookies", "requests.models.PreparedRequest.prepare_body"),
        *("requests.sessions.get_netrc_auth", "requests.sessions.get_environ_proxies", "requests.utils.getproxies"),
        *("requests.adapters.TimeoutSauce", "requests.adapters.Response", "requests.sessions.merge_setting"),
        *("requests.sessions.PreparedRequest", "requests.utils.proxy_bypass", "requests.sessions.preferred_clock"),
        *("requests.models.Response.iter_content", "urllib3.HTTPResponse.stream"),
    ],
)
def test_a_function_of_requests_that_is_replaced_is_called(
    server: Door, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever replaces what requests calls for each request is called with ours, too."""
    calls: list[object] = []
    home, _, name = where.rpartition(".")
    owner = pkgutil.resolve_name(home)
    original = getattr(owner, name)
    made = (
        type(name, (original,), {"__init__": counted(original.__init__, calls)}) if isinstance(original, type) else None
    )
    monkeypatch.setattr(owner, name, made or counted(original, calls))
    with Session(ledger=fewports.Ledger()) as session:
        assert session.get(server.url + "/", timeout=5).json() == BODY

    assert calls


def test_pools_are_found_as_by_stock(server: Door) -> None:
    """The same pool serves the same place; other settings, a cleared or full manager, or a patched one give another."""
    other = server.url.replace("127.0.0.1", "localhost")
    for adapter in (HTTPAdapter(pool_connections=1), Adapter(pool_connections=1)):

        def pool(url: str, verify: Any = True, adapter: HTTPAdapter = adapter, **options: Any) -> object:
            request = requests.Request("GET", url).prepare()
            return adapter.get_connection_with_tls_context(request, verify, **options)

        first = pool(server.url)
        assert pool(server.url + "/x?y") is first
        assert pool(server.url, proxies={}) is first
        assert pool(server.url, proxies={"https": "http://127.0.0.1:9"}) is first
        assert pool(server.url, proxies={"http": "http://127.0.0.1:9"}) is not first
        assert pool(server.url, cert="/c") is not pool(server.url)
        assert pool(server.url, False) is not pool(server.url)
        again = pool(server.url)
        assert again is not first
        assert pool(other) is not again
        assert pool(server.url) is not again
        kept = pool(server.url)
        adapter.poolmanager.connection_pool_kw["socket_options"] = []
        bare = pool(server.url)
        assert bare is not kept
        adapter.poolmanager.connection_pool_kw["socket_options"].append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        assert pool(server.url) is not bare
        kept = pool(server.url)
        adapter.poolmanager.clear()
        assert pool(server.url) is not kept
        with pytest.raises(requests.exceptions.InvalidURL):
            adapter.get_connection_with_tls_context(with_url("http://h.test:65536/"), True)
        adapter.close()


def with_url(url: str) -> requests.PreparedRequest:
    request = requests.Request("GET", "http://h.test/").prepare()
    request.url = url
    return request


def test_a_bundle_that_turns_into_a_directory(tmp_path: Path) -> None:
    """verify= is looked at each time: a file of certificates and a directory are different settings of a pool."""
    place, request = tmp_path / "ca", requests.Request("GET", "https://h.test/").prepare()
    for adapter in (HTTPAdapter(), Adapter()):
        place.write_text("")
        file = adapter.get_connection_with_tls_context(request, str(place))
        assert (file.ca_certs, file.ca_cert_dir) == (str(place), None)  # type: ignore[attr-defined]
        assert adapter.get_connection_with_tls_context(request, str(place)) is file
        place.unlink()
        place.mkdir()
        directory = adapter.get_connection_with_tls_context(request, str(place))
        assert (directory.ca_certs, directory.ca_cert_dir) == (None, str(place))  # type: ignore[attr-defined]
        place.rmdir()
        adapter.close()


def test_request_urls_are_those_of_stock() -> None:
    """What goes into the request line is the same, with a proxy and without."""
    ours, stock = Adapter(), HTTPAdapter()
    for url in (
        "http://h.test/a?",
        "http://h/a??",
        "http://h/a?b#c",
        "http://h/a;b",
        "http://h",
        "http://u@h/a",
        "HTTP://h/a",
    ):
        for proxies in ({}, None, {"http": "http://p:1"}, {"http": "socks5://p"}, {"https": "http://p:1"}):
            assert ours.request_url(with_url(url), proxies) == stock.request_url(with_url(url), proxies)
    assert ours.request_url(with_url("http://h/a?b"), {}) == "/a?b"


def test_cookies_of_responses_that_never_were_on_a_connection() -> None:
    """A response that was made by hand, as libraries for tests do, may tell its cookies in another place."""
    original = type(
        "Made", (), {"msg": email.message_from_string("Set-Cookie: a=1\n\n"), "isclosed": lambda made: True}
    )()
    told = []
    for session in (requests.Session(), Session()):
        adapter, request = session.get_adapter("http://"), requests.Request("GET", "http://h.test/").prepare()

        def send(request: requests.PreparedRequest, adapter: Any = adapter, **options: Any) -> requests.Response:
            raw = urllib3.HTTPResponse(io.BytesIO(), status=200, preload_content=False, original_response=original)
            made: requests.Response = adapter.build_response(request, raw)
            return made

        with pytest.MonkeyPatch.context() as patch, session:
            patch.setattr(adapter, "send", send)
            told.append((session.send(request, proxies={}).cookies.get_dict(), session.cookies.get_dict()))

    assert told[0] == told[1] == ({"a": "1"}, {"a": "1"})


def test_wrong_times_are_refused_as_by_stock(server: Door) -> None:
    """Time-outs that are none raise what they raise in stock requests."""
    for timeout in (0, -1, True, "soon", (1, 2, 3)):
        with requests.Session() as stock, Session(ledger=fewports.Ledger()) as session:
            expected = outcome(stock, "GET", server.url + "/", timeout=timeout)

            assert outcome(session, "GET", server.url + "/", timeout=timeout) == expected
    with Session(ledger=fewports.Ledger()) as session, pytest.raises(requests.exceptions.Timeout):
        session.get(server.url + "/slow?s=0.5", timeout=1e-9)
    for adapter in (HTTPAdapter(), Adapter()):  # what comes first is said first
        with pytest.raises(requests.exceptions.InvalidURL):
            adapter.send(with_url("http://h.test:65536/"), timeout=-1)


def test_threads_of_one_session_get_their_own(server: Door) -> None:
    """Threads that share a session, and change its headers meanwhile, each send theirs and get their answer."""
    with Session(ledger=fewports.Ledger(), pool_maxsize=8) as session:

        def work(number: int) -> int:
            for turn in range(30):
                session.headers[f"X-{number}"] = str(turn)
                url = f"{server.url}/headers?n={number}.{turn}"
                told = session.get(url, headers={"X-Own": f"{number}.{turn}"}, params={"p": "ä"}).json()
                headers = dict(told["headers"])
                assert (headers["X-Own"], headers[f"X-{number}"]) == (f"{number}.{turn}", str(turn))
                assert told["query"] == {"n": f"{number}.{turn}", "p": "ä"}
            return number

        for number in range(8):
            session.headers[f"X-{number}"] = ""
        asides = [Aside(lambda number=number: work(number)) for number in range(8)]

        assert [aside.result(30) for aside in asides] == list(range(8))
