"""TLS over memory: what it keeps, what it answers, and a peer that negotiates anew in the middle of a request."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from support import need
from urllib3.exceptions import SSLError
from ways import Way

from fewports.aio.seam import Tls
from fewports.aio.session import RECORD, Session, Sessions

CA = trustme.CA()
LARGE = 2_000_000
ROUNDS = 10
HANDSHAKE = 22  # type of record, RFC 5246, appendix A.1


class Server:
    """The other end of a session."""

    def __init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        CA.issue_cert("localhost").configure_cert(context)
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.into, self.out, server_side=True)

    def shake(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.object.do_handshake()

    def seal(self, data: bytes) -> bytes:
        self.object.write(data)
        return self.out.read()

    def open(self, data: bytes) -> bytes:
        self.into.write(data)
        pieces = []
        with suppress(ssl.SSLWantReadError):
            while piece := self.object.read(RECORD):
                pieces.append(piece)
        return b"".join(pieces)


def pair() -> tuple[Session, Server]:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    session, server = Session(Tls(context, "localhost")), Server()
    done = False
    while not done:
        done = session.shake()
        server.into.write(session.out.read())
        server.shake()
        session.take_in(server.out.read())
    return session, server


@pytest.mark.parametrize("size", [1, RECORD, 65536, 65537, 262144, LARGE])
def test_all_comes_through(size: int) -> None:
    """Whatever is put in at once comes out on the other side, in pieces of whatever size."""
    session, server = pair()
    data = os.urandom(size)

    assert server.open(session.seal(data)) == data
    assert session.open(server.seal(data)) == data
    sealed = server.seal(data[:RECORD])
    assert b"".join(session.open(sealed[at : at + 1]) for at in range(len(sealed))) == data[:RECORD]


def test_what_an_idle_session_keeps() -> None:
    """Little, however much went through it at once: OpenSSL gives nothing back of what a BIO has grown to."""
    sessions = [pair() for _ in range(40)]
    sealed = [server.seal(bytes(262_000)) for _, server in sessions]
    before = _memory()
    for (session, _), data in zip(sessions, sealed, strict=True):
        session.open(data)
        session.seal(bytes(LARGE))

    assert (_memory() - before) / len(sessions) < 300_000


def test_both_sessions_have_something_to_answer() -> None:
    """Of TLS within TLS the words of both go out: those of the inner one within the outer."""
    (outer, outer_server), (inner, inner_server) = pair(), pair()
    sessions = Sessions()
    sessions.add(outer)
    sessions.add(inner)
    for session, word in ((inner, b"inner"), (outer, b"outer")):
        session.object.write(word)
    seen = outer_server.open(bytes(sessions.reply()))

    assert seen[:5] == b"outer"
    assert inner_server.open(seen[5:]) == b"inner"
    assert not outer.out.pending + inner.out.pending
    assert sessions.reply() == b""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_server_negotiates_anew_in_the_middle_of_a_request(loop: str, tmp_path: Path) -> None:
    """With TLS 1.2 it may, as Apache does for a client certificate: what is to be sent meanwhile goes out after it."""
    way = Way(loop)

    async def case() -> None:
        with openssl(tmp_path) as (server, port), Relay(port) as relay:

            async def body() -> AsyncIterator[bytes]:
                yield b"first\n"
                await way.until(lambda: "first" in (tmp_path / "log").read_text(errors="replace"))
                relay.counting = True
                server.write(b"R\n")
                if loop == "trio":  # which hears while it cannot send
                    while not relay.handshakes:
                        yield bytes(1_000_000)
                assert await way.until(lambda: relay.handshakes)
                yield b"in the middle\n"
                yield bytes(100_000)
                yield b"\nlast\n"
                await way.until(lambda: "last" in (tmp_path / "log").read_text(errors="replace"))
                server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\n")

            async with way.manager(retries=False, timeout=10.0, ca_certs=str(tmp_path / "ca.pem"), http2=False) as http:
                response = await http.request("POST", f"https://localhost:{relay.port}/", body=body())

                assert (response.status, response.data) == (200, b"ok")
                log = (tmp_path / "log").read_text(errors="replace")
                assert log.index("first") < log.index("in the middle") < log.index("last")

    way.run(case)


@pytest.mark.parametrize("body", [None, b"some"], ids=["nothing", "a body"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_server_wants_a_certificate(loop: str, body: bytes | None, tmp_path: Path) -> None:
    """With TLS 1.3 it says so after the handshake; that is the error, also where it has closed before the request."""
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    CA.issue_cert("localhost").configure_cert(context)
    way = Way(loop)

    def refuse(listener: socket.socket) -> None:
        for _ in range(ROUNDS):
            sock, _ = listener.accept()
            with sock, suppress(OSError), context.wrap_socket(sock, server_side=True):
                pass

    async def case(port: int) -> None:
        async with way.manager(retries=False, timeout=10.0, ca_certs=str(tmp_path / "ca.pem"), http2=False) as http:
            for _ in range(ROUNDS):
                with pytest.raises(SSLError, match="certificate required"):
                    await http.request("POST", f"https://localhost:{port}/", body=body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = threading.Thread(target=refuse, args=(listener,))
        refusing.start()
        way.run(case, listener.getsockname()[1])
        refusing.join(10)


@contextmanager
def openssl(folder: Path) -> Iterator[tuple[Any, int]]:
    """Run a server of OpenSSL; give what it reads its commands from, and its port. It writes to *folder*/log."""
    CA.cert_pem.write_to_path(str(folder / "ca.pem"))
    CA.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    command = [need.program("openssl"), "s_server", "-tls1_2", "-accept", "127.0.0.1:0"]
    command += ["-cert", str(folder / "server.pem"), "-key", str(folder / "server.pem")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, bufsize=0)
    try:
        deadline = time.monotonic() + 10
        while "ACCEPT" not in (text := (folder / "log").read_text()) or "\n" not in text.partition("ACCEPT")[2]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process.stdin, int(text.partition("ACCEPT")[2].split("\n")[0].rpartition(":")[2])
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


class Relay:
    """Passes on what one client and a server say; the answer to a handshake that is begun anew takes its time."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._to = port
        self.counting = False
        self.handshakes = 0  # records of the client, since they are counted
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(10)

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with closing(client), closing(socket.create_connection(("127.0.0.1", self._to))) as server:
            answers = threading.Thread(target=self._answer, args=(server, client))
            answers.start()
            with client.makefile("rb") as records:
                while len(header := records.read(5)) == 5:
                    kind, length = struct.unpack("!B2xH", header)
                    self.handshakes += self.counting and kind == HANDSHAKE
                    server.sendall(header + records.read(length))
            server.shutdown(socket.SHUT_RDWR)
            answers.join(10)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if self.handshakes == 1:
                    time.sleep(0.1)  # on its way
                client.sendall(data)


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
