"""What TLS says when it ends a connection is what the caller is told, over HTTP/2 as over HTTP/1.1."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
import requests
import trustme
import urllib3
from faces import counts
from http2_peer import data, head
from support.scripted import Peer, Scripted
from support.scripted_h2 import H2Peer, ScriptedH2
from support.servers import authority
from test_last_words import Parting
from urllib3.exceptions import MaxRetryError, SSLError
from ways import Way

import fewports
import fewports.requests
from fewports.events import ConnectionOpened
from fewports.httpx import AsyncTransport, Transport
from fewports.testing import Captured

PATIENT = 5.0  # seconds
TEXTS = {"none": "tlsv13 alert certificate required", "a stranger's": "tlsv1 alert unknown ca"}
LIBRARIES = {"httpx": httpx, "httpx2": httpx2}


@pytest.fixture(params=["threads", "asyncio", "uvloop", "trio"])
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


@pytest.fixture(params=TEXTS)
def shown(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str | None, str]:
    """A file with the client's certificate, and what the server says to it."""
    if request.param == "none":
        return None, TEXTS["none"]
    path = tmp_path / "client.pem"
    trustme.CA().issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path), TEXTS[request.param]


@contextlib.contextmanager
def wary(*protocols: str, closes: bool = False) -> Iterator[Scripted]:
    """Give a server that wants a certificate of its own CA, and says so after our side of the handshake.

    Then it reads all that comes and leaves the end to us, unless it *closes*.
    """
    keys = authority("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.chain, keys.key)
    context.load_verify_locations(keys.ca_path)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(protocols)

    def refuse(peer: Peer) -> None:
        sock = context.wrap_socket(peer.sock, server_side=True, do_handshake_on_connect=False)
        with pytest.raises(ssl.SSLError):
            sock.do_handshake()
        peer.sock = socket.socket(fileno=sock.detach())
        peer.sock.settimeout(2 * PATIENT)
        if not closes:
            peer.end()

    with Scripted(*[refuse] * 5) as server:
        yield server


def secure(server: Scripted) -> str:
    return server.url.replace("http:", "https:") + "/"


def trusting(certificate: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority("127.0.0.1").ca_path)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("closes", [False, True], ids=["it reads on", "it closes"])
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_certificate_is_refused(way: Way, shown: tuple[str | None, str], protocol: str, closes: bool) -> None:
    """The caller gets the SSLError that stock urllib3 raises over HTTP/1.1, without waiting for the server to close."""
    certificate, text = shown
    options = {"ca_certs": authority("127.0.0.1").ca_path, "cert_file": certificate, "timeout": PATIENT}
    with (
        wary("http/1.1") as server,  # stock may miss what was said before a close, where it meets that when it sends
        urllib3.PoolManager(**options) as stock,
        pytest.raises(SSLError, match=text) as theirs,
    ):
        stock.request("GET", secure(server), retries=False)

    book = fewports.Ledger()

    async def case() -> None:
        async with way.manager(ledger=book, **options) as http:
            with pytest.raises(SSLError) as ours:
                await http.get(secure(server), retries=False)

            assert str(ours.value) == str(theirs.value)
            with pytest.raises(MaxRetryError, match=text) as tried:
                await http.request("POST", secure(server), body=b"x" * 10_000, retries=1)
            assert isinstance(tried.value.reason, SSLError)

    with wary(protocol, closes=closes) as server:
        way.run(case)

        assert server.accepted == 3
    assert counts(book)[:2] == (0, 0)


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_certificate_is_refused_to_requests(shown: tuple[str | None, str], protocol: str) -> None:
    """It is an SSLError of requests, as from a session of its own."""
    certificate, text = shown
    for kind in (requests.Session, fewports.requests.Session):
        with wary(protocol if kind is not requests.Session else "http/1.1") as server, kind() as session:
            session.verify, session.cert, session.trust_env = authority("127.0.0.1").ca_path, certificate, False
            with pytest.raises(requests.exceptions.SSLError, match=text):
                session.get(secure(server), timeout=PATIENT)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_certificate_is_refused_to_httpx(
    way: Way, library: str, shown: tuple[str | None, str], protocol: str
) -> None:
    """It is a ReadError, as with the library's own transport on threads: no attempt to connect, to be made again."""
    certificate, text = shown
    lib: ModuleType = LIBRARIES[library]
    context = trusting(certificate)
    with (
        wary(protocol) as server,
        lib.Client(verify=context, http2=protocol == "h2", trust_env=False) as stock,
        pytest.raises(lib.ReadError, match=text),
    ):
        stock.get(secure(server))

    async def case() -> None:
        options: dict[str, Any] = {"verify": context, "http2": "auto", "retries": 3}
        if way.name == "threads":
            with lib.Client(transport=Transport(**options)) as client, pytest.raises(lib.ReadError, match=text):
                client.get(secure(server), timeout=PATIENT)
        else:
            async with lib.AsyncClient(transport=AsyncTransport(**options)) as client:
                with pytest.raises(lib.ReadError, match=text):
                    await client.get(secure(server), timeout=PATIENT)

    with wary(protocol) as server:
        way.run(case)

        assert server.accepted == 1


def break_off(peer: H2Peer) -> None:
    """Say something that is no record: TLS ends here, and the connection stays open."""
    socket.socket.send(peer.peer.sock, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    while socket.socket.recv(peer.peer.sock, 1 << 16):
        pass


@pytest.mark.parametrize("where", ["head", "body"])
def test_tls_breaks_in_a_response(way: Way, where: str) -> None:
    """All on the connection get an SSLError each, whose text is what TLS said; the next request dials anew."""

    def breaking(peer: H2Peer) -> None:
        peer.greet()
        asked = peer.requests(3)
        if where == "body":
            for each in asked:
                peer.send(head(each.stream, (":status", "200"), ("content-length", "100")), data(each.stream, b"x"))
        break_off(peer)

    def serving(peer: H2Peer) -> None:
        peer.greet()
        peer.serve()

    events = Captured()
    book = fewports.Ledger()
    book.subscribe(events)

    async def case() -> None:
        async with way.manager(ledger=book, ca_certs=server.ca_path, timeout=PATIENT, retries=False) as http:

            async def ask() -> bytes:
                return (await http.request("POST", server.url + "/", body=b"x")).data

            raised = await way.all([ask] * 3)

            assert [type(error) for error in raised] == [SSLError] * 3
            assert len({str(error) for error in raised}) == 1
            assert "wrong version number" in str(raised[0])
            assert len({id(error.args[0]) for error in raised}) == 3
            assert (await http.get(server.url + "/after")).data == b"/after"
            assert len(events.of(ConnectionOpened)) == 2

    with ScriptedH2(breaking, serving, tls=True) as server:
        way.run(case)


def test_tls_breaks_before_a_reset(way: Way) -> None:
    """What TLS says is heard also by who met the reset when it was sending."""
    parting = Parting(way)

    def breaking(peer: H2Peer) -> None:
        peer.greet()
        peer.request()
        plain = H2Peer(Peer(socket.socket(fileno=peer.peer.sock.detach())))
        parting.leave(plain, b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def case() -> None:
        async with way.manager(ca_certs=server.ca_path, timeout=PATIENT, retries=False) as http:
            with pytest.raises(SSLError, match="wrong version number"):
                await http.request("POST", server.url + "/", body=parting.body())

    with ScriptedH2(breaking, tls=True) as server:
        way.run(case)
