"""create_connection() in the hands of any TCP client: sockets, files, TLS, the standard library's own protocols."""

from __future__ import annotations

import asyncio
import gc
import http.client
import os
import smtplib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from faces import BODY, Aside, Door, counts, fresh_server, states, until
from support.listeners import free_port, listen
from support.sampler import held

import fewports
from fewports import create_connection
from fewports.events import CloseReason, ConnectionClosed
from fewports.gated import GatedSocket, GatedSSLSocket, pass_on
from fewports.testing import Captured


@pytest.fixture
def server() -> Iterator[Door]:
    with fresh_server() as running:
        yield running


@pytest.fixture
def secure() -> Iterator[Door]:
    with fresh_server(tls=True) as running:
        yield running


@pytest.fixture
def book() -> fewports.Ledger:
    return fewports.Ledger()


def ask(sock: socket.socket) -> bytes:
    """Send a request whose response the server ends with its FIN, and return the response."""
    sock.sendall(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while data := sock.recv(1000):
        answer += data
    return answer


def test_closing_gives_the_port_back(server: Door, book: fewports.Ledger) -> None:
    """close(), with, and a close by the peer give the port back; ours stays in TIME_WAIT, the peer's does not."""
    with create_connection(server.addresses[0], ledger=book) as sock:
        assert isinstance(sock, socket.socket)
        assert counts(book) == (1, 0, 0)
        assert ask(sock).startswith(b"HTTP/1.1 200")
    assert until(lambda: book.usage() == [])
    sock = create_connection(server.addresses[0], ledger=book)
    sock.close()
    sock.close()

    assert counts(book) == (0, 0, 1)
    assert until(lambda: states(server.port) == {"TIME_WAIT": 1})


def test_the_garbage_collector_gives_the_port_back(server: Door, book: fewports.Ledger) -> None:
    """A socket that nobody refers to is closed with the ResourceWarning of a stock socket, and told as dropped."""
    events = Captured()
    book.subscribe(events)
    sockets = [create_connection(server.addresses[0], ledger=book)]
    with pytest.warns(ResourceWarning, match=r"unclosed <fewports\.gated\.GatedSocket fd="):
        sockets.clear()

    assert counts(book) == (0, 0, 1)
    assert [event.reason for event in events.of(ConnectionClosed)] == [CloseReason.DROPPED]
    assert until(lambda: states(server.port) == {"TIME_WAIT": 1})


def test_a_file_keeps_the_port(server: Door, book: fewports.Ledger) -> None:
    """After makefile() the port is held until socket and file are closed, in either order."""
    for first_the_file in (False, True):
        sock = create_connection(server.addresses[0], ledger=book)
        file = sock.makefile("rwb")
        (file if first_the_file else sock).close()
        assert counts(book)[0] == 1
        assert states(server.port)["ESTABLISHED"] == 1
        (sock if first_the_file else file).close()

        assert counts(book)[0] == 0
        assert until(lambda: "ESTABLISHED" not in states(server.port))


def test_a_detached_descriptor_counts_until_the_kernel_lets_go(server: Door, book: fewports.Ledger) -> None:
    """detach() leaves the port counted as active while the descriptor is open, whoever has it."""
    sock = create_connection(server.addresses[0], ledger=book)
    number = sock.detach()
    del sock
    gc.collect()
    assert counts(book) == (1, 0, 0)
    taken = socket.socket(fileno=number)
    assert ask(taken).startswith(b"HTTP/1.1 200")
    assert counts(book) == (1, 0, 0)
    taken.close()

    assert until(lambda: book.usage() == [])
    number = create_connection(server.addresses[0], ledger=book).detach()
    os.close(number)
    assert until(lambda: counts(book) == (0, 0, 1))


def test_a_detached_tls_socket_counts_until_the_kernel_lets_go() -> None:
    """detach() of a TLS socket of ours leaves the port counted as active while the descriptor is open."""
    book = fewports.Ledger()
    with fresh_server(tls=True) as server:
        context = ssl.create_default_context(cafile=server.ca_path)
        sock = create_connection(server.addresses[0], ledger=book)
        assert isinstance(sock, GatedSocket)
        sock.passing = True
        tls = context.wrap_socket(sock, server_hostname="localhost")
        pass_on(sock, tls)
        assert isinstance(tls, GatedSSLSocket)
        number = tls.detach()
        del sock, tls
        gc.collect()

        assert counts(book) == (1, 0, 0)
        os.close(number)
        assert until(lambda: book.usage() == [])


def test_the_budget_counts_what_others_have(server: Door) -> None:
    """A detached descriptor holds its place in the budget; when it is closed by the peer's FIN a waiter is served."""
    book = fewports.Ledger(fewports.Budget(1, wait=5))
    taken = socket.socket(fileno=create_connection(server.addresses[0], ledger=book).detach())
    waiter = Aside(lambda: create_connection(server.addresses[0], ledger=book).close())
    assert until(lambda: any(usage.waiting for usage in book.usage()))
    assert ask(taken)
    assert waiter.is_alive()
    taken.close()

    waiter.result()


def test_tls_by_the_user(secure: Door, book: fewports.Ledger) -> None:
    """A socket wrapped by SSLContext.wrap_socket() counts until the connection is gone."""
    context = ssl.create_default_context(cafile=secure.ca_path)
    sock = create_connection(secure.addresses[0], ledger=book)
    with context.wrap_socket(sock, server_hostname="localhost") as wrapped:
        assert sock.fileno() == -1
        sock.close()
        assert counts(book) == (1, 0, 0)
        assert ask(wrapped).startswith(b"HTTP/1.1 200")
        assert counts(book) == (1, 0, 0)
    assert until(lambda: counts(book)[0] == 0)
    sock = create_connection(secure.addresses[0], ledger=book)
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
    assert until(lambda: counts(book)[0] == 0)


@pytest.mark.parametrize("tls", [False, True])
def test_http_client(tls: bool, book: fewports.Ledger) -> None:
    """http.client works on it through its own hook, with keep-alive and with TLS."""
    with fresh_server(tls=tls) as server:
        if tls:
            context = ssl.create_default_context(cafile=server.ca_path)
            client: http.client.HTTPConnection = http.client.HTTPSConnection("localhost", server.port, context=context)
        else:
            client = http.client.HTTPConnection(server.host, server.port, timeout=5)
        client._create_connection = lambda *args: create_connection(*args, ledger=book)  # type: ignore[attr-defined]
        for _ in range(3):
            client.request("GET", "/bytes?n=100000")
            assert len(client.getresponse().read()) == 100_000
        assert counts(book) == (1, 0, 0)
        assert server.stats()["accepted"] == 1
        client.close()

        assert until(lambda: counts(book)[0] == 0)


class Mail(smtplib.SMTP):
    """smtplib's own way to open its connection otherwise."""

    book: fewports.Ledger

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return create_connection((host, port), timeout, self.source_address, ledger=self.book)


def test_smtplib(book: fewports.Ledger) -> None:
    """smtplib sends a mail over it, and quit() gives the port back."""
    Mail.book = book

    def serve() -> bytes:
        connection, _ = listener.accept()
        got = b""
        with connection, connection.makefile("rwb") as stream:
            stream.write(b"220 ready\r\n")
            stream.flush()
            for line in stream:
                got += line
                if line.strip().lower() == b"data":
                    stream.write(b"354 go on\r\n")
                elif line.strip().lower() == b"quit":
                    stream.write(b"221 bye\r\n")
                elif b"\r\ndata\r\n" not in got or line.strip() == b".":
                    stream.write(b"250 ok\r\n")
                stream.flush()
        return got

    with listen(["127.0.0.1"])[0] as listener:
        serving = Aside(serve)
        with Mail("127.0.0.1", listener.getsockname()[1], timeout=5) as mail:
            mail.sendmail("a@x.test", ["b@x.test"], "Subject: ports\n\nfew")
            assert counts(book) == (1, 0, 0)

        assert b"Subject: ports" in serving.result()  # type: ignore[operator]
        assert counts(book)[0] == 0


def test_asyncio_on_its_socket(server: Door, book: fewports.Ledger) -> None:
    """A stream of asyncio over the socket gives the port back when it is closed."""

    async def talk() -> bytes:
        sock = create_connection(server.addresses[0], ledger=book)
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        assert counts(book) == (1, 0, 0)
        writer.close()
        await writer.wait_closed()
        return answer

    assert asyncio.run(talk()).startswith(b"HTTP/1.1 200")
    assert until(lambda: book.usage() == [])


@pytest.mark.parametrize("timeout", [None, 0.1, "default"])
def test_the_timeout_is_the_sockets(server: Door, book: fewports.Ledger, timeout: float | str | None) -> None:
    """timeout= is the socket's afterwards; without it the default of the socket module; recv() raises TimeoutError."""
    given = {} if timeout == "default" else {"timeout": timeout}
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.15)
    try:
        with (
            socket.create_connection(server.addresses[0], **given) as stock,  # type: ignore[arg-type]
            create_connection(server.addresses[0], **given, ledger=book) as sock,  # type: ignore[arg-type]
        ):
            assert sock.gettimeout() == stock.gettimeout()
            if sock.gettimeout():
                with pytest.raises(TimeoutError):
                    sock.recv(1)
    finally:
        socket.setdefaulttimeout(before)


