"""What a peer said before it reset the connection is heard, also by who met the reset when it was sending."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from http2_faces import serving
from http2_peer import data, goaway, head
from support.scripted_h2 import H2Peer, ScriptedH2
from urllib3.exceptions import ProtocolError
from ways import Way

PATIENT = 10.0  # seconds


@pytest.fixture(params=["threads", "asyncio", "uvloop", "trio"])
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


class Parting:
    """A server that has its last word, and resets, while the client's thread stands still in the body of a request."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.begun, self._asked, self._stands, self._gone = (threading.Event() for _ in range(4))

    def leave(self, peer: H2Peer, *words: bytes) -> None:
        """Say *words* while the client stands still, and be gone when it goes on."""
        self._asked.set()
        assert self._stands.wait(PATIENT)
        _say_and_reset(peer, b"".join(words))
        self._gone.set()

    def body(self) -> Any:
        """Return the pieces of a body; the last ones meet the reset."""
        return self._pieces() if self._way.name == "threads" else self._pieces_awaited()

    def _pieces(self) -> Iterator[bytes]:
        yield b"x"
        assert self._asked.wait(PATIENT)
        yield from self._rest()

    async def _pieces_awaited(self) -> AsyncIterator[bytes]:
        yield b"x"
        assert await self._way.until(self._asked.is_set, PATIENT)
        for piece in self._rest():
            yield piece

    def _rest(self) -> Iterator[bytes]:
        self._stands.set()
        assert self._gone.wait(PATIENT)  # no loop turns meanwhile
        for _ in range(3):
            yield bytes(10_000)


def options(server: ScriptedH2, **more: Any) -> dict[str, Any]:
    return {"retries": False, "timeout": PATIENT, **({"ca_certs": server.ca_path} if server.ca_path else {}), **more}


@pytest.mark.parametrize("size", [10, 50_000])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_an_answer_before_a_reset(way: Way, tls: bool, size: int) -> None:
    """An answer that is here as a whole is returned, although the rest of the request cannot be sent any more."""
    parting = Parting(way)
    answer = bytes(size)

    def refusing(peer: H2Peer) -> None:
        peer.peer.sock.recv(1000)
        words = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % size
        parting.leave(peer, words, answer)

    async def case() -> None:
        with ScriptedH2(refusing, tls=tls, alpn="http/1.1") as server:
            async with way.manager(**options(server)) as http:
                response = await http.request("POST", server.url + "/", body=parting.body())

                assert (response.status, response.data) == (413, answer)

    way.run(case)


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_an_answer_to_a_large_body(way: Way, tls: bool, kept: bool) -> None:
    """The same for a body that is there as a whole, on a new connection or a kept one."""

    def refusing(peer: H2Peer) -> None:
        if kept:
            peer.peer.request()
            peer.peer.answer()
        peer.peer.sock.recv(1000)
        _say_and_reset(peer, b"HTTP/1.1 413 Too Large\r\nContent-Length: 6\r\n\r\nenough")

    async def case() -> None:
        with ScriptedH2(refusing, tls=tls, alpn="http/1.1") as server:
            async with way.manager(**options(server)) as http:
                if kept:
                    assert (await http.get(server.url)).data == b"ok"
                response = await http.request("POST", server.url + "/", body=bytes(20_000_000))

                assert (response.status, response.data) == (413, b"enough")

    way.run(case)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_an_answer_and_goaway_before_a_reset(way: Way, tls: bool) -> None:
    """A response that is here is returned, what GOAWAY says was not looked at is repeated, and what was begun fails."""
    parting = Parting(way)

    def leaving(peer: H2Peer) -> None:
        peer.greet(streams=100)
        peer.answer(peer.request().stream)
        body = peer.request().stream
        parting.begun.set()
        answered, last, unseen = sorted(asked.stream for asked in peer.requests(3))
        assert body < answered
        assert last < unseen
        parting.leave(peer, head(answered), data(answered, b"in time", end=True), goaway(last))

    async def case() -> None:
        with ScriptedH2(leaving, serving, tls=tls) as server:
            async with way.manager(**options(server, http2=True)) as http:

                async def ask() -> bytes:
                    assert await way.until(parting.begun.is_set, PATIENT)
                    return (await http.request("POST", server.url + "/again", body=b"x")).data

                async def upload() -> bytes:
                    return (await http.request("POST", server.url + "/upload", body=parting.body())).data

                assert (await http.get(server.url)).data == b"ok"
                *asked, uploaded = await way.all([ask, ask, ask, upload])

                assert sorted(map(_told, asked)) == ["/again", "ProtocolError", "in time"]
                assert isinstance(uploaded, ProtocolError)

    way.run(case)


def _say_and_reset(peer: H2Peer, words: bytes) -> None:
    peer.peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else some of it may never leave
    peer.send(words)
    peer.peer.reset()


def _told(outcome: bytes | Exception) -> str:
    return outcome.decode() if isinstance(outcome, bytes) else type(outcome).__name__