@pytest.mark.parametrize(
    ("address", "options"),
    [
        (("127.0.0.1", 9), {}),
        (("localhost", 9), {"all_errors": True}),
        (("no.such.host.invalid", 80), {}),
        (("no.such.host.invalid", 80), {"all_errors": True}),
        (("127.0.0.1", 9), {"source_address": ("10.1.2.3", 0)}),
        (("127.0.0.1", 9), {"source_address": ("10.1.2.3", 0), "all_errors": True}),
        (("127.0.0.1", 9), {"source_address": ("10.1.2.3", 1234)}),
        (("127.0.0.1", 70000), {}),
        (("127.0.0.1", "no-such-service"), {}),
    ],
)
def test_failures_are_those_of_the_socket_module(address: Any, options: dict[str, Any], book: fewports.Ledger) -> None:
    """What socket.create_connection() raises is raised here: the same class, errno, and group of errors."""
    raised = []
    for connect in (socket.create_connection, create_connection):
        given = options if connect is socket.create_connection else {**options, "ledger": book}
        with pytest.raises((OSError, ExceptionGroup, ValueError, OverflowError)) as caught:
            connect(address, **given)
        error = caught.value
        inner = sorted(repr(type(one)) for one in getattr(error, "exceptions", ()))
        raised.append((type(error), getattr(error, "errno", None), inner))

    assert raised[0] == raised[1]
    assert book.usage() == []


def test_all_errors_has_one_for_each_address(monkeypatch: pytest.MonkeyPatch, book: fewports.Ledger) -> None:
    """With all_errors= the group has the failure of each address of a name; a bad time-out opens nothing."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", 9)) for number in (1, 2, 3)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ExceptionGroup, match="create_connection failed") as raised:
        create_connection(("three.test", 9), ledger=book, all_errors=True)

    assert [type(error) for error in raised.value.exceptions] == [ConnectionRefusedError] * 3
    del found[1:]
    with pytest.raises(ValueError, match="out of range"):
        create_connection(("one.test", 9), -1, ledger=book)
    assert book.usage() == []


def test_addresses(server: Door, book: fewports.Ledger) -> None:
    """Names, service names, IPv6, a source address with and without port, several sources: as asked for."""
    with create_connection(("localhost", str(server.port)), ledger=book) as sock:
        assert sock.getpeername()[1] == server.port
    six = listen(["::1"])[0]
    with six, create_connection(six.getsockname()[:2], ledger=book) as sock:
        assert sock.getpeername() == six.getsockname()
    for source in (("127.0.0.41", 0), ("127.0.0.41", free_port(["127.0.0.41"]))):
        with create_connection(server.addresses[0], None, source, ledger=book) as sock:
            assert sock.getsockname()[0] == source[0]
            assert source[1] in (0, sock.getsockname()[1])
    several = [
        create_connection(server.addresses[0], ledger=book, sources=["127.0.0.42", "127.0.0.43"]) for _ in "1234"
    ]
    found = {space.source: number for space, number in held(server.port).items()}
    assert (found["127.0.0.42"], found["127.0.0.43"]) == (2, 2)
    for sock in several:
        sock.close()
    with pytest.raises(fewports.InvalidOption):
        create_connection(server.addresses[0], source_address=("127.0.0.1", 0), sources=["127.0.0.1"])


def test_it_shares_the_ledger_of_the_process(server: Door) -> None:
    """Sockets and requests draw on one budget: an idle connection gives way to a socket that wants its port."""
    book = fewports.Ledger(fewports.Budget(1, wait=2))
    with fewports.PoolManager(ledger=book) as manager:
        assert manager.request("GET", server.url + "/").json() == BODY
        with create_connection(server.addresses[0], ledger=book) as sock:
            assert ask(sock)
            assert counts(book) == (1, 0, 0)
        assert manager.request("GET", server.url + "/").json() == BODY
